"""Errors of trials whose process Ray lost."""

import pytest
from ray import tune

from tune_hpc import Experiment, Space
from tune_hpc.search.monitor import SearchMonitor
from tune_hpc.search.stopping import StopCriteria
from tune_hpc.search.trial_spec import TrialGroup, TrialSpec
from tune_hpc.storage.experiment_folder import ExperimentFolder

DIED = """Failure # 1 (occurred at 2026-11-29_04-24-17)
The actor died unexpectedly before finishing this task.
\tclass_name: wrap_function.<locals>.ImplicitFunc
\tpid: 21324
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: """
UNPICKLING = """Failure # 1 (occurred at 2026-11-29_04-24-17)
    return ray.get(self.references[k])
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^
ray.exceptions.RaySystemError: System error: No module named 'my_package'
traceback: Traceback (most recent call last):
  File "serialization.py", line 1, in loads
ModuleNotFoundError: No module named 'my_package'
"""


@pytest.mark.parametrize(
    ("report", "reason", "error"),
    [
        (UNPICKLING, "exception", "ModuleNotFoundError: No module named 'my_package'; see the log of the trial"),
        ("ray::train()\n  File 'a.py'\ntorch.cuda.OutOfMemoryError: CUDA error: full", "exception",
         "torch.cuda.OutOfMemoryError: CUDA error: full; see the log of the trial"),
        (f"{DIED}Worker exits unexpectedly. Worker exits with an exit code 4.", "process died",
         "the trial's process died: Worker exits unexpectedly. Worker exits with an exit code 4; see the log of the "
         "trial"),
        (f"{DIED}Worker unexpectedly exits with code 2. End of file. Some common causes include: (1)", "process died",
         "the trial's process died: Worker unexpectedly exits with code 2. End of file; lack of memory is the usual "
         "cause; see the log of the trial"),
        (f"{DIED}Task was killed due to the node running low on memory.\nMemory was 15GB / 16GB.", "out of memory",
         "the trial's process died: its node is low on memory, so that Ray killed it; run fewer trials at once; see "
         "the log of the trial"),
        ("", "process died", "the trial's process died: Ray gives no reason; lack of memory is the usual cause; see "
                             "the log of the trial"),
    ],
)  # fmt: skip
def test_error_of_a_lost_process_is_its_exception_or_its_cause(tmp_path, report, reason, error):
    experiment = Experiment("x", Space({"x": tune.choice([1, 2])}, keys={}), "a:b", metric="loss", mode="min", seeds=())
    folder = ExperimentFolder(tmp_path / "out")
    folder.claim("x")
    folder.claim_attempt(0)
    monitor = SearchMonitor({"x": experiment}, {"x": folder}, StopCriteria(None, None, None))
    group = TrialGroup("t00000", (TrialSpec("x", "t00000", {"x": 1}),))
    monitor.on_start(group)
    monitor.on_process_death(group, report)
    row = folder.read_row("t00000")
    assert (row["status"], row["stop_reason"], row["error"]) == ("failed", reason, error)
    assert monitor.counts["x"].first_error == f"t00000: {error}"
    assert folder.log("t00000").read_text(encoding="utf-8") == report
