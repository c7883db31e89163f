"""Every analysis of a search gives a table or a one-line error for incomplete results."""

import numpy as np
import pandas as pd
import pytest

from tests.analysis.synthetic_results import searched
from tune_hpc.analysis.boundary_check import check_boundaries
from tune_hpc.analysis.budget import budget_curve, time_to_target
from tune_hpc.analysis.interactions import interactions
from tune_hpc.analysis.selection_bias import selection_bias
from tune_hpc.analysis.special_cases import special_cases
from tune_hpc.errors import UnknownNameError

SPACE = {"optimizer": {"choice": ["adam", "momentum"]}, "rate": {"choice": [0.1, 0.01]}}
HISTORY = pd.DataFrame({"trial_id": ["t00000", "t00000"], "step": [0, 10], "loss": [2.0, 1.0]})
ANALYSES = {
    "check_boundaries": check_boundaries,
    "budget_curve": budget_curve,
    "time_to_target": lambda results: time_to_target(results, 1.5),
    "selection_bias": selection_bias,
    "special_cases": special_cases,
    "interactions": interactions,
}


def row(optimizer="adam", rate=0.1, loss=1.0, **more):
    accuracies = {"best_test_accuracy": 0.9, "selected_test_accuracy": 0.89, "test_accuracy": 0.88}
    return {"optimizer": optimizer, "rate": rate, "loss": loss, "train_s": 10.0, "steps_run": 10} | accuracies | more


def diverged(**more):
    return row(**more) | {"status": "diverged", "loss": np.nan, "best_test_accuracy": np.nan}


CASES = {
    "no trials": [],
    "one trial": [row()],
    "all diverged": [diverged(), diverged(rate=0.01)],
    "one seed": [row(), row(rate=0.01, loss=0.5), row("momentum"), row("momentum", 0.01)],
    "duplicates": [row(), row(), row("momentum", 0.01), row("momentum", 0.01)],
    "still running": [row(status="running", loss=np.nan)],
    "missing metrics": [{"optimizer": "adam", "rate": 0.1}, {"optimizer": "momentum", "rate": 0.01}],
}


@pytest.mark.parametrize("analysis", ANALYSES)
@pytest.mark.parametrize("case", CASES)
def test_incomplete_results_give_a_table_or_a_one_line_error(analysis, case):
    results = searched(SPACE, CASES[case], HISTORY if CASES[case] else HISTORY[:0])
    try:
        answer = ANALYSES[analysis](results)
    except UnknownNameError as error:
        answer = str(error)
    assert isinstance(answer, pd.DataFrame) or ("made.up" in answer and "\n" not in answer)


@pytest.mark.parametrize("analysis", ANALYSES)
def test_missing_trials_are_an_error(analysis):
    with pytest.raises(UnknownNameError, match=r"^made.up has no trials$"):
        ANALYSES[analysis](searched(SPACE, [], HISTORY[:0]))


@pytest.mark.parametrize(
    ("analysis", "case", "message"),
    [
        (
            "check_boundaries",
            "all diverged",
            "no configuration of made.up has a value of loss and neither a diverged nor a failed seed",
        ),
        ("budget_curve", "all diverged", r"nor a failed seed \(2 diverged\)"),
        ("budget_curve", "missing metrics", r"no numeric column 'loss' in the trials of made.up \(2 finished\)"),
        ("selection_bias", "missing metrics", "no best_test_accuracy in the trials of made.up"),
        (
            "selection_bias",
            "all diverged",
            "no trial of made.up has both best_test_accuracy and selected_",
        ),
        ("special_cases", "one trial", "no optimizer of made.up has a special case among the others: adam"),
        ("interactions", "one trial", "an interaction needs two parameters that vary; in made.up none does"),
    ],
)
def test_error_names_the_problem(analysis, case, message):
    with pytest.raises(UnknownNameError, match=message):
        ANALYSES[analysis](searched(SPACE, CASES[case], HISTORY))


def test_history_without_the_metric_is_an_error():
    with pytest.raises(
        UnknownNameError, match=r"no metric 'score' in the history of made.up; there are trial_id, step, loss"
    ):
        time_to_target(searched(SPACE, CASES["one seed"], HISTORY), 1.0, "score")


@pytest.mark.parametrize("analysis", ["check_boundaries", "budget_curve", "selection_bias", "interactions"])
def test_repeated_configuration_counts_once(analysis):
    rows = [row(), row("momentum"), row(rate=0.01, loss=0.5), row("momentum", 0.01)]
    once, twice = (ANALYSES[analysis](searched(SPACE, own)) for own in (rows, [one for one in rows for _ in "12"]))
    pd.testing.assert_frame_equal(once, twice)
