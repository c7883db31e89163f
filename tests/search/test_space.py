import json
import math
import pickle
import time
from itertools import islice

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ray import tune
from ray.tune.search.variant_generator import generate_variants

from tune_hpc.errors import InvalidExperimentError, InvalidSpaceError
from tune_hpc.learning.config import TRIAL_KEYS
from tune_hpc.search.experiment import Experiment
from tune_hpc.search.space.conditional import when
from tune_hpc.search.space.parameter import RANGES, Parameter
from tune_hpc.search.space.parsing import parse_parameter
from tune_hpc.search.space.space import Space

FREE: dict = {}

numbers = st.integers(-1000, 1000) | st.floats(-1e6, 1e6, allow_subnormal=False)
scalars = numbers | st.booleans() | st.text('a1é,(\n"', max_size=8)
positive = st.floats(1e-6, 1e6)
whole = st.integers(-1000, 1000)


def identity(value):
    """Return a key that differs for True and 1, which are equal in Python, and is equal for 1 and 1.0."""
    return isinstance(value, bool), value


choices = st.lists(scalars, min_size=1, max_size=5, unique_by=identity).map(tune.choice)


@st.composite
def ranges(draw, kinds=tuple(RANGES)):
    """Draw a range that Ray Tune accepts."""
    kind = draw(st.sampled_from(kinds))
    if kind == "randn":
        return tune.randn(draw(numbers), draw(positive))
    if kind.endswith("randint"):
        low, size, step = draw(whole), draw(st.integers(1, 500)), draw(st.integers(1, 9))
        low = abs(low) + 1 if "log" in kind else low
        if kind[0] != "q":
            return getattr(tune, kind)(low, low + size)
        return getattr(tune, kind)(low, low + size + step, step)
    if kind[0] == "q":
        step = draw(st.sampled_from([0.1, 0.25, 1e-3, 3.0, 7]))
        low = draw(st.integers(1 if "log" in kind else -50, 50))
        return getattr(tune, kind)(low * step, (low + draw(st.integers(1, 60))) * step, step)
    low, high = sorted(draw(st.tuples(*[positive if "log" in kind else numbers] * 2)))
    assume(low < high)
    return getattr(tune, kind)(low, high)


def free_space(parameters):
    return Space(parameters, keys=FREE)


names = st.text("abcdefgh_", min_size=1, max_size=8)
spaces = st.dictionaries(names, choices | ranges() | scalars, max_size=4).map(free_space)
finite_ranges = ranges(("quniform", "qloguniform", "randint", "lograndint", "qrandint", "qlograndint"))
finite_spaces = st.dictionaries(names, choices | finite_ranges | scalars, max_size=3).map(free_space)


@given(spaces)
def test_every_space_survives_json_and_back(space):
    text = json.dumps(space.to_json(), allow_nan=False)
    again = Space.from_json(json.loads(text), keys=FREE)
    assert again == space
    assert hash(again) == hash(space)
    assert json.dumps(again.to_json()) == text


@given(spaces)
def test_every_space_survives_pickling(space):
    again = pickle.loads(pickle.dumps(space))
    assert again == space
    assert again.sample(np.random.default_rng(3)) == space.sample(np.random.default_rng(3))


@given(spaces, st.integers(0, 2**32))
def test_samples_are_within_bounds(space, seed):
    generator = np.random.default_rng(seed)
    for config in (space.sample(generator) for _ in range(5)):
        assert list(config) == list(space)
        for name, value in config.items():
            assert type(value) in (bool, int, float, str)
            plain = space.to_json()[name]
            if not isinstance(plain, dict):
                assert identity(value) == identity(plain)
                continue
            ((kind, arguments),) = plain.items()
            if kind == "choice":
                assert identity(value) in map(identity, arguments)
            elif kind == "randn":
                assert math.isfinite(value)
            else:
                assert arguments[0] <= value <= arguments[1]
                assert isinstance(value, int) == kind.endswith("randint")


