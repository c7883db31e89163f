"""Fault harness: a search meets faults at random moments, and is then resumed without them.

    python -m tests.faults.harness --runs 200 [--seed 0] [--runner local]

Each run has a seed and can be repeated with ``--seed N --runs 1``. After the faults the search is resumed until it is
finished. The checker states the invariants once: no trial is lost, none runs again after its end, no value changes,
attempts do not decrease, and terminal states remain. A damaged file is detected, with an error that names it, or
harmless.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from tests.faults.fault_injection import DAMAGE, FAULTS_OF, damage
from tests.faults.target import NUM_STEPS, NUM_TRIALS
from tests.jobs.conftest import Head, start_head
from tune_hpc.analysis.loading import load
from tune_hpc.analysis.results import Results
from tune_hpc.errors import TuneHpcError
from tune_hpc.jobs.job_folder import JobFolder, is_id
from tune_hpc.storage.process import is_running

ROOT = Path(__file__).parents[2]
#: Modules of the injection and of the trainable.
INJECTION = Path(__file__).parent / "injection"
#: Seconds after which a process counts as hung.
TIMEOUT_S = 180.0
#: Size of the file system of a run, in bytes, where it can be mounted.
DISK_BYTES = 24 * 2**20
#: Columns that depend on time, place and attempt.
VOLATILE = ("setup_s", "train_s", "eval_s", "samples_per_s", "num_fused", "attempt", "host", "device", "ended_at")
TERMINAL = ("finished", "stopped", "diverged", "failed")
#: Runners of the runs of ``--runner all``, in turn.
RUNNERS = ("local", "ray", "local", "job", "local", "ray", "job", "ray job")


@dataclass
class Run:
    """One run of the harness.

    Attributes:
        seed: Its seed.
        runner: ``local``, ``ray``, ``job`` or ``ray job``.
        root: Folder for its files.
        cluster: Cluster of a ``ray job``.
        faults: Faults with their moments, as text.
        problems: Violated invariants; empty if all hold.
    """

    seed: int
    runner: str
    root: Path
    cluster: Head | None = None
    faults: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.disk, self.events, self.fault_file = self.root / "disk", self.root / "events", self.root / "fault"
        self.folder = self.disk / "out"
        self.process: subprocess.Popen[str] | None = None
        self.errors = ""
        self.is_damaged = False
        self._seen: dict[str, pd.Series] = {}
        self.disk.mkdir()
        options = f"size={DISK_BYTES}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.disk], capture_output=True, check=False)

    def close(self) -> None:
        """Unmount the file system, and delete all files."""
        if self.disk.is_mount():
            subprocess.run(["umount", "--lazy", self.disk], check=True)
        shutil.rmtree(self.root, ignore_errors=True)

    @property
    def results_folder(self) -> Path:
        """Folder of the experiment; that of its job if it has one."""
        if self.runner.endswith("job"):
            jobs = [path for path in self.folder.glob("*") if is_id(path.name)]
            return JobFolder(jobs[0]).experiment("faults").path if jobs else self.folder / "none"
        return self.folder

    def start(self) -> subprocess.Popen[str]:
        """Start or resume the search in a process group of its own."""
        command = [sys.executable, "-m", "tests.faults.target", str(self.folder), str(self.events), self.runner]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(INJECTION), str(ROOT)])}
        environment |= {"FAULT_FILE": str(self.fault_file), "RETRY_FAILED": "1" if self.is_damaged else ""}
        environment |= {"XDG_STATE_HOME": str(self.root / "state")}
        if self.cluster is not None:
            environment |= self.cluster.environment | {"RAY_API_SERVER_ADDRESS": self.cluster.dashboard}
            environment["PYTHONPATH"] = os.pathsep.join([str(INJECTION), str(ROOT)])
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def driver(self) -> int | None:
        """Return the process of the driver; that of the latest attempt of a job."""
        if not self.runner.endswith("job"):
            return None if self.process is None or self.process.poll() is not None else self.process.pid
        for path in self.folder.glob("*"):
            if is_id(path.name) and (numbers := JobFolder(path).attempt_numbers()):
                process = JobFolder(path).read_driver_status(numbers[-1]).get("process")
                return process["pid"] if is_running(process) else None
        return None

    def ray_processes(self) -> list[int]:
        """Return the processes of Ray that belong to the run."""
        assert self.process is not None
        session = self.process.pid if self.cluster is None else self.cluster.pid
        found = subprocess.run(["pgrep", "-s", str(session)], capture_output=True, text=True, check=False)
        return [int(line) for line in found.stdout.split() if int(line) != session]

    def wait_for_trials(self, number: int) -> None:
        """Wait until a number of trials have ended, or the process has."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.process.poll() is None and time.monotonic() < deadline and self.num_ended() < number:
            time.sleep(0.01)

    def num_ended(self) -> int:
        """Return the number of trials that have recorded their end."""
        return self.events.read_text().count(" end ") if self.events.exists() else 0

    def finish(self, process: subprocess.Popen[str]) -> None:
        """Wait for a process, check what it left, and report if it hangs."""
        try:
            _, self.errors = process.communicate(timeout=TIMEOUT_S)
            # Ray itself reports the death of its processes with tracebacks.
            is_ours = "Traceback" in self.errors and "OSError" not in self.errors and "ray.exc" not in self.errors
            if process.returncode > 0 and is_ours:
                self.problems.append(f"traceback: {self.errors.strip().splitlines()[-1]}")
        except subprocess.TimeoutExpired:
            self.problems.append("hung")
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.check()

    def check(self) -> None:
        """Compare the folder with its earlier contents: terminal states remain, attempts do not decrease."""
        try:
            results = load(self.results_folder)
        except TuneHpcError as error:
            if (self.results_folder / "experiment.json").exists() and not self.is_damaged:
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
            if row["status"] != "failed" or not self.is_damaged:
                self._seen[trial_id] = row
        if lost := set(self._seen).difference(results.trials["trial_id"]):
            self.problems.append(f"lost {', '.join(sorted(lost))}")

    def resume_until_finished(self) -> None:
        """Resume without faults, at most three times."""
        self.fault_file.unlink(missing_ok=True)
        for _ in range(3):
            self.finish(self.start())
            has_results = (self.results_folder / "experiment.json").exists()
            if has_results and load(self.results_folder).experiment["state"] == "finished":
                return
        self.problems.append(f"not finished after three resumes: {self.errors.strip()[-200:]}")

    def resume_with_damage(self) -> None:
        """Damage a file, resume, and restore the file as from a backup if the error names it."""
        if (damaged := damage(self)) is None:
            return
        path, before, after = damaged
        self.is_damaged = True
        name = path.relative_to(self.folder).as_posix()
        self.faults.append(f"damaged {name}")
        self.finish(self.start())
        report = self.errors
        try:
            results = load(self.results_folder)
            if results.counts() == {"finished": NUM_TRIALS}:
                return
            report += results.failures
        except TuneHpcError as error:
            report += str(error)
        if path.name not in report:
            self.problems.append(f"damage to {name} is not reported: {report.strip()[-200:]}")
        if path.exists() and path.read_bytes() == after:
            path.write_bytes(before)

    def compare(self, undisturbed: Results) -> None:
        """Compare the finished search with the undisturbed one, to the bit, and read the events."""
        if self.problems:
            return
        results = load(self.results_folder)
        for name, found, expected in (
            ("trials", results.trials, undisturbed.trials), ("history", results.history, undisturbed.history),
        ):  # fmt: skip
            found, expected = (comparable(df) for df in (found, expected))
            if not found.equals(expected):
                self.problems.append(f"{name} differ from the undisturbed run")
        ends = Counter(line.split()[0] for line in self.events.read_text().splitlines() if " end " in line)
        if len(ends) != NUM_TRIALS:
            self.problems.append(f"{NUM_TRIALS - len(ends)} trials never ended")


