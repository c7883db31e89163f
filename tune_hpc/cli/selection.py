"""Experiments that the names, the search file and the flags of a command line select.

Heavy modules are imported inside functions, as in main.py.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_hpc.cli.options import OVERRIDES
from tune_hpc.cli.search_file import is_search_file, read_search_file
from tune_hpc.errors import InvalidExperimentError
from tune_hpc.search.options import ExperimentOverrides

if TYPE_CHECKING:
    from tune_hpc.search.command import Command
    from tune_hpc.search.experiment import Experiment


def find_experiments(flags: argparse.Namespace) -> list["Experiment"]:
    """Return the experiments that flags name, with the changes of the flags.

    Options of a search file become flags, unless these are set.

    Raises:
        UnknownNameError: There is no experiment of a name.
        InvalidSpaceError: A parameter does not allow a value.
        InvalidExperimentError: Flags or the search file contradict each other.
    """
    from tune_hpc.search.command import Command
    from tune_hpc.search.space.parsing import parse_settings

    names, parameters, changes, name = flags.names, None, {}, ""
    if any(map(is_search_file, names)):
        (path, *others) = names
        if others:
            raise InvalidExperimentError(f"a search file is given alone; got {', '.join(names)}")
        search = read_search_file(path, flags)
        names, parameters, changes = [search["space"]] if search["space"] else [], search["parameters"], search["set"]
        name = run_name(flags)
    if bool(names) == bool(flags.command):
        raise InvalidExperimentError(
            f"a run has an experiment or a command; got {' and '.join([*names, 'a command']) if names else 'neither'}: "
            "name an experiment (tune-hpc list), package.module:attribute or a search file, or use --command"
        )
    if flags.pattern and not flags.command:
        raise InvalidExperimentError("--pattern is for the output of a command; add --command")
    values = parse_settings(flags.settings)
    given = {name: value for name in OVERRIDES if (value := getattr(flags, name)) is not None}
    overrides = ExperimentOverrides(**given)
    if flags.command:
        command = Command(flags.command, flags.pattern or "")
        return [_function_experiment(name or command.name, command, parameters, changes, values, overrides)]
    experiments = []
    for reference in names:
        target = _target(reference)
        if callable(target):
            title = name or reference.replace(":", ".")
            experiments.append(_function_experiment(title, reference, parameters, changes, values, overrides))
        else:
            experiments += [overrides.apply_json(base, parameters, changes, values) for base in target]
    return experiments


def run_name(flags: argparse.Namespace) -> str:
    """Return the name of the output folder of named experiments or a search file; a name has at most 255 characters."""
    names = [Path(name).stem if is_search_file(name) else name for name in flags.names]
    name = "-".join(names) if len(names) < 5 else f"{names[0]}-and-{len(names) - 1}-others"
    return re.sub(r"[^\w.-]", ".", name, flags=re.ASCII)


def _target(name: str) -> Any:
    """Return the experiments of a name, or a function."""
    from tune_hpc.search.experiment_registry import as_experiments, experiments_named, registered_experiments
    from tune_hpc.search.object_reference import load_reference

    if ":" not in name:
        return registered_experiments() if name == "all" else experiments_named(name)
    target = load_reference(name)
    return target if callable(target) else as_experiments(target, name)


def _function_experiment(
    name: str,
    trainable: "str | Command",
    parameters: Mapping[str, Any] | None,
    changes: Mapping[str, Any],
    values: Mapping[str, Any],
    overrides: ExperimentOverrides,
) -> "Experiment":
    """Return an experiment with a trainable that has no space; arguments as for ``apply_json``."""
    from tune_hpc.search.experiment import Experiment
    from tune_hpc.search.space.space import Space

    # A function defines the meaning of its keys, so the rules of the built-in keys do not apply.
    space = Space.from_json({**(parameters or {}), **changes}, keys={}) | values
    if not space:
        subject = f"{trainable} is a function" if isinstance(trainable, str) else "a command has no space"
        raise InvalidExperimentError(f"{subject}: give its parameters with --set KEY=VALUE, or name an Experiment")
    # The fields are checked together: the grid of a large space is none, if the flags request few samples.
    base: dict[str, Any] = {"metric": "loss", "mode": "min"}
    if overrides.metric and overrides.mode:
        base |= {"metric": overrides.metric, "mode": overrides.mode}
    if overrides.num_samples is not None:
        base |= {"searcher": "random", "num_samples": overrides.num_samples}
    return overrides.apply(Experiment(name, space, trainable, **base))
