"""Shares of the variance, for tables that are sums, products and mixtures by construction."""

import itertools

import numpy as np
import pytest

from tests.analysis.synthetic_results import searched
from tune_hpc.analysis.comparison import interactions
from tune_hpc.errors import UnknownNameError

SPACE = {"a": {"choice": [1, 2, 3]}, "b": {"choice": [1, 2]}}


def grid(value, space=SPACE):
    """Return a grid search with a known loss of each configuration."""
    combinations = [
        dict(zip(space, one, strict=True)) for one in itertools.product(*(own["choice"] for own in space.values()))
    ]
    return searched(space, [config | {"loss": value(**config)} for config in combinations])


def test_sum_has_no_interaction():
    row = interactions(grid(lambda a, b: 3.0 * a + b)).iloc[0]
    assert row[["first", "second", "num_cells", "note"]].tolist() == ["a", "b", 6, ""]
    # The variance of 3, 6, 9 is 6, that of 1, 2 a quarter.
    assert row["first_share"] == pytest.approx(6 / 6.25)
    assert row["second_share"] == pytest.approx(0.25 / 6.25)
    assert row["interaction_share"] == pytest.approx(0, abs=1e-12)


def test_product_of_centered_values_is_all_interaction():
    row = interactions(grid(lambda a, b: float((a - 2) * (b - 1.5)))).iloc[0]
    assert row[["first_share", "second_share", "interaction_share"]].tolist() == pytest.approx([0, 0, 1])


def test_shares_add_up_and_the_largest_interaction_is_first():
    space = {**SPACE, "c": {"choice": ["x", "y"]}}
    luck = np.random.default_rng(0)
    df = interactions(grid(lambda a, b, c: a * b * 10.0 + (c == "x") + luck.normal(0, 0.01), space))
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
    row = interactions(type(results)(results.experiment, results.trials.drop(index=drop), results.history)).iloc[0]
    assert row[["num_cells", "note"]].tolist() == [5, "5 of 6 cells have a value"]
    assert row[["first_share", "second_share", "interaction_share"]].isna().all()


def test_single_parameter_is_rejected():
    results = grid(lambda a, b: 3.0 * a + b)
    alone = results.trials[results.trials["a"] == 1]
    with pytest.raises(UnknownNameError, match=r"needs two parameters that vary; in made.up b does"):
        interactions(type(results)(results.experiment, alone, results.history))


def test_a_divergence_in_a_cell_with_others_leaves_no_table():
    results = grid(lambda a, b, c: a + b + float(c), {**SPACE, "c": {"choice": [1, 2]}})
    results.trials.loc[0, ["status", "loss"]] = ["diverged", np.nan]
    notes = dict(zip(*(interactions(results)[name] for name in ("second", "note")), strict=True))
    assert set(notes.values()) == {"1 configurations have no value"}


def test_unequal_cells_have_no_shares():
    results = grid(lambda a, b, c: a + b + float(c), {**SPACE, "c": {"choice": [1, 2]}})
    fewer = results.trials.drop(index=0)
    df = interactions(type(results)(results.experiment, fewer, results.history))
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
