"""Runs searches in this process, one group of trials at a time, without Ray: to develop and debug a trainable.

Searchers, schedulers, trial files and checkpoints are the same as on Ray. Output of a trainable and ``pdb`` use the
terminal. A trainable that crashes its process ends the whole run, and ``resume`` continues.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tune_hpc.errors import InvalidExperimentError
from tune_hpc.search.base_runner import Runner
from tune_hpc.search.cluster import TrialResources
from tune_hpc.search.group_queue import GroupQueue
from tune_hpc.search.options import RunOptions
from tune_hpc.search.ray_session import environment
from tune_hpc.search.schedulers.ray_schedulers import StoppingScheduler
from tune_hpc.search.search_state import Search
from tune_hpc.search.stopping import GracefulStop, StopRequest, StopRequested
from tune_hpc.search.trial import num_visible_gpus
from tune_hpc.search.trial_runner import TrialRunner
from tune_hpc.search.trial_spec import TrialGroup
from tune_hpc.storage.experiment_folder import ExperimentFolder


class LocalRunner(Runner):
    """Runs trials in this process.

    Raises:
        InvalidExperimentError: A trial needs several workers, or the options name a cluster.
    """

    max_slots = 1
    joins_trials = False

    def __init__(self, searches: Sequence[Search], options: RunOptions) -> None:
        super().__init__(searches, options)
        if self.num_workers:
            raise InvalidExperimentError("a local run has no workers, and these trials have some; run them on Ray")
        if self.options.address:
            raise InvalidExperimentError(
                f"a local run uses no cluster; got address={self.options.address}: leave it out"
            )

    @contextmanager
    def session(self) -> Iterator[None]:
        """Restore the number of threads after the block."""
        self.criteria.in_process = True
        variables = {"CUDA_VISIBLE_DEVICES": ""} if self.options.gpus_per_trial == 0 else {}
        if os.environ.get("PYTHONBREAKPOINT", "").startswith("ray."):
            # A Ray that ran in this process has replaced pdb by its remote debugger.
            variables["PYTHONBREAKPOINT"] = ""
        torch = sys.modules.get("torch")
        num_threads = torch.get_num_threads() if torch else _num_cores()
        try:
            with environment(**variables):
                yield
        finally:
            if torch := sys.modules.get("torch"):
                torch.set_num_threads(num_threads)

    def nodes(self) -> list[Mapping[str, float]]:
        """Return the resources of this machine."""
        return [{"CPU": _num_cores(), "GPU": num_visible_gpus()}]

    def share_images(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Return the data sets as tensors."""
        if not arrays:
            return {}
        from tune_hpc.learning.data import ImageData

        return {name: ImageData.from_arrays(data) for name, data in arrays.items()}

    def run_part(
        self, searches: Sequence[Search], queue: GroupQueue, resources: TrialResources, stop: GracefulStop
    ) -> None:
        """Run the groups of a queue, one after another."""
        self.criteria.install_signal_handlers()
        scheduler = StoppingScheduler.of(searches[0])
        while not stop.is_due() and (group := queue.next()):
            self.monitor.on_start(group)
            result = _GroupRun(self, group, scheduler, resources, stop).run()
            queue.on_group_complete(group, result)


class _GroupRun:
    """One group of trials, and the receiver of its results."""

    def __init__(
        self,
        runner: LocalRunner,
        group: TrialGroup,
        scheduler: StoppingScheduler | None,
        resources: TrialResources,
        stop: GracefulStop,
    ) -> None:
        self._monitor = runner.monitor
        self._group = group
        self._scheduler = scheduler
        self._stop = stop
        self._result: dict[str, Any] = {}
        context = runner.contexts[group.experiment]
        self._trial_runner = TrialRunner(
            context,
            self._receive,
            runner.images,
            lambda data: data,
            num_threads=max(1, int(resources.cpus)),
            evaluation_threads=_num_cores(),
            request=StopRequest(ExperimentFolder(context.folder, context.attempt), stop.is_due),
            is_local=True,
            fail_fast=runner.options.fail_fast,
        )

    def run(self) -> dict[str, Any]:
        """Run the trials; return the last result."""
        if self._scheduler:
            self._scheduler.add(self._group)
        self._trial_runner.run(self._group)
        if self._result.get("done"):
            self._monitor.on_scheduler_stop(self._group, self._result["step"])
        if self._scheduler:
            self._scheduler.complete(self._group, self._result)
        return self._result

    def _receive(self, result: Mapping[str, Any]) -> None:
        """Record a result.

        Raises:
            StopRequested: The scheduler stops the trial, or the run ends without a state of the trial.
        """
        if self._result.get("done"):
            return  # The end of a trial that the scheduler has stopped.
        self._result = dict(result)
        self._monitor.on_result(self._group, result)
        if result.get("last"):
            return
        if self._scheduler and self._scheduler.stops(self._group, result):
            self._result["done"] = True
            raise StopRequested
        if self._stop.is_due():
            raise StopRequested


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))
