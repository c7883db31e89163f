"""Runs searches on Ray Tune: adapters of our queue, monitor and stop to Ray Tune's interfaces."""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ray
from ray import tune
from ray.air._internal import usage
from ray.air.execution._internal import RayActorManager
from ray.tune.experiment import Trial
from ray.tune.search import Searcher as TuneSearcher

from tune_hpc.errors import ClusterError, FolderError
from tune_hpc.search.base_runner import Runner
from tune_hpc.search.cluster import TrialResources, check_storage, node_resources
from tune_hpc.search.command import Command
from tune_hpc.search.group_queue import GroupQueue
from tune_hpc.search.monitor import SearchMonitor
from tune_hpc.search.options import RunOptions
from tune_hpc.search.ray_session import environment, ray_session
from tune_hpc.search.reporter import SchedulerStop
from tune_hpc.search.schedulers.ray_schedulers import FifoMixin, search_scheduler
from tune_hpc.search.search_state import Search
from tune_hpc.search.stopping import GracefulStop, StopCriteria
from tune_hpc.search.trial_runner import TrialRunner
from tune_hpc.search.trial_spec import TrialContext, TrialGroup
from tune_hpc.search.user_code import PortableTrainable
from tune_hpc.storage.retries import retries


class RayRunner(Runner):
    """Runs trials in the actors of Ray Tune.

    Raises:
        InvalidExperimentError: A trainable cannot be sent to the actors.
    """

    def __init__(self, searches: Sequence[Search], options: RunOptions) -> None:
        super().__init__(searches, options)
        self.trainables = {
            search.name: search.trainable
            if isinstance(search.trainable, str | Command)
            else PortableTrainable.of(search.trainable)
            for search in searches
        }

    def session(self) -> AbstractContextManager[None]:
        """Return a connection to Ray."""
        if self.options.show_progress and not ray.is_initialized():
            address = self.options.address or os.environ.get("RAY_ADDRESS")
            text = f"connecting to Ray at {address}" if address else "starting Ray"
            print(text, file=self.options.stream or sys.stderr, flush=True)
        return ray_session(
            self.options.address, with_state=bool(self.num_workers), hide_gpus=self.options.gpus_per_trial == 0
        )

    def nodes(self) -> list[Mapping[str, float]]:
        """Return the resources of each node that is alive."""
        return node_resources()

    def check_storage(self) -> None:
        """Check that every node can write to the experiment folders."""
        check_storage([search.folder.path for search in self.searches])

    def share_images(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Return references to the data sets in Ray's object store."""
        return {name: ray.put(data) for name, data in arrays.items()}

    def run_part(
        self, searches: Sequence[Search], queue: GroupQueue, resources: TrialResources, stop: GracefulStop
    ) -> None:
        """Run some of the searches on Ray Tune.

        Raises:
            ClusterError: Ray ended the search.
        """
        storage = searches[0].folder.ray
        contexts = {name: replace(context, trainable=self.trainables[name]) for name, context in self.contexts.items()}
        trainable = tune.with_parameters(run_group, contexts=contexts, images=self.images)
        callback = RayCallback(self.monitor, self.criteria)
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources.as_ray()),
            tune_config=tune.TuneConfig(
                search_alg=RaySearcherAdapter(queue, self.criteria),
                scheduler=search_scheduler(searches[0]) or FifoMixin(),
                num_samples=-1,
                max_concurrent_trials=resources.num_slots,
                reuse_actors=not self.options.no_reuse,
                trial_name_creator=lambda trial: trial.config["group"].group_id,
                trial_dirname_creator=lambda trial: (
                    f"{trial.config['group'].experiment}.{trial.config['group'].group_id}"
                ),
            ),
            run_config=tune.RunConfig(
                name=storage.name,
                storage_path=str(storage.parent),
                callbacks=[callback],
                stop=RayStopper(stop, callback),
                failure_config=tune.FailureConfig(max_failures=1),
                verbose=0,
            ),
        )
        with (
            environment(
                TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
                # By default Ray Tune requests the next trial only when the previous one runs.
                TUNE_MAX_PENDING_TRIALS_PG=str(2 * resources.num_slots),
                RAY_CHDIR_TO_TRIAL_DIR="0",
                RAY_AIR_NEW_OUTPUT="0",
            ),
            # Ray's telemetry would count callbacks, and import MLflow for it if it is installed (1 s).
            patch.object(usage, "tag_callbacks", lambda callbacks: False),
            patch.object(RayActorManager, "_actor_task_failed", _fail_one_trial),
        ):
            try:
                tuner.fit()
            except (ray.exceptions.RayError, tune.TuneError) as error:
                # Ray Tune's message is a traceback, with the cause in its last line.
                reason = str(error).strip().rpartition("\n")[2]
                folder = self.searches[0].folder.path
                raise ClusterError(f"Ray ended the search: {reason}; the trials that ended are in {folder}") from error


