import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_hpc.errors import InvalidConfigError
from tune_hpc.learning.config import (
    BATCHING_POLICIES,
    MODELS,
    OPTIMIZER_DEFAULTS,
    OWNERS,
    SCHEDULE_DEFAULTS,
    TRIAL_KEYS,
    complete,
    owned_keys,
)

DEFAULTS = {
    "model": "softmax",
    "data": "mnist",
    "optimizer": "gradient_descent",
    "learning_rate": 0.01,
    "batch_size": 100,
    "batching": "shuffled",
    "schedule": "staircase",
    "decay_rate": 1.0,
    "dropout": 0.0,
    "max_shift": 0.0,
    "max_rotation": 0.0,
    "max_scaling": 0.0,
    "steps": 1000,
    "seed": 0,
    "width": 1.0,
    "initial_weights": "tutorial",
    "precision": "float32",
    "num_evaluations": 50,
    "num_evaluation_images": 10_000,
}

configs = st.fixed_dictionaries(
    {"model": st.sampled_from(MODELS), "optimizer": st.sampled_from(list(OPTIMIZER_DEFAULTS))},
    optional={
        "learning_rate": st.floats(1e-6, 1e6) | st.integers(1, 100),
        "batch_size": st.integers(1, 50_000) | st.just(50.0),
        "batching": st.sampled_from(BATCHING_POLICIES),
        "dropout": st.floats(0, 1, exclude_max=True),
        "momentum": st.floats(0, 1, exclude_max=True),
        "centered": st.booleans(),
        "l1": st.floats(0, 10),
        "rho": st.just(0),
    },
)


class TestCompletion:
    def test_an_empty_configuration_takes_every_default(self):
        assert complete({}) == DEFAULTS

    def test_the_keys_come_in_their_documented_order(self):
        assert list(complete({"seed": 1, "model": "cnn"})) == list(DEFAULTS)

    @pytest.mark.parametrize("name", OPTIMIZER_DEFAULTS)
    def test_each_optimizer_brings_its_own_hyperparameters_and_no_other(self, name):
        completed = complete({"optimizer": name})
        own = owned_keys("optimizer")
        assert {key: completed[key] for key in completed if key in own} == OPTIMIZER_DEFAULTS[name]

    @pytest.mark.parametrize("name", SCHEDULE_DEFAULTS)
    def test_each_schedule_brings_its_own_keys_and_no_other(self, name):
        completed = complete({"schedule": name, "learning_rate": 1})
        own = owned_keys("schedule")
        assert {key: completed[key] for key in completed if key in own} == SCHEDULE_DEFAULTS[name]
        assert complete({"schedule": name, "decay_rate": 0.5, "warmup": 0.5}).keys() == completed.keys()

    def test_a_hyperparameter_of_another_optimizer_is_dropped(self):
        assert complete({"optimizer": "adam", "momentum": 0.5, "l1": 1.0}) == complete({"optimizer": "adam"})
        assert complete({"optimizer": "momentum", "momentum": 0.5})["momentum"] == 0.5

    def test_a_dropped_hyperparameter_is_checked_all_the_same(self):
        with pytest.raises(InvalidConfigError, match="momentum must be a number at least 0 and below 1; got 1"):
            complete({"optimizer": "adam", "momentum": 1.0})

    @given(configs)
    def test_completing_twice_changes_nothing(self, config):
        completed = complete(config)
        assert complete(completed) == completed
        assert list(complete(completed)) == list(completed)

    @given(configs)
    def test_each_value_is_of_its_key_s_kind(self, config):
        assert all(type(value) is TRIAL_KEYS[name].kind for name, value in complete(config).items())

    @given(configs)
    def test_what_was_given_is_kept_and_not_changed(self, config):
        before = dict(config)
        completed = complete(config)
        assert config == before
        assert all(completed[name] == value for name, value in config.items() if name in completed)

    @pytest.mark.parametrize("key", TRIAL_KEYS.values(), ids=lambda key: key.name)
    def test_every_default_is_allowed(self, key):
        for value in [
            key.default,
            *(own[key.name] for keys in OWNERS.values() for own in keys.values() if key.name in own),
        ]:
            assert value is None or key.check(value) == value

    def test_no_torch_is_imported(self):
        code = "import sys, tune_hpc.learning.config; print('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


