"""Published numbers and statements compared with synthetic results."""

import numpy as np
import pandas as pd
import pytest

from tune_hpc.analysis.intervals import Interval, mean_interval
from tune_hpc.analysis.published import (
    AGREES,
    DIFFERS,
    INCONCLUSIVE,
    MEASURES,
    RELATIONS,
    check_claims,
    claim_numbers,
    compare_to_published,
    describe_measure,
    verdict,
)
from tune_hpc.report import findings, tables

BEST = {"metric": "test_loss", "value": 0.3, "source": "report", "best_over": "learning_rate"}
PUBLISHED = [
    {**BEST, "where": {"optimizer": "adam", "batch_size": 100}, "best_values": (0.01, 0.005)},
    {**BEST, "where": {"optimizer": "momentum", "batch_size": 100}, "best_values": (0.001,)},
]
EXACT = {
    "where": {"optimizer": "adam", "learning_rate": 0.1}, "metric": "test_accuracy", "value": 0.7, "source": "report",
}  # fmt: skip


def test_published_best_value_is_compared_with_the_best_mean(grid):
    df = compare_to_published(grid(published=PUBLISHED))
    assert list(df["where"]) == ["optimizer adam", "optimizer momentum"]
    assert list(df["measured_best"]) == [0.01, 0.1]
    assert list(df["best_agrees"]) == [True, False]
    assert list(df["published_best"]) == ["0.01, 0.005", "0.001"]
    assert list(df["num_seeds"]) == [2, 2]
    end = 2 * np.exp(-20 / 5)
    assert df["measured"].iloc[0] == pytest.approx(0.305 + end)
    assert df["deviation"].iloc[0] == pytest.approx(0.01 / np.sqrt(2))
    assert df["difference"].iloc[0] == pytest.approx(0.005 + end)


def test_untried_best_values_are_neither_equal_nor_different(grid):
    published = [{**PUBLISHED[0], "best_values": values} for values in ((0.02, 0.05), (0.05, 0.1))]
    made = grid(published=published)
    assert list(compare_to_published(made)["best_agrees"]) == [pd.NA, False]
    assert any("Of 1 published best learning rates, 0 are also ours." in one for one in findings.findings(made))


def test_published_number_is_compared_with_its_trials(grid):
    made = grid(published=[EXACT])
    row = compare_to_published(made).iloc[0]
    trials = made.trials.query("optimizer == 'adam' and learning_rate == 0.1")
    assert row["measured"] == pytest.approx(trials["test_accuracy"].mean())
    assert row["measured_best"] is None
    assert row["best_agrees"] is pd.NA


class TestVerdicts:
    def test_agreement_rate_of_equal_distributions_is_nominal(self):
        generator = np.random.default_rng(0)
        for num_seeds in (3, 5, 10):
            verdicts = []
            for _ in range(2000):
                *ours, theirs = generator.normal(0.99, 0.001, num_seeds + 1)
                verdicts.append(verdict(theirs, mean_interval(ours), num_seeds))
            assert verdicts.count(AGREES) / 2000 == pytest.approx(0.95, abs=0.02)
            assert set(verdicts) == {AGREES, DIFFERS}

    @pytest.mark.parametrize(
        ("measured", "published", "resolution", "expected"),
        [
            # The resolution widens the interval.
            ([0.99118, 0.9912, 0.99122], 0.991, 0.0, DIFFERS),
            ([0.99118, 0.9912, 0.99122], 0.991, 0.001, AGREES),
            ([0.99118, 0.9912, 0.99122], 0.992, 0.001, DIFFERS),
            # Identical seeds have no interval.
            ([0.3055] * 3, 0.32, 0.01, INCONCLUSIVE),
            ([0.3055] * 3, 0.31, 0.01, AGREES),
        ],
    )
    def test_resolution_and_spread_decide(self, measured, published, resolution, expected):
        assert verdict(published, mean_interval(measured), 3, resolution=resolution) == expected

    @pytest.mark.parametrize(("published", "expected"), [(0.991, AGREES), (0.989, AGREES), (0.9, INCONCLUSIVE)])
    def test_single_seed_is_compared_by_the_binomial_error(self, published, expected):
        alone = mean_interval([0.9904])
        assert verdict(published, alone, 1, resolution=0.001, num_images=10_000) == expected
        assert verdict(0.95, Interval(0.99, 0.94, 1.04), 2, resolution=0.001, num_images=10_000) == INCONCLUSIVE

    def test_table_has_the_verdicts(self, trial, results_of):
        trials = [trial(f"0000{seed}", loss=1 + seed / 1000, seed=seed) for seed in range(3)]
        published = [
            {**EXACT, "value": 0.793}, {**EXACT, "value": 0.7},
            {**EXACT, "value": 1.5, "metric": "train_s"}, {**EXACT, "metric": "valid_accuracy"},
        ]  # fmt: skip
        df = compare_to_published(results_of(*trials, published=published))
        assert list(df["verdict"].fillna("")) == [AGREES, DIFFERS, "not comparable", ""]
        assert (df["low"] < df["measured"])[:2].all()
        sized = [one | {"size": {"batch_size": 150, "width": 1}} for one in published]
        others = compare_to_published(results_of(*trials, published=sized))
        assert list(others["verdict"].fillna("")) == ["not comparable"] * 3 + [""]
        assert list(others["note"])[:2] == ["measured with batch size 100"] * 2
        quick = compare_to_published(results_of(*trials, published=published, quick=True))
        assert list(quick["verdict"].fillna("")) == ["not comparable"] * 3 + [""]
        sentences = findings.findings(results_of(*trials, published=published))
        assert "Of 2 published numbers, 1 agrees with ours, 1 differs." in sentences


@pytest.mark.parametrize(
    ("where", "note"),
    [
        ({"optimizer": "ftrl"}, "no such trial"),
        ({"model": "cnn"}, "no such trial"),
        ({"optimizer": "adam"}, "trials there also differ in learning_rate"),
    ],
)
def test_missing_measurement_has_a_note(grid, where, note):
    row = compare_to_published(grid(published=[{**EXACT, "where": where}])).iloc[0]
    assert np.isnan(row["measured"])
    assert row["note"] == note


def test_diverged_and_failed_trials_have_missing_values(trial, results_of):
    made = results_of(
        trial("00000", status="diverged"),
        trial("00001", status="failed", learning_rate=0.01),
        published=[EXACT, *PUBLISHED],
    )
    df = compare_to_published(made)
    assert df["measured"].isna().all()
    assert list(df["note"]) == ["diverged", "diverged", "no such trial"]
    assert findings.findings(made) == [
        "2 trials: 1 diverged, 1 failed.",
        "No trial finished with a value of test loss.",
    ]


def test_rate_with_a_diverged_seed_is_not_the_best(trial, results_of):
    made = results_of(
        trial("00000", 0.1, learning_rate=0.5, seed=0),
        trial("00001", 0.1, "diverged", learning_rate=0.5, seed=1),
        trial("00002", 0.4, learning_rate=0.1, seed=0),
        trial("00003", 0.4, learning_rate=0.1, seed=1),
        published=PUBLISHED[:1],
    )
    assert compare_to_published(made)["measured_best"].iloc[0] == 0.1
    best = tables.best_per(made, "optimizer", ["test_loss"])
    assert best["learning_rate"].iloc[0] == 0.1
    assert best["num_diverged"].iloc[0] == 1


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
