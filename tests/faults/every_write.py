"""A search meets a fault at each of its writes, and is then resumed without faults.

    python -m tests.faults.every_write [--search NAME] [--fault NAME] [--every N]

The random harness seldom hits the milliseconds between two files. Here each search runs once for each file that it
opens for writing, renames or deletes: there its process is killed, its disk becomes full, or one call fails. Each run
is a fork without Ray. Afterwards the search is resumed; its frames must equal those of an undisturbed run to the bit.
"""

import argparse
import contextlib
import errno
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune

from tests.faults.harness import comparable
from tests.faults.injection.fault_trainable import train
from tune_hpc import Experiment, Space, extend, load, resume, run
from tune_hpc.errors import TuneHpcError
from tune_hpc.storage import retries
from tune_hpc.storage.experiment_folder import ExperimentFolder

OPTIONS: dict[str, Any] = {
    "runner": "local", "show_progress": False, "checkpoint_interval_s": 0.0, "max_failures": 100,
}  # fmt: skip
#: Audit events of calls that change files, beside "open".
CHANGES = ("os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.truncate")


def ends_in_each_way(config, report, checkpoint, trial):
    """Train; a third of the trials diverge, and some fail unless the file ``repaired`` exists."""
    train(config, report, checkpoint, trial)
    if config["x"] > 0.7:
        report(config["steps"] + 1, {"loss": float("nan")})
    if config["x"] < 0.2 and not Path(config["events"]).with_name("repaired").exists():
        raise RuntimeError("not repaired")


def experiment(folder: Path, **changes: Any) -> Experiment:
    """Return a search of a few trials that save states."""
    events = folder / "events"
    space = Space({"x": tune.uniform(0.0, 1.0), "steps": 3, "pause_s": 0.0, "events": str(events)}, keys={})
    settings = {"searcher": "random", "num_samples": 4, "seeds": (), "keep_checkpoints": "best"}
    return Experiment(
        "every_write", space, ends_in_each_way, metric="loss", mode="min", budget="steps", **(settings | changes)
    )


def start(folder: Path, *, warm_start: bool = False, **changes: Any) -> None:
    """Run a search in ``folder/out``, or resume it if it is there."""
    out = folder / "out"
    if ExperimentFolder(out).holds_experiment:
        resume(out, **OPTIONS)
    else:
        sources = [folder / "source"] if warm_start else []
        run(experiment(folder, **changes), output_dir=out, warm_start=sources, **OPTIONS)


def prepare(folder: Path) -> None:
    """Run the finished search ``folder/source``."""
    run(experiment(folder, search_seed=9), output_dir=folder / "source", **OPTIONS)


def start_extension(folder: Path) -> None:
    """Add two configurations to a finished search, unless they have been added."""
    out = folder / "out"
    if load(out).experiment["num_samples"] == 4:
        extend(out, num_samples=2, **OPTIONS)
    else:
        resume(out, **OPTIONS)


def start_retry(folder: Path) -> None:
    """Run the failed trials of a finished search again."""
    (folder / "repaired").touch()
    resume(folder / "out", retry_failed=True, **OPTIONS)


SEARCHES: dict[str, Callable[[Path], None]] = {
    "random": start,
    "asha": lambda folder: start(folder, scheduler="asha", num_samples=5),
    "asha_stopping": lambda folder: start(folder, scheduler="asha_stopping", num_samples=5),
    "median": lambda folder: start(folder, scheduler="median", num_samples=6),
    "pbt": lambda folder: start(folder, scheduler="pbt"),
    "tpe with a warm start": lambda folder: start(folder, searcher="tpe", warm_start=True),
    "extend": start_extension,
    "retry_failed": start_retry,
}
#: Searches that continue a finished one.
CONTINUATIONS = ("extend", "retry_failed")