@given(finite_spaces, st.integers(0, 2**32))
@settings(max_examples=50)
def test_grid_has_every_configuration_once_and_all_samples(space, seed):
    assume(space.size <= 2000)
    found = {tuple(map(identity, config.values())) for config in space.grid()}
    assert len(found) == len(list(space.grid())) == space.size
    assert tuple(map(identity, space.sample(np.random.default_rng(seed)).values())) in found


@given(finite_spaces)
@settings(max_examples=25)
def test_ray_tune_expands_as_grid_to_the_same_grid(space):
    assume(space.size <= 200)
    expanded = [config for _, config in generate_variants(space.as_grid())]
    ours = list(space.grid())
    assert len(expanded) == len(ours)
    assert sorted(map(repr, (sorted(one.items()) for one in expanded))) == sorted(
        map(repr, (sorted(one.items()) for one in ours))
    )


@given(spaces)
def test_dictionary_of_a_space_is_a_param_space(space):
    ((_, config),) = generate_variants(dict(space), random_state=0)
    assert set(config) == set(space)
    assert not any(isinstance(value, tune.search.sample.Domain) for value in config.values())


@given(ranges())
def test_description_of_a_range_is_parsed_to_the_same_range(domain):
    space = Space({"x": domain}, keys=FREE)
    read = Space({"x": parse_parameter("x", space.describe("x"))}, keys=FREE)
    ((kind, arguments),) = space.to_json()["x"].items()
    assert read.to_json() == {"x": {kind: arguments}}


SPACE = Space({"optimizer": tune.choice(["adam", "momentum"]), "learning_rate": tune.loguniform(1e-4, 1), "steps": 500})


def test_space_is_a_mapping_in_the_given_order():
    assert list(SPACE) == ["optimizer", "learning_rate", "steps"]
    assert len(SPACE) == 3
    assert SPACE["steps"] == 500
    assert "dropout" not in SPACE
    assert SPACE.varying == ["optimizer", "learning_rate"]
    assert repr(SPACE) == "Space(optimizer=choice(adam, momentum), learning_rate=loguniform(0.0001, 1), steps=500)"


def test_space_is_immutable():
    with pytest.raises(TypeError):
        SPACE["steps"] = 1
    with pytest.raises(AttributeError):
        SPACE.steps = 1
    rates = [0.1, 0.01]
    parameters = {"learning_rate": tune.choice(rates)}
    space = Space(parameters)
    rates.append(0.5)
    parameters["learning_rate"].categories.append(0.7)
    parameters["steps"] = 1
    assert space.to_json() == {"learning_rate": {"choice": [0.1, 0.01]}}


def test_right_operand_of_a_union_wins():
    wider = SPACE | {"dropout": tune.uniform(0, 0.5), "steps": 100}
    assert wider.to_json() == SPACE.to_json() | {"dropout": {"uniform": [0, 0.5]}, "steps": 100}
    assert isinstance(wider, Space)
    assert SPACE["steps"] == 500
    with pytest.raises(InvalidSpaceError, match="dropout must be a number at least 0 and below 1; got 1"):
        SPACE.with_keys(TRIAL_KEYS) | {"dropout": 1}
    assert Space({"dropout": "high"}, keys={}) | {"steps": "many"} == Space(
        {"dropout": "high", "steps": "many"}, keys={}
    )


def test_without_removes_parameters():
    assert list(SPACE.without("steps", "optimizer", "absent")) == ["learning_rate"]


def test_different_spaces_are_unequal():
    assert SPACE != SPACE | {"steps": 501}
    assert SPACE.to_json() != SPACE
    integer, number, boolean = (Space({"x": value}, keys=FREE) for value in (1, 1.0, True))
    assert len({integer, number, boolean}) == 3
    assert integer != boolean


def test_order_of_the_parameters_is_no_difference():
    spaces = [Space({name: tune.choice([1, 2]) for name in names}) for names in ("ab", "ba")]
    assert spaces[0] == spaces[1]
    assert hash(spaces[0]) == hash(spaces[1])


