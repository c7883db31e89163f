"""Boundary checks of synthetic searches with a known best configuration."""

import numpy as np
import pandas as pd
import pytest

from tests.analysis.synthetic_results import repeated, searched
from tune_hpc.analysis.boundary_check import check_boundaries
from tune_hpc.errors import UnknownNameError
from tune_hpc.search.space.parsing import parse_parameter


def check(domain, best, others=(), name="x", **settings):
    """Return the row of a search over one parameter with a known best value."""
    rows = [{name: best, "loss": 0.1}, *({name: one, "loss": 0.5} for one in others)]
    df = check_boundaries(searched({name: domain}, rows, **settings))
    assert len(df) == 1
    return df.iloc[0]


@pytest.mark.parametrize(
    ("domain", "best", "edge", "suggestion"),
    [
        ({"uniform": [10.0, 20.0]}, 10.4, "low", "uniform(5, 20)"),
        ({"uniform": [10.0, 20.0]}, 19.6, "high", "uniform(10, 30)"),
        ({"uniform": [-1.0, 3.0]}, -0.9, "low", "uniform(-5, 3)"),
        ({"loguniform": [1e-4, 1e-3]}, 1.1e-4, "low", "loguniform(1e-05, 0.001)"),
        ({"loguniform": [1e-3, 1e-2]}, 9.5e-3, "high", "loguniform(0.001, 0.1)"),
        # Non-negative parameters stay non-negative.
        ({"uniform": [0.0, 0.5]}, 0.0, "low", None),
        ({"uniform": [0.1, 0.5]}, 0.1, "low", "uniform(0.02, 0.5)"),
        # Integers; Ray Tune excludes their upper bound.
        ({"randint": [1, 10]}, 9, "high", "randint(1, 18)"),
        ({"randint": [1, 10]}, 1, "low", None),
        ({"randint": [10, 21]}, 10, "low", "randint(5, 21)"),
        ({"lograndint": [8, 65]}, 64, "high", "lograndint(8, 513)"),
        ({"qrandint": [16, 64, 16]}, 64, "high", "qrandint(16, 112, 16)"),
        ({"qrandint": [16, 64, 16]}, 48, None, None),
        ({"quniform": [2.0, 4.0, 0.5]}, 4.0, "high", "quniform(2, 6, 0.5)"),
        ({"qloguniform": [0.5, 4.0, 0.5]}, 4.0, "high", "qloguniform(0.5, 32, 0.5)"),
        # Lists, in any order.
        ({"choice": [0.5, 0.125, 0.25]}, 0.125, "low", "add 0.03125, 0.0625"),
        ({"choice": [0.01, 0.1, 0.001]}, 0.1, "high", "add 1, 10"),
        ({"choice": [16, 32, 64]}, 64, "high", "add 128, 256"),
        ({"choice": [16, 32, 64]}, 16, "low", "add 4, 8"),
        ({"choice": [1, 2, 3]}, 3, "high", "add 4, 5"),
        ({"choice": [10, 20, 30]}, 10, "low", "add 3, 5"),
        ({"choice": [1, 2, 3]}, 1, "low", None),
        ({"choice": [0.0, 0.1, 0.5]}, 0.0, "low", None),
        ({"choice": [0.0, 1e-3, 1e-2, 1e-1]}, 0.1, "high", "add 1, 10"),
        # The spacing of the report's learning rates.
        ({"choice": [0.001, 0.005, 0.01, 0.05, 0.1]}, 0.001, "low", "add 1e-04, 2e-04"),
        ({"choice": [1, 2, 4]}, 2, None, None),
        ({"uniform": [10.0, 20.0]}, 10.6, None, None),
        ({"loguniform": [1e-4, 1e-2]}, 1.5e-4, None, None),
        ({"randn": [0.0, 1.0]}, 7.0, None, None),
    ],
)  # fmt: skip
def test_edges_and_suggestions(domain, best, edge, suggestion):
    found = check(domain, best)
    assert (None if pd.isna(found["edge"]) else found["edge"]) == edge
    assert (None if pd.isna(found["suggestion"]) else found["suggestion"]) == suggestion
    assert found["best"] == best


@pytest.mark.parametrize(
    ("domain", "best", "suggestion"),
    [
        ({"uniform": [0.0, 0.5]}, 0.49, "uniform(0, 0.75)"),
        ({"uniform": [0.8, 0.99]}, 0.99, "uniform(0.8, 0.9995)"),
        ({"loguniform": [1e-3, 1e-1]}, 0.099, "loguniform(0.001, 1)"),
        ({"loguniform": [1e-4, 1.0]}, 1.0, None),
        ({"choice": [0.9, 0.99]}, 0.99, "add 0.999"),
    ],
)
def test_fractions_stay_below_one(domain, best, suggestion):
    found = check(domain, best, name="momentum")["suggestion"]
    assert (None if pd.isna(found) else found) == suggestion


@pytest.mark.parametrize(
    "kind", ["uniform", "loguniform", "quniform", "qloguniform", "randint", "lograndint", "qrandint"]
)
@pytest.mark.parametrize("best", [4, 16])
def test_suggested_range_is_valid_and_contains_the_searched_range(kind, best):
    # Ray Tune excludes the upper bound of integers.
    arguments = [4, 17 if kind in ("randint", "lograndint") else 16]
    found = check({kind: [*arguments, 2] if kind.startswith("q") else arguments}, best)
    low, high = parse_parameter("x", found["suggestion"]).bounds
    assert (low < 4) if best == 4 else (high > 16)
    assert low <= 4 < 16 <= high


