"""Experiments from experiment.json, and comparisons with it; ``Experiment.to_json`` makes its contents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from tune_hpc.errors import FolderError
from tune_hpc.learning.config import TRIAL_KEYS
from tune_hpc.search.command import Command
from tune_hpc.search.experiment import ADDED_FIELDS, RECORDS, TRAIN, Experiment
from tune_hpc.search.space.space import Space

#: Fields that identify a search, apart from its space; figures and texts may change.
IDENTITY_FIELDS = (
    "name",
    "trainable",
    "metric",
    "mode",
    "judge",
    "seeds",
    "searcher",
    "num_samples",
    "points_to_evaluate",
    "search_seed",
    "scheduler",
)


def experiment_from_json(plain: Mapping[str, Any], trainable: str | Callable[..., Any] | None = None) -> Experiment:
    """Return the experiment that experiment.json describes.

    Args:
        plain: Result of ``to_json``; further keys are ignored.
        trainable: The function, if its module cannot be imported by the name in the file.

    Raises:
        FolderError: A field of the experiment is missing or unknown.
        InvalidExperimentError: Fields contradict each other.
        InvalidSpaceError: The space is invalid.
    """
    plain = {**ADDED_FIELDS, **plain}
    try:
        values = {entry.name: plain[entry.name] for entry in fields(Experiment)}
        keys = TRIAL_KEYS if values["trainable"] == TRAIN else {}
        for name, record in RECORDS.items():
            if not isinstance(values[name], list):
                raise TypeError(f"{name} must be a list; got {values[name]!r:.100}")
            values[name] = tuple(
                record(**{key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()})
                for entry in values[name]
            )
        if isinstance(values["trainable"], Mapping):
            values["trainable"] = Command(**values["trainable"], folder=plain["command_folder"])
    except (KeyError, TypeError, AttributeError) as error:
        raise FolderError(f"experiment.json has a missing or unknown field: {error}; restore it from a copy") from error
    values |= {
        "space": Space.from_json(values["space"], keys=keys),
        "quick_values": dict(Space.from_json(values["quick_values"], keys=keys)),
        "trainable": trainable if trainable is not None else values["trainable"],
    }
    return Experiment(**values)


def check_same_search(experiment: Experiment, description: Mapping[str, Any], folder: Any) -> None:
    """Raise if an experiment folder has another search than an experiment.

    Args:
        experiment: The experiment.
        description: Contents of experiment.json in the folder.
        folder: The folder, for the message.

    Raises:
        FolderError: A field that identifies the search, or a parameter of the space, differs.
    """
    requested = experiment.to_json()
    description = {**ADDED_FIELDS, **description}
    pairs = [(name, description.get(name), requested[name]) for name in IDENTITY_FIELDS]
    space = description.get("space", {})
    pairs += [(name, space.get(name), requested["space"].get(name)) for name in {**space, **requested["space"]}]
    for name, there, here in pairs:
        if there != here:
            raise FolderError(
                f"{folder} has another search: {name} is {there} there and {here} here; choose another folder, or "
                "resume that search unchanged (tune-hpc resume)"
            )
