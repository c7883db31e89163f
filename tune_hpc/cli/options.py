"""Flags of a run, derived from the options of a search."""

import argparse
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from tune_hpc.search.options import DURATIONS, ExperimentOverrides, Option, RunOptions, options_of

#: Function that adds a command and returns its parser, from name, function and help.
AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
RUN_OPTIONS = {option.name: option for option in options_of(RunOptions) if option.flag}
OVERRIDES = {option.name: option for option in options_of(ExperimentOverrides)}
_FORCE = next(option.help for option in options_of(RunOptions) if option.name == "force")
_SECONDS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}
_DURATION_PART = r"(\d+(?:\.\d*)?|\.\d+) *(d|h|min|m|s) *"


def add_options(parser: argparse.ArgumentParser, options: Iterable[Option], **help_texts: str) -> None:
    """Add a flag for each option."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in options:
        group = groups.get(option.group) or groups.setdefault(option.group, parser.add_argument_group(option.group))
        text = help_texts.get(option.name, option.help) + (f"; {DURATIONS}" if option.is_duration else "")
        arguments: dict[str, Any] = {"dest": option.name, "help": text}
        if option.hint is bool:
            group.add_argument(option.flag, action="store_true", **arguments)
            continue
        arguments["metavar"] = "TIME" if option.is_duration else option.metavar or ("N" if option.number else None)
        if option.is_repeatable:
            arguments["action"] = "append"
            if option.is_mapping:
                arguments["type"] = parse_mapping
        elif option.choices:
            arguments |= {} if option.is_open else {"choices": option.choices}
        elif option.number is not None:
            arguments["type"] = parse_duration if option.is_duration else option.number
        group.add_argument(option.flag, **arguments)


def parse_mapping(text: str) -> dict[str, Any]:
    """Return a configuration of a JSON object.

    Raises:
        ArgumentTypeError: The text is none.
    """
    try:
        if isinstance(config := json.loads(text), dict):
            return config
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f'a configuration is JSON like {{"learning_rate": 0.01}}; got {text!r:.100}')


def parse_duration(text: str) -> float:
    """Return a duration in seconds: of ``90``, ``90s``, ``5min``, ``1h30m`` or ``1.5h``.

    Raises:
        ArgumentTypeError: The text has another form.
    """
    text = text.strip()
    if re.fullmatch(f"(?:{_DURATION_PART})+", text):
        return sum(float(number) * _SECONDS[unit] for number, unit in re.findall(_DURATION_PART, text))
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a time is a number of seconds, or like {DURATIONS}; got {text!r}") from None


def add_names(parser: argparse.ArgumentParser) -> None:
    """Add the names of experiments."""
    parser.add_argument(
        "names", nargs="*", metavar="NAME",
        help="an exercise, a stage, all, package.module:attribute, or a search file (.yaml, .json)",
    )  # fmt: skip


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Add all flags of a run."""
    add_experiment_flags(parser)
    add_options(parser, RUN_OPTIONS.values())
    _add_output_flags(parser)


def add_experiment_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that change experiments."""
    space = parser.add_argument_group("search space")
    space.add_argument(
        "--command", metavar="COMMAND",
        help="run a program instead of an experiment: 'python train.py --lr {learning_rate}'; its parameters are set "
        "with --set, and lines of its output that are JSON objects have the metrics",
    )  # fmt: skip
    space.add_argument(
        "--pattern", metavar="REGEX",
        help="with --command: regular expression whose named groups are metrics in a line of the output: "
        r"'epoch (?P<step>\d+).*val_loss=(?P<val_loss>\S+)'",
    )  # fmt: skip
    space.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
        help="a value, a list (a,b,c) or a range (uniform(0, 0.5), loguniform(1e-4, 1)); KEY[OTHER=a,b] sets KEY only "
        "where OTHER is a or b; repeatable",
    )  # fmt: skip
    add_options(parser, OVERRIDES.values())
    space.add_argument(
        "--from", action="append", default=[], metavar="FOLDER", dest="warm_start",
        help="warm-start tpe or gp with the trials of another search; repeatable",
    )  # fmt: skip


def add_local_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a run in this process."""
    parser.add_argument(
        "--local", action="store_const", const="local", dest="runner",
        help="run trials in this process, one after another, without Ray: for pdb, print and small searches",
    )  # fmt: skip
    parser.add_argument(
        "--fail-fast", action="store_true", help="with --local: end with the first exception of a trainable"
    )


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument("--output-dir", metavar="DIR", help="default: runs/NAME, or runs/NAME-2 if that exists")
    output.add_argument("--overwrite", action="store_true", help="replace an earlier run of the same experiments there")
    output.add_argument(
        "--resume", action="store_true",
        help="resume the searches in --output-dir and start the others: the same command again after each interrupt",
    )  # fmt: skip
    output.add_argument("--force", action="store_true", help=f"with --resume: {_FORCE}")
    output.add_argument("--no-report", action="store_true", help="write the data frames only")


def add_restart_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of resume and extend."""
    parser.add_argument("--force", action="store_true", help=_FORCE)
    parser.add_argument("--retry-failed", action="store_true", help="run failed trials again, from their start")
    add_options(parser, RUN_OPTIONS.values())
    parser.add_argument("--no-report", action="store_true", help="write the data frames only")


def add_scale_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a scaling measurement."""
    what = parser.add_argument_group("measurement")
    what.add_argument("--workers", default="1,2,4", metavar="N,...", help="worker counts (default: 1,2,4)")
    what.add_argument(
        "--mode", metavar="MODE", help="strong: workers share each batch (default); weak: each worker has a full batch"
    )
    what.add_argument("--repeats", metavar="N", help="number of repeats, each with another seed (default: 3)")
    what.add_argument(
        "--timed-steps", metavar="N", dest="num_timed_steps",
        help="number of timed steps (default: all on GPUs, at most 100 on CPUs)",
    )  # fmt: skip
    what.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
        help="change the configuration of Exercise 4; a list (width=0.25,1,4) is measured side by side; repeatable",
    )  # fmt: skip
    what.add_argument(
        "--options", metavar="NAME,...", dest="option",
        help="optimizations, each measured by itself: all, or some of none, small_buckets, bucket_view, bf16, "
        "larger_steps, local_steps",
    )  # fmt: skip
    what.add_argument("--quick", action="store_true", help="ten steps and one repeat, for a first look")
    what.add_argument("--spread", action="store_true", help="one worker per node")
    what.add_argument(
        "--max-restarts", type=int, default=0, metavar="N", help="retries after a lost worker (default: 0)"
    )
    add_options(parser, [RUN_OPTIONS["address"], RUN_OPTIONS["data_dir"]])
    _add_output_flags(parser)
    parser.set_defaults(
        warm_start=[], runner=None, fail_fast=False, **dict.fromkeys(RUN_OPTIONS.keys() - {"address", "data_dir"})
    )


def run_options(flags: argparse.Namespace) -> dict[str, Any]:
    """Return the options of ``RunOptions`` that have a flag; None for each that is not set."""
    return {name: getattr(flags, name) for name in RUN_OPTIONS}
