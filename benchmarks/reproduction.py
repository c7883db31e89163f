"""Reproduction of the report: runs its exercises and writes docs/reproduction.md.

    python benchmarks/reproduction.py run [NAME ...]     # missing results, into docs/results
    python benchmarks/reproduction.py write              # docs/reproduction.md and its figures, from docs/results

Each run is a command of ``tune-hpc``, which the page shows beside the numbers. Its folder is runs/reproduction/NAME: an
interrupted run resumes with the same command. docs/results/NAME is its experiment
folder in compact form: all trials, and the history rows with more than the training loss. benchmarks/gpu.py has the
full-size runs for a GPU.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.reproduction_page import write_page
from tune_hpc.analysis.loading import load
from tune_hpc.analysis.results import Results
from tune_hpc.storage.experiment_folder import ExperimentFolder

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
#: Every step of the line is stored up to this one, then each fiftieth.
DENSE_STEPS = 5000


@dataclass(frozen=True)
class Run:
    """One run of the reproduction.

    Attributes:
        name: Folder in docs/results.
        arguments: Arguments of ``tune-hpc run``.
        minutes: Approximate duration on two cores.
        has_predictions: Whether the classes that each trial predicts are stored, in predictions.npz.
    """

    name: str
    arguments: Sequence[str]
    minutes: float
    has_predictions: bool = False

    @property
    def command(self) -> str:
        """Command line of the run."""
        return f"tune-hpc run {' '.join(self.arguments)}"


_FULL = ("--set", "num_evaluations=20")
#: All runs take about eight hours on two idle cores.
RUNS = (
    Run("exercise1_1stpart", ("exercise1_1stpart",), 0.3),
    Run("exercise1_2ndpart", ("exercise1_2ndpart",), 0.3),
    Run("exercise2.softmax", ("exercise2.softmax",), 0.5),
    Run("exercise2.softmax.shuffled", ("exercise2.softmax", "--set", "batching=shuffled", "--seeds", "5"), 2),
    Run(
        "exercise2.protocols",
        (
            "exercise2.softmax",
            "--set",
            "'batch_size=choice(50, 100, 150, 200)'",
            "--set",
            "'batching=choice(sequential, shuffled)'",
            "--set",
            "num_evaluations=1",
            "--local",
        ),
        1.5,
    ),
    Run("exercise2.cnn", ("exercise2.cnn", "--set", "num_evaluations=2"), 40),
    Run("exercise3.baseline", ("exercise3.baseline", *_FULL, "--seeds", "3"), 4),
    Run("exercise3.batch_size_single_pass", ("exercise3.batch_size_single_pass", *_FULL, "--seeds", "3"), 50),
    Run("exercise3.batch_size_shuffled", ("exercise3.batch_size_shuffled", *_FULL, "--seeds", "3"), 90),
    Run("exercise3.decay", ("exercise3.decay", *_FULL, "--seeds", "3"), 40),
    Run("exercise3.learning_rate", ("exercise3.learning_rate", *_FULL), 115),
    Run("exercise3.dropout", ("exercise3.dropout", *_FULL), 130),
    Run("exercise3.winner", ("exercise3.winner", *_FULL, "--seeds", "3"), 25),
    Run("exercise3.open_winner", ("exercise3.open_winner", *_FULL, "--seeds", "5"), 60, has_predictions=True),
    Run("exercise4", ("exercise4",), 2),
)


def compact(results: Results) -> Results:
    """Reduce results to the rows that the page needs.

    Images: the history rows with evaluations. Line: every step up to ``DENSE_STEPS``, then each fiftieth and the last.
    Metrics are float32, as computed.
    """
    history = results.history
    measured = [name for name in history if name not in ("trial_id", "step", "train_loss")]
    taken = history[history[measured].notna().any(axis="columns")]
    is_last = ~taken.duplicated("trial_id", keep="last")
    taken = taken[(taken["step"] <= DENSE_STEPS) | (taken["step"] % 50 == 0) | is_last]
    metrics = taken.columns.drop(["trial_id", "step"])
    taken = taken.astype({**dict.fromkeys(metrics, np.float32), "step": np.int32})
    return Results(results.experiment, results.trials, taken.reset_index(drop=True), results.folder)


def write_compact(results: Results, folder: Path) -> None:
    """Write compact results as an experiment folder."""
    experiment_folder = ExperimentFolder(folder)
    folder.mkdir(parents=True)
    small = compact(results)
    experiment_folder.write({**small.experiment, "process": None})
    files = (experiment_folder.trials_file, experiment_folder.history_file)
    for df, file in zip((small.trials, small.history), files, strict=True):
        df.to_parquet(file, index=False, compression="zstd", compression_level=19)


def run(entry: Run, parent: Path) -> None:
    """Run a command and store its compact results below ``parent``.

    Raises:
        CalledProcessError: The command failed. Its output is above.
    """
    folder = ROOT / "runs" / "reproduction" / entry.name
    command = [sys.executable, "-m", "tune_hpc.cli", "run", *(text.strip("'") for text in entry.arguments)]
    subprocess.run([*command, "--output-dir", str(folder), "--resume", "--no-report"], check=True, cwd=ROOT)
    results = load(folder)
    with tempfile.TemporaryDirectory() as scratch:
        description = dict(results.experiment)
        provenance = description["provenance"]
        # Folders and hosts of this machine are of no use in the repository.
        origin = {"command": entry.command, "machine": {**provenance["machine"], "host": None}}
        continued = [{**part, **origin} for part in provenance.get("continued", [])]
        description["provenance"] = {**provenance, **origin, **({"continued": continued} if continued else {})}
        unfinished = Path(scratch) / "compact"
        write_compact(Results(description, results.trials.drop(columns="host"), results.history), unfinished)
        if entry.has_predictions:
            arrays: dict[str, Any] = {name: results.predictions(name) for name in results.trials["trial_id"]}
            np.savez_compressed(unfinished / "predictions.npz", labels=results.labels(), **arrays)
        shutil.copytree(unfinished, parent / entry.name)


def main() -> int:
    """Run the missing results, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["run", "write"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="runs; default: those missing in docs/results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: docs/results")
    flags = parser.parse_args()
    known = {one.name: one for one in RUNS}
    if unknown := set(flags.names).difference(known):
        parser.error(f"unknown run: {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    if flags.verb == "write":
        write_page(flags.results, ROOT / "docs")
        return 0
    flags.results.mkdir(parents=True, exist_ok=True)
    for name in flags.names or known:
        if (flags.results / name).exists():
            print(f"{name} exists; remove its folder to run it again", flush=True)
            continue
        print(f"{known[name].command}    # about {known[name].minutes:g} minutes on two cores", flush=True)
        began = time.monotonic()
        run(known[name], flags.results)
        print(f"{name}: {(time.monotonic() - began) / 60:.1f} min", flush=True)
    size = sum(file.stat().st_size for file in flags.results.rglob("*") if file.is_file())
    print(pd.Series({"docs/results, MB": size / 1e6}).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
