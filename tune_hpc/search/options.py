"""Options of a run: one definition from which flags, request fields and documentation are derived."""

from dataclasses import dataclass
from pathlib import Path
from typing import TextIO


@dataclass(frozen=True)
class RunOptions:
    """How searches are run.

    Attributes:
        address: A Ray cluster; by default the one already connected to, else Ray is started on this machine.
        cpus_per_trial: CPU cores a trial; by default 1.
        gpus_per_trial: GPUs a trial, a fraction to share one; by default a fair share of what the cluster has.
        max_concurrent: Upper bound on the trials, or programs of several, that run at once.
        fuse: How many trials train as one program at most: ``auto`` where it pays, ``off``, or a number. A fused trial
            agrees with a separate one within rounding. Of a searcher that learns the seeds of one configuration train
            together; with a number it is asked for so many trials at a time, which do, too.
        data_dir: Where the image data are, or are to be put.
        checkpoint_interval_s: Seconds between two kept states of a trial; one that is interrupted goes on from there.
        time_budget_s: After so many seconds the search ends, to be resumed or not.
        target: It ends when a trial ends with such a value of the metric that ranks trials, or a better one.
        export: Other tools that are shown the search while it runs: ``tensorboard``, ``optuna``, ``mlflow``.
        show_progress: Whether to show a progress bar, or a line a minute where there is no terminal.
        stream: Where it is shown; standard error by default.
        stop_file: The search ends, to be resumed, when there is such a file.
        attempt: The number of this start, resume or extension; by default the next one of each experiment folder.
        force: Resume a search whose driver may still run, because nothing is known of it. That driver and its trials
            stop when they next look at the folder, and write nothing more.
    """

    address: str | None = None
    cpus_per_trial: float | None = None
    gpus_per_trial: float | None = None
    max_concurrent: int | None = None
    fuse: str | int = "auto"
    data_dir: str | Path | None = None
    checkpoint_interval_s: float = 60.0
    time_budget_s: float | None = None
    target: float | None = None
    export: tuple[str, ...] = ()
    show_progress: bool = True
    stream: TextIO | None = None
    stop_file: Path | None = None
    attempt: int | None = None
    force: bool = False
