"""Hyperparameter search on Ray.

The public names, each loaded on first use so that ``import tune_hpc`` costs milliseconds:

    Experiment, Space, when                        what is run
    Published, Claim, Figure, Table                what is shown beside it
    run, run_all, resume, extend                   run it on Ray Tune, go on, add more
    compare                                        tune each of several things alike, and hold their winners together
    load, load_all, Results                        what happened, as data frames
    to_optuna                                      the same as an Optuna study
    published_against_measured, claims_checked     does it agree with what was published
    boundary_alarm, importance, interactions       where to search next, and which parameters decide
    budget_curve, time_to_target                   what less would have found, and how soon
    protocols, special_cases                       does the way of judging flatter, is the search wide enough
    join                                           several searches as one, to compare them
    export                                         the same in TensorBoard, Optuna's dashboard or MLflow
    Client, LocalClient, InProcessClient           a search as a job, on a Ray cluster, on this machine, in this process
    write_report                                   the same as tables, figures and one HTML page
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Claim": "tune_hpc.search.experiment",
    "Client": "tune_hpc.cluster.client",
    "Experiment": "tune_hpc.search.experiment",
    "Figure": "tune_hpc.search.experiment",
    "InProcessClient": "tune_hpc.cluster.client",
    "LocalClient": "tune_hpc.cluster.client",
    "Published": "tune_hpc.search.experiment",
    "Results": "tune_hpc.analysis.results",
    "Space": "tune_hpc.search.space",
    "Table": "tune_hpc.search.experiment",
    "TuneHpcError": "tune_hpc.errors",
    "boundary_alarm": "tune_hpc.analysis.boundary",
    "budget_curve": "tune_hpc.analysis.budget",
    "claims_checked": "tune_hpc.analysis.claims",
    "compare": "tune_hpc.search.comparison",
    "export": "tune_hpc.analysis.exports",
    "extend": "tune_hpc.search.tuner",
    "importance": "tune_hpc.search.importance",
    "interactions": "tune_hpc.analysis.interactions",
    "join": "tune_hpc.analysis.across",
    "load": "tune_hpc.analysis.results",
    "load_all": "tune_hpc.analysis.results",
    "protocols": "tune_hpc.analysis.protocols",
    "published_against_measured": "tune_hpc.analysis.published",
    "resume": "tune_hpc.search.tuner",
    "run": "tune_hpc.search.tuner",
    "run_all": "tune_hpc.search.tuner",
    "special_cases": "tune_hpc.analysis.protocols",
    "time_to_target": "tune_hpc.analysis.budget",
    "to_optuna": "tune_hpc.search.optuna_storage",
    "when": "tune_hpc.search.conditions",
    "write_report": "tune_hpc.analysis.report",
}

__all__ = [*_HOMES]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
