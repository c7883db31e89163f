"""Published numbers compared with synthetic results."""

import numpy as np
import pandas as pd
import pytest

from tune_hpc.analysis.intervals import Interval, mean_interval
from tune_hpc.analysis.published import (
    AGREES,
    DIFFERS,
    INCONCLUSIVE,
    compare_to_published,
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
