"""Published statements checked on synthetic curves."""

import numpy as np
import pandas as pd
import pytest

from tune_hpc.analysis.claims import MEASURES, RELATIONS, check_claims, claim_numbers, describe_measure
from tune_hpc.report import findings, tables

STEPS = np.arange(9)
#: From 0 to 1: with oscillations, with a detour, straight, and without convergence.
CURVES = {
    "swing": [0, 1.5, 0.6, 1.3, 0.8, 1.1, 0.992, 1.004, 1.0],
    "detour": [0, -0.5, -0.2, 0.3, 0.7, 0.9, 0.96, 0.999, 1.0],
    "straight": [0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.995],
    "never": [0, 0.1, 0.2, 0.2, 0.2, 0.2, 0.3, 0.3, 0.4],
}


def claim(measure, relation="rising", values=tuple(CURVES), **more):
    defaults = {"steps": 8, "bound": 0, "target": 1, "tolerance": 0.01}
    fixed = {"text": "so it is", "source": "report", "parameter": "optimizer", "values": values, "metric": "W"}
    return fixed | {"measure": measure, "relation": relation} | defaults | more


@pytest.fixture
def curves(trial, results_of):
    def make(*claims, **changes):
        trials = []
        for number, (name, values) in enumerate(CURVES.items()):
            row, _ = trial(f"{number:05d}", optimizer=name, **changes.get(name, {}))
            trials.append((row, pd.DataFrame({"step": STEPS, "W": np.asarray(values, float)})))
        return results_of(*trials, claims=list(claims))

    return make


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        ("value", [1.0, 1.0, 0.995, 0.4]),
        ("settling_step", [6, 7, 8, np.inf]),
        ("crossings", [5, 0, 0, 0]),
        ("reversals", [7, 1, 0, 0]),
        ("max_departure", [0, 0.5, 0, 0]),
        ("max_departure_step", [0, 1, 0, 0]),
    ],
)
def test_measures_have_known_values(curves, measure, expected):
    assert claim_numbers(curves(), claim(measure)).tolist() == pytest.approx(expected)


def test_remaining_fraction_is_relative_to_the_first_value(curves):
    history = curves()
    history.history["W"] += 1
    assert claim_numbers(history, claim("remaining_fraction")).tolist() == pytest.approx([2, 2, 1.995, 1.4])


def test_crossings_within_the_tolerance_are_ignored(curves):
    assert claim_numbers(curves(), claim("crossings", tolerance=0.5)).iloc[0] == 0
    assert claim_numbers(curves(), claim("crossings", tolerance=0)).iloc[0] == 7


@pytest.mark.parametrize(
    ("relation", "numbers", "bound", "holds"),
    [
        ("rising", [1, 2, np.inf], 0, True), ("rising", [1, 1], 0, False),
        ("falling", [3, 2, 1], 0, True), ("falling", [1, 2], 0, False),
        ("first_lowest", [0, 2, 1], 0, True), ("first_lowest", [1, 1, 2], 0, False),
        ("at_most", [1, 2], 2, True), ("at_most", [1, np.inf], 2, False),
        ("above", [3, np.inf], 2, True), ("above", [2, 3], 2, False),
        ("some_above_first", [1, 0, 2], 0, True), ("some_above_first", [1, 0, 1], 0, False),
    ],
)  # fmt: skip
def test_relations_hold_or_not(relation, numbers, bound, holds):
    assert RELATIONS[relation](np.array(numbers, float), bound) is holds


def test_table_has_the_numbers_and_the_outcome(curves):
    made = curves(
        claim("settling_step", "at_most", ("swing", "never"), bound=8), claim("value", "above", ("swing",), bound=0.5)
    )
    df = check_claims(made)
    assert df["holds"].tolist() == [False, True]
    assert df["numbers"].tolist() == ["swing: 6, never: never", "swing: 1"]
    assert df["measure"][0] == "step from which weight W stays within 0.01 of 1, in 8 steps"
    assert findings.findings(made)[-1] == "Of 2 published statements, 1 holds."
    assert "| so it is |" in tables.to_markdown(df).replace("  ", "")
    assert tables.report_tables(made)[0][0] == "Published statements, checked"


def test_shorter_runs_and_missing_trials_are_inconclusive(curves):
    made = curves(claim("value", steps=9), claim("value", values=("swing", "ftrl")), claim("value", metric="b"))
    df = check_claims(made)
    assert df["holds"].isna().all()
    assert df["numbers"].tolist()[1] == "swing: 1, ftrl: not measured"
    assert not any("published statements" in sentence for sentence in findings.findings(made))


def test_diverged_trials_are_ignored_and_repeats_count_by_their_median(curves, results_of, trial):
    made = curves(swing={"status": "diverged"})
    assert np.isnan(claim_numbers(made, claim("value"))["swing"])
    trials = [
        (trial(f"{seed:05d}", optimizer="a", seed=seed)[0], pd.DataFrame({"step": [0, 1], "W": [0.0, value]}))
        for seed, value in enumerate((1.0, 5.0, 2.0))
    ]
    assert claim_numbers(results_of(*trials), claim("value", values=("a",), steps=1))["a"] == 2.0


def test_every_measure_has_a_description():
    assert all(describe_measure(claim(measure)) for measure in MEASURES)
