"""The commands of docs/cluster.md run as written."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs.conftest import free_ports

ROOT = Path(__file__).parents[2]


def commands(page, heading):
    """Return the first shell block below a heading."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").partition(f"## {heading}\n")[2]
    return text.partition("```sh\n")[2].partition("```")[0]


def kill_ray(folder):
    """Kill the processes of the Ray with its files in a folder."""
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if process.name.isdigit() and str(folder).encode() in command and int(process.name) != os.getpid():
            os.kill(int(process.name), signal.SIGKILL)


@pytest.mark.ray
@pytest.mark.slow
def test_commands_submit_follow_and_fetch_a_job(tmp_path):
    lines = commands("cluster.md", "A job on a Ray cluster")
    port, dashboard, client_server = free_ports(3)
    sessions = Path(f"/tmp/ray-{port}")
    # Other Ray instances of this machine use the default ports.
    options = (
        f"--port={port} --dashboard-port={dashboard} --ray-client-server-port={client_server} --num-cpus=2 "
        f"--temp-dir={sessions} --dashboard-agent-listen-port=0 --dashboard-agent-grpc-port=0 --metrics-export-port=0"
    )
    assert lines.count("ray start --head\n") == lines.count("http://127.0.0.1:8265") == 1
    lines = lines.replace("ray start --head\n", f"ray start --head {options} >/dev/null 2>&1\n")
    lines = lines.replace("127.0.0.1:8265", f"127.0.0.1:{dashboard}")
    inherited = ("PATH", "LANG", "PYTHONPATH", "CI")
    environment = {name: os.environ[name] for name in inherited if name in os.environ} | {
        "HOME": str(tmp_path), "COLUMNS": "160", "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),
    }  # fmt: skip
    try:
        done = subprocess.run(
            ["bash", "-e", "-c", lines], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
            check=False,
        )  # fmt: skip
    finally:
        kill_ray(sessions)
    (tmp_path / "printed.txt").write_text(done.stdout, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    job = re.search(r"^(exercise2\.softmax-\d{8}-\d{6}-[0-9a-f]{8}): (pending|running)$", done.stdout, re.MULTILINE)
    assert job, done.stdout
    assert "72/72 trials" in done.stdout
    assert re.search(rf"^\d\d+ files in runs/{job[1]}$", done.stdout, re.MULTILINE)
    assert re.search(r"^exercise2\.softmax: 72 finished; best \w+ 0\.\d+ at optimizer=", done.stdout, re.MULTILINE)
    assert (tmp_path / ".ray" / "auth_token").stat().st_size > 30