def test_size_is_the_product_of_counts_and_none_if_continuous():
    assert Space({}).size == 1
    assert Space({"seed": tune.randint(0, 10), "optimizer": tune.choice(["adam", "ftrl"]), "steps": 5}).size == 20
    assert SPACE.size is None
    assert Space({"x": tune.randn()}, keys=FREE).size is None
    assert Space({"x": tune.randint(0, 10**15), "y": tune.randint(0, 10**15)}, keys=FREE).size == 10**30


@pytest.mark.parametrize(
    ("domain", "values"),
    [
        (tune.randint(2, 5), [2, 3, 4]),
        (tune.lograndint(1, 4), [1, 2, 3]),
        (tune.qrandint(2, 10, 3), [3, 6, 9]),
        (tune.qrandint(0, 9, 3), [0, 3, 6, 9]),
        (tune.qrandint(0, 4, 2), [0, 2, 4]),
        (tune.qrandint(0, 3, 1), [0, 1, 2]),  # Ray excludes the upper bound at a step of 1
        (tune.qlograndint(1, 20, 7), [7, 14]),
        (tune.quniform(-0.5, 0.5, 0.25), [-0.5, -0.25, 0.0, 0.25, 0.5]),
        (tune.quniform(0, 0.3, 0.1), [0, 0.1, 0.2, 0.3]),
        (tune.choice(["b", "a"]), ["b", "a"]),
        (tune.grid_search([3, 1]), [3, 1]),
    ],
)
def test_grid_has_the_values_that_ray_draws(domain, values):
    space = Space({"x": domain}, keys=FREE)
    assert [config["x"] for config in space.grid()] == values
    assert space.size == len(values)
    generator = np.random.default_rng(0)
    assert {space.sample(generator)["x"] for _ in range(300)} == set(values)


def test_last_parameter_of_a_grid_varies_fastest():
    space = Space({"batch_size": tune.choice([150, 100]), "steps": 5, "dropout": tune.choice([0, 0.5])})
    assert [(config["batch_size"], config["dropout"]) for config in space.grid()] == [
        (150, 0.0), (150, 0.5), (100, 0.0), (100, 0.5),
    ]  # fmt: skip


@pytest.mark.parametrize("method", ["grid", "as_grid"])
def test_grid_over_a_continuous_parameter_is_rejected(method):
    with pytest.raises(
        InvalidSpaceError, match=r"learning_rate is loguniform\(0.0001, 1\): list its values, or search at random"
    ):
        list(getattr(SPACE, method)())


def test_grid_search_is_a_choice():
    assert Space({"steps": tune.grid_search([1, 2])}) == Space({"steps": tune.choice([1, 2])})
    with pytest.raises(InvalidSpaceError, match="steps: choice takes a list; got 3"):
        Space({"steps": {"grid_search": 3}})


def test_numbers_have_the_type_of_their_key():
    values = {"learning_rate": tune.choice([1, 0.5]), "steps": 500.0, "batch_size": tune.choice([8.0, 4])}
    space = Space(values, keys=TRIAL_KEYS)
    assert json.dumps(space.to_json()) == (
        '{"learning_rate": {"choice": [1.0, 0.5]}, "steps": 500, "batch_size": {"choice": [8, 4]}}'
    )


def test_numpy_numbers_become_python_numbers():
    space = Space(
        {
            "learning_rate": np.float64(0.1),
            "steps": np.int64(5),
            "batch_size": tune.choice([1, np.int64(2), np.int32(4)]),
            "seed": tune.randint(np.int64(0), np.int64(3)),
            "dropout": tune.uniform(np.float32(0), np.float64(0.5)),
            "centered": np.bool_(True),
        }
    )
    assert json.loads(json.dumps(space.to_json())) == {
        "learning_rate": 0.1, "steps": 5, "batch_size": {"choice": [1, 2, 4]}, "seed": {"randint": [0, 3]},
        "dropout": {"uniform": [0.0, 0.5]}, "centered": True,
    }  # fmt: skip


def test_space_without_keys_allows_any_value():
    assert Space({"optimizer": "anything", "steps": -1}, keys={})["steps"] == -1
    assert Space.from_json({"optimizer": "anything"}, keys={})["optimizer"] == "anything"


