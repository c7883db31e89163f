"""Options of a search: one definition each, from which flags, request fields, form fields and documentation follow.

A new option is one field of ``RunOptions`` or ``ExperimentOverrides``. To update the table of the documentation:

    python -m tune_hpc.search.options docs/reference/options.md
"""

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, get_args, get_origin, get_type_hints

from tune_hpc.errors import InvalidExperimentError, InvalidSpaceError

if TYPE_CHECKING:
    from tune_hpc.search.experiment import Experiment

#: Searchers whose configurations are known in advance, and searchers that learn from trials.
DESIGNS, ADAPTIVE = ("grid", "random", "quasi_random"), ("tpe", "gp")
SEARCHERS = DESIGNS + ADAPTIVE
#: Schedulers that pause and resume trials, and schedulers that stop trials.
PAUSING, STOPPING = ("asha", "pbt"), ("asha_stopping", "hyperband", "median")
SCHEDULERS = ("none", *PAUSING, *STOPPING)
#: Checkpoints that remain after the end of their trials (search/checkpoint_retention.py).
POLICIES = ("none", "best", "last", "all")
#: Trial identifiers have five digits, and the driver stores every configuration.
MAX_TRIALS = 100_000
#: Largest number of configurations of a search that a request to the service starts.
MAX_REQUEST_SAMPLES = 10_000
#: Examples of times with a unit, on the command line and in search files.
DURATIONS = "90s, 5min, 1h30m, 1.5h"


@dataclass(frozen=True)
class Option:
    """Definition of an option.

    Attributes:
        help: Meaning and default, in one line.
        group: Heading of its flags; empty for an option of the Python functions only.
        label: Label in the form; empty for an option that requests to the service cannot set.
        metavar: Name of a value that is no number, in the help text.
        minimum: Smallest value.
        above: Bound that the value must exceed.
        request_maximum: Largest value in a request to the service.
        choices: Words that are valid values.
        is_open: Whether other code checks the choices, or other values are valid, too.
        name: Name of the field.
        default: Default of the field.
        hint: Type hint of the field.
    """

    help: str
    group: str = ""
    label: str = ""
    metavar: str | None = None
    minimum: float | None = None
    above: float | None = None
    request_maximum: float | None = None
    choices: tuple[str, ...] = ()
    is_open: bool = False
    name: str = ""
    default: Any = None
    hint: Any = None

    @property
    def flag(self) -> str:
        """Return the flag of the command line; empty if there is none."""
        return f"--{self.name.removesuffix('_s').replace('_', '-')}" if self.group else ""

    @property
    def is_repeatable(self) -> bool:
        """Return whether the option has several values."""
        return any(get_origin(kind) is tuple for kind in (self.hint, *get_args(self.hint)))

    @property
    def is_mapping(self) -> bool:
        """Return whether the values are configurations."""
        return any(get_origin(entry) is Mapping for kind in get_args(self.hint) for entry in get_args(kind))

    @property
    def is_duration(self) -> bool:
        """Return whether the value is a time in seconds."""
        return self.name.endswith("_s")

    @property
    def number(self) -> type | None:
        """Return the type of numbers that the option accepts: int, float, or None for words."""
        return next((kind for kind in (int, float) if kind in (self.hint, *get_args(self.hint))), None)

    def check(self, value: Any) -> None:
        """Check the type of a number or a truth value, and the bounds of a number.

        Raises:
            InvalidExperimentError: The value is of another type or out of bounds.
        """
        kinds = (self.hint, *get_args(self.hint))
        if self.hint is bool and not isinstance(value, bool):
            raise InvalidExperimentError(f"{self.name} must be True or False; got {value!r}")
        if value is None or self.number is None or (str in kinds and isinstance(value, str)):
            return
        kind = Integral if self.number is int else Real
        if isinstance(value, bool) or not isinstance(value, kind):
            noun = "a whole number" if kind is Integral else "a number of seconds" if self.is_duration else "a number"
            raise InvalidExperimentError(f"{self.name} must be {noun}; got {value!r}")
        number = float(value)
        if not math.isfinite(number):
            raise InvalidExperimentError(f"{self.name} must be a finite number; got {value}")
        if self.minimum is not None and number < self.minimum:
            raise InvalidExperimentError(f"{self.name} must be at least {self.minimum:g}; got {value}")
        if self.above is not None and number <= self.above:
            raise InvalidExperimentError(f"{self.name} must be above {self.above:g}; got {value}")


