"""Fault harness: a search meets faults at random moments, and is then resumed without them.

    python -m tests.faults.harness --runs 200 [--seed 0] [--runner local]

Each run has a seed and can be repeated with ``--seed N --runs 1``. After the faults the search is resumed until it is
finished. The checker states the invariants once: no trial is lost, none runs again after its end, no value changes,
attempts do not decrease, and terminal states remain.
"""

import argparse
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from tests.faults.target import NUM_STEPS, NUM_TRIALS
from tune_hpc.analysis.loading import load
from tune_hpc.analysis.results import Results
from tune_hpc.errors import TuneHpcError

ROOT = Path(__file__).parents[2]
#: Seconds after which a process counts as hung.
TIMEOUT_S = 120.0
#: Columns that depend on time, place and attempt.
VOLATILE = ("setup_s", "train_s", "eval_s", "samples_per_s", "num_fused", "attempt", "host", "device", "ended_at")
TERMINAL = ("finished", "stopped", "diverged", "failed")
ERRNOS = (errno.EIO, errno.ESTALE, errno.EACCES, errno.EROFS, errno.ENOSPC)


@dataclass
class Run:
    """One run of the harness.

    Attributes:
        seed: Its seed.
        runner: ``local`` or ``ray``.
        root: Folder for its files.
        faults: Faults with their moments, as text.
        problems: Violated invariants; empty if all hold.
    """

    seed: int
    runner: str
    root: Path
    faults: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.folder, self.events = self.root / "out", self.root / "events"
        self.fault_file = self.root / "fault"
        self._seen: dict[str, pd.Series] = {}

    def start(self) -> subprocess.Popen[str]:
        """Start or resume the search in a process group of its own."""
        command = [sys.executable, "-m", "tests.faults.target", str(self.folder), str(self.events), self.runner]
        path = os.pathsep.join([str(Path(__file__).parent / "injection"), str(ROOT)])
        environment = {**os.environ, "PYTHONPATH": path, "FAULT_FILE": str(self.fault_file)}
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait_for_trials(self, process: subprocess.Popen[str], number: int) -> None:
        """Wait until a number of trials have ended, or the process has."""
        deadline = time.monotonic() + TIMEOUT_S
        while process.poll() is None and time.monotonic() < deadline and self.num_ended() < number:
            time.sleep(0.01)

    def num_ended(self) -> int:
        """Return the number of trials that have recorded their end."""
        return self.events.read_text().count(" end ") if self.events.exists() else 0

    def finish(self, process: subprocess.Popen[str]) -> None:
        """Wait for a process, check what it left, and report if it hangs."""
        try:
            _, errors = process.communicate(timeout=TIMEOUT_S)
            if process.returncode > 0 and "Traceback" in errors and "OSError" not in errors:
                self.problems.append(f"traceback: {errors.strip().splitlines()[-1]}")
        except subprocess.TimeoutExpired:
            self.problems.append(f"hung after {', '.join(self.faults)}")
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.check()

    def check(self) -> None:
        """Compare the folder with its earlier contents: terminal states remain, attempts do not decrease."""
        try:
            results = load(self.folder)
        except TuneHpcError as error:
            if (self.folder / "experiment.json").exists():
                self.problems.append(f"unreadable: {error}")
            return
        for _, row in results.trials.iterrows():
            trial_id = row["trial_id"]
            seen = self._seen.get(trial_id)
            if seen is not None and seen["status"] in TERMINAL:
                values = [name for name in results.trials if name != "num_fused"]
                if not row[values].equals(seen.reindex(values)):
                    self.problems.append(f"{trial_id} changed after its end")
            if seen is not None and row["attempt"] < seen["attempt"]:
                self.problems.append(f"{trial_id} went back to an earlier attempt")
            self._seen[trial_id] = row
        if lost := set(self._seen).difference(results.trials["trial_id"]):
            self.problems.append(f"lost {', '.join(sorted(lost))}")

    def resume_until_finished(self) -> None:
        """Resume without faults, at most three times."""
        self.fault_file.unlink(missing_ok=True)
        for _ in range(3):
            self.finish(self.start())
            with_results = (self.folder / "experiment.json").exists()
            if with_results and load(self.folder).experiment["state"] == "finished":
                return
        self.problems.append("not finished after three resumes")

    def compare(self, undisturbed: Results) -> None:
        """Compare the finished search with the undisturbed one, to the bit, and read the events."""
        if self.problems:
            return
        results = load(self.folder)
        for name, found, expected in (
            ("trials", results.trials, undisturbed.trials), ("history", results.history, undisturbed.history),
        ):  # fmt: skip
            found, expected = (_comparable(df) for df in (found, expected))
            if not found.equals(expected):
                self.problems.append(f"{name} differ from the undisturbed run")
        ends = Counter(line.split()[0] for line in self.events.read_text().splitlines() if " end " in line)
        if len(ends) != NUM_TRIALS:
            self.problems.append(f"{NUM_TRIALS - len(ends)} trials never ended")


