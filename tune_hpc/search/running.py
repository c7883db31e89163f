"""One run of Ray Tune over some searches: what to try, where, and what to make of the outcome."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.air._internal import usage
from ray.tune.schedulers import TrialScheduler

from tune_hpc.analysis.results import Results
from tune_hpc.errors import ClusterError, InvalidExperimentError
from tune_hpc.learning.mnist_files import read_arrays
from tune_hpc.search.callback import SearchCallback
from tune_hpc.search.experiment import TRAIN
from tune_hpc.search.fused_trials import (
    interrupted_bundles,
    log_scheduler_unfused,
    log_unfused_trials,
    plan_bundles,
    write_bundles,
)
from tune_hpc.search.limits import StopCriteria
from tune_hpc.search.live_export import LiveExport
from tune_hpc.search.options import RunOptions
from tune_hpc.search.provenance import provenance
from tune_hpc.search.ray_session import node_resources, ray_session
from tune_hpc.search.resources import TrialResources, choose_resources
from tune_hpc.search.schedulers.ray_schedulers import FifoMixin, make_scheduler, replay_results
from tune_hpc.search.search_state import Search
from tune_hpc.search.searchers.ray_searcher import RaySearcherAdapter
from tune_hpc.search.trial_spec import TrialGroup, TrialSpec
from tune_hpc.search.stopping import GracefulStopper
from tune_hpc.search.storage_check import check_storage
from tune_hpc.search.trial_runner import TrialContext, WorkerPlacement, run_bundle


def run_searches(searches: Sequence[Search], options: RunOptions) -> list[Results]:
    """Run what the searches have left to do, as one stream of trials.

    Raises:
        TuneHpcError: see ``tuner.run_all``.
    """
    limits = StopCriteria(options.time_budget_s, options.target, options.stop_file)
    with limits.restoring_signal_handlers():
        # While Ray starts, Ctrl-C ends the process at once; the other signals wait until trials can save their state.
        limits.install_signal_handlers(interrupts=False)
        return _run_searches(searches, options, limits)


def _run_searches(searches: Sequence[Search], options: RunOptions, limits: StopCriteria) -> list[Results]:
    workers = _most_workers(searches)
    trainables = {search.name: search.trainable for search in searches}
    image_sets = _image_sets(searches, options.data_dir)
    with ray_session(options.address, with_state=bool(workers)):
        decided = [search.name for search in searches if search.experiment.scheduler != "none"]
        log_scheduler_unfused(decided, options.fuse)
        free = {search.name: search.trainable for search in searches if search.name not in decided}
        log_unfused_trials(free, options.fuse)
        num_trials = sum(search.num_to_run for search in searches)
        resources = choose_resources(
            node_resources(), num_trials, options.cpus_per_trial, options.gpus_per_trial, options.max_concurrent,
            workers,
        )  # fmt: skip
        check_storage([search.home.path for search in searches])
        origin = provenance()
        for search in searches:
            search.begin(origin)
        assignments = {
            search.name: TrialContext(
                search.name,
                search.home.place,
                search.trainable,
                search.experiment.metric,
                search.attempt,
                options.checkpoint_interval_s,
                search.watched,
                search.experiment.max_steps if search.watched else 1,
                WorkerPlacement(resources.per_worker, str(search.home.ray)) if workers else None,
            )
            for search in searches
        }
        watcher = SearchCallback(
            {search.name: search.experiment for search in searches},
            {search.name: search.home for search in searches},
            options.show_progress,
            limits,
            options.stream,
        )
        for search in searches:
            if search.proposer:
                search.proposer.record_stopped = watcher.record_stopped
            watcher.tallies[search.name].ended.update(search.ended_before)
            if search.before and search.experiment.metric in search.before.trials:
                best = search.before.top(1)
                for trial_id, value in zip(best["trial_id"], best[search.experiment.metric], strict=True):
                    watcher.tallies[search.name].note_value(search.name, trial_id, value, search.experiment.mode)
        limits.start()
        watcher.begin()
        ending = GracefulStopper(limits, watcher, [search.home for search in searches])
        images = {name: ray.put(arrays) for name, arrays in image_sets.items()}
        exporters = LiveExport([search.home for search in searches], options.export)
        try:
            for group in _groups(searches):
                proposals = _proposals(group, trainables, options, resources, limits)
                _fit(proposals, assignments, images, resources, group, watcher, ending)
                num_due = sum(search.experiment.num_trials for search in _until(group, searches))
                if limits.reason or watcher.num_ended < num_due:
                    break
        except (ray.exceptions.RayError, tune.TuneError) as error:
            # Ray Tune gives a whole traceback as its text; what happened stands last.
            reason = str(error).strip().rpartition("\n")[2]
            where = searches[0].home.path
            raise ClusterError(f"Ray ended the search: {reason}; the trials that ended are in {where}") from error
        finally:
            watcher.show(is_last=True)
            results = [search.finish(watcher, limits) for search in searches]
            exporters.wait()
    return results


def _most_workers(searches: Sequence[Search]) -> int:
    """Return how many workers a trial has at most; 0 where none has any of its own.

    Raises:
        InvalidExperimentError: only some searches have trials of several workers, and all are to run as one.
    """
    workers = {search.name: search.most_workers for search in searches}
    if any(workers.values()) and not all(workers.values()):
        with_them, without = (next(one for one in workers if bool(workers[one]) == has) for has in (True, False))
        raise InvalidExperimentError(
            f"trials of several workers run by themselves; got {with_them} with workers and {without} without: run "
            "one after the other"
        )
    return max(workers.values(), default=0)


def _groups(searches: Sequence[Search]) -> list[list[Search]]:
    """Return which searches run as one: each that has a scheduler alone, for that decides on all it sees."""
    groups: list[list[Search]] = []
    for search in searches:
        alone = search.experiment.scheduler != "none"
        if groups and not alone and groups[-1][-1].experiment.scheduler == "none":
            groups[-1].append(search)
        else:
            groups.append([search])
    return groups


def _until(group: Sequence[Search], searches: Sequence[Search]) -> Sequence[Search]:
    """Return the searches up to the end of a group."""
    return searches[: searches.index(group[-1]) + 1]


def _image_sets(searches: Sequence[Search], data_dir: str | Path | None) -> dict[str, Any]:
    """Load the image data that any trial needs, once for all of them."""
    needed = {sample["config"]["data"] for one in searches if one.trainable == TRAIN for sample in one.samples}
    for search in searches:
        if search.proposer and search.trainable == TRAIN:
            needed |= set(search.proposer.possible_data())
    return {name: read_arrays(name, Path(data_dir) if data_dir else None) for name in sorted(needed - {"line"})}


def _proposals(
    searches: Sequence[Search],
    trainables: Mapping[str, str | Callable[..., Any]],
    options: RunOptions,
    resources: TrialResources,
    limits: StopCriteria,
) -> RaySearcherAdapter:
    """Plan the bundles of all trials that are known, and of those to come."""
    bundles: list[TrialGroup] = []
    numbers = {}
    new: list[TrialSpec] = []
    for search in searches:
        resumed, numbers[search.name] = interrupted_bundles(search.home, search.samples) if search.before else ([], 0)
        taken = {sample["trial_id"] for bundle in resumed for sample in bundle["members"]}
        bundles += resumed
        new += [sample for sample in search.samples if sample["trial_id"] not in taken]
    next_number = max(numbers.values(), default=0)

    fuse = options.fuse if searches[0].experiment.scheduler == "none" else "off"

    def bundle(samples: Sequence[TrialSpec], num_slots: int = 1) -> list[TrialGroup]:
        nonlocal next_number
        planned = plan_bundles(samples, trainables, fuse, num_slots, resources.gpus > 0, next_number)
        next_number += len(planned)
        for search in searches:
            own = [one for one in planned if one["members"][0]["experiment"] == search.name]
            if any(len(one["members"]) > 1 for one in own):
                write_bundles(search.home, own)
        return list(planned)

    bundles += bundle(new, resources.num_slots)
    return RaySearcherAdapter(
        bundles,
        [search.proposer for search in searches if search.proposer],
        bundle,
        {search.name: search.home for search in searches},
        resources.num_slots,
        one_by_one=searches[0].experiment.scheduler != "none",
        is_ending=limits.are_reached,
        num_asked=fuse if isinstance(fuse, int) else 1,
    )


def _scheduler(search: Search) -> TrialScheduler:
    """Return what decides on a search's trials, with what it should know of earlier ones."""
    seen = search.watched
    if seen is None:
        return FifoMixin()
    experiment = search.experiment
    scheduler = make_scheduler(experiment.scheduler, experiment.mode, experiment.max_steps, experiment.search_seed)
    if search.before:
        replay_results(scheduler, search.before, seen, experiment.max_steps)
    return scheduler


