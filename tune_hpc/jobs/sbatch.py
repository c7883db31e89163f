"""Batch scripts for Slurm: what is asked of an allocation, and the text of a script that runs a command in it.

The text is made from ``slurm.sbatch``, which lies beside this module. On one node the command itself starts Ray, with
the cores that it may use: that works on a node which is shared with others, too. From two nodes on ``ray
symmetric-run`` starts Ray on all of them, which must be whole. What a script does when its time is nearly over, and
when it is begun again, is told in docs/cluster.md.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tune_hpc.errors import InvalidExperimentError

#: The exit code of a command that asks to be queued again; of ``sysexits.h``, a temporary failure.
REQUEUE = 75
#: Seconds that a search needs between the warning and the end: 30 to save its trials' states, and some to be written.
LEAST_WARNING_S = 60
#: Seconds before the end at which a job is queued again, even if its command has not ended.
LAST_RESORT_S = 20

#: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, days-hours:minutes:seconds.
_TIMES = (
    r"(?P<minutes>\d+)(:(?P<seconds>\d+))?",
    r"(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+)",
    r"(?P<days>\d+)-(?P<hours>\d+)(:(?P<minutes>\d+)(:(?P<seconds>\d+))?)?",
)
_SECONDS = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}


@dataclass(frozen=True)
class Allocation:
    """What is asked of Slurm.

    Attributes:
        time: Until when a job is ended, as Slurm writes it: ``90`` (minutes), ``02:00:00``, ``1-12``.
        nodes: How many nodes.
        gpus_per_node: GPUs of each node.
        cpus_per_node: Cores of each node; ``None``: whole nodes, with all their memory.
        memory: Memory of each node, as Slurm writes it: ``16G``.
        partition: Where it is queued; ``None``: where the site's default is.
        account: Whom it is charged to.
        warning_s: Seconds before the end at which the command is asked to save its state, after which the job is queued
            again; ``None``: it is not asked, and a job that comes to its end has failed.
        max_requeues: How often, at most; one that never gets anywhere does not go on for ever.
        job_name: Its name in the queue and of its log.
        options: More of sbatch's options, such as ``--constraint=a100``.
        setup: Lines of shell to be run first, such as ``module load cuda``.
        environment: The folder of the Python environment; a relative one starts from where the job is submitted.
        symmetric_run: Whether ``ray symmetric-run`` starts Ray; ``None``: from two nodes on.

    Raises:
        InvalidExperimentError: a value that Slurm would refuse, or that no search could live with.
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
        if self.warning_s is not None and not LEAST_WARNING_S <= self.warning_s < seconds:
            raise InvalidExperimentError(
                f"the warning must come at least {LEAST_WARNING_S} s before the end and later than the beginning; got "
                f"{self.warning_s} s and {seconds} s ({self.time}) in all"
            )
        if self.memory is not None and not re.fullmatch(r"\d+[KMGT]?", self.memory):
            raise InvalidExperimentError(f"memory is a number with K, M, G or T, such as 16G; got {self.memory!r}")
        for name in ("partition", "account", "job_name"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"[\w.,:+@-]+", value):
                raise InvalidExperimentError(f"{name} is one word of letters, digits and . , : + @ - _; got {value!r}")
        for option in self.options:
            if not re.fullmatch(r"-[^\s#][^\n]*", option):
                raise InvalidExperimentError(f"an option of sbatch's begins with - and is one line; got {option!r}")
        for line in self.setup:
            if not line.strip() or "\n" in line:
                raise InvalidExperimentError(f"setup takes one line of shell at a time; got {line!r}")
        if self.symmetric_run is False and self.nodes > 1:
            raise InvalidExperimentError(f"Ray comes to {self.nodes} nodes by symmetric_run only; leave it as it is")

    @property
    def is_symmetric(self) -> bool:
        """Return whether ``ray symmetric-run`` starts Ray, on whole nodes."""
        return self.nodes > 1 if self.symmetric_run is None else self.symmetric_run

    @property
    def is_exclusive(self) -> bool:
        """Return whether the nodes are whole."""
        return self.is_symmetric or self.cpus_per_node is None


def seconds_of(time: str) -> int:
    """Return the seconds of a time as Slurm writes it.

    Raises:
        InvalidExperimentError: it is written in another way, or is none.
    """
    for pattern in _TIMES:
        if match := re.fullmatch(pattern, time):
            seconds = sum(_SECONDS[unit] * int(number) for unit, number in match.groupdict().items() if number)
            if seconds:
                return seconds
    raise InvalidExperimentError(f"a time is minutes, HH:MM:SS or D-HH:MM:SS, and above 0; got {time!r}")


def batch_script(allocation: Allocation, command: Sequence[str]) -> str:
    """Return the text of a batch script that runs a command in an allocation.

    Args:
        allocation: What is asked of Slurm.
        command: The command and its arguments. The same command is run again each time that the job begins, so it must
            go on with what is there, as ``tune-hpc run --resume`` does.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.keep_trailing_newline = True
    template = environment.from_string(Path(__file__).with_name("slurm.sbatch").read_text(encoding="utf-8"))
    return template.render(
        asked=allocation,
        command=_wrapped([shlex.quote(word) for word in command]),
        programs=_programs(allocation.environment),
        requeue=REQUEUE,
        last_resort_s=None if allocation.warning_s is None else allocation.warning_s - LAST_RESORT_S,
    )


def _programs(environment: str | None) -> str | None:
    """Return the shell's word for the folder of an environment's programs."""
    if environment is None:
        return None
    folder = shlex.quote(f"{environment.rstrip('/')}/bin")
    return folder if environment.startswith("/") else f'"$PWD"/{folder}'


def _wrapped(words: Sequence[str], width: int = 110) -> str:
    """Return a command over as many lines as it needs."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n        ".join(lines)
