"""Run experiments, resume interrupted searches, and extend searches.

Several experiments share one run: their trials use the same actors, so that the start of a process and ``import torch``
are paid once. Each trial writes one file into the folder of its experiment (trial_runner.py), and the end of the run
turns these into two data frames. The folder is all that a resumed search needs. Ray's files in it are never read.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tune_hpc.analysis.frames import reopen_failed_trials
from tune_hpc.analysis.loading import load, load_all, load_folder
from tune_hpc.analysis.results import Results
from tune_hpc.errors import ConflictError, FolderError, InvalidExperimentError
from tune_hpc.search.cluster import check_gpus
from tune_hpc.search.command import Command
from tune_hpc.search.experiment import TRAIN, Experiment, runner_name
from tune_hpc.search.experiment_json import check_same_search, experiment_from_json
from tune_hpc.search.fused_trials import check_fuse
from tune_hpc.search.local_runner import LocalRunner
from tune_hpc.search.object_reference import check_tools, load_reference
from tune_hpc.search.options import ADAPTIVE, PAUSING, STOPPING, RunOptions
from tune_hpc.search.schedulers.asha import AsyncSuccessiveHalving
from tune_hpc.search.schedulers.pbt import PopulationBasedTraining
from tune_hpc.search.schedulers.ray_schedulers import monitored_metric
from tune_hpc.search.search_state import Search
from tune_hpc.search.searchers.optuna_searcher import OptunaSearcher
from tune_hpc.search.searchers.searcher import remaining_trials
from tune_hpc.storage.experiment_folder import FORMAT, ExperimentFolder, find_experiment, find_experiments, new_folder
from tune_hpc.storage.process import is_running, may_be_running


def run(experiment: Experiment, *, output_dir: str | Path | None = None, **options: Any) -> Results:
    """Run one experiment and return its results.

    Args:
        experiment: The experiment.
        output_dir: The experiment folder; by default a new folder ``runs/NAME``, ``runs/NAME-2`` and so on.
        **options: Options of ``run_all``.

    Raises:
        TuneHpcError: As ``run_all``.

    Example:
        >>> from ray import tune
        >>> from tune_hpc import Experiment, Space, run
        >>> def train(config, report):
        ...     x = 0.0
        ...     for step in range(1, 51):
        ...         x -= config["rate"] * 2 * (x - 3)
        ...         report(step, {"loss": (x - 3) ** 2})
        >>> space = Space({"rate": tune.choice([0.1, 0.4])})
        >>> experiment = Experiment("parabola", space, train, metric="loss", mode="min")
        >>> run(experiment, output_dir="runs/parabola", show_progress=False).counts()
        {'finished': 2}
    """
    folder = output_dir if output_dir is not None else new_folder(experiment.name)
    return run_all([experiment], folders=[folder], **options)[0]


def run_all(
    experiments: Sequence[Experiment],
    *,
    folders: Sequence[str | Path],
    overwrite: bool = False,
    resume_started: bool = False,
    warm_start: Sequence[str | Path] = (),
    check_only: bool = False,
    **options: Any,
) -> list[Results]:
    """Run several experiments as one stream of trials.

    Args:
        experiments: The experiments, in order.
        folders: One experiment folder each, on a storage that every node of the cluster sees.
        overwrite: Replace the results of earlier runs of the same experiments.
        resume_started: Resume experiments whose folders have results already, as ``resume`` does; start the others.
        warm_start: Folders of other searches, whose trials an adaptive searcher receives first.
        check_only: Check the input without a cluster, and start nothing.
        **options: Fields of ``RunOptions``.

    Returns:
        Results of each experiment, in order.

    Raises:
        InvalidExperimentError: Two experiments have the same name, or options contradict each other.
        InvalidConfigError: The trainable does not accept a configuration.
        FolderError: A folder cannot be written, or has other contents.
        ConflictError: Another process runs the search, may run it, or has resumed it.
        MissingPackageError: An export needs a package that is not installed.
        DataUnavailableError: Image data are missing and cannot be downloaded.
        ClusterError: There is no such cluster, or no trial fits on it.
    """
    run_options = _validated_options(options)
    names = [experiment.name for experiment in experiments]
    if len(set(names)) < len(names) or len(folders) != len(names):
        raise InvalidExperimentError(f"each experiment is given once, with its own folder; got {', '.join(names)}")
    others = [load(folder) for folder in warm_start]
    if others and not any(experiment.searcher in ADAPTIVE for experiment in experiments):
        raise InvalidExperimentError(
            f"only {' and '.join(ADAPTIVE)} learn from other searches' trials; the searcher of {names[0]} is "
            f"{experiments[0].searcher}"
        )
    searches = []
    for position, (experiment, path) in enumerate(zip(experiments, folders, strict=True)):
        folder = ExperimentFolder(path).absolute()
        if resume_started and folder.holds_experiment:
            description = folder.read()
            check_same_search(experiment, description, folder.path)
            if _is_due(description, run_options):
                searches.append(_resumed_search(folder, run_options, experiment.trainable, claim=not check_only))
            continue
        trainable = _load_trainable(experiment.trainable)
        search = Search(experiment, folder, trainable, position=position, attempt=run_options.attempt)
        _plan(search, warm_start=others)
        search.claim = partial(folder.claim, experiment.name, overwrite=overwrite)
        searches.append(search)
    for search in searches:
        if not search.before:
            search.folder.check_free(search.name, overwrite=overwrite)
    if check_only:
        return []
    ran = {results.name: results for results in (_run(searches, run_options) if searches else [])}
    return [ran.get(name) or load(folder) for name, folder in zip(names, folders, strict=True)]


def resume(folder: str | Path, *, trainable: str | Callable[..., Any] | None = None, **options: Any) -> list[Results]:
    """Resume searches that stopped early: by an interrupt, a time limit or a lost machine.

    Trials that ended remain as they are, except failed ones with ``retry_failed``. Interrupted trials resume from their
    last checkpoints, and the others follow.

    Args:
        folder: An experiment folder, or a folder of several.
        trainable: The function, if its module cannot be imported by the name in the folder.
        **options: Options of ``run_all``.

    Returns:
        Results of every search in the folder.

    Raises:
        FolderError: The folder has no search, or a search whose state cannot be read.
        TuneHpcError: As ``run_all``.

    Example:
        >>> from search_spaces.exercise1_1stpart import experiments
        >>> from tune_hpc import resume, run
        >>> results = run(experiments[0].with_values({"steps": 20}), output_dir="runs/line", show_progress=False)
        >>> (resumed,) = resume("runs/line", show_progress=False)    # finished trials are not repeated
        >>> resumed.counts()
        {'finished': 5}
    """
    run_options = _validated_options(options)
    found = [folder.absolute() for folder in find_experiments(folder)]
    descriptions = [(search, search.read()) for search in found]
    searches = [(search, state) for search, state in descriptions if _is_search(state)]
    if not searches:
        raise FolderError(f"{folder} has no search to resume; run its experiments again")
    due = [_resumed_search(search, run_options, trainable) for search, state in searches if _is_due(state, run_options)]
    if due:
        _run(due, run_options)
    return [results for results in load_all(folder) if _is_search(results.experiment)]


def extend(
    folder: str | Path, *, num_samples: int, trainable: str | Callable[..., Any] | None = None, **options: Any
) -> Results:
    """Add configurations to a search, finished or not; its searcher knows all earlier trials.

    Args:
        folder: The experiment folder.
        num_samples: Number of further configurations.
        trainable: As for ``resume``.
        **options: Options of ``run_all``.

    Raises:
        InvalidExperimentError: The search is a grid or uses PBT, or the number is below 1.
        FolderError: As for ``resume``.
        TuneHpcError: As ``run_all``.

    Example:
        >>> from ray import tune
        >>> from search_spaces.exercise1_1stpart import experiments
        >>> from tune_hpc import extend, run
        >>> experiment = experiments[0].with_values({"steps": 20, "learning_rate": tune.loguniform(1e-3, 1e-1)})
        >>> experiment = experiment.replace(searcher="random", num_samples=2)
        >>> results = run(experiment, output_dir="runs/line", show_progress=False)
        >>> extended = extend("runs/line", num_samples=3, show_progress=False)
        >>> len(extended.trials)
        5
    """
    run_options = _validated_options(options)
    if num_samples < 1:
        raise InvalidExperimentError(f"num_samples must be at least 1; got {num_samples}")
    search = _resumed_search(find_experiment(folder).absolute(), run_options, trainable, num_samples)
    return _run([search], run_options)[0]


def _run(searches: Sequence[Search], options: RunOptions) -> list[Results]:
    if options.runner == "local":
        return LocalRunner(searches, options).run()
    from tune_hpc.search.ray_runner import RayRunner

    return RayRunner(searches, options).run()


def _is_due(description: Mapping[str, Any], options: RunOptions) -> bool:
    """Return whether a search has trials to run."""
    return description.get("state") != "finished" or options.retry_failed


def _resumed_search(
    folder: ExperimentFolder,
    options: RunOptions,
    trainable: str | Callable[..., Any] | None,
    num_more: int = 0,
    *,
    claim: bool = True,
) -> Search:
    """Return the remaining trials of a search, with more configurations if requested.

    The folder is claimed before its trials are read, so that an earlier driver adds none in between.
    """
    last, description = folder.last_attempt(), folder.read()
    _check_not_running(folder, description, force=options.force)
    experiment = experiment_from_json(description, trainable)
    if num_more and experiment.scheduler == "pbt":
        raise InvalidExperimentError(f"{experiment.name} uses PBT, which cannot be extended; start a new search")
    if num_more and experiment.searcher == "grid":
        raise InvalidExperimentError(
            f"a grid has no more configurations; start a new search over the values that {experiment.name} lacks"
        )
    if options.retry_failed and experiment.scheduler in PAUSING:
        raise InvalidExperimentError(
            f"{experiment.scheduler} has decided without the failed trials of {experiment.name}, and cannot run them "
            "again; start a new search"
        )
    if num_more:
        experiment = experiment.replace(num_samples=(experiment.num_samples or 0) + num_more)
    if claim:
        folder.claim_attempt(last, options.attempt)
        if options.retry_failed:
            # First, so that a resume continues if this process is killed.
            folder.write(description | {"state": "interrupted", "process": None})
            reopen_failed_trials(folder)
    search = Search(experiment, folder, _load_trainable(experiment.trainable), before=load_folder(folder))
    _plan(search)
    return search


def _plan(search: Search, warm_start: Sequence[Results] = ()) -> None:
    """Set the searcher of a search, or its trials if they are known beforehand."""
    experiment, folder, before = search.experiment, search.folder, search.before
    trainable = search.trainable
    if isinstance(trainable, Command):
        trainable.check_folder()
    if experiment.scheduler in PAUSING:
        if isinstance(trainable, Command):
            raise InvalidExperimentError(
                f"{experiment.scheduler} needs a trainable that saves its state, and a command saves none; use "
                f"{', '.join(STOPPING)}"
            )
        if not isinstance(trainable, str) and "checkpoint" not in inspect.signature(trainable).parameters:
            remedy = "add it, or use asha_stopping" if experiment.scheduler == "asha" else "add it"
            raise InvalidExperimentError(
                f"{experiment.scheduler} needs a trainable that saves its state; the function of {search.name} has no "
                f"parameter checkpoint: {remedy}"
            )
    metric = monitored_metric(experiment)
    adaptive = OptunaSearcher(experiment, folder, before, warm_start) if experiment.searcher in ADAPTIVE else None
    if experiment.scheduler == "pbt":
        search.searcher = PopulationBasedTraining(experiment, folder, metric, before)
    elif experiment.scheduler == "asha":
        search.searcher = AsyncSuccessiveHalving(experiment, folder, metric, adaptive, before)
    elif adaptive:
        search.searcher, search.trials = adaptive, adaptive.unfinished
    else:
        search.trials = remaining_trials(experiment, before)


def _load_trainable(trainable: str | Callable[..., Any]) -> str | Callable[..., Any]:
    """Return the function of a user's trainable; the built-in one remains a reference."""
    return load_reference(trainable) if isinstance(trainable, str) and trainable != TRAIN else trainable