def comparable(df: pd.DataFrame) -> pd.DataFrame:
    df = df.drop(columns=[name for name in (*VOLATILE, "events", "config", "stop_reason") if name in df])
    return df.sort_values([name for name in ("trial_id", "step") if name in df], ignore_index=True)


def run_once(seed: int, runner: str, undisturbed: Results, root: Path, cluster: Head | None = None) -> Run:
    """Run one search with faults, resume it and check it."""
    run = Run(seed, runner, root, cluster)
    try:
        faults = FAULTS_OF[runner]
        for _ in range(run.random.choice((1, 1, 2))):
            if run.process is None or run.process.poll() is not None:
                # The fault before has ended the driver: this one meets the resumed search.
                run.process = run.start()
            name, moment = run.random.choice(list(faults)), run.random.randrange(NUM_TRIALS - 2)
            run.wait_for_trials(moment)
            time.sleep(run.random.uniform(0, 0.05))
            run.faults.append(f"{name} after {moment} trials")
            if run.process.poll() is None:
                faults[name](run)
            if run.process.poll() is not None:
                run.finish(run.process)
        if run.process.poll() is None:
            run.finish(run.process)
        if any(DAMAGE in text for text in run.faults):
            run.resume_with_damage()
        run.resume_until_finished()
        run.compare(undisturbed)
    finally:
        run.close()
    return run


def undisturbed_results(root: Path) -> Results:
    """Run the search without faults."""
    run = Run(-1, "local", root)
    try:
        run.finish(run.start())
        results = load(run.folder)
    finally:
        run.close()
    assert results.counts() == {"finished": NUM_TRIALS}, results.counts()
    assert len(results.history) == NUM_TRIALS * NUM_STEPS
    return results


def main() -> int:
    """Print one line per run, and the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, metavar="N", help="number of runs (default: 200)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the first run (default: 0)")
    parser.add_argument("--runner", choices=[*FAULTS_OF, "all"], default="all", help="default: all, in turn")
    flags = parser.parse_args()
    num_bad = 0
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, ExitStack() as stack:
        cluster: Head | None = None
        undisturbed = undisturbed_results(_made(Path(folder) / "undisturbed"))
        print("| seed | runner | faults | outcome |\n|---|---|---|---|")
        for seed in range(flags.seed, flags.seed + flags.runs):
            runner = RUNNERS[seed % len(RUNNERS)] if flags.runner == "all" else flags.runner
            if runner == "ray job" and cluster is None:
                cluster = stack.enter_context(start_head(_made(Path(folder) / "cluster")))
            root = _made(Path(folder) / str(seed))
            run = run_once(seed, runner, undisturbed, root, cluster if runner == "ray job" else None)
            num_bad += bool(run.problems)
            outcome = "; ".join(run.problems) or "all trials once, equal"
            print(f"| {seed} | {runner} | {', '.join(run.faults)} | {outcome} |", flush=True)
    print(f"{flags.runs} runs, {num_bad} with problems")
    return 1 if num_bad else 0


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    sys.exit(main())
