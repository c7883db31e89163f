"""Brings experiments to their ends, whoever runs them: each by its runner, and all over one connection to Ray."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tune_hpc.analysis.results import Results
from tune_hpc.errors import FolderError
from tune_hpc.search.experiment import Experiment
from tune_hpc.search.object_reference import load_reference
from tune_hpc.search.ray_session import ray_session
from tune_hpc.storage.experiment_folder import ExperimentFolder


def folders_in(parent: Path, experiments: Sequence[Experiment]) -> list[Path]:
    """Return the experiment folders of some experiments: ``parent`` itself for one, folders in it for several.

    Raises:
        FolderError: several are to run, and ``parent`` is the folder of one.
    """
    if len(experiments) == 1:
        return [parent]
    if ExperimentFolder(parent).holds_experiment:
        raise FolderError(f"{parent} holds one experiment, and {len(experiments)} are to run; choose another folder")
    return [parent / experiment.name for experiment in experiments]


def launch(
    experiments: Sequence[Experiment],
    folders: Sequence[Path],
    *,
    address: str | None = None,
    check_only: bool = False,
    **options: Any,
) -> list[Results]:
    """Run experiments, one runner after the other.

    Args:
        experiments: What to run.
        folders: One experiment folder each.
        address: A Ray cluster; ``None``: one that runs already, or one of our own.
        check_only: Check the input without a cluster, and start nothing.
        **options: Those of the runners; ``go_on=True``: what a folder holds goes on, and the rest begins.

    Returns:
        One for each experiment that came to its turn: where one ended before its time, those of the next runner do not.

    Raises:
        TuneHpcError: as the runners say.
    """
    runners = dict.fromkeys(experiment.runner for experiment in experiments)

    def run_by(runner: str, **more: Any) -> list[Results]:
        chosen = [(one, folder) for one, folder in zip(experiments, folders, strict=True) if one.runner == runner]
        those, homes = [one for one, _ in chosen], [folder for _, folder in chosen]
        ran: list[Results] = load_reference(runner)(those, folders=homes, address=address, **options, **more)
        return ran

    # What the last runner would refuse is to be known before the first one has worked for hours.
    for runner in runners if check_only or len(runners) > 1 else ():
        run_by(runner, check_only=True)
    if check_only:
        return []
    # Several runners share one connection, for a Ray that is started here takes seconds to come up.
    results: dict[str, Results] = {}
    with ray_session(address) if len(runners) > 1 else nullcontext():
        for runner in runners:
            results |= {one.name: one for one in run_by(runner)}
            if any(one.experiment["state"] != "finished" for one in results.values()):
                break
    return [results[experiment.name] for experiment in experiments if experiment.name in results]