def _validated_options(options: Mapping[str, Any]) -> RunOptions:
    """Return the options of a run, of which ``None`` means the default."""
    if unknown := set(options).difference(RunOptions.__dataclass_fields__):
        raise TypeError(f"no such option: {', '.join(sorted(unknown))}")
    given = RunOptions(**{name: value for name, value in options.items() if value is not None})
    if given.runner not in ("ray", "local"):
        raise InvalidExperimentError(f"runner must be ray or local; got {given.runner!r}")
    if given.fail_fast and given.runner != "local":
        raise InvalidExperimentError("fail_fast raises an exception in this process: it needs a local run")
    if given.no_reuse and given.runner == "local":
        raise InvalidExperimentError("no_reuse starts a process for each trial, and a local run has one: run on Ray")
    check_gpus(given.gpus_per_trial)
    return replace(given, fuse=check_fuse(given.fuse), export=check_tools(given.export))


def _is_search(description: Mapping[str, Any]) -> bool:
    return runner_name(description.get("runner", "")) == "search"


def _check_not_running(folder: ExperimentFolder, description: Mapping[str, Any], *, force: bool) -> None:
    """Raise if another process may work on a folder, or if it has no search that can be resumed.

    With ``force``, a process of another machine, whose state is unknown, is accepted.
    """
    if not _is_search(description):
        raise FolderError(f"{folder.path} has {description['name']}, which cannot be resumed; run it again")
    if description.get("format") != FORMAT:
        raise FolderError(
            f"{folder.path} has the format of another release; it can be read, but not resumed: start a new search"
        )
    process = description.get("process") if description.get("state") == "running" else None
    if process and not force and is_running(process):
        raise ConflictError(
            f"{folder.path} is being run by process {process['pid']} of this machine; stop that process first"
        )
    if process and not force and may_be_running(process):
        raise ConflictError(
            f"{folder.path} was being run by process {process['pid']} on {process['host']}, which this machine cannot "
            "check; make sure that it has ended, then use --force"
        )