class OptionSet:
    """Base of dataclasses whose fields are options."""

    def __post_init__(self) -> None:
        """Check numbers and truth values."""
        for option in options_of(type(self)):
            option.check(getattr(self, option.name))


def options_of(option_set: type[OptionSet]) -> Iterator[Option]:
    """Yield the options of a class, in order."""
    hints = get_type_hints(option_set)
    for entry in fields(option_set):  # type: ignore[arg-type]
        yield replace(entry.metadata["option"], name=entry.name, default=entry.default, hint=hints[entry.name])


def metadata(help: str, group: str = "", label: str = "", **definition: Any) -> dict[str, Option]:
    """Return the metadata of a field that is an option; arguments are the attributes of ``Option``."""
    return {"option": Option(help, group, label, **definition)}


# fmt: off
@dataclass(frozen=True)
class RunOptions(OptionSet):
    """Options of a run; ``options_of`` lists them with their meaning."""

    runner: str = field(default="ray", metadata=metadata(
        "ray, or local to run trials in this process, one after another", choices=("ray", "local")
    ))
    fail_fast: bool = field(default=False, metadata=metadata(
        "with a local run: raise the first exception of a trainable instead of a record of it"
    ))
    retry_failed: bool = field(default=False, metadata=metadata(
        "on resume: run failed trials again, from their start"
    ))
    address: str | None = field(default=None, metadata=metadata(
        "Ray cluster, HOST:PORT; by default Ray is started on this machine", "resources", metavar="ADDRESS"
    ))
    cpus_per_trial: float | None = field(default=None, metadata=metadata(
        "CPU cores per trial, or per worker of a trial; default: 1",
        "resources", "CPU cores per trial", above=0, request_maximum=1e9,
    ))
    gpus_per_trial: float | None = field(default=None, metadata=metadata(
        "GPUs per trial, or per worker; a fraction shares a GPU; default: a fair share of the cluster",
        "resources", "GPUs per trial", minimum=0, request_maximum=1e4,
    ))
    max_concurrent: int | None = field(default=None, metadata=metadata(
        "maximum number of concurrent trials or fused groups; default: as many as fit",
        "resources", "Concurrent trials", minimum=1, request_maximum=100_000,
    ))
    fuse: str | int = field(default="auto", metadata=metadata(
        "maximum number of trials that train as one program, or auto, or off; default: auto",
        "resources", "Fused trials", minimum=1, request_maximum=100_000, choices=("auto", "off"), is_open=True,
    ))
    no_reuse: bool = field(default=False, metadata=metadata(
        "start a process for each trial or fused group, instead of one after another in the same processes",
        "resources", "A process for each trial",
    ))
    data_dir: str | Path | None = field(default=None, metadata=metadata(
        "folder of the image data; missing files are downloaded", "resources", metavar="DIR"
    ))
    export: tuple[str, ...] = field(default=(), metadata=metadata(
        "export to tensorboard, optuna or mlflow while the search runs; repeatable, or a list (a,b)",
        "resources", metavar="TOOL",
    ))
    time_budget_s: float | None = field(default=None, metadata=metadata(
        "seconds after which the search stops; it can be resumed",
        "stop criteria", "Time budget", above=0, request_maximum=1e9,
    ))
    target: float | None = field(default=None, metadata=metadata(
        "stop the search when a trial reaches this value of the metric", "stop criteria", "Target"
    ))
    trial_time_limit_s: float | None = field(default=None, metadata=metadata(
        "seconds after which a trial stops at its next report, with the metrics so far",
        "stop criteria", "Time limit of a trial", above=0, request_maximum=1e9,
    ))
    max_failures: int | None = field(default=None, metadata=metadata(
        "stop the search when this number of trials has failed; 0: never; default: when the first 3 trials that end "
        "all fail", "stop criteria", "Failed trials", minimum=0, request_maximum=10**9,
    ))
    checkpoint_interval_s: float = field(default=60.0, metadata=metadata(
        "seconds between two checkpoints of a trial", minimum=0
    ))
    show_progress: bool = field(default=True, metadata=metadata(
        "show a progress bar, or a line a minute without a terminal"
    ))
    stream: TextIO | None = field(default=None, metadata=metadata("stream of progress; default: standard error"))
    stop_file: Path | None = field(default=None, metadata=metadata(
        "file whose existence stops the search; it can be resumed"
    ))
    attempt: int | None = field(default=None, metadata=metadata(
        "number of this start, resume or extension; default: the next one"
    ))
    force: bool = field(default=False, metadata=metadata(
        "resume a search whose driver may still run; that driver stops and writes nothing more"
    ))


