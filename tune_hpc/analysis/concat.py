"""Several searches as one, to hold them against each other.

join([load("runs/a"), load("runs/b")]).compare("search")
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError

#: The column that says which search a trial is of.
SEARCH = "search"


def concat(searches: Sequence[Results]) -> Results:
    """Return the trials of several searches as those of one, with a parameter more: ``search``.

    Args:
        searches: Ranked by the same metric. Their names tell them apart, or else their folders.

    Returns:
        Results without a folder; ``trial_id`` is ``SEARCH/ID``.

    Raises:
        UnknownNameError: no searches, or such as rank their trials by different metrics.
    """
    if not searches:
        raise UnknownNameError("nothing to compare; name at least one search")
    judged = {(one.metric, one.experiment["mode"]) for one in searches}
    if len(judged) > 1:
        told = ", ".join(f"{one.name} by the {one.experiment['mode']} of {one.metric}" for one in searches)
        raise UnknownNameError(f"these searches rank their trials by different metrics: {told}; compare others")
    names = unique_names(searches)
    trials = [
        one.trials.assign(search=name, trial_id=name + "/" + one.trials["trial_id"].astype(str))
        for name, one in zip(names, searches, strict=True)
    ]
    histories = [
        one.history.assign(trial_id=name + "/" + one.history["trial_id"].astype(str))
        for name, one in zip(names, searches, strict=True)
    ]
    keys = list(dict.fromkeys([SEARCH, *(key for one in searches for key in one.experiment["config_keys"])]))
    first = searches[0].experiment
    experiment = {"name": " and ".join(names), "metric": first["metric"], "mode": first["mode"], "config_keys": keys}
    experiment["quick"] = any(one.experiment.get("quick") for one in searches)
    # What each of them searched; that they differ in other values is what their names stand for.
    searched: dict[str, dict[str, Any]] = {
        name: {} for one in searches for name in one.varied_parameters if name != "seed"
    }
    experiment["space"] = {SEARCH: {}, **searched}
    return Results(experiment, pd.concat(trials, ignore_index=True), pd.concat(histories, ignore_index=True))


def unique_names(searches: Sequence[Results]) -> list[str]:
    """Return a name for each search: its own, its folder's where names are alike, or else its number, too."""
    names = [one.name for one in searches]
    if len(set(names)) < len(names):
        names = [one.folder.name if one.folder else one.name for one in searches]
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return names
