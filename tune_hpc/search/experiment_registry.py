"""Registered experiments: those of this project and of other installed packages.

A package registers experiments through the entry-point group ``tune_hpc.experiments``. Its ``pyproject.toml`` names an
``Experiment``, or a list of them:

    [project.entry-points."tune_hpc.experiments"]
    my_experiments = "my_package.my_module:experiments"

Once the package is installed, ``tune-hpc list`` shows its experiments and ``tune-hpc run NAME`` runs them.
"""

import logging
from importlib.metadata import entry_points
from typing import Any

from tune_hpc.errors import UnknownNameError
from tune_hpc.search.experiment import Experiment
from tune_hpc.search.object_reference import load_reference

#: Entry-point group of experiments.
GROUP = "tune_hpc.experiments"

_log = logging.getLogger(__name__)


def registered_experiments() -> list[Experiment]:
    """Return the experiments of all installed packages, in the order of their entry points.

    An entry point that cannot be loaded, and an experiment whose name is taken, is skipped with a warning.
    """
    found: dict[str, Experiment] = {}
    for point in entry_points(group=GROUP):
        try:
            experiments = as_experiments(load_reference(point.value), point.value)
        except UnknownNameError as error:
            _log.warning("the entry point %s of the group %s is skipped: %s", point.name, GROUP, error)
            continue
        for experiment in experiments:
            if experiment.name in found:
                _log.warning("%s of %s is skipped: the name is taken; rename it", experiment.name, point.value)
            found.setdefault(experiment.name, experiment)
    return list(found.values())


def experiments_named(name: str) -> list[Experiment]:
    """Return the registered experiments of a name: one stage, or all stages of an exercise (``exercise3``).

    Raises:
        UnknownNameError: There is no experiment or exercise of this name.
    """
    experiments = registered_experiments()
    found = [experiment for experiment in experiments if name in (experiment.name, experiment.name.partition(".")[0])]
    if not found:
        names = dict.fromkeys(part for one in experiments for part in (one.name.partition(".")[0], one.name))
        known = ", ".join(names) or "none; install tune-hpc again"
        raise UnknownNameError(
            f"no experiment is called {name!r}; registered are {known}; name your own as package.module:attribute"
        )
    return found


def as_experiments(target: Any, reference: str) -> list[Experiment]:
    """Return an experiment, or a sequence of experiments, as a list.

    Args:
        target: The object.
        reference: Its reference, for the message.

    Raises:
        UnknownNameError: The object is neither.
    """
    experiments = list(target) if isinstance(target, list | tuple) else [target]
    if not experiments or not all(isinstance(experiment, Experiment) for experiment in experiments):
        raise UnknownNameError(
            f"{reference} is of type {type(target).__name__}; it must be an Experiment or a list of them"
        )
    return experiments