def _comparable(df: pd.DataFrame) -> pd.DataFrame:
    df = df.drop(columns=[name for name in (*VOLATILE, "events", "config", "stop_reason") if name in df])
    return df.sort_values([name for name in ("trial_id", "step") if name in df], ignore_index=True)


Fault = Callable[[Run, subprocess.Popen[str]], None]


def _signal(number: signal.Signals) -> Fault:
    return lambda run, process: process.send_signal(number)


def _pause(run: Run, process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGSTOP)
    time.sleep(run.random.uniform(0.2, 2.0))
    process.send_signal(signal.SIGCONT)


def _kill_child(pattern: str) -> Fault:
    """Kill one of the processes of Ray."""

    def kill(run: Run, process: subprocess.Popen[str]) -> None:
        found = subprocess.run(["pgrep", "-s", str(process.pid), "-f", pattern], capture_output=True, text=True)
        numbers = [int(line) for line in found.stdout.split() if int(line) != process.pid]
        if numbers:
            os.kill(run.random.choice(numbers), signal.SIGKILL)

    return kill


def _storage_error(number: int) -> Fault:
    def fail(run: Run, process: subprocess.Popen[str]) -> None:
        run.fault_file.write_text(f"{number} {run.folder}")
        time.sleep(run.random.uniform(0.1, 2.0))
        run.fault_file.unlink()

    return fail


def _second_driver(run: Run, process: subprocess.Popen[str]) -> None:
    """Start a second process on the same folder; it must end with ``ConflictError``, or be the only one left."""
    second = run.start()
    run.finish(second)


def _kill_and_two_resumes(run: Run, process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for resumed in [run.start(), run.start()]:
        run.finish(resumed)


FAULTS: dict[str, Fault] = {
    "SIGKILL": _signal(signal.SIGKILL),
    "SIGTERM": _signal(signal.SIGTERM),
    "SIGINT": _signal(signal.SIGINT),
    "SIGSTOP and SIGCONT": _pause,
    "second driver": _second_driver,
    "SIGKILL and two resumes": _kill_and_two_resumes,
    **{f"storage: {errno.errorcode[number]}": _storage_error(number) for number in ERRNOS},
    "slow storage": _storage_error(0),
}
#: Without errors of the storage: on Ray, a trial whose checkpoint or results cannot be written has failed for good.
OTHER_FAULTS = {name: fault for name, fault in FAULTS.items() if not name.startswith("storage: ")}
RAY_FAULTS: dict[str, Fault] = {
    "SIGKILL of a trial process": _kill_child("ray::"),
    "SIGKILL of the raylet": _kill_child("raylet/raylet"),
    "SIGKILL of the GCS": _kill_child("gcs_server"),
}


def run_once(seed: int, runner: str, undisturbed: Results, root: Path) -> Run:
    """Run one search with faults, resume it and check it."""
    run = Run(seed, runner, root)
    faults = FAULTS if runner == "local" else OTHER_FAULTS | RAY_FAULTS
    process = run.start()
    for _ in range(run.random.choice((1, 1, 2))):
        name, moment = run.random.choice(list(faults)), run.random.randrange(NUM_TRIALS - 2)
        run.wait_for_trials(process, moment)
        time.sleep(run.random.uniform(0, 0.05))
        run.faults.append(f"{name} after {moment} trials")
        if process.poll() is None:
            faults[name](run, process)
    run.finish(process)
    run.resume_until_finished()
    run.compare(undisturbed)
    return run


def undisturbed_results(root: Path) -> Results:
    """Run the search without faults."""
    run = Run(-1, "local", root)
    run.finish(run.start())
    results = load(run.folder)
    assert results.counts() == {"finished": NUM_TRIALS}, results.counts()
    assert len(results.history) == NUM_TRIALS * NUM_STEPS
    return results


def main() -> int:
    """Print one line per run, and the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, metavar="N", help="number of runs (default: 200)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the first run (default: 0)")
    parser.add_argument(
        "--runner", choices=["local", "ray", "both"], default="both", help="default: three local, one ray"
    )
    flags = parser.parse_args()
    num_bad = 0
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        undisturbed = undisturbed_results(_made(Path(folder) / "undisturbed"))
        for seed in range(flags.seed, flags.seed + flags.runs):
            runner = ("ray" if seed % 4 == 3 else "local") if flags.runner == "both" else flags.runner
            run = run_once(seed, runner, undisturbed, _made(Path(folder) / str(seed)))
            num_bad += bool(run.problems)
            outcome = "; ".join(run.problems) or "all trials once, equal"
            print(f"| {seed} | {runner} | {', '.join(run.faults)} | {outcome} |", flush=True)
            shutil.rmtree(run.root, ignore_errors=True)
    print(f"{flags.runs} runs, {num_bad} with problems")
    return 1 if num_bad else 0


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    sys.exit(main())