MUST_BE = {
    "optimizer": "optimizer must be one of gradient_descent, momentum, .*; got 'adamm'",
    "model": "model must be one of line, softmax, cnn; got 'mlp'",
    "learning_rate": "learning_rate must be a number above 0; got -0.1",
    "dropout": "dropout must be a number at least 0 and below 1; got 1",
    "batch_size": "batch_size must be a whole number at least 1 and at most 50000; got 70000",
    "steps": "steps must be a whole number at least 1; got 0.5",
}
WRONG = {
    "optimizer": "adamm", "model": "mlp", "learning_rate": -0.1, "dropout": 1, "batch_size": 70_000, "steps": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("form", ["constant", "choice"])
def test_value_outside_its_key_is_rejected_with_the_rule(name, form):
    value = WRONG[name]
    with pytest.raises(InvalidSpaceError, match=MUST_BE[name]):
        Space({name: value if form == "constant" else tune.choice([value])}, keys=TRIAL_KEYS)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"dropout": tune.uniform(0, 1)}, "dropout must be a number at least 0 and below 1; got 1"),
        ({"dropout": tune.uniform(-0.1, 0.5)}, "dropout must be .*; got -0.1"),
        ({"batch_size": tune.randint(1, 50_002)}, "batch_size must be .* at most 50000; got 50001"),
        ({"batch_size": tune.qrandint(0, 100, 10)}, "batch_size must be .*; got 0"),
        ({"batch_size": tune.uniform(1, 5)}, "batch_size must be a whole .*; uniform gives fractions: use randint"),
        ({"batch_size": tune.quniform(1, 5, 1)}, "quniform gives fractions: use qrandint"),
        ({"learning_rate": tune.randn(0, 1)}, "a normal distribution has no bounds: use uniform"),
        ({"optimizer": tune.randint(0, 3)}, "optimizer must be one of .*; got 0"),
        ({"steps": True}, "steps must be a whole number at least 1; got True"),
        ({"steps": tune.choice([1, 1.0])}, "steps: choice takes each value once; got 1, 1"),
    ],
)
def test_range_outside_its_key_is_rejected(parameters, message):
    with pytest.raises(InvalidSpaceError, match=message):
        Space(parameters, keys=TRIAL_KEYS)


def test_built_in_rules_apply_to_the_built_in_trainable_only():
    values = {"optimizer": "lamb", "batch_size": tune.choice([4, 0.5]), "width": 4, "device": "cpu", "dropout": 2}
    space = Space(values)
    assert Experiment("mine", space, "module:function").space == space
    assert space["width"] == 4
    assert isinstance(Experiment("ours", Space({"width": 1})).space["width"], float)
    with pytest.raises(InvalidSpaceError, match="optimizer must be one of"):
        Experiment("ours", Space({"optimizer": "lamb"}))