def _fit(
    proposals: RaySearcherAdapter,
    assignments: Mapping[str, TrialContext],
    images: Mapping[str, ray.ObjectRef],
    resources: TrialResources,
    group: Sequence[Search],
    watcher: SearchCallback,
    ending: GracefulStopper,
) -> None:
    """Run everything that is proposed on Ray Tune, until there is no more or it is interrupted."""
    storage = group[0].home.ray
    trainable = tune.with_parameters(run_bundle, assignments=assignments, images=images)
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources.as_ray()),
        tune_config=tune.TuneConfig(
            search_alg=proposals,
            scheduler=_scheduler(group[0]),
            num_samples=-1,
            max_concurrent_trials=resources.num_slots,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["bundle_id"],
            trial_dirname_creator=lambda trial: (
                f"{trial.config['members'][0]['experiment']}.{trial.config['bundle_id']}"
            ),
        ),
        run_config=tune.RunConfig(
            name=storage.name,
            storage_path=str(storage.parent),
            callbacks=[watcher],
            stop=ending,
            failure_config=tune.FailureConfig(max_failures=1),
            verbose=0,
        ),
    )
    with (
        _environment(
            TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
            # Without it a searcher's next trial is made only when the last one runs.
            TUNE_MAX_PENDING_TRIALS_PG=str(2 * resources.num_slots),
            RAY_CHDIR_TO_TRIAL_DIR="0",
            RAY_AIR_NEW_OUTPUT="0",
        ),
        _without_usage_stats(),
        watcher.progress or nullcontext(),
        ending.limits.restoring_signal_handlers(),
    ):
        tuner.fit()


@contextmanager
def _without_usage_stats() -> Iterator[None]:
    """Keep Ray Tune from counting callbacks by kind: to know the kinds it imports MLflow where it is installed, 1 s."""
    # The count is for Ray's telemetry, and there is no public switch for it.
    count = usage.tag_callbacks
    usage.tag_callbacks = lambda callbacks: False
    try:
        yield
    finally:
        usage.tag_callbacks = count


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set environment variables inside the block; Ray Tune reads some settings from nowhere else."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
