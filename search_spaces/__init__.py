"""The report's exercises: search spaces, with the published numbers beside them.

Each module has one ``Experiment`` per stage and ``experiments``, all of them in the report's order:

    from search_spaces import exercise3
    faster = exercise3.learning_rate.with_values({"optimizer": "nesterov"})
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from tune_hpc.errors import UnknownNameError

if TYPE_CHECKING:
    from tune_hpc.search.experiment import Experiment

MODULES = ("exercise1_1stpart", "exercise1_2ndpart", "exercise2", "exercise3", "exercise4")


def all_experiments() -> list[Experiment]:
    """Return every experiment of every exercise."""
    return [experiment for name in MODULES for experiment in import_module(f"{__name__}.{name}").experiments]


def find(name: str) -> list[Experiment]:
    """Return the experiments that a name stands for: one stage, or all stages of an exercise.

    Raises:
        UnknownNameError: no exercise or stage is called so.
    """
    everything = all_experiments()
    found = [one for one in everything if one.name == name or one.name.partition(".")[0] == name]
    if not found:
        names = dict.fromkeys(part for one in everything for part in (one.name.partition(".")[0], one.name))
        raise UnknownNameError(
            f"no experiment is called {name!r}; there are {', '.join(names)}, and your own as package.module:attribute"
        )
    return found