def test_range_up_to_the_bound_of_its_key_is_accepted():
    assert Space({"batch_size": tune.randint(1, 50_001), "decay_rate": tune.quniform(0.5, 1, 0.5)}).size == 100_000


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (tune.choice([]), "x: choice needs at least one value; got none"),
        (tune.choice(["a", "a"]), "x: choice takes each value once; got a, a"),
        ([1, 2], r"x: a value must be a number, a string, true/false or None; got \[1, 2\] of type list: for several"),
        ({"depth": 2}, r"got \{'depth': 2\} of type dict: give each entry its own parameter, like model.depth"),
        (tune.choice([{"uniform": [0, 1]}]), "of type dict"),
        (tune.choice([[{1, 2}]]), r"got \{1, 2\} of type set"),
        (tune.uniform(1, 1), "x: the lower bound of uniform must be below the upper one; got 1, 1"),
        (tune.randint(5, 4), "x: the lower bound of randint must be below the upper one; got 5, 4"),
        (tune.randint(0.5, 4), "x: randint takes whole numbers; got 0.5, 4: use uniform"),
        (tune.randint(0, 10**30), "x: randint takes finite numbers of 64 bits; got 0, 1000"),
        (tune.uniform(-1.7e308, 1.7e308), "x: uniform takes finite numbers of 64 bits"),
        (tune.uniform(False, True), "x: uniform takes 2 numbers; got False, True"),
        (tune.quniform(0, 1, -1), "x: the step of quniform must be above 0; got 0, 1, -1"),
        (tune.qrandint(1, 2, 5), "x: no multiple of the step of qrandint lies between its bounds; got 1, 2, 5"),
        (tune.randn(math.nan, 1), "x: randn takes finite numbers of 64 bits; got nan, 1"),
        (tune.qrandn(0, 1, 0.1), "x: qrandn has no plain form; use randn"),
        (tune.sample_from(lambda spec: 1), r"x: a Function domain \(sample_from\) cannot be repeated"),
        ([1, 2], r"got \[1, 2\] of type list: for several values use choice"),
        ({"a": 1}, r"got \{'a': 1\} of type dict"),
        (math.nan, "x: a number must be finite and fit into 64 bits; got nan"),
        (-math.inf, "x: a number must be finite and fit into 64 bits; got -inf"),
        (10**400, "x: a number must be finite and fit into 64 bits; got 1000"),
        (tune.choice([math.inf]), "x: a number must be finite and fit into 64 bits; got inf"),
        (np.zeros(2), "of type ndarray"),
    ],
)
def test_invalid_domain_is_rejected(value, message):
    with pytest.raises(InvalidSpaceError, match=message) as caught:
        Space({"x": value}, keys=FREE)
    assert "\n" not in str(caught.value)


def test_name_must_be_a_word():
    with pytest.raises(InvalidSpaceError, match="the name of a parameter must be a word; got 1"):
        Space({1: 2})
    with pytest.raises(InvalidSpaceError, match="the name of a parameter must be a word; got ''"):
        Space({"": 2})


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"loguniform": [0, 1]}, "x: the lower bound of loguniform must be above 0; got 0, 1"),
        ({"lograndint": [-3, 1]}, "x: the lower bound of lograndint must be above 0; got -3, 1"),
        ({"uniform": [0, math.inf]}, "x: uniform takes finite numbers of 64 bits; got 0, inf"),
        ({"loguniform": [math.nan, 1]}, "x: loguniform takes finite numbers of 64 bits; got nan, 1"),
        ({"uniform": [0]}, "x: uniform takes 2 numbers; got 0"),
        ({"uniform": ["0", 1]}, "x: uniform takes 2 numbers; got '0', 1"),
        ({"quniform": [0, 1, 0.3]}, "x: the bounds of quniform must be multiples of its step; got 0, 1, 0.3"),
        ({"quniform": [0, 1, 0]}, "x: the step of quniform must be above 0; got 0, 1, 0"),
        ({"quniform": [0, 1e300, 1e-300]}, "x: the bounds of quniform must be multiples of its step"),
        ({"randn": [0, 0]}, "x: the standard deviation of randn must be above 0; got 0, 0"),
        ({"uniform": [0, 10**400]}, "x: uniform takes finite numbers of 64 bits; got 0, 1000"),
        ({"choice": 3}, "x: choice takes a list; got 3"),
        ({"choice": [{"uniform": [0, 1]}]}, r"got \{'uniform': \[0, 1\]\} of type dict"),
        ({"sample_from": ["lambda: 1"]}, "x: there is no domain 'sample_from'; allowed are choice, uniform, .*, randn"),
        ({}, r"x: give one domain, like \{'choice': \[1, 2\]\} .*; got \{\}"),
        ({"choice": [1], "uniform": [0, 1]}, "x: give one domain"),
    ],
)
def test_invalid_json_of_a_domain_is_rejected(plain, message):
    with pytest.raises(InvalidSpaceError, match=message):
        Space.from_json({"x": plain}, keys=FREE)


