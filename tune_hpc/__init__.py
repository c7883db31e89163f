"""Hyperparameter search on Ray.

Public names, each imported on first use, so that ``import tune_hpc`` takes milliseconds:

    Experiment, Space, when                   experiments and search spaces
    Command                                   a trainable that runs an unchanged program
    Published, Claim, Figure, Table           published numbers and the contents of the report
    run, run_all, resume, extend              run, resume and extend searches on Ray Tune
    compare                                   tune each value of the scientific parameters, and compare the winners
    load, load_all, Results, concat           results as data frames; several searches as one
    compare_to_published, joint_test          agreement with published numbers, one by one and on average
    check_claims                              agreement with published statements
    check_boundaries                          is the best configuration on the boundary of the space?
    importance, interactions                  importance of parameters, and interactions of pairs
    compare_predictions, accuracy_interval    McNemar's test; intervals over seeds and images
    selection_frequencies                     configurations that are the best with resampled seeds
    compare_searches                          repeated searches of two methods
    budget_curve, time_to_target              results with fewer configurations, and time to a target
    selection_bias, special_cases             selection bias, and consistency of related optimizers
    write_report                              tables, figures and one HTML page
    export_search, to_optuna                  export to TensorBoard, MLflow and Optuna
    Client, LocalClient, InProcessClient      jobs on a Ray cluster, on this machine, in this process
    TuneHpcError                              base class of all errors
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# ruff: noqa: F401
if TYPE_CHECKING:  # for type checkers and the reference pages
    from tune_hpc.analysis.boundary_check import check_boundaries
    from tune_hpc.analysis.budget import budget_curve, time_to_target
    from tune_hpc.analysis.claims import check_claims
    from tune_hpc.analysis.concatenation import concat
    from tune_hpc.analysis.interactions import interactions
    from tune_hpc.analysis.loading import load, load_all
    from tune_hpc.analysis.predictions import accuracy_interval, compare_predictions
    from tune_hpc.analysis.published import compare_to_published, joint_test
    from tune_hpc.analysis.results import Results
    from tune_hpc.analysis.search_comparison import compare_searches
    from tune_hpc.analysis.selection_bias import selection_bias
    from tune_hpc.analysis.special_cases import special_cases
    from tune_hpc.analysis.stability import selection_frequencies
    from tune_hpc.errors import TuneHpcError
    from tune_hpc.export.exporter import export_search
    from tune_hpc.export.optuna import to_optuna
    from tune_hpc.jobs.client import Client, InProcessClient, LocalClient
    from tune_hpc.learning.checkpoint import load_state
    from tune_hpc.report.report import write_report
    from tune_hpc.search.command import Command
    from tune_hpc.search.experiment import Claim, Experiment, Figure, Published, Table
    from tune_hpc.search.importance import importance
    from tune_hpc.search.runner import extend, resume, run, run_all
    from tune_hpc.search.space.conditional import when
    from tune_hpc.search.space.space import Space
    from tune_hpc.search.tune_and_compare import compare

_MODULES = {
    "Claim": "tune_hpc.search.experiment",
    "Client": "tune_hpc.jobs.client",
    "Command": "tune_hpc.search.command",
    "Experiment": "tune_hpc.search.experiment",
    "Figure": "tune_hpc.search.experiment",
    "InProcessClient": "tune_hpc.jobs.client",
    "LocalClient": "tune_hpc.jobs.client",
    "Published": "tune_hpc.search.experiment",
    "Results": "tune_hpc.analysis.results",
    "Space": "tune_hpc.search.space.space",
    "Table": "tune_hpc.search.experiment",
    "TuneHpcError": "tune_hpc.errors",
    "accuracy_interval": "tune_hpc.analysis.predictions",
    "budget_curve": "tune_hpc.analysis.budget",
    "check_boundaries": "tune_hpc.analysis.boundary_check",
    "check_claims": "tune_hpc.analysis.claims",
    "compare": "tune_hpc.search.tune_and_compare",
    "compare_predictions": "tune_hpc.analysis.predictions",
    "compare_searches": "tune_hpc.analysis.search_comparison",
    "compare_to_published": "tune_hpc.analysis.published",
    "export_search": "tune_hpc.export.exporter",
    "extend": "tune_hpc.search.runner",
    "importance": "tune_hpc.search.importance",
    "joint_test": "tune_hpc.analysis.published",
    "interactions": "tune_hpc.analysis.interactions",
    "concat": "tune_hpc.analysis.concatenation",
    "load": "tune_hpc.analysis.loading",
    "load_all": "tune_hpc.analysis.loading",
    "load_state": "tune_hpc.learning.checkpoint",
    "selection_bias": "tune_hpc.analysis.selection_bias",
    "resume": "tune_hpc.search.runner",
    "run": "tune_hpc.search.runner",
    "run_all": "tune_hpc.search.runner",
    "selection_frequencies": "tune_hpc.analysis.stability",
    "special_cases": "tune_hpc.analysis.special_cases",
    "time_to_target": "tune_hpc.analysis.budget",
    "to_optuna": "tune_hpc.export.optuna",
    "when": "tune_hpc.search.space.conditional",
    "write_report": "tune_hpc.report.report",
}

__all__ = [*_MODULES]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
