"""Resources that searches leave, and trials that need more memory than there is."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from tests.faults.harness import ROOT
from tune_hpc import Experiment, Space, run
from tune_hpc.search import ray_runner
from tune_hpc.search.ray_session import deferred_interrupt


@pytest.mark.slow
def test_searches_leave_no_process_folder_or_thread():
    command = [sys.executable, "-m", "tests.faults.leaks", "--searches", "4", "--trials", "0"]
    done = subprocess.run(command, cwd=ROOT, start_new_session=True, capture_output=True, text=True, check=True)
    header, _, before, after = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("|")]
    counts = {name.strip(): (int(first), int(last)) for name, first, last in zip(header, before, after, strict=True)}
    # Ray leaves a socket for each of its sessions in a process.
    first, last = counts.pop("open files")
    assert last <= first + 4
    del counts["searches"], counts["shared memory"]
    assert all(first == last for first, last in counts.values()), counts


def start_with_interrupts(number, steps):
    with deferred_interrupt():
        for _ in range(number):
            signal.raise_signal(signal.SIGINT)
        steps.append(number)


def test_interrupt_is_raised_at_the_end_of_the_start_of_ray():
    before, steps = signal.getsignal(signal.SIGINT), []
    start_with_interrupts(0, steps)
    with pytest.raises(KeyboardInterrupt):
        start_with_interrupts(1, steps)
    with pytest.raises(KeyboardInterrupt):
        start_with_interrupts(2, steps)
    assert steps == [0, 1]
    assert signal.getsignal(signal.SIGINT) is before


def test_actor_killed_for_lack_of_memory_fails_its_trial_only(monkeypatch):
    errors = []
    monkeypatch.setattr(ray_runner, "_actor_task_failed", lambda manager, task, error: errors.append(error))
    lost = ray.exceptions.RayActorError(error_msg="the process died")
    failed = ray.exceptions.RayTaskError("train", "traceback", ValueError("x"))
    for error in (ray.exceptions.OutOfMemoryError("the node is low on memory"), lost, failed):
        ray_runner._fail_one_trial(None, None, error)
    assert isinstance(errors[0], ray.exceptions.RayActorError)
    assert "low on memory" in str(errors[0])
    assert errors[1:] == [lost, failed]


@pytest.mark.parametrize("error", [MemoryError(), type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory")])
def test_trial_that_needs_too_much_memory_states_the_reason(error, tmp_path):
    def train(config, report):
        if config["x"] == 1:
            raise error
        report(1, {"loss": config["x"]})

    from ray import tune

    space = Space({"x": tune.choice([0, 1, 2])})
    search = Experiment("memory", space, train, metric="loss", mode="min", seeds=())
    results = run(search, output_dir=tmp_path / "out", runner="local", show_progress=False)
    assert list(results.trials["status"]) == ["finished", "failed", "finished"]
    assert results.trials.loc[1, "stop_reason"] == "out of memory"


OVER_THE_LIMIT = """
import os
from pathlib import Path
from ray import tune
from tune_hpc import Experiment, Space, run

memory = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in open("/proc/meminfo")}
used, total = memory["MemTotal"] - memory["MemAvailable"], memory["MemTotal"]
os.environ |= {"RAY_memory_usage_threshold": str((used + 2e9) / total), "RAY_memory_monitor_refresh_ms": "100"}

def train(config, report):
    blocks = []
    while config["x"] == 1:
        blocks.append(b"x" * 100_000_000)
    report(1, {"loss": config["x"]})

search = Experiment("memory", Space({"x": tune.choice([0, 1, 2])}), train, metric="loss", mode="min", seeds=())
results = run(search, output_dir="out", show_progress=False, max_concurrent=1)
print(*results.trials["status"], results.trials.loc[1, "stop_reason"])
"""


@pytest.mark.slow
@pytest.mark.skipif(
    os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 8e9, reason="the trial allocates 2 GB and more"
)
def test_trial_over_the_limit_of_the_node_fails_and_the_others_continue(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", OVER_THE_LIMIT], cwd=tmp_path, start_new_session=True, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "finished failed finished out of memory", done.stderr[-2000:]
    assert Path(tmp_path / "out" / "logs" / "t00001.log").read_text().count("low on memory")