class Fault:
    """A fault at one change of a file below a folder.

    Args:
        name: ``kill``, ``full disk`` (every change from there on fails) or ``one error``.
        position: The change, counted from 1.
        folder: The folder of the changes.
    """

    def __init__(self, name: str, position: int, folder: Path) -> None:
        self.name, self.position, self.folder = name, position, str(folder)
        self.num_changes = 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """Receive an audit event of Python."""
        if not self.changes_a_file(event, args):
            return
        self.num_changes += 1
        if self.num_changes == self.position and self.name == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.num_changes >= self.position and self.name == "full disk" and event not in ("os.remove", "os.rmdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), args[0])
        if self.num_changes == self.position and self.name == "one error":
            raise OSError(errno.EIO, os.strerror(errno.EIO), args[0])

    def changes_a_file(self, event: str, args: tuple[Any, ...]) -> bool:
        """Return whether an event is a change below the folder."""
        if event == "open":
            _, mode, flags = args
            is_write = any(letter in mode for letter in "wax+") if mode else flags & (os.O_WRONLY | os.O_RDWR)
            if not is_write:
                return False
        elif event not in CHANGES:
            return False
        return isinstance(args[0], str | os.PathLike) and os.fspath(args[0]).startswith(self.folder)


def in_a_fork(call: Callable[[], Any]) -> tuple[int, Any]:
    """Call a function in a fork, without output; return its exit status, and what it returned or raised."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code, answer = 0, None
        try:
            with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
                answer = call()
        except TuneHpcError as error:
            code, answer = 3, f"{type(error).__name__}: {error}"
        except BaseException:  # noqa: BLE001 - a fork returns nowhere else
            code, answer = 1, traceback.format_exc()
        os.write(writer, json.dumps(answer).encode()[:60_000])
        os._exit(code)
    os.close(writer)
    with open(reader, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), json.loads(text) if text else None


def with_fault(search: Callable[[Path], None], folder: Path, fault: Fault) -> int:
    """Run a search with a fault, and return the number of changes."""
    retries.RETRY_S, retries.PAUSE_S = 0.1, 0.02  # This fork only.
    sys.addaudithook(fault)
    try:
        search(folder)
    except TuneHpcError:
        fault.position = sys.maxsize
    return fault.num_changes


def problem_of(expected: Path, folder: Path) -> str:
    """Return how the frames of a search differ from those of another; empty if they do not."""
    for name in ("trials", "history"):
        left, right = (comparable(getattr(load(path / "out"), name)) for path in (expected, folder))
        for df in (left, right):
            df.drop(columns=[column for column in ("exploited_from", "checkpoint") if column in df], inplace=True)
        if not left.equals(right):
            return f"{name} differ:\n{left.to_string()}\n{right.to_string()}"
    return ""


def check_finished(folder: Path) -> None:
    """Check that the undisturbed search has finished."""
    assert load(folder).experiment["state"] == "finished"


def run_search(name: str, fault: str, root: Path, every: int = 1) -> tuple[int, list[str]]:
    """Run a search once for each of its changes of files.

    Returns:
        The number of runs, and their problems.
    """
    search, template, expected = SEARCHES[name], root / "template", root / "expected"
    template.mkdir()
    outcomes = [in_a_fork(lambda: prepare(template))]
    if name in CONTINUATIONS:
        shutil.copytree(template / "source", template / "out")
    shutil.copytree(template, expected)
    outcomes.append(in_a_fork(lambda: search(expected)))
    outcomes.append(in_a_fork(lambda: check_finished(expected / "out")))
    problems = [f"undisturbed: {answer}" for code, answer in outcomes if code]
    position, num_runs = 1, 0
    while not problems:
        folder = root / str(position)
        shutil.copytree(template, folder)
        injected = Fault(fault, position, folder / "out")
        code, answer = in_a_fork(lambda: with_fault(search, folder, injected))  # noqa: B023 - called at once
        if code == 1:
            problems.append(f"{fault} at {position}: {answer}")
        is_over = code == 0 and answer < position
        for _ in range(2):
            code, answer = in_a_fork(lambda: search(folder))  # noqa: B023
            if code == 0:
                break
        if code:
            problems.append(f"{fault} at {position}: resume: {answer}")
        else:
            code, answer = in_a_fork(lambda: problem_of(expected, folder))  # noqa: B023
            if code or answer:
                problems.append(f"{fault} at {position}: {answer}")
        shutil.rmtree(folder)
        if is_over:
            break
        position, num_runs = position + every, num_runs + 1
    return num_runs, problems


def main() -> int:
    """Print one line per search and fault, and the problems."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--search", choices=SEARCHES, help="default: all")
    parser.add_argument("--fault", choices=["kill", "full disk", "one error"], help="default: all")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each N-th write (default: 1)")
    flags = parser.parse_args()
    num_bad = 0
    print("| search | fault | runs | problems |\n|---|---|---|---|")
    for name in [flags.search] if flags.search else SEARCHES:
        for fault in [flags.fault] if flags.fault else ["kill", "full disk", "one error"]:
            with tempfile.TemporaryDirectory(prefix="every-write-") as folder:
                num_runs, problems = run_search(name, fault, Path(folder), flags.every)
            num_bad += len(problems)
            print(f"| {name} | {fault} | {num_runs} | {len(problems)} |", flush=True)
            for problem in problems:
                print(problem, file=sys.stderr)
    return 1 if num_bad else 0


if __name__ == "__main__":
    sys.exit(main())
