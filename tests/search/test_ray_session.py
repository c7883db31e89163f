"""Connection to Ray: rejected addresses, retries, processes and ports of a local Ray."""

import os
import re
import shutil
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tune_hpc.errors import ClusterError
from tune_hpc.search.ray_session import ray_session


@pytest.fixture
def free_port(monkeypatch):
    """Return a free port of this machine, in a process that is not connected to Ray."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_address_without_a_server_is_rejected_at_once(free_port):
    with pytest.raises(ClusterError, match=f"no Ray cluster at 127.0.0.1:{free_port}: .*check the address"):
        ray_session(f"127.0.0.1:{free_port}").__enter__()


def test_address_of_the_environment_is_the_default(free_port, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port}")
    with pytest.raises(ClusterError, match=str(free_port)):
        ray_session().__enter__()


def test_impossible_port_is_rejected(free_port):
    with pytest.raises(ClusterError, match=r"no Ray cluster at 127\.0\.0\.1:99999999"):
        ray_session("127.0.0.1:99999999").__enter__()


@pytest.mark.parametrize("num_late", [1, 2])
def test_start_on_a_busy_machine_is_retried_once(num_late, monkeypatch, tmp_path):
    tried, ended = [], []

    def start(**settings):
        tried.append(settings["address"])
        if len(tried) <= num_late:
            raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", start)
    monkeypatch.setattr("ray.shutdown", lambda: ended.append(True))
    node = SimpleNamespace(get_session_dir_path=lambda: str(tmp_path / "session"))
    monkeypatch.setattr("ray._private.worker.global_worker.node", node, raising=False)
    (tmp_path / "session").mkdir()
    if num_late == 1:
        with ray_session():
            assert tried == ["local", "local"]
        assert not (tmp_path / "session").exists()
    else:
        with pytest.raises(
            ClusterError, match=r"^Ray did not start on this machine in 30 s, twice; the machine is too busy"
        ):
            ray_session().__enter__()
    # After each failed start, and at the end.
    assert len(ended) == num_late + 1


@pytest.mark.slow
def test_local_ray_has_no_unused_process():
    """Another release of Ray may start further processes, which this test shows."""
    source = """
import os, pathlib, ray
from tune_hpc.search.ray_session import ray_session

with ray_session():
    home = ray._private.worker.global_worker.node.get_session_dir_path()
    for process in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes().replace(bytes(1), b" ").decode()
        except OSError:
            continue
        if home in command or "ray::" in command and os.getppid() != int(process.parent.name):
            print(command[:300])
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert "gcs_server" in done.stdout
    assert re.findall(r"dashboard/dashboard\.py|log_monitor\.py|monitor\.py|default_worker", done.stdout) == []


@pytest.mark.slow
def test_local_ray_listens_on_loopback_only_and_protects_its_token(tmp_path):
    code = """
import os, signal, subprocess
from pathlib import Path
from tune_hpc.search.ray_session import ray_session
signal.signal(signal.SIGTERM, own := lambda *arguments: None)
with ray_session():
    listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
    pids = {os.getpid(), *map(int, subprocess.run(["ps", "-o", "pid=", "-g", str(os.getsid(0))], capture_output=True,
            text=True, check=True).stdout.split())}
    lines = [line.split() for line in listening.splitlines()]
    print(*(words[3] for words in lines if any(f"pid={pid}," in words[-1] for pid in pids)))
    assert signal.getsignal(signal.SIGTERM) is own
print(oct((Path.home() / ".ray" / "auth_token").stat().st_mode & 0o777))
"""
    if not shutil.which("ss"):
        pytest.skip("ss shows what listens")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0123456789abcdef" * 4, encoding="utf-8")
    (tmp_path / ".ray" / "auth_token").chmod(0o644)
    dropped = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE")
    environment = {name: value for name, value in os.environ.items() if name not in dropped} | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=120,
        start_new_session=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    addresses, mode = done.stdout.splitlines()[-2:]
    assert len(addresses.split()) >= 5
    assert all(address.rpartition(":")[0] in ("127.0.0.1", "[::ffff:127.0.0.1]") for address in addresses.split())
    assert mode == "0o600"
