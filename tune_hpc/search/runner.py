"""Runs experiments on Ray Tune, goes on with interrupted ones, and adds trials to finished ones.

Several experiments share one run: their trials queue for the same actors, so that what a process start and an
``import torch`` cost is paid once. A trial of Ray's carries a bundle of ours (bundles.py). Each of our trials leaves
one file in its experiment's folder (trial.py); when the run ends these become the two frames. The folder is all that a
search needs to go on: Ray's own files are kept beside it and are needed for nothing.
"""

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray

from tune_hpc.analysis.results import Results, load, load_all, load_folder
from tune_hpc.errors import ConflictError, FolderError, InvalidExperimentError
from tune_hpc.export.export import check_tools
from tune_hpc.search.experiment import ENDED, TRAIN, Experiment, experiment_from_json
from tune_hpc.search.fused_trials import check_fuse
from tune_hpc.search.limits import check_limits
from tune_hpc.search.object_reference import load_reference
from tune_hpc.search.options import ADAPTIVE, PAUSING, RunOptions
from tune_hpc.search.resources import check_request
from tune_hpc.search.running import run_searches
from tune_hpc.search.schedulers.asha import AsyncSuccessiveHalving
from tune_hpc.search.schedulers.pbt import PopulationBasedTraining
from tune_hpc.search.schedulers.ray_schedulers import monitored_metric
from tune_hpc.search.search_state import Search
from tune_hpc.search.searchers.optuna_searcher import OptunaSearcher
from tune_hpc.search.searchers.searcher import remaining_trials
from tune_hpc.storage.experiment_folder import FORMAT, ExperimentFolder, find_experiments, find_one, new_folder
from tune_hpc.storage.filesystem import here
from tune_hpc.storage.process import is_running, may_be_running

#: The runner whose searches can go on.
RUNNER = "tune_hpc.search.runner:run_all"


def run(experiment: Experiment, *, output_dir: str | Path | None = None, **options: Any) -> Results:
    """Run one experiment and return what happened.

    Args:
        experiment: What to run.
        output_dir: The experiment folder; by default a new one, ``runs/NAME`` or ``runs/NAME-2`` and so on.
        **options: Those of ``run_all``.

    Raises:
        TuneHpcError: a rule is broken; nothing was started.
    """
    folder = here(output_dir) if output_dir is not None else new_folder(experiment.name)
    return run_all([experiment], folders=[folder], **options)[0]


def run_all(
    experiments: Sequence[Experiment],
    *,
    folders: Sequence[str | Path],
    overwrite: bool = False,
    go_on: bool = False,
    warm_start: Sequence[str | Path] = (),
    check_only: bool = False,
    **options: Any,
) -> list[Results]:
    """Run several experiments as one stream of trials.

    Args:
        experiments: What to run, in this order.
        folders: One experiment folder each, on storage that every node of the cluster sees.
        overwrite: Replace what earlier runs of the same experiments left there.
        go_on: Go on with the same experiments that folders hold already, as ``resume`` does; the others begin.
        warm_start: Folders of other searches, whose trials a searcher that learns is told first.
        check_only: Refuse what can be refused without a cluster, and start nothing.
        **options: ``address``, ``cpus_per_trial``, ``gpus_per_trial``, ``max_concurrent``, ``fuse``, ``data_dir``,
            ``checkpoint_interval_s``, ``time_budget_s``, ``target``, ``export``, ``show_progress``, ``stream``,
            ``stop_file``, ``attempt`` and ``force``, as ``RunOptions`` describes them.

    Returns:
        One per experiment, in order.

    Raises:
        InvalidExperimentError: two experiments of one name, or options that contradict one another.
        InvalidConfigError: a configuration that the trainable would refuse.
        FolderError: a folder that cannot be written, or holds something else.
        ConflictError: another process runs the search, may run it, or has resumed it.
        MissingPackageError: an export needs a package that is not installed.
        DataUnavailableError: image data that are not here and cannot be fetched.
        ClusterError: no such cluster, or one on which no trial fits.
    """
    chosen = _validated_options(options)
    names = [experiment.name for experiment in experiments]
    if len(set(names)) < len(names) or len(folders) != len(names):
        raise InvalidExperimentError(f"each experiment is given once, with a folder of its own; got {', '.join(names)}")
    before = [load(folder) for folder in warm_start]
    if before and not any(experiment.searcher in ADAPTIVE for experiment in experiments):
        raise InvalidExperimentError(
            f"only {' and '.join(ADAPTIVE)} learn from other searches' trials; {names[0]} is searched by "
            f"{experiments[0].searcher}"
        )
    searches = []
    for position, (experiment, folder) in enumerate(zip(experiments, folders, strict=True)):
        home = ExperimentFolder(here(folder).absolute())
        if go_on and home.holds_experiment:
            description = home.read()
            experiment.check_matches(description, home.path)
            if description.get("state") != "finished":
                searches.append(_resumed_search(home, chosen, experiment.trainable, claim=not check_only))
            continue
        search = Search(
            experiment, home, pickle_by_value(experiment.trainable), position=position, number=chosen.attempt
        )  # fmt: skip
        _plan(search, warm_start=before)
        search.claim = partial(home.claim, experiment.name, overwrite=overwrite)
        searches.append(search)
    for search in searches:
        if not search.before:
            search.home.check_free(search.name, overwrite=overwrite)
    if check_only:
        return []
    ran = {one.name: one for one in (run_searches(searches, chosen) if searches else [])}
    return [ran.get(name) or load(folder) for name, folder in zip(names, folders, strict=True)]


