"""One run of searches: what is common to runs on Ray Tune and in this process."""

import inspect
import logging
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from tune_hpc.analysis.aggregation import COMPLETED
from tune_hpc.analysis.results import Results
from tune_hpc.errors import InvalidExperimentError
from tune_hpc.learning.config import DATA_SETS
from tune_hpc.learning.download import read_arrays
from tune_hpc.search.cluster import TrialResources, choose_resources
from tune_hpc.search.experiment import ENDED, TRAIN
from tune_hpc.search.fused_trials import interrupted_groups, log_unfused_trials, plan_groups, write_groups
from tune_hpc.search.group_queue import GroupQueue
from tune_hpc.search.monitor import SearchMonitor
from tune_hpc.search.options import RunOptions
from tune_hpc.search.provenance import provenance
from tune_hpc.search.search_state import Search
from tune_hpc.search.stopping import GracefulStop, StopCriteria
from tune_hpc.search.trial_spec import TrialContext, TrialGroup, TrialSpec, WorkerPlacement
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.retries import retries
from tune_hpc.storage.trial_file import row_to_config

#: Seconds to wait for exporters at the end of the searches; a slower one continues in the background.
EXPORT_WAIT_S = 10.0
#: The command line with a lower priority than that of the trials.
_EXPORT_PROGRAM = "import os; os.nice(10); from tune_hpc.cli import run_and_exit; run_and_exit()"

_log = logging.getLogger(__name__)