def run_group(
    config: Mapping[str, TrialGroup], contexts: Mapping[str, TrialContext], images: Mapping[str, ray.ObjectRef]
) -> None:
    """Run the trials of a group; the trainable of Ray Tune.

    Args:
        config: Configuration of the Ray trial: the group, with the key ``group``.
        contexts: Context of each experiment, by name.
        images: Image data sets in Ray's object store, by name.
    """
    group = config["group"]
    num_cores = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    runner = TrialRunner(contexts[group.experiment], _report, images, _fetch_images, max(1, int(num_cores)))
    try:
        with retries():
            runner.run(group)
    except SchedulerStop:
        sys.exit(0)


_actor_task_failed = RayActorManager._actor_task_failed


def _fail_one_trial(manager: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
    """Report the loss of an actor as such: an actor that Ray killed for lack of memory would end the whole run."""
    known = (ray.exceptions.RayTaskError, ray.exceptions.RayActorError)
    if isinstance(exception, ray.exceptions.RayError) and not isinstance(exception, known):
        exception = ray.exceptions.RayActorError(error_msg=str(exception))
    _actor_task_failed(manager, tracked_actor_task, exception)


def _report(result: Mapping[str, Any]) -> None:
    try:
        tune.report(result)
    except SystemExit:
        # Of Ray Tune; a trainable may also raise it itself.
        raise SchedulerStop from None


@lru_cache(maxsize=2)
def _fetch_images(reference: ray.ObjectRef) -> Any:
    """Return a data set from the object store; the same object for every trial of this process."""
    from tune_hpc.learning.data import ImageData

    return ImageData.from_arrays(ray.get(reference))


class _NotRestored:
    """Part of a run that Ray Tune pickles for ``Tuner.restore``, which is not used: the folder has all state."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class RaySearcherAdapter(_NotRestored, TuneSearcher):
    """Ray Tune searcher that returns the groups of a queue, each as the configuration of one Ray trial."""

    def __init__(self, queue: GroupQueue, criteria: StopCriteria) -> None:
        super().__init__()
        self._queue = queue
        self._criteria = criteria
        self._running: dict[str, TrialGroup] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        """Ignore the properties: each experiment has its own metric and space."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next group."""
        if self._criteria.is_met():
            return TuneSearcher.FINISHED
        group = self._queue.next()
        if group is None:
            return None if self._queue.may_continue else TuneSearcher.FINISHED
        self._running[trial_id] = group
        return {"group": group}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Forward the outcomes of a group."""
        self._queue.on_group_complete(self._running.pop(trial_id), result or {}, process_died=error)

    def save(self, checkpoint_path: str) -> None:
        """Write an empty file: the experiment folder holds the state of the search."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Reject Ray Tune's own checkpoint."""
        raise FolderError("Ray Tune's checkpoint does not restore a search; resume it from its experiment folder")


class RayCallback(_NotRestored, tune.Callback):
    """Ray Tune callback that forwards events to the monitor."""

    def __init__(self, monitor: SearchMonitor, criteria: StopCriteria) -> None:
        self._monitor = monitor
        self._criteria = criteria
        self._trials: dict[str, Trial] = {}

    def setup(self, *arguments: Any, **info: Any) -> None:
        """Install the signal handlers: Ray Tune has installed its handlers before this call."""
        self._criteria.install_signal_handlers()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Forward that a group runs."""
        self._trials[trial.trial_id] = trial
        self._monitor.on_start(trial.config["group"])

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Forward a result."""
        self._monitor.on_result(trial.config["group"], result)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Forward that a scheduler stopped a trial: its process cannot record this."""
        self._trials.pop(trial.trial_id, None)
        # Ray Tune also reports trials that it killed; these are not done.
        if trial.last_result.get("done"):
            self._monitor.on_scheduler_stop(trial.config["group"], trial.last_result.get("step", 0))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Forward that a process died."""
        self._trials.pop(trial.trial_id, None)
        # Ray offers its knowledge of the error nowhere else.
        text = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
        self._monitor.on_process_death(trial.config["group"], text)

    def kill_running(self) -> None:
        """Kill the processes of all running trials; Ray Tune would wait ten seconds for each."""
        for trial in self._trials.values():
            if trial.temporary_state.ray_actor is not None and self._monitor.is_running(trial.config["group"]):
                ray.kill(trial.temporary_state.ray_actor)


class RayStopper(_NotRestored, tune.Stopper):
    """Ray Tune stopper that lets running trials save their states; Ray Tune polls it at least ten times a second."""

    def __init__(self, stop: GracefulStop, callback: RayCallback) -> None:
        self._stop = stop
        self._callback = callback

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stop no single trial."""
        return False

    def stop_all(self) -> bool:
        """Return whether Ray Tune must stop now."""
        if not self._stop.is_due():
            return False
        self._callback.kill_running()
        return True