def resume(folder: str | Path, *, trainable: str | Callable[..., Any] | None = None, **options: Any) -> list[Results]:
    """Go on with searches that ended before their time: by an interrupt, a time limit, a lost machine.

    Trials that ended are kept as they are; those under way go on from their last checkpoint; the rest follows.

    Args:
        folder: An experiment folder, or one that holds several, of one run or not.
        trainable: The function, where its module cannot be imported by the name in the folder.
        **options: Those of ``run_all``.

    Returns:
        Every search in the folder.

    Raises:
        FolderError: the folder holds no search, or one whose state cannot be read.
        TuneHpcError: as ``run_all``.
    """
    chosen = _validated_options(options)
    homes = [ExperimentFolder(one.path.absolute()) for one in find_experiments(folder)]
    found = [home for home in homes if home.read().get("runner") == RUNNER]
    if not found:
        raise FolderError(f"{folder} holds no search that could go on; run its experiments again")
    searches = [_resumed_search(home, chosen, trainable) for home in found if home.read().get("state") != "finished"]
    if searches:
        run_searches(searches, chosen)
    return [one for one in load_all(folder) if one.experiment.get("runner") == RUNNER]


def extend(
    folder: str | Path, *, num_samples: int, trainable: str | Callable[..., Any] | None = None, **options: Any
) -> Results:
    """Add configurations to a search, finished or not; its searcher knows all that was tried.

    Args:
        folder: The experiment folder.
        num_samples: How many more configurations to try.
        trainable: As for ``resume``.
        **options: Those of ``run_all``.

    Raises:
        InvalidExperimentError: a grid, which has no more configurations, or a number below 1.
        FolderError: as for ``resume``.
        TuneHpcError: as ``run_all``.
    """
    chosen = _validated_options(options)
    if num_samples < 1:
        raise InvalidExperimentError(f"num_samples must be at least 1; got {num_samples}")
    home = ExperimentFolder(find_one(folder).path.absolute())
    return run_searches([_resumed_search(home, chosen, trainable, num_samples)], chosen)[0]


def _resumed_search(
    home: ExperimentFolder,
    options: RunOptions,
    trainable: str | Callable[..., Any] | None,
    more: int = 0,
    *,
    claim: bool = True,
) -> Search:
    """Return what is left to do of a search, and some more of it.

    The folder is claimed before its trials are read, so that an earlier driver adds none in between.

    Raises:
        ConflictError: another process runs the search, may run it, or has resumed it.
    """
    last, description = home.last_attempt(), home.read()
    _check_not_running(home, description, force=options.force)
    experiment = experiment_from_json(description, trainable)
    if more and experiment.scheduler == "pbt":
        raise InvalidExperimentError(f"{experiment.name} is a population, which nobody joins; run another one")
    if more and experiment.searcher == "grid":
        raise InvalidExperimentError(
            f"a grid has no more configurations; run another over the values that {experiment.name} lacks"
        )
    if more:
        experiment = experiment.replace(num_samples=(experiment.num_samples or 0) + more)
    if claim:
        home.claim_attempt(last, options.attempt)
    before = load_folder(home)
    ended = before.trials.loc[before.trials["status"].isin(ENDED)]
    search = Search(
        experiment, home, pickle_by_value(experiment.trainable), before=before, ended_before=Counter(ended["status"])
    )
    _plan(search)
    return search


