"""Random and quasi-random sampling: reproducible, evenly spread, within the space."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ray import tune

from tests.search.test_conditional import conditional_spaces, finite_conditional_spaces
from tests.search.test_space import identity, ranges
from tune_hpc.search.space.conditional import when
from tune_hpc.search.space.parameter import Parameter
from tune_hpc.search.space.samplers import quasi_random_configs, random_configs
from tune_hpc.search.space.space import Space


@pytest.mark.parametrize("sampler", [random_configs, quasi_random_configs])
@given(space=conditional_spaces(), seed=st.integers(0, 2**31))
@settings(max_examples=40)
def test_configurations_are_members_and_extend_shorter_searches(sampler, space, seed):
    configs = list(islice(sampler(space, seed), 9))
    assert all(space.admits(config) for config in configs)
    assert list(islice(sampler(space, seed), 4)) == configs[:4]


@given(finite_conditional_spaces, st.integers(0, 2**31))
@settings(max_examples=25)
def test_quasi_random_search_exhausts_a_finite_space(space, seed):
    assume(space.size <= 60)
    drawn = [tuple((name, identity(value)) for name, value in one.items()) for one in quasi_random_configs(space, seed)]
    assert sorted(map(repr, drawn)) == sorted(
        repr(tuple((name, identity(value)) for name, value in one.items())) for one in space.grid()
    )


@given(ranges(), st.floats(0, 1, exclude_max=True))
def test_quantile_is_in_the_domain(domain, fraction):
    parameter = Parameter.from_value("x", domain)
    value = parameter.ppf(fraction)
    assert parameter.contains(value)
    assert isinstance(value, int) == isinstance(domain, tune.search.sample.Integer)


@given(ranges(), st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2))
def test_quantiles_rise_with_the_fraction(domain, fractions):
    low, high = sorted(fractions)
    parameter = Parameter.from_value("x", domain)
    assert parameter.ppf(low) <= parameter.ppf(high)


@given(ranges(("randn", "qloguniform", "qlograndint", "lograndint")), st.floats(1e-3, 0.999))
def test_cdf_is_the_inverse_of_ppf(domain, fraction):
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
def test_median_is_the_middle(domain, middle):
    value = Parameter.from_value("x", domain).ppf(0.5)
    assert value == (pytest.approx(middle) if isinstance(middle, int | float) else middle)


def test_quantiles_of_a_range_of_64_bits_are_in_the_range():
    parameter = Parameter.from_value("x", tune.randint(-(2**63), 2**63 - 1))
    assert [parameter.ppf(fraction) for fraction in (0.0, 0.5)] == [-(2**63), 0]
    assert parameter.ppf(1 - 2**-53) <= 2**63 - 2


def test_quasi_random_search_fills_equal_cells():
    space = Space({"x": tune.uniform(0, 1), "y": tune.loguniform(1e-4, 1)}, keys={})
    points = [(one["x"], np.log10(one["y"]) / 4 + 1) for one in islice(quasi_random_configs(space, 3), 64)]
    # Each of 64 equal cells contains exactly one of 64 points, for every shape of the cells.
    for columns, rows in ((64, 1), (1, 64), (8, 8), (16, 4)):
        cells = {(int(x * columns), int(y * rows)) for x, y in points}
        assert len(cells) == 64


def test_branches_alternate_each_with_its_own_sequence():
    space = Space(
        {
            "optimizer": tune.choice(["adam", "momentum", "ftrl"]),
            "learning_rate": tune.uniform(1e-9, 1),
            "momentum": when(tune.uniform(0, 0.5), optimizer="momentum"),
        }
    )
    configs = list(islice(quasi_random_configs(space, 0), 24))
    optimizers = [one["optimizer"] for one in configs]
    assert set(optimizers[:3]) == {"adam", "momentum", "ftrl"}
    assert optimizers == optimizers[:3] * 8
    for optimizer in ("adam", "momentum", "ftrl"):
        branch = [one for one in configs if one["optimizer"] == optimizer]
        assert len({int(one["learning_rate"] * 8) for one in branch}) == len(branch) == 8
        assert all(("momentum" in one) == (optimizer == "momentum") for one in branch)


@pytest.mark.parametrize("seed", range(5))
def test_few_configurations_over_many_branches_balance_all_values(seed):
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
    for name, expected in (("optimizer", 4), ("schedule", 4), ("model", 6)):
        counts = Counter(one[name] for one in configs)
        assert max(abs(count - expected) for count in counts.values()) <= 1


def test_search_seeds_differ():
    space = Space({"x": tune.uniform(0, 1)}, keys={})
    for sampler in (random_configs, quasi_random_configs):
        assert next(sampler(space, 0)) != next(sampler(space, 1))