@dataclass(frozen=True)
class ExperimentOverrides(OptionSet):
    """Changes to an experiment; ``options_of`` lists them with their meaning."""

    quick: bool = field(default=False, metadata=metadata(
        "fewer steps and values, for a first look", "experiment", "Quick"
    ))
    seeds: int | None = field(default=None, metadata=metadata(
        "number of seeds: each configuration runs with the seeds 0 to N-1", "experiment", "Seeds",
        minimum=1, request_maximum=1000,
    ))
    searcher: str | None = field(default=None, metadata=metadata(
        f"{', '.join(DESIGNS)}, or a searcher that learns: {', '.join(ADAPTIVE)}; default: that of the experiment",
        "experiment", "Searcher", metavar="NAME", choices=SEARCHERS, is_open=True,
    ))
    num_samples: int | None = field(default=None, metadata=metadata(
        "number of configurations; a grid becomes a random search; default: that of the experiment",
        "experiment", "Configurations", minimum=1, request_maximum=MAX_REQUEST_SAMPLES,
    ))
    points_to_evaluate: tuple[Mapping[str, Any], ...] | None = field(default=None, metadata=metadata(
        "configurations that run first, as JSON; they count among num_samples, and parameters that are left out are "
        "drawn; repeatable", "experiment", "Starting configurations", metavar="CONFIG",
    ))
    scheduler: str | None = field(default=None, metadata=metadata(
        f"early-stopping scheduler: {', '.join(SCHEDULERS)}; default: that of the experiment",
        "experiment", "Scheduler", metavar="NAME", choices=SCHEDULERS, is_open=True,
    ))
    search_seed: int | None = field(default=None, metadata=metadata(
        "seed of the searcher; default: that of the experiment",
        "experiment", "Search seed", minimum=0, request_maximum=2**31 - 1,
    ))
    metric: str | None = field(default=None, metadata=metadata(
        "column that ranks trials; default: that of the experiment, loss for a function",
        "experiment", "Metric", metavar="NAME",
    ))
    mode: str | None = field(default=None, metadata=metadata(
        "whether a small or a large value of the metric is better; necessary with another metric",
        "experiment", "Mode", choices=("min", "max"),
    ))
    judge: str | None = field(default=None, metadata=metadata(
        "value of the metric that counts: last, best or mean_of_last_K; default: that of the experiment",
        "experiment", "Judge", metavar="RULE",
    ))
    budget: str | None = field(default=None, metadata=metadata(
        "parameter with the number of steps of a trial, or this number, for a scheduler; default: that of the "
        "experiment, or steps", "experiment", "Budget", metavar="NAME",
    ))
    keep_checkpoints: str | None = field(default=None, metadata=metadata(
        "states that remain after the search: none, best (of the best configuration), last (of each trial) or all "
        "(best and last of each trial); default: that of the experiment, or best",
        "experiment", "Checkpoints", choices=POLICIES,
    ))
