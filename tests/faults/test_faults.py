"""Twenty seeds of the fault harness; ``make faults`` runs more."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import every_write
from tests.faults.harness import ROOT, RUNNERS, run_once, undisturbed_results
from tests.jobs.conftest import start_head


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return undisturbed_results(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with start_head(tmp_path_factory.mktemp("cluster")) as started:
        yield started


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_search_with_faults_ends_like_an_undisturbed_one(seed, undisturbed, tmp_path, request):
    runner = RUNNERS[seed % len(RUNNERS)]
    cluster = request.getfixturevalue("cluster") if runner == "ray job" else None
    run = run_once(seed, runner, undisturbed, tmp_path, cluster)
    assert not run.problems, run.faults


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill", "full disk", "one error"])
@pytest.mark.parametrize("search", every_write.SEARCHES)
def test_search_with_a_fault_at_a_write_ends_like_an_undisturbed_one(search, fault, tmp_path):
    # Forks need a process without threads.
    command = [sys.executable, "-m", "tests.faults.every_write", "--search", search, "--fault", fault, "--every", "17"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_injected_errors_reach_every_way_to_a_file(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "there").touch()
    (tmp_path / "fault").write_text(f"{errno.ESTALE} {tmp_path / 'folder'}")
    script = f"""
import os
from pathlib import Path
path = Path({str(tmp_path / "folder")!r})
calls = [lambda: path.joinpath("a").write_text("x"), lambda: path.joinpath("there").read_bytes(),
         lambda: os.replace(path.parent / "fault", path / "b"), lambda: os.open(path / "there", os.O_RDONLY),
         lambda: os.link(path.parent / "fault", path / "c"), lambda: open(path / "there")]
for call in calls:
    try:
        call()
    except OSError as error:
        print(error.errno)
"""
    path = os.pathsep.join([str(Path(__file__).parent / "injection"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "FAULT_FILE": str(tmp_path / "fault")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(errno.ESTALE)] * 6