def test_json_must_be_a_mapping():
    with pytest.raises(InvalidSpaceError, match=r"a space maps names to values, like \{'steps': 500\}; got \[1\]"):
        Space.from_json([1])


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("0.1", 0.1),
        (" 500 ", 500),
        ("adam", "adam"),
        ("true", True),
        ("False", False),
        ("0.1,0.01", {"choice": [0.1, 0.01]}),
        ("adam, momentum", {"choice": ["adam", "momentum"]}),
        ("loguniform(1e-4, 1)", {"loguniform": [1e-4, 1]}),
        ("choice(1, 2)", {"choice": [1, 2]}),
        ("qrandint(0, 10, 5)", {"qrandint": [0, 10, 5]}),
        ("randint(0, 5.0)", {"randint": [0, 5]}),
        ("import os", "import os"),
        ("none", None),
        ("null, 1", {"choice": [None, 1]}),
        ("008", "008"),
        ("'1', \"a, b\", 1", {"choice": ["1", "a, b", 1]}),
        ("[64, 64], [128]", {"choice": [[64, 64], [128]]}),
        ("[64, 64]", {"choice": [[64, 64]]}),
        ("{'a': 1}", {"choice": [{"a": 1}]}),
        ("{'a': [1, 2]}, (3, [4, 5])", {"choice": [{"a": [1, 2]}, [3, [4, 5]]]}),
        ("Xavier, X, NaNa", {"choice": ["Xavier", "X", "NaNa"]}),
        ("'it\"s', \"it's\"", {"choice": ['it"s', "it's"]}),
        ("NULL, TRUE", {"choice": [None, True]}),
    ],
)
def test_text_is_parsed(text, plain):
    assert Space({"x": parse_parameter("x", text)}, keys=FREE).to_json() == {"x": plain}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x: a value is missing in ''"),
        ("0.1,", "x: a value is missing in '0.1,'"),
        ("choice()", "x: choice needs at least one value; got none"),
        ("uniform(1,,2)", "x: a value is missing in '1,,2'"),
        ("uniform(1)", "x: uniform takes 2 numbers; got 1"),
        ("uniform(a, b)", "x: uniform takes 2 numbers; got 'a', 'b'"),
        ("a, a", "x: choice takes each value once; got a, a"),
        ("randn()", "x: randn takes 2 numbers; got none"),
        ("uniform(nan, 1)", "x: uniform takes finite numbers"),
        ("normal(0, 1)", "x: there is no domain 'normal'; allowed are choice, uniform,"),
        ("Uniform(0, 1)", "x: there is no domain 'Uniform'"),
        ("uniform(0, 1", r"a value must be a number, a word, a list \(1,2,3\) or a range .*; got 'uniform\(0, 1'"),
        ("[1, 2", r"a value must be a number, a word, a list \(1,2,3\) or a range .*; got '\[1, 2'"),
        ("1,'a", "a value must be a number, a word"),
        ("uniform(0, 1), 2", "a value must be a number, a word"),
        ("inf", "x: a number must be finite"),
        ("-Infinity", "x: a number must be finite .*; got -inf"),
        ("+nan", "x: a number must be finite .*; got nan"),
        ("9" * 400, "x: a number must be finite"),
    ],
)
def test_invalid_text_is_rejected(text, message):
    with pytest.raises(InvalidSpaceError, match=message):
        Space({"x": parse_parameter("x", text)}, keys=FREE)


@pytest.mark.parametrize("text", ["__import__('os')", "__import__('os').abort()", "(lambda: 1)()", "exec(1)"])
def test_text_is_never_evaluated(text):
    with pytest.raises(InvalidSpaceError):
        parse_parameter("x", text)


def test_description_is_the_text_of_a_command_line():
    values = (0.1, 500, "adam", True, 30_000.0, 0.123456789)
    assert [Parameter.from_value("x", value).describe() for value in values] == [
        "0.1", "500", "adam", "true", "30000", "0.123456789",
    ]  # fmt: skip
    assert Parameter.from_value("x", tune.choice([1, True, "a"])).describe() == "choice(1, true, a)"