class TestLineAndImages:
    def test_the_line_takes_its_own_data_and_the_others_mnist(self):
        assert [complete({"model": model})["data"] for model in ("line", "softmax", "cnn")] == [
            "line",
            "mnist",
            "mnist",
        ]

    @pytest.mark.parametrize(
        "config", [{"model": "line", "data": "mnist"}, {"model": "cnn", "data": "line"}, {"data": "line"}]
    )
    def test_the_line_and_images_do_not_mix(self, config):
        with pytest.raises(InvalidConfigError, match="the model line fits the data line and no other"):
            complete(config)

    def test_fashion_mnist_is_taken_by_name(self):
        assert complete({"data": "fashion_mnist"})["data"] == "fashion_mnist"


class TestRefusals:
    def test_an_unknown_key_is_answered_with_the_known_ones(self):
        with pytest.raises(InvalidConfigError, match=r"no such key 'epochs'; a trial's keys are model, .*l2_shrinkage"):
            complete({"epochs": 3})

    @pytest.mark.parametrize(
        ("name", "value", "rule"),
        [
            ("model", "mlp", "one of line, softmax, cnn"),
            ("model", 1, "one of line"),
            ("optimizer", "adamw", "one of gradient_descent, momentum"),
            ("batching", "random_order", "one of single_pass, sequential, shuffled, random"),
            ("learning_rate", 0, "a number above 0"),
            ("learning_rate", -0.1, "a number above 0"),
            ("learning_rate", math.inf, "a number above 0"),
            ("learning_rate", math.nan, "a number above 0"),
            ("learning_rate", "0.1", "a number above 0"),
            ("learning_rate", True, "a number above 0"),
            ("learning_rate", None, "a number above 0"),
            ("learning_rate", [0.1], "a number above 0"),
            ("learning_rate", 10**400, "a number above 0"),
            ("steps", 0, "a whole number at least 1"),
            ("steps", 10.5, "a whole number at least 1"),
            ("steps", True, "a whole number at least 1"),
            ("steps", "10", "a whole number at least 1"),
            ("steps", math.inf, "a whole number at least 1"),
            ("steps", 10**400, "a whole number at least 1"),
            ("batch_size", 0, "a whole number at least 1 and at most 50000"),
            ("batch_size", 50_001, "a whole number at least 1 and at most 50000"),
            ("num_evaluation_images", 10_001, "a whole number at least 1 and at most 10000"),
            ("dropout", 1, "a number at least 0 and below 1"),
            ("dropout", -1e-9, "a number at least 0 and below 1"),
            ("decay_rate", 0, "a number above 0 and at most 1"),
            ("decay_rate", 1.1, "a number above 0 and at most 1"),
            ("seed", -1, "a whole number at least 0 and at most 2.14748e[+]09"),
            ("centered", 1, "true or false"),
            ("centered", "true", "true or false"),
            ("learning_rate_power", 0.1, "a number at most 0"),
            ("precision", "float16", "one of float32, float64"),
        ],
    )
    def test_a_value_that_breaks_its_key_s_rule_is_named_with_the_rule(self, name, value, rule):
        with pytest.raises(InvalidConfigError, match=rf"^{name} must be {rule}.*; got "):
            complete({name: value})

    def test_bounds_are_open_only_where_they_say_so(self):
        assert complete({"decay_rate": 1})["decay_rate"] == 1.0
        assert complete({"dropout": 0})["dropout"] == 0.0
        assert complete({"batch_size": 50_000, "seed": 2**31 - 1})["seed"] == 2**31 - 1

    def test_whole_numbers_may_be_spelled_as_floats_and_the_other_way_round(self):
        completed = complete({"steps": 1e3, "learning_rate": 1})
        assert (completed["steps"], completed["learning_rate"]) == (1000, 1.0)
        assert (type(completed["steps"]), type(completed["learning_rate"])) == (int, float)