# fmt: on

    def apply(self, experiment: "Experiment", values: Mapping[str, Any] | None = None) -> "Experiment":
        """Return an experiment with these changes; an override that is ``None`` changes nothing.

        Args:
            experiment: The experiment to change.
            values: Parameters of its space to change or add.

        Raises:
            InvalidSpaceError: A parameter does not allow a value.
            InvalidExperimentError: The changes contradict each other.
        """
        if self.metric not in (None, experiment.metric) and not self.mode:
            raise InvalidExperimentError(
                f"metric {self.metric} needs a mode, min or max; {experiment.name} is ranked by the "
                f"{experiment.mode} of {experiment.metric}"
            )
        base = experiment.quick_version() if self.quick else experiment
        names = ["points_to_evaluate", "search_seed", "scheduler", "metric", "mode", "judge"]
        names += ["budget", "keep_checkpoints"]
        changes = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.budget is not None and self.budget.isdecimal() and len(self.budget) < 20:
            changes["budget"] = int(self.budget)
        if self.searcher is not None or self.num_samples is not None:
            searcher = self.searcher or ("random" if base.searcher == "grid" else base.searcher)
            num_samples = self.num_samples or (None if searcher == "grid" else base.num_samples)
            changes |= {"searcher": searcher, "num_samples": num_samples}
        if self.seeds is not None:
            if self.seeds > MAX_TRIALS:
                raise InvalidExperimentError(f"seeds must be at most {MAX_TRIALS}; got {self.seeds}")
            changes["seeds"] = tuple(range(self.seeds))
        return base.replace(**base.changed_by(values or {}), **changes)

    def apply_json(
        self,
        experiment: "Experiment",
        space: Mapping[str, Any] | None,
        changes: Mapping[str, Any],
        values: Mapping[str, Any] | None = None,
    ) -> "Experiment":
        """Return an experiment with these changes, and with parameters in the form of ``Space.to_json``.

        Args:
            experiment: The experiment to change.
            space: The whole space; ``None``: that of the experiment.
            changes: Parameters of the space to change or add.
            values: Further parameters to change or add, as for ``apply``.

        Raises:
            InvalidSpaceError: A parameter does not allow a value, or a change has a role.
            InvalidExperimentError: The changes contradict each other.
        """
        from tune_hpc.search.space.space import Space

        keys = experiment.space.value_keys
        if self.points_to_evaluate is not None:
            experiment = experiment.replace(points_to_evaluate=())
        if self.quick:
            experiment = experiment.quick_version()
        if space is not None:
            experiment = experiment.replace(space=Space.from_json(space, keys=keys))
        if roles := [name for name, value in changes.items() if isinstance(value, dict) and "role" in value]:
            raise InvalidSpaceError(
                f"{roles[0]}: set takes no role; give the whole space in parameters to change roles"
            )
        if changes:
            # Conditions may refer to other parameters of the space.
            changed = Space.from_json({**experiment.space.to_json(), **changes}, keys=keys)
            values = {name: changed[name] for name in changes} | dict(values or {})
        return replace(self, quick=False).apply(experiment, values)


def markdown_table(*option_sets: type[OptionSet]) -> str:
    """Return the table of options in Markdown."""
    rows = ["| flag | Python, request | value | meaning |", "|:--|:--|:--|:--|"]
    for option in (option for option_set in option_sets for option in options_of(option_set)):
        name = f"`{option.name}`" if option.label else f"`{option.name}` (not in requests)"
        flag = f"`{option.flag}`" if option.flag else "–"
        rows.append(f"| {flag} | {name} | {describe_value(option)} | {option.help} |")
    return "\n".join(rows) + "\n"


def describe_value(option: Option) -> str:
    """Return the values that an option accepts, in words."""
    if option.is_repeatable:
        return "mappings of names to values" if option.is_mapping else "words"
    if option.number is None:
        return ", ".join(option.choices) or ("true or false" if option.hint is bool else "text")
    kind = "whole number" if option.number is int else "number"
    bounds = [f"at least {option.minimum:g}"] if option.minimum is not None else []
    bounds += [f"above {option.above:g}"] if option.above is not None else []
    unit = f" of seconds, or {DURATIONS}" if option.is_duration and option.flag else ""
    return ", ".join([*option.choices, f"{kind}{unit}", *bounds])


def update_page(page: str) -> str:
    """Return a Markdown page with the current table between its two markers."""
    before, begin, rest = page.partition("<!-- options: begin -->\n")
    _, end, after = rest.partition("<!-- options: end -->")
    return f"{before}{begin}\n{markdown_table(ExperimentOverrides, RunOptions)}\n{end}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(update_page(path.read_text(encoding="utf-8")), encoding="utf-8")
