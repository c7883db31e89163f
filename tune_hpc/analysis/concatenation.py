"""Several searches as one, with the additional parameter ``search``."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from tune_hpc.analysis.aggregation import searched_parameters
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError

#: Column of the trial's search.
SEARCH = "search"


def concat(searches: Sequence[Results]) -> Results:
    """Return the trials of several searches as one search with the additional parameter ``search``.

    Args:
        searches: Results with the same metric; ``search`` is their name, or the folder's name if names are equal.

    Returns:
        Results without a folder; ``trial_id`` is ``SEARCH/ID``. ``.compare("search")`` compares the searches.

    Raises:
        UnknownNameError: There are no searches, or they rank trials by different metrics.
    """
    check_same_metric(searches)
    names = unique_names(searches)
    trials, histories = [], []
    for name, search in zip(names, searches, strict=True):
        trials.append(search.trials.assign(search=name, trial_id=name + "/" + search.trials["trial_id"].astype(str)))
        histories.append(search.history.assign(trial_id=name + "/" + search.history["trial_id"].astype(str)))
    space: dict[str, dict[str, Any]] = {name: {} for search in searches for name in searched_parameters(search)}
    experiment = {
        "name": " and ".join(names),
        "metric": searches[0].metric,
        "mode": searches[0].experiment["mode"],
        "config_keys": [*dict.fromkeys([SEARCH, *(key for one in searches for key in one.experiment["config_keys"])])],
        "quick": any(search.experiment.get("quick") for search in searches),
        "space": {SEARCH: {}, **space},
    }
    return Results(experiment, pd.concat(trials, ignore_index=True), pd.concat(histories, ignore_index=True))


def check_same_metric(searches: Sequence[Results]) -> None:
    """Check that there are searches, and that all rank trials by the same metric, else raise ``UnknownNameError``."""
    if not searches:
        raise UnknownNameError("nothing to compare; name at least one search")
    if len({(search.metric, search.experiment["mode"]) for search in searches}) > 1:
        metrics = [f"{search.name} by the {search.experiment['mode']} of {search.metric}" for search in searches]
        raise UnknownNameError(
            f"these searches rank their trials by different metrics: {', '.join(metrics)}; compare searches with the "
            "same metric"
        )


def unique_names(searches: Sequence[Results]) -> list[str]:
    """Return a name for each search: its own, else its folder's, else with a number."""
    names = [search.name for search in searches]
    if len(set(names)) < len(names):
        names = [search.folder.name if search.folder else search.name for search in searches]
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return names
