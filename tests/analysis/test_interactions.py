"""Interactions of parameters of synthetic grids."""

import itertools

import numpy as np
import pytest

from tests.analysis.synthetic_results import repeated, searched
from tune_hpc.analysis.interactions import interactions
from tune_hpc.errors import UnknownNameError

GRID = {"a": {"choice": [1, 2, 3]}, "b": {"choice": [1, 2]}}


def grid(value, space=GRID):
    """Return a grid search with a known loss of each configuration."""
    combinations = [
        dict(zip(space, one, strict=True)) for one in itertools.product(*(own["choice"] for own in space.values()))
    ]
    return searched(space, [config | {"loss": value(**config)} for config in combinations])


def test_sum_has_no_interaction():
    row = interactions(grid(lambda a, b: 3.0 * a + b), log=False).iloc[0]
    assert row[["first", "second", "num_cells", "note"]].tolist() == ["a", "b", 6, ""]
    # The variance of 3, 6, 9 is 6, that of 1, 2 a quarter.
    assert row["first_share"] == pytest.approx(6 / 6.25)
    assert row["second_share"] == pytest.approx(0.25 / 6.25)
    assert row["interaction_share"] == pytest.approx(0, abs=1e-12)


def test_missing_value_of_a_parameter_is_a_row_of_the_table():
    results = grid(lambda a, b: 3.0 * a + b)
    results.trials["b"] = results.trials["b"].where(results.trials["b"] == 1)
    row = interactions(results, log=False).iloc[0]
    assert row[["num_cells", "note"]].tolist() == [6, ""]
    assert row[["first_share", "second_share"]].tolist() == pytest.approx([6 / 6.25, 0.25 / 6.25])


def test_configurations_of_a_cell_count_by_their_mean():
    space = {**GRID, "c": {"choice": ["x", "y", "z"]}}
    results = grid(lambda a, b, c: 3.0 * a + b + {"x": -1.0, "y": 0.0, "z": 1.0}[c], space)
    shares = interactions(results, log=False).set_index(["first", "second"])
    # The means over c are those of the sum of a and b.
    assert shares.loc["a", "b"][["first_share", "second_share"]].tolist() == pytest.approx([6 / 6.25, 0.25 / 6.25])
    assert shares.loc["a", "c"]["second_share"] == pytest.approx((2 / 3) / (6 + 2 / 3))


def test_product_of_centered_values_is_all_interaction():
    row = interactions(grid(lambda a, b: float((a - 2) * (b - 1.5)))).iloc[0]
    assert row[["first_share", "second_share", "interaction_share"]].tolist() == pytest.approx([0, 0, 1])


def test_product_of_losses_has_no_interaction_in_logarithms():
    row = interactions(grid(lambda a, b: 3.0**a * 2.0**b)).iloc[0]
    assert row["scale"] == "log"
    assert row["interaction_share"] == pytest.approx(0, abs=1e-12)
    assert interactions(grid(lambda a, b: 3.0**a * 2.0**b - 7)).iloc[0]["scale"] == "linear"
    assert interactions(grid(lambda a, b: 3.0**a * 2.0**b), log=False).iloc[0]["interaction_share"] > 0.01


def test_interval_of_an_interaction_is_from_resampled_seeds():
    truth = grid(lambda a, b: 3.0 * a + b + 2 * (a == b)).trials[["a", "b", "loss"]].to_dict("records")
    row = interactions(searched(GRID, repeated(truth, deviation=0.05)), log=False).iloc[0]
    exact = interactions(searched(GRID, truth), log=False).iloc[0]
    assert row["low_share"] < exact["interaction_share"] < row["high_share"]
    assert row["high_share"] - row["low_share"] < 0.05
    assert np.isnan(exact["low_share"])


def test_sum_with_noise_has_no_interaction_at_95_percent():
    generator, num_excluded = np.random.default_rng(3), 0
    for _ in range(40):
        truth = grid(lambda a, b: 3.0 * a + b).trials[["a", "b", "loss"]].to_dict("records")
        row = interactions(searched(GRID, repeated(truth, deviation=1.0, generator=generator)), log=False).iloc[0]
        assert 0 <= row["low_share"] <= row["interaction_share"] <= 1
        num_excluded += row["low_share"] > 0
    assert num_excluded <= 4


def test_shares_add_up_and_the_largest_interaction_is_first():
    space = {**GRID, "c": {"choice": ["x", "y"]}}
    luck = np.random.default_rng(0)
    df = interactions(grid(lambda a, b, c: a * b * 10.0 + (c == "x") + luck.normal(0, 0.01), space), log=False)
    assert df.loc[0, ["first", "second"]].tolist() == ["a", "b"]
    assert len(df) == 3
    assert (df["first_share"] + df["second_share"] + df["interaction_share"]).tolist() == pytest.approx([1, 1, 1])
    assert df["interaction_share"].is_monotonic_decreasing


def test_variance_of_another_metric_is_split():
    results = grid(lambda a, b: float(a))
    results.trials["test_accuracy"] = results.trials["b"].astype(float)
    assert interactions(results, "test_accuracy")["second_share"].iloc[0] == pytest.approx(1)


@pytest.mark.parametrize(("drop", "diverged"), [([0], []), ([], [0])])
def test_incomplete_table_has_no_shares(drop, diverged):
    results = grid(lambda a, b: 3.0 * a + b)
    results.trials.loc[diverged, "status"] = "diverged"
    row = interactions(results.with_trials(results.trials.drop(index=drop))).iloc[0]
    assert row[["num_cells", "note"]].tolist() == [5, "5 of 6 cells have a value"]
    assert row[["first_share", "second_share", "interaction_share"]].isna().all()


def test_single_parameter_is_rejected():
    results = grid(lambda a, b: 3.0 * a + b)
    with pytest.raises(UnknownNameError, match=r"needs two parameters that vary; in made.up b does"):
        interactions(results.with_trials(results.trials[results.trials["a"] == 1]))


def test_a_divergence_in_a_cell_with_others_leaves_no_table():
    results = grid(lambda a, b, c: a + b + float(c), {**GRID, "c": {"choice": [1, 2]}})
    results.trials.loc[0, ["status", "loss"]] = ["diverged", np.nan]
    notes = dict(zip(*(interactions(results)[name] for name in ("second", "note")), strict=True))
    assert set(notes.values()) == {"1 configurations have no value"}


def test_unequal_cells_have_no_shares():
    results = grid(lambda a, b, c: a + b + float(c), {**GRID, "c": {"choice": [1, 2]}})
    df = interactions(results.with_trials(results.trials.drop(index=0)))
    assert set(df["note"]) == {"cells differ in the number of configurations"}


def test_a_search_at_random_has_no_table():
    generator = np.random.default_rng(0)
    space = {"a": {"uniform": [0, 1]}, "b": {"uniform": [0, 1]}}
    rows = [{"a": a, "b": b, "loss": a + b} for a, b in generator.uniform(size=(5000, 2))]
    row = interactions(searched(space, rows)).iloc[0]
    assert row[["num_cells", "note"]].tolist() == [5000, "5000 of 25000000 cells have a value"]


def test_equal_cells_have_no_shares():
    row = interactions(grid(lambda a, b: 0.1)).iloc[0]
    assert row["note"] == "all cells are equal"
    assert np.isnan(row["first_share"])