@pytest.mark.parametrize("is_conditional", [False, True])
def test_space_with_many_parameters_is_built_in_linear_time(is_conditional):
    def build(number):
        value = when(tune.uniform(0, 1), p0=1) if is_conditional else tune.uniform(0, 1)
        start = time.process_time()
        space = Space({"last": 2, "p0": tune.choice([1, 2])} | {
            f"p{index}": value for index in range(1, number)
        })  # fmt: skip
        assert len(space.dependency_order) == number + 1
        return time.process_time() - start

    build(100)
    assert build(3000) < 1


def test_dependency_order_changes_the_given_order_only_where_necessary():
    space = Space(
        {
            "d": when(1, c=1), "z": 1, "c": when(tune.choice([1, 2]), a=1), "b": 1, "a": tune.choice([1, 2]), "e": 1
        }
    )  # fmt: skip
    assert space.dependency_order == ("z", "b", "a", "c", "d", "e")


def test_grid_of_a_large_range_is_lazy_and_an_experiment_rejects_it_at_once():
    space = Space({"s": tune.randint(0, 2**40), "x": tune.choice([None, [1]])})
    assert list(islice(space.grid(), 3)) == [{"s": 0, "x": None}, {"s": 0, "x": [1]}, {"s": 1, "x": None}]
    with pytest.raises(InvalidExperimentError, match=f"at most 100000 trials; mine has {2**41}: narrow its space"):
        Experiment("mine", space, "a:b", metric="loss", mode="min", seeds=())
    wide = Space({f"p{index}": tune.choice([1, 2]) for index in range(1500)})
    assert next(wide.grid()) == dict.fromkeys(wide, 1)
    with pytest.raises(InvalidExperimentError, match=r"mine has more than 2\*\*63: narrow"):
        Experiment("mine", wide, "a:b", metric="loss", mode="min", seeds=())
    with pytest.raises(InvalidSpaceError, match="at most 100000 values"):
        space.as_grid()


@pytest.mark.parametrize(
    ("domain", "number", "nearest"),
    [
        (tune.uniform(0, 1), 0.3, 0.3), (tune.uniform(0, 1), -2, 0.0), (tune.uniform(0, 1), 5, 1.0),
        (tune.loguniform(0.1, 10), 20, 10.0), (tune.randn(0, 1), 9, 9.0), (tune.randint(2, 5), 3.6, 4),
        (tune.randint(2, 5), 9, 4), (tune.randint(2, 5), -9, 2), (tune.quniform(0, 1, 0.25), 0.4, 0.5),
        (tune.quniform(0, 1, 0.25), 7, 1.0), (tune.qrandint(10, 30, 10), 24, 20), (tune.qrandint(10, 30, 10), 1, 10),
    ],
)  # fmt: skip
def test_number_is_clipped_to_the_nearest_value(domain, number, nearest):
    value = Parameter.from_value("x", domain).clip(number)
    assert (value, type(value)) == (nearest, type(nearest))


@pytest.mark.parametrize(
    ("domain", "members", "others"),
    [
        (tune.uniform(0, 1), [0, 0.5, 1.0], [-0.1, 1.1, True, "0.5", math.nan, None]),
        (tune.randint(2, 5), [2, 4, 3.0], [1, 5, 2.5, False]),
        (tune.qrandint(0, 10, 5), [0, 5, 10], [3, 15, -5]),
        (tune.quniform(0, 1, 0.1), [0.1, 0.3, 1], [0.15, 1.1]),
        (tune.randn(0, 1), [-100, 0.0], [math.inf, "a", 10**30]),
        (tune.choice([1, "a", None, [64, 64]]), [1, 1.0, "a", None, [64, 64]], [True, "1", [64], 2]),
    ],
)
def test_member_is_a_value_that_the_parameter_may_have(domain, members, others):
    parameter = Parameter.from_value("x", domain)
    assert [value for value in members if not parameter.contains(value)] == []
    assert [value for value in others if parameter.contains(value)] == []
    for value in members:
        member = parameter.as_member(value)
        assert parameter.contains(member)
        assert member == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value)
        if parameter.kind != "choice":
            assert type(member) is (int if parameter.is_integer else float)


