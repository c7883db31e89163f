"""Every function of results gives an answer or a one-line error for degenerate trials."""

import numpy as np
import pandas as pd
import pytest

import tune_hpc
from tune_hpc.analysis.results import Results
from tune_hpc.errors import TuneHpcError
from tune_hpc.report import tables
from tune_hpc.report.findings import findings
from tune_hpc.report.plots import figures
from tune_hpc.report.report import write_report

FUNCTIONS = {
    "repr": repr,
    "html": lambda results: results._repr_html_(),
    "best": lambda results: results.best(),
    "top": lambda results: results.top(3),
    "counts": lambda results: results.counts(),
    "curve": lambda results: results.curve("test_accuracy"),
    "compare": lambda results: str(results.compare("optimizer")),
    "compare rates": lambda results: results.compare("learning_rate", "test_accuracy").values,
    "published": tune_hpc.compare_to_published,
    "claims": tune_hpc.check_claims,
    "boundary": tune_hpc.check_boundaries,
    "budget": tune_hpc.budget_curve,
    "time to target": lambda results: tune_hpc.time_to_target(results, 0.5),
    "selection bias": tune_hpc.selection_bias,
    "special cases": tune_hpc.special_cases,
    "searches": lambda results: tune_hpc.compare_searches([results] * 2, [results] * 2),
    "interactions": tune_hpc.interactions,
    "importance": tune_hpc.importance,
    "concat": lambda results: tune_hpc.concat([results, results]).compare("search").values,
    "sentences": findings,
    "tables": tables.report_tables,
    "figures": figures.render_all,
    "search figures": lambda results: [figures.draw(results, one) for one in SEARCH_FIGURES],
}
SEARCH_FIGURES = [
    {"kind": "ranking", "metrics": ["test_loss", "test_accuracy"], "title": "Ranking", "line": "optimizer"},
    {"kind": "budget", "metrics": ["test_loss", "test_accuracy"], "title": "Budget"},
    {"kind": "target", "metrics": ["test_loss"], "title": "Target", "line": "optimizer", "target": 0.5},
]  # fmt: skip
PUBLISHED = [
    {"where": {"optimizer": "adam", "learning_rate": 0.1}, "metric": "test_loss", "value": 0.3, "source": "report"},
    {"where": {"optimizer": "adam"}, "metric": "test_accuracy", "value": 0.9, "source": "report",
     "best_over": "learning_rate", "best_values": (0.1,)},
]  # fmt: skip
CLAIM = {
    "text": "so it is", "source": "report", "parameter": "optimizer", "values": ("adam", "momentum"), "steps": 20,
    "measure": "value", "metric": "train_loss", "relation": "rising", "bound": 0, "target": 0, "tolerance": 0,
}  # fmt: skip
SPACE = {"optimizer": {"choice": ["adam", "momentum"]}, "learning_rate": {"choice": [0.1, 0.01, 0.001]}}


def with_frames(results, trials, history=None):
    return Results(results.experiment, trials.reset_index(drop=True), results.history if history is None else history)


def same_status(status, number):
    return lambda grid, trial, results_of: results_of(
        *(trial(f"{n:05d}", status=status, seed=n) for n in range(number))
    )


def one_seed(grid, trial, results_of):
    return with_frames(grid(), grid().trials.query("seed == 0"))


def duplicated_trials(grid, trial, results_of):
    trials = grid().trials
    return with_frames(grid(), pd.concat([trials, trials.assign(trial_id="x" + trials["trial_id"])]))


def no_metric(grid, trial, results_of):
    return with_frames(grid(), grid().trials.drop(columns="test_loss"), grid().history.drop(columns="test_loss"))


def metric_missing_everywhere(grid, trial, results_of):
    return with_frames(grid(), grid().trials.assign(test_loss=np.nan), grid().history.assign(test_loss=np.nan))


KINDS = {
    "one trial": same_status("finished", 1), "all diverged": same_status("diverged", 4),
    "all failed": same_status("failed", 4), "no trials": same_status("finished", 0),
    "still running": same_status("running", 3), "one seed": one_seed, "duplicated trials": duplicated_trials,
    "no metric": no_metric, "metric missing everywhere": metric_missing_everywhere,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_gives_an_answer_or_a_one_line_error(grid, trial, results_of, kind, name):
    settings = {"published": PUBLISHED, "claims": [CLAIM], "space": SPACE, "searcher": "grid", "seeds": [0, 1]}
    results = KINDS[kind](grid, trial, results_of)
    results.experiment.update(settings)
    try:
        answer = FUNCTIONS[name](results)
    except TuneHpcError as error:
        answer = None if "\n" in str(error) else str(error)
    assert answer is not None
    assert str(answer) != ""


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("values", [(-1e308, 1e308), (1e300, 1.7e308, -1.7e308, 1e-300, 5e-324), (1e155, 2e155)])
def test_huge_numbers_are_reported(trial, results_of, tmp_path, values):
    rows = [
        trial(f"t{number}{seed}", loss=value, learning_rate=value, seed=seed)
        for number, value in enumerate(values)
        for seed in (0, 1)
    ]
    results = results_of(*rows, config_keys=["learning_rate", "seed"])
    assert write_report([results], tmp_path / "report.html", in_folders=False).exists()