def _plan(search: Search, warm_start: Sequence[Results] = ()) -> None:
    """Decide what there is to try, and what is asked for more.

    Raises:
        InvalidExperimentError: the scheduler needs trials that can pause, and the trainable cannot.
    """
    experiment, home, before = search.experiment, search.home, search.before
    if experiment.scheduler in PAUSING:
        _check_supports_pause(search)
    seen = monitored_metric(experiment.metric, experiment.mode, search.trainable == TRAIN)
    learner = OptunaSearcher(experiment, home, before, warm_start) if experiment.searcher in ADAPTIVE else None
    if experiment.scheduler == "pbt":
        search.proposer = PopulationBasedTraining(experiment, home, seen, before)
    elif experiment.scheduler == "asha":
        search.proposer = AsyncSuccessiveHalving(experiment, home, seen, learner, before)
    elif learner:
        search.proposer, search.samples = learner, learner.unfinished
    else:
        search.samples = remaining_trials(experiment, before)


def _check_supports_pause(search: Search) -> None:
    """Refuse a trainable that cannot pause."""
    trainable, scheduler = search.trainable, search.experiment.scheduler
    if not isinstance(trainable, str) and "checkpoint" not in inspect.signature(trainable).parameters:
        remedy = "; asha_stopping does without" if scheduler == "asha" else ""
        raise InvalidExperimentError(
            f"{scheduler} needs a trainable that saves its state; the function of {search.name} takes no checkpoint"
            f"{remedy}"
        )


def pickle_by_value(trainable: str | Callable[..., Any]) -> str | Callable[..., Any]:
    """Return a user's trainable such that it reaches machines that do not have its module."""
    if trainable == TRAIN:
        return trainable
    function = load_reference(trainable) if isinstance(trainable, str) else trainable
    module = sys.modules.get(getattr(function, "__module__", ""))
    file = getattr(module, "__file__", None)
    if module is not None and file and "site-packages" not in file and not module.__name__.startswith("tune_hpc."):
        ray.cloudpickle.register_pickle_by_value(module)
    return function


def _validated_options(options: Mapping[str, Any]) -> RunOptions:
    if unknown := set(options).difference(RunOptions.__dataclass_fields__):
        raise TypeError(f"no such option: {', '.join(sorted(unknown))}")
    given = {name: value for name, value in options.items() if value is not None}
    chosen = RunOptions(**given)
    check_request(chosen.cpus_per_trial, chosen.gpus_per_trial, chosen.max_concurrent)
    check_limits(chosen.time_budget_s, chosen.target)
    return replace(chosen, fuse=check_fuse(chosen.fuse), export=check_tools(chosen.export))


def _check_not_running(home: ExperimentFolder, description: Mapping[str, Any], *, force: bool) -> None:
    """Raise if another process works on the folder or may do so, or if it holds no search.

    Args:
        home: The folder.
        description: The contents of its experiment.json.
        force: Accept a process of another machine, of which nothing is known.

    Raises:
        FolderError: the folder holds no search, or one of another release.
        ConflictError: another process works on it, or may.
    """
    if description.get("runner") != RUNNER:
        raise FolderError(f"{home.path} holds no search but {description['name']}, which cannot go on; run it again")
    if description.get("format") != FORMAT:
        raise FolderError(f"{home.path} is of another release's format; it can be read, but not go on")
    process = description.get("process") if description.get("state") == "running" else None
    if process and not force and is_running(process):
        raise ConflictError(f"{home.path} is being run by process {process['pid']} of this machine; stop that first")
    if process and not force and may_be_running(process):
        raise ConflictError(
            f"{home.path} was being run by process {process['pid']} on {process['host']}, and this machine cannot tell "
            "whether it still runs; make sure that it has ended, then use --force"
        )