@pytest.mark.parametrize(
    ("domain", "bounds"),
    [
        (tune.uniform(-1, 2), (-1, 2)), (tune.randint(2, 5), (2, 4)), (tune.qrandint(3, 10, 4), (4, 8)),
        (tune.qlograndint(1, 20, 7), (7, 14)), (tune.quniform(0.5, 1, 0.25), (0.5, 1)),
        (tune.randn(3, 1), (-math.inf, math.inf)),
    ],
)  # fmt: skip
def test_bounds_are_the_lowest_and_highest_value(domain, bounds):
    parameter = Parameter.from_value("x", domain)
    assert parameter.bounds == bounds
    if parameter.count is not None:
        assert (parameter.value(0), parameter.value(parameter.count - 1)) == bounds
        assert parameter.all_values() == [parameter.value(index) for index in range(parameter.count)]


@pytest.mark.parametrize(
    ("domain", "fractions", "values"),
    [
        (tune.choice(["a", "b", "c"]), [0, 0.33, 0.34, 0.99], ["a", "a", "b", "c"]),
        (tune.uniform(2, 4), [0, 0.25, 0.75], [2.0, 2.5, 3.5]),
        (tune.loguniform(1, 16), [0, 0.25, 0.5, 0.75], [1, 2, 4, 8]),
        (tune.randint(0, 4), [0, 0.24, 0.25, 0.99], [0, 0, 1, 3]),
        (tune.quniform(0, 1, 0.25), [0, 0.19, 0.21, 0.99], [0, 0, 0.25, 1]),
        # Each integer represents the numbers that are rounded down to it: 1 has the first third of 1 to 8.
        (tune.lograndint(1, 8), [0, 0.33, 0.34, 0.66, 0.67, 0.99], [1, 1, 2, 3, 4, 7]),
        (tune.randn(5, 2), [0.5, 0.8413447460685429, 0.15865525393145707], [5, 7, 3]),
    ],
)
def test_quantiles_are_evenly_spaced_in_probability(domain, fractions, values):
    parameter = Parameter.from_value("x", domain)
    found = [parameter.ppf(fraction) for fraction in fractions]
    assert found == (values if isinstance(values[0], str) else pytest.approx(values))


def test_extreme_quantiles_of_a_normal_distribution_are_finite():
    parameter = Parameter.from_value("x", tune.randn(0, 1))
    assert parameter.ppf(0.0) == pytest.approx(-7.034, abs=1e-3)
    assert parameter.ppf(1 - 2**-53) == pytest.approx(7.034, abs=1e-3)


def test_values_of_a_choice_may_be_lists_and_mappings():
    space = Space({"layers": tune.choice([[64, 64], (32,), None]), "options": tune.choice([{"a": [1, {"b": 2}]}])})
    assert space.to_json() == {
        "layers": {"choice": [[64, 64], [32], None]}, "options": {"choice": [{"a": [1, {"b": 2}]}]},
    }  # fmt: skip
    with pytest.raises(InvalidSpaceError, match="choice takes each value once"):
        Space({"layers": tune.choice([[64, 64], (64, 64)])})
    with pytest.raises(InvalidSpaceError, match="of type dict"):
        Space({"x": tune.choice([{1: 2}])})


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
def test_whole_numbers_have_64_bits(number):
    with pytest.raises(InvalidSpaceError, match="x: a number must be finite and fit into 64 bits"):
        Space({"x": number})
    edge = number - 1 if number > 0 else number + 1
    assert Space({"x": edge})["x"] == edge


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1, "0.1"), (1.0, "1"), (1e-4, "0.0001"), (1 / 3, "0.3333333333333333"), (123456789, "123456789"),
     (True, "true"), (None, "null"), ("adam", "adam"), (1234567.0, "1234567.0"), (1e6, "1e+06")],
)  # fmt: skip
def test_value_is_written_in_its_short_exact_form(value, text):
    assert Space({"x": value}).describe("x") == text