class Runner(ABC):
    """Runs the remaining trials of searches as one stream of trials.

    Attributes:
        contexts: Context of each experiment, by name.
        images: Image data sets of the trials, by name, in a form that the trials of the runner load.
        monitor: Monitor of the run.
    """

    #: Maximum number of groups that run at once; ``None``: as many as fit.
    max_slots: int | None = None
    #: Whether a group costs time, so that short trials are joined into groups.
    joins_trials = True

    def __init__(self, searches: Sequence[Search], options: RunOptions) -> None:
        self.searches = searches
        self.options = options
        self.criteria = StopCriteria(options.time_budget_s, options.target, options.stop_file, options.max_failures)
        self.num_workers = max_workers(searches)
        self.contexts: dict[str, TrialContext]
        self.images: dict[str, Any]
        self.monitor: SearchMonitor

    @abstractmethod
    def session(self) -> AbstractContextManager[None]:
        """Return the block in which trials can run."""

    @abstractmethod
    def nodes(self) -> list[Mapping[str, float]]:
        """Return the resources of each node."""

    @abstractmethod
    def share_images(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Return image data sets in the form that trials load."""

    @abstractmethod
    def run_part(
        self, searches: Sequence[Search], queue: GroupQueue, resources: TrialResources, stop: GracefulStop
    ) -> None:
        """Run some of the searches until no trial is left or the run stops."""

    def run(self) -> list[Results]:
        """Run the searches, and return the results of each.

        Raises:
            TuneHpcError: As ``run.run_all``.
        """
        with self.criteria.restoring_signal_handlers():
            # While Ray starts, Ctrl-C ends the process at once; other signals wait until trials can save their states.
            self.criteria.install_signal_handlers(interrupts=False)
            arrays = _load_images(self.searches, self.options.data_dir)
            with self.session():
                return self._run_in_session(arrays)

    def _run_in_session(self, arrays: Mapping[str, Any]) -> list[Results]:
        searches, options = self.searches, self.options
        folders = {search.name: search.folder for search in searches}
        with_scheduler = [search.name for search in searches if search.experiment.scheduler != "none"]
        log_unfused_trials({search.name: search.trainable for search in searches}, with_scheduler, options.fuse)
        nodes = self.nodes()
        num_trials = sum(search.num_to_run for search in searches)
        resources = choose_resources(
            nodes, num_trials, options.cpus_per_trial, options.gpus_per_trial, self.max_slots or options.max_concurrent,
            self.num_workers,
        )  # fmt: skip
        self.check_storage()
        origin = provenance(nodes)
        for search in searches:
            search.start(origin)
        self.contexts = {search.name: self._context(search, resources) for search in searches}
        self.monitor = SearchMonitor({search.name: search.experiment for search in searches}, folders, self.criteria)
        for search in searches:
            self._count_earlier_trials(search)
        self.criteria.start()
        self.monitor.start(
            show_progress=options.show_progress, stream=options.stream, each_trial=options.runner == "local"
        )
        with retries():
            return self._run_parts(arrays, resources)

    def _run_parts(self, arrays: Mapping[str, Any], resources: TrialResources) -> list[Results]:
        """Run the searches with their monitor, write their frames and return their results."""
        searches, options = self.searches, self.options
        folders = [search.folder for search in searches]
        stop = GracefulStop(self.criteria, self.monitor, folders)
        self.images = self.share_images(arrays)
        exports = LiveExport(folders, options.export)
        try:
            num_due = 0
            for part in _split_by_scheduler(searches):
                self._run_searches(part, resources, stop)
                num_due += sum(search.experiment.num_trials for search in part)
                if self.criteria.reason or self.monitor.num_ended < num_due:
                    break
        finally:
            self.monitor.show(is_last=True)
            results = [search.finish(self.monitor, self.criteria) for search in searches]
            exports.wait()
        return results

    def check_storage(self) -> None:
        """Check that trials can write to the experiment folders."""
        for search in self.searches:
            search.folder.storage.check_writable()

    def _run_searches(self, searches: Sequence[Search], resources: TrialResources, stop: GracefulStop) -> None:
        for search in searches:
            if search.searcher:
                search.searcher.record_stopped = self.monitor.record_stopped
        queue = self._queue(searches, resources)
        with self.monitor.progress or nullcontext(), self.criteria.restoring_signal_handlers():
            self.run_part(searches, queue, resources, stop)

    def _context(self, search: Search, resources: TrialResources) -> TrialContext:
        attempt = search.folder.attempt
        assert attempt is not None
        return TrialContext(
            search.name,
            search.folder.uri,
            search.trainable,
            search.experiment.metric,
            search.experiment.ranked_metric,
            attempt,
            self.options.checkpoint_interval_s,
            search.monitored,
            search.experiment.max_steps if search.monitored else 1,
            search.experiment.budget,
            search.experiment.keep_checkpoints,
            WorkerPlacement(resources.per_worker, str(search.folder.ray)) if resources.workers else None,
            self.options.trial_time_limit_s,
        )

    def _count_earlier_trials(self, search: Search) -> None:
        """Count the trials that ended before this run."""
        counts, metric = self.monitor.counts[search.name], search.experiment.metric
        counts.ended.update(search.ended_before)
        counts.first_error = search.before.first_error if search.before else ""
        if search.before:
            for row in search.before.trials.to_dict("records"):
                if row["status"] in ENDED:
                    self.monitor.retentions[search.name].record_end(
                        row["trial_id"], row_to_config(row), row["status"], row.get(metric)
                    )
        if search.before and metric in search.before.trials:
            before = search.before.trials
            for trial_id, value in before.loc[before["status"].isin(COMPLETED), ["trial_id", metric]].itertuples(
                index=False
            ):
                counts.record_value(search.name, trial_id, value, search.experiment.mode)

    def _queue(self, searches: Sequence[Search], resources: TrialResources) -> GroupQueue:
        """Return the groups of all known trials, and the searchers for further ones."""
        has_scheduler = searches[0].experiment.scheduler != "none"
        fuse = "off" if has_scheduler else self.options.fuse
        trainables = {search.name: search.trainable for search in self.searches}
        groups: list[TrialGroup] = []
        new: list[TrialSpec] = []
        next_number = 0
        for search in searches:
            resumed, number = interrupted_groups(search.folder, search.trials) if search.before else ([], 0)
            next_number = max(next_number, number)
            groups += resumed
            assigned = {trial.trial_id for group in resumed for trial in group.trials}
            new += [trial for trial in search.trials if trial.trial_id not in assigned]

        def make_groups(trials: Sequence[TrialSpec], num_slots: int = 1) -> list[TrialGroup]:
            nonlocal next_number
            planned = plan_groups(trials, trainables, fuse, num_slots, resources.gpus > 0, next_number)
            next_number += len(planned)
            for search in searches:
                fused = [group for group in planned if group.experiment == search.name and len(group.trials) > 1]
                if fused:
                    write_groups(search.folder, fused)
            return planned

        groups += make_groups(new, resources.num_slots)
        return GroupQueue(
            groups,
            [search.searcher for search in searches if search.searcher],
            make_groups,
            {search.name: search.folder for search in searches},
            resources.num_slots,
            one_by_one=has_scheduler or not self.joins_trials or self.options.no_reuse,
            batch_size=fuse if isinstance(fuse, int) else 1,
        )


def max_workers(searches: Sequence[Search]) -> int:
    """Return the maximum number of workers of a trial; 0 if trials have no workers."""
    workers = {search.name: search.max_workers for search in searches}
    if any(workers.values()) and not all(workers.values()):
        with_workers, without = (next(name for name in workers if bool(workers[name]) == has) for has in (True, False))
        raise InvalidExperimentError(
            f"searches of one run all have trials with several workers, or none; got {with_workers} with workers and "
            f"{without} without: run one after the other"
        )
    return max(workers.values(), default=0)


def _split_by_scheduler(searches: Sequence[Search]) -> list[list[Search]]:
    """Return the searches in parts that run at once: a search with a scheduler alone, because it sees all trials."""
    parts: list[list[Search]] = []
    for search in searches:
        has_scheduler = search.experiment.scheduler != "none"
        if parts and not has_scheduler and parts[-1][-1].experiment.scheduler == "none":
            parts[-1].append(search)
        else:
            parts.append([search])
    return parts


def _load_images(searches: Sequence[Search], data_dir: str | Path | None) -> dict[str, Any]:
    """Load the image data of all trials: those of built-in models, and of functions with a parameter ``images``."""
    names: set[str] = set()
    for search in searches:
        if search.trainable == TRAIN:
            names |= {trial.config["data"] for trial in search.trials}
            names |= set(search.searcher.possible_data() if search.searcher else ())
        elif callable(search.trainable) and "images" in inspect.signature(search.trainable).parameters:
            space = search.experiment.space
            names |= set(space.reachable_values("data")) & set(DATA_SETS) if "data" in space else set()
    return {name: read_arrays(name, Path(data_dir) if data_dir else None) for name in sorted(names - {"line"})}


class LiveExport:
    """Exports of running searches, each in its own process of low priority beside the driver.

    An exporter reads the experiment folders (export/export.py). It ends when the searches have ended or the driver is
    gone. An error in it is logged at the end of the search, and has no effect on results.

    Args:
        folders: Folders of the searches, which have started.
        tools: Names of registered exporters.
    """

    def __init__(self, folders: Sequence[ExperimentFolder], tools: Sequence[str]) -> None:
        self._folders = [str(folder.path) for folder in folders]
        self._logs = {tool: folders[0].log(f"export.{tool}") for tool in tools}
        self._processes = {tool: self._start(tool) for tool in tools}

    def _start(self, tool: str) -> subprocess.Popen[bytes]:
        log = self._logs[tool]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, "-c", _EXPORT_PROGRAM, "export", *self._folders, "--to", tool, "--follow"],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                # Ctrl-C is for the driver only: trials that end after it are exported, too.
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait for the exporters, and log which of them are not finished or have failed."""
        deadline = time.monotonic() + EXPORT_WAIT_S
        for tool, process in self._processes.items():
            try:
                code = process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _log.info("the export to %s continues in the background, process %d", tool, process.pid)
                continue
            if code:
                command = f"`tune-hpc export {' '.join(self._folders)} --to {tool}`"
                _log.warning(
                    "the export to %s failed: %s; the results are complete, and %s repeats the export",
                    tool, _last_line(self._logs[tool]), command,
                )  # fmt: skip


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "its log is empty")
    return last.removeprefix("tune-hpc: ")
