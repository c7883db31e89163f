"""Run experiments, each with its runner, over one connection to Ray."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tune_hpc.analysis.results import Results
from tune_hpc.errors import FolderError, UnknownNameError
from tune_hpc.search.experiment import Experiment
from tune_hpc.search.ray_session import ray_session
from tune_hpc.storage.experiment_folder import ExperimentFolder


def folders_in(parent: Path, experiments: Sequence[Experiment]) -> list[Path]:
    """Return the experiment folders of some experiments: ``parent`` for one, folders in it for several.

    Raises:
        FolderError: ``parent`` is the folder of one experiment, but there are several.
    """
    if len(experiments) == 1:
        return [parent]
    if ExperimentFolder(parent).holds_experiment:
        raise FolderError(f"{parent} holds one experiment, not {len(experiments)}; choose another folder")
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
        experiments: The experiments.
        folders: One experiment folder each.
        address: Address of a Ray cluster; ``None``: a running cluster of this machine, or a new local one.
        check_only: Check the input without a cluster, and start nothing.
        **options: Options of the runners. With ``resume_started=True`` experiments that have started are resumed.

    Returns:
        The results of each experiment that ran. If one stops early, the next runner does not start.

    Raises:
        TuneHpcError: as the runners.
    """
    runners = dict.fromkeys(experiment.runner for experiment in experiments)

    def run_all_of(runner: str, **more: Any) -> list[Results]:
        pairs = [(one, folder) for one, folder in zip(experiments, folders, strict=True) if one.runner == runner]
        group, group_folders = map(list, zip(*pairs, strict=True))
        return _runner(runner)(group, folders=group_folders, address=address, **options, **more)

    # The last runner must not reject its input after the first one has worked for hours.
    for runner in runners if check_only or len(runners) > 1 else ():
        run_all_of(runner, check_only=True)
    if check_only:
        return []
    results: dict[str, Results] = {}
    # Several runners share one connection: the start of a local Ray takes seconds.
    with ray_session(address) if len(runners) > 1 else nullcontext():
        for runner in runners:
            results |= {result.name: result for result in run_all_of(runner)}
            if any(result.experiment["state"] != "finished" for result in results.values()):
                break
    return [results[experiment.name] for experiment in experiments if experiment.name in results]


def _runner(name: str) -> Callable[..., list[Results]]:
    if name == "search":
        from tune_hpc.search.runner import run_all

        return run_all
    if name == "scaling":
        from tune_hpc.scaling.measurement import run_all as run_scaling

        return run_scaling
    raise UnknownNameError(f"no runner {name!r}; the runners are search and scaling")
