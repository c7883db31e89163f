"""Completion and validation of configurations."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_hpc.errors import InvalidConfigError
from tune_hpc.learning.config import (
    BATCHING_POLICIES,
    MODELS,
    OPTIMIZER_DEFAULTS,
    OWNERS,
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
    def test_empty_configuration_gets_every_default(self):
        assert complete({}) == DEFAULTS

    def test_keys_have_the_documented_order(self):
        assert list(complete({"seed": 1, "model": "cnn"})) == list(DEFAULTS)

    @pytest.mark.parametrize(
        ("owner", "name"), [(owner, name) for owner, defaults in OWNERS.items() for name in defaults]
    )
    def test_completed_config_has_only_keys_of_its_optimizer_and_schedule(self, owner, name):
        completed = complete({owner: name, "learning_rate": 1})
        owned = owned_keys(owner)
        assert {key: completed[key] for key in completed if key in owned} == OWNERS[owner][name]
        assert complete({owner: name, "decay_rate": 0.5, "warmup": 0.5, "l1": 0.5}).keys() == completed.keys()

    def test_hyperparameter_of_another_optimizer_is_dropped(self):
        assert complete({"optimizer": "adam", "momentum": 0.5, "l1": 1.0}) == complete({"optimizer": "adam"})
        assert complete({"optimizer": "momentum", "momentum": 0.5})["momentum"] == 0.5

    def test_dropped_hyperparameter_is_validated(self):
        with pytest.raises(InvalidConfigError, match="momentum must be a number at least 0 and below 1; got 1"):
            complete({"optimizer": "adam", "momentum": 1.0})

    @given(configs)
    def test_completion_is_idempotent(self, config):
        completed = complete(config)
        assert complete(completed) == completed
        assert list(complete(completed)) == list(completed)

    @given(configs)
    def test_each_value_has_the_kind_of_its_key(self, config):
        assert all(type(value) is TRIAL_KEYS[name].kind for name, value in complete(config).items())

    @given(configs)
    def test_given_values_are_unchanged(self, config):
        before = dict(config)
        completed = complete(config)
        assert config == before
        assert all(completed[name] == value for name, value in config.items() if name in completed)

    @pytest.mark.parametrize("key", TRIAL_KEYS.values(), ids=lambda key: key.name)
    def test_every_default_is_valid(self, key):
        for value in [
            key.default,
            *(own[key.name] for keys in OWNERS.values() for own in keys.values() if key.name in own),
        ]:
            assert value is None or key.check(value) == value


class TestLineAndImages:
    def test_default_data_set_depends_on_the_model(self):
        data = [complete({"model": model})["data"] for model in ("line", "softmax", "cnn")]
        assert data == ["line", "mnist", "mnist"]

    @pytest.mark.parametrize(
        "config", [{"model": "line", "data": "mnist"}, {"model": "cnn", "data": "line"}, {"data": "line"}]
    )
    def test_line_and_images_cannot_be_mixed(self, config):
        with pytest.raises(InvalidConfigError, match="the model line and the data line need each other"):
            complete(config)

    def test_fashion_mnist_is_accepted(self):
        assert complete({"data": "fashion_mnist"})["data"] == "fashion_mnist"


class TestValidation:
    def test_unknown_key_is_rejected_with_the_known_names(self):
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
    def test_invalid_value_is_rejected_with_the_rule(self, name, value, rule):
        with pytest.raises(InvalidConfigError, match=rf"^{name} must be {rule}.*; got "):
            complete({name: value})

    def test_closed_bounds_include_their_value(self):
        assert complete({"decay_rate": 1})["decay_rate"] == 1.0
        assert complete({"dropout": 0})["dropout"] == 0.0
        assert complete({"batch_size": 50_000, "seed": 2**31 - 1})["seed"] == 2**31 - 1

    def test_whole_floats_and_integers_are_converted(self):
        completed = complete({"steps": 1e3, "learning_rate": 1})
        assert (completed["steps"], completed["learning_rate"]) == (1000, 1.0)
        assert (type(completed["steps"]), type(completed["learning_rate"])) == (int, float)
