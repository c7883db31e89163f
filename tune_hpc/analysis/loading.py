"""Load experiment folders as results."""

from pathlib import Path

from tune_hpc.analysis.frames import read_folder
from tune_hpc.analysis.results import Results
from tune_hpc.storage.experiment_folder import ExperimentFolder, find_experiment, find_experiments


def load(folder: str | Path, *, skip_damaged: bool = False) -> Results:
    """Load the results of one experiment, which may still run.

    Args:
        folder: An experiment folder.
        skip_damaged: Whether to omit trials whose files cannot be read, and the history if history.parquet cannot, with
            a warning for each.

    Raises:
        FolderError: There is no experiment or there are several, or a file cannot be read.

    Example:
        >>> from tune_hpc import load
        >>> results = load("docs/results/exercise2.softmax.shuffled")
        >>> results.counts()
        {'finished': 360}
    """
    return load_folder(find_experiment(folder), skip_damaged=skip_damaged)


def load_all(folder: str | Path) -> list[Results]:
    """Load every experiment at a folder or below it, in the order of their start.

    Raises:
        FolderError: There is no experiment, or a file cannot be read.
    """
    in_run = sorted(map(load_folder, find_experiments(folder)), key=lambda found: found.experiment.get("position") or 0)
    # Experiments of one run start at the same time.
    return sorted(in_run, key=lambda found: str((found.experiment.get("provenance") or {}).get("started", "")))


def load_folder(folder: ExperimentFolder, *, skip_damaged: bool = False) -> Results:
    """Load the results of one experiment folder; errors as for ``load``."""
    experiment, trials, history = read_folder(folder, skip_damaged=skip_damaged)
    return Results(experiment, trials, history.frame(), folder.path)
