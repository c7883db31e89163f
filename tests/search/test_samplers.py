"""Configurations known beforehand: the same for the same seed, evenly spread, inside the space."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ray import tune

from tests.search.test_conditional import conditional_spaces, finite_conditional_spaces
from tests.search.test_space import identity, ranges
from tune_hpc.search.searchers.samplers import quasi_random_configs, random_configs
from tune_hpc.search.space.conditional import when
from tune_hpc.search.space.parameter import Parameter
from tune_hpc.search.space.space import Space


@pytest.mark.parametrize("design", [random_configs, quasi_random_configs])
@given(space=conditional_spaces(), seed=st.integers(0, 2**31))
@settings(max_examples=40)
def test_configurations_are_admitted_and_a_longer_search_begins_with_a_shorter_one(design, space, seed):
    configs = list(islice(design(space, seed), 9))
    assert all(space.admits(config) for config in configs)
    assert list(islice(design(space, seed), 4)) == configs[:4]


@given(finite_conditional_spaces, st.integers(0, 2**31))
@settings(max_examples=25)
def test_a_quasi_random_search_ends_with_a_whole_finite_space(space, seed):
    assume(space.size <= 60)
    drawn = [tuple((name, identity(value)) for name, value in one.items()) for one in quasi_random_configs(space, seed)]
    assert sorted(map(repr, drawn)) == sorted(
        repr(tuple((name, identity(value)) for name, value in one.items())) for one in space.grid()
    )


@given(ranges(), st.floats(0, 1, exclude_max=True))
def test_a_quantile_lies_inside_its_domain(domain, fraction):
    parameter = Parameter.from_value("x", domain)
    value = parameter.ppf(fraction)
    assert parameter.contains(value)
    assert isinstance(value, int) == isinstance(domain, tune.search.sample.Integer)


@given(ranges(), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_quantiles_rise_with_the_fraction(domain, one, other):
    low, high = sorted((one, other))
    parameter = Parameter.from_value("x", domain)
    assert parameter.ppf(low) <= parameter.ppf(high)


@given(ranges(("randn", "qloguniform", "qlograndint", "lograndint")), st.floats(1e-3, 0.999))
def test_a_fraction_comes_back_from_its_quantile(domain, fraction):
    parameter = Parameter.from_value("x", domain)
    value = parameter.ppf(fraction)
    assert parameter.ppf(min(parameter.cdf(value), 1 - 1e-12)) == pytest.approx(value, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("domain", "middle"),
    [
        (tune.uniform(2, 4), 3), (tune.loguniform(1e-4, 1), 1e-2), (tune.randn(5, 2), 5), (tune.randint(0, 4), 2),
        (tune.quniform(0, 1, 0.25), 0.5), (tune.choice(["a", "b", "c"]), "b"), (tune.lograndint(1, 10_000), 100),
    ],
)  # fmt: skip
def test_half_of_the_probability_lies_below_the_middle(domain, middle):
    value = Parameter.from_value("x", domain).ppf(0.5)
    assert value == (pytest.approx(middle) if isinstance(middle, int | float) else middle)


def test_a_quasi_random_search_fills_a_space_more_evenly_than_chance():
    space = Space({"x": tune.uniform(0, 1), "y": tune.loguniform(1e-4, 1)}, keys={})
    points = [(one["x"], np.log10(one["y"]) / 4 + 1) for one in islice(quasi_random_configs(space, 3), 64)]
    # Of 64 points every one of 64 equal cells, however they are cut, holds exactly one.
    for columns, rows in ((64, 1), (1, 64), (8, 8), (16, 4)):
        cells = {(int(x * columns), int(y * rows)) for x, y in points}
        assert len(cells) == 64


def test_branches_take_turns_each_with_a_design_of_its_own():
    space = Space(
        {
            "optimizer": tune.choice(["adam", "momentum", "ftrl"]),
            "learning_rate": tune.uniform(1e-9, 1),
            "momentum": when(tune.uniform(0, 0.5), optimizer="momentum"),
        }
    )
    configs = list(islice(quasi_random_configs(space, 0), 24))
    turns = [one["optimizer"] for one in configs]
    assert set(turns[:3]) == {"adam", "momentum", "ftrl"}
    assert turns == turns[:3] * 8
    for optimizer in ("adam", "momentum", "ftrl"):
        own = [one for one in configs if one["optimizer"] == optimizer]
        assert len({int(one["learning_rate"] * 8) for one in own}) == len(own) == 8
        assert all(("momentum" in one) == (optimizer == "momentum") for one in own)


@pytest.mark.parametrize("seed", range(5))
def test_a_few_configurations_over_many_branches_have_each_value_about_equally_often(seed):
    space = Space(
        {
            "optimizer": tune.choice(["adam", "rmsprop", "momentum"]),
            "schedule": tune.choice(["staircase", "cosine", "one_cycle"]),
            "model": tune.choice(["softmax", "cnn"]),
            "momentum": when(tune.uniform(0, 0.5), optimizer="momentum"),
            "warmup": when(tune.uniform(0.1, 0.5), schedule="one_cycle"),
            "dropout": when(tune.uniform(0, 0.5), model="cnn"),
        }
    )
    configs = list(islice(quasi_random_configs(space, seed), 12))
    for name, often in (("optimizer", 4), ("schedule", 4), ("model", 6)):
        counts = Counter(one[name] for one in configs)
        assert max(abs(count - often) for count in counts.values()) <= 1


def test_search_seeds_differ():
    space = Space({"x": tune.uniform(0, 1)}, keys={})
    for design in (random_configs, quasi_random_configs):
        assert next(design(space, 0)) != next(design(space, 1))
