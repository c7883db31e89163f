"""Generate batch scripts for Slurm from the template ``slurm.sbatch``.

On one node, which may be shared, the command starts Ray with the cores of the job. On several nodes ``ray
symmetric-run`` starts Ray, on whole nodes. docs/cluster.md describes the warning before the time limit and requeues.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tune_hpc.errors import InvalidExperimentError

#: Exit code of a command that requests a requeue: a temporary failure in ``sysexits.h``.
REQUEUE = 75
#: Least seconds from the warning to the time limit: 30 to save the states of trials, and a margin to write them.
MIN_WARNING_S = 60
#: Seconds before the time limit at which a job is requeued although its command has not ended.
FORCED_REQUEUE_S = 20

#: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, days-hours:minutes:seconds.
_TIMES = (
    r"(?P<minutes>\d+)(:(?P<seconds>\d+))?",
    r"(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+)",
    r"(?P<days>\d+)-(?P<hours>\d+)(:(?P<minutes>\d+)(:(?P<seconds>\d+))?)?",
)
_SECONDS = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}


@dataclass(frozen=True)
class Allocation:
    """A Slurm allocation.

    Attributes:
        time: Time limit in Slurm's format: ``90`` (minutes), ``02:00:00``, ``1-12``.
        nodes: Number of nodes.
        gpus_per_node: GPUs per node.
        cpus_per_node: Cores per node; ``None``: whole nodes with all their memory.
        memory: Memory per node in Slurm's format: ``16G``.
        partition: Partition; ``None``: the default of the site.
        account: Slurm account.
        warning_s: Seconds before the time limit at which the command gets a signal to save its state, after which the
            job is requeued; ``None``: no signal, and a job that reaches its time limit fails.
        max_requeues: Limit on the number of requeues.
        job_name: Name in the queue and of the log.
        options: Further options of sbatch, such as ``--constraint=a100``.
        setup: Shell lines to run first, such as ``module load cuda``.
        environment: Folder of the Python environment, absolute or relative to the folder of submission.
        symmetric_run: Whether ``ray symmetric-run`` starts Ray; ``None``: only on several nodes.

    Raises:
        InvalidExperimentError: a value that Slurm or a search would reject.
    """

    time: str
    nodes: int = 1
    gpus_per_node: int = 0
    cpus_per_node: int | None = None
    memory: str | None = None
    partition: str | None = None
    account: str | None = None
    warning_s: int | None = 120
    max_requeues: int = 100
    job_name: str = "tune-hpc"
    options: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    environment: str | None = None
    symmetric_run: bool | None = None

    def __post_init__(self) -> None:
        for name, least in (("nodes", 1), ("gpus_per_node", 0), ("cpus_per_node", 1), ("max_requeues", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InvalidExperimentError(f"{name} must be at least {least}; got {value}")
        seconds = seconds_of(self.time)
        if self.warning_s is not None and not MIN_WARNING_S <= self.warning_s < seconds:
            raise InvalidExperimentError(
                f"warning_s must be at least {MIN_WARNING_S} and less than the time limit of {seconds} s "
                f"({self.time}); got {self.warning_s}"
            )
        if self.memory is not None and not re.fullmatch(r"\d+[KMGT]?", self.memory):
            raise InvalidExperimentError(f"memory must be a number with K, M, G or T, such as 16G; got {self.memory!r}")
        for name in ("partition", "account", "job_name"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"[\w.,:+@-]+", value):
                raise InvalidExperimentError(
                    f"{name} must be one word of letters, digits and . , : + @ - _; got {value!r}"
                )
        for option in self.options:
            if not re.fullmatch(r"-[^\s#][^\n]*", option):
                raise InvalidExperimentError(f"options must be single lines that start with -; got {option!r}")
        for line in self.setup:
            if not line.strip() or "\n" in line:
                raise InvalidExperimentError(f"setup must have one shell line per entry; got {line!r}")
        if self.symmetric_run is False and self.nodes > 1:
            raise InvalidExperimentError(
                f"symmetric_run=False starts Ray on one node only, but nodes is {self.nodes}; leave symmetric_run out"
            )

    @property
    def is_symmetric(self) -> bool:
        """Return whether ``ray symmetric-run`` starts Ray, on whole nodes."""
        return self.nodes > 1 if self.symmetric_run is None else self.symmetric_run

    @property
    def is_exclusive(self) -> bool:
        """Return whether the nodes are whole."""
        return self.is_symmetric or self.cpus_per_node is None


def seconds_of(time: str) -> int:
    """Return the seconds of a time in Slurm's format; raise ``InvalidExperimentError`` for 0 and other formats."""
    for pattern in _TIMES:
        if match := re.fullmatch(pattern, time):
            seconds = sum(_SECONDS[unit] * int(number) for unit, number in match.groupdict().items() if number)
            if seconds:
                return seconds
    raise InvalidExperimentError(f"time must be minutes, HH:MM:SS or D-HH:MM:SS, and above 0; got {time!r}")


def batch_script(allocation: Allocation, command: Sequence[str]) -> str:
    """Return the text of a batch script that runs a command in an allocation.

    Args:
        allocation: The allocation.
        command: The command and its arguments. Each start of the job runs it again, so it must resume earlier results
            as ``tune-hpc run --resume`` does.
    """
    from jinja2 import Environment, StrictUndefined

    programs = None
    if (python := allocation.environment) is not None:
        # A relative folder of the Python environment is in the folder of submission.
        programs = shlex.quote(f"{python.rstrip('/')}/bin")
        programs = programs if python.startswith("/") else f'"$PWD"/{programs}'
    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.keep_trailing_newline = True
    template = environment.from_string(Path(__file__).with_name("slurm.sbatch").read_text(encoding="utf-8"))
    return template.render(
        allocation=allocation,
        command=_wrapped([shlex.quote(word) for word in command]),
        programs=programs,
        requeue=REQUEUE,
        last_resort_s=None if allocation.warning_s is None else allocation.warning_s - FORCED_REQUEUE_S,
    )


def _wrapped(words: Sequence[str], width: int = 110) -> str:
    """Return a command, wrapped to lines of ``width`` characters."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n        ".join(lines)