def test_bounds_are_the_searched_ones():
    assert check({"choice": [4, 1, 2]}, 2)[["low", "high"]].tolist() == [1, 4]
    assert check({"randint": [1, 10]}, 5)[["low", "high"]].tolist() == [1, 9]
    assert check({"randn": [0.0, 1.0]}, 5)[["low", "high"]].isna().all()


def test_constants_and_non_numeric_parameters_are_omitted():
    space = {
        "name": {"choice": ["a", "b"]}, "is_on": {"choice": [True, False]}, "mixed": {"choice": [1, "auto"]},
        "one": {"choice": [3]}, "constant": 7, "x": {"choice": [1, 2], "role": "scientific"},
    }  # fmt: skip
    row = {"name": "a", "is_on": True, "mixed": "1", "one": 3, "constant": 7, "x": 1, "loss": 0.5}
    assert check_boundaries(searched(space, [row]))["parameter"].tolist() == ["x"]
    nothing = check_boundaries(searched({"constant": 7}, [row]))
    assert nothing.empty
    assert "edge" in nothing


LIST = {"choice": [1.0, 2.0, 4.0]}


class TestSignificance:
    def is_significant(self, domain, losses, deviation=0.001, num_seeds=5):
        rows = [{"x": x, "loss": loss} for x, loss in losses.items()]
        return check_boundaries(searched({"x": domain}, repeated(rows, deviation, num_seeds)))[
            "edge_is_significant"
        ].iloc[0]

    def test_best_of_a_list_must_beat_every_other_value(self):
        assert self.is_significant(LIST, {1.0: 0.1, 2.0: 0.5, 4.0: 0.9})
        assert not self.is_significant(LIST, {1.0: 0.1, 2.0: 0.101, 4.0: 0.9}, 0.05)

    def test_best_of_a_range_must_beat_the_best_inside(self):
        domain = {"uniform": [0.0, 100.0]}
        assert self.is_significant(domain, {1.0: 0.1, 2.0: 0.11, 50.0: 0.5, 70.0: 0.9})
        assert not self.is_significant(domain, {1.0: 0.1, 50.0: 0.101, 70.0: 0.9}, 0.05)

    def test_single_seed_is_inconclusive(self):
        assert self.is_significant(LIST, {1.0: 0.1, 2.0: 0.5}, num_seeds=1) is pd.NA
        assert self.is_significant({"uniform": [0.0, 100.0]}, {1.0: 0.1, 2.0: 0.5}) is pd.NA

    def test_best_value_inside_is_not_significant(self):
        assert self.is_significant(LIST, {1.0: 0.5, 2.0: 0.1, 4.0: 0.5}) == np.False_


CASES = {
    "optimizer": {"choice": ["adam", "momentum", "gradient_descent"]},
    "rate": {"cases": [
        {"when": {"optimizer": ["adam"]}, "value": {"loguniform": [1e-4, 1e-2]}},
        {"when": {}, "value": {"loguniform": [1e-2, 1.0]}},
    ]},
    "momentum": {"cases": [{"when": {"optimizer": ["momentum"]}, "value": {"choice": [0.8, 0.9]}}]},
}  # fmt: skip
ROWS = [
    {"optimizer": "adam", "rate": 1e-2, "loss": 0.1}, {"optimizer": "adam", "rate": 1e-3, "loss": 0.3},
    {"optimizer": "momentum", "rate": 0.1, "momentum": 0.9, "loss": 0.2},
    {"optimizer": "momentum", "rate": 0.2, "momentum": 0.8, "loss": 0.3},
    {"optimizer": "gradient_descent", "rate": 0.01, "loss": 0.05, "status": "diverged"},
]  # fmt: skip


class TestCases:
    def test_conditional_parameter_is_checked_in_the_case_of_the_best_configuration(self):
        df = check_boundaries(searched(CASES, repeated(ROWS, 0.001)))
        assert df["parameter"].tolist() == ["rate"]
        assert df.loc[0, ["low", "high", "edge", "suggestion"]].tolist() == [1e-4, 1e-2, "high", "loguniform(1e-04, 1)"]
        # Compared with the other rate of adam only.
        assert df.loc[0, "edge_is_significant"]

    def test_conditions_select_the_trials(self):
        df = check_boundaries(searched(CASES, ROWS), where={"optimizer": "momentum"}).set_index("parameter")
        assert df["best"].to_dict() == {"rate": 0.1, "momentum": 0.9}
        assert df.loc["momentum", ["edge", "suggestion"]].tolist() == ["high", "add 0.95"]
        with pytest.raises(UnknownNameError, match=r"no trial of made.up has optimizer=ftrl"):
            check_boundaries(searched(CASES, ROWS), where={"optimizer": "ftrl"})


def test_missing_space_is_an_error():
    results = searched({"x": {"choice": [1, 2]}}, [{"x": 1, "loss": 1.0}])
    results.experiment["space"] = None
    with pytest.raises(UnknownNameError, match=r"experiment.json of made.up has no space"):
        check_boundaries(results)
