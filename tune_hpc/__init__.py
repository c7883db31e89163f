"""Hyperparameter search on Ray.

The public names, each loaded on first use so that ``import tune_hpc`` costs milliseconds:

    Experiment, Space, when                        what is run
    Published, Claim, Figure, Table                what is shown beside it
    run, run_all, resume, extend                   run it on Ray Tune, go on, add more
    compare                                        tune each of several things alike, and hold their winners together
    load, load_all, Results                        what happened, as data frames
    to_optuna                                      the same as an Optuna study
    compare_to_published, check_claims     does it agree with what was published
    check_boundaries, importance, interactions       where to search next, and which parameters decide
    budget_curve, time_to_target                   what less would have found, and how soon
    protocols, special_cases                       does the way of judging flatter, is the search wide enough
    join                                           several searches as one, to compare them
    export_search                                         the same in TensorBoard, Optuna's dashboard or MLflow
    Client, LocalClient, InProcessClient           a search as a job, on a Ray cluster, on this machine, in this process
    write_report                                   the same as tables, figures and one HTML page
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Claim": "tune_hpc.search.experiment",
    "Client": "tune_hpc.jobs.client",
    "Experiment": "tune_hpc.search.experiment",
    "Figure": "tune_hpc.search.experiment",
    "InProcessClient": "tune_hpc.jobs.client",
    "LocalClient": "tune_hpc.jobs.client",
    "Published": "tune_hpc.search.experiment",
    "Results": "tune_hpc.analysis.results",
    "Space": "tune_hpc.search.space.space",
    "Table": "tune_hpc.search.experiment",
    "TuneHpcError": "tune_hpc.errors",
    "check_boundaries": "tune_hpc.analysis.boundary_check",
    "budget_curve": "tune_hpc.analysis.budget",
    "check_claims": "tune_hpc.analysis.claims",
    "compare": "tune_hpc.search.tune_and_compare",
    "export_search": "tune_hpc.export.export",
    "extend": "tune_hpc.search.runner",
    "importance": "tune_hpc.search.importance",
    "interactions": "tune_hpc.analysis.interactions",
    "join": "tune_hpc.analysis.concat",
    "load": "tune_hpc.analysis.results",
    "load_all": "tune_hpc.analysis.results",
    "protocols": "tune_hpc.analysis.selection_bias",
    "compare_to_published": "tune_hpc.analysis.published",
    "resume": "tune_hpc.search.runner",
    "run": "tune_hpc.search.runner",
    "run_all": "tune_hpc.search.runner",
    "special_cases": "tune_hpc.analysis.selection_bias",
    "time_to_target": "tune_hpc.analysis.budget",
    "to_optuna": "tune_hpc.export.optuna",
    "when": "tune_hpc.search.space.conditional",
    "write_report": "tune_hpc.report.report",
}

__all__ = [*_HOMES]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
