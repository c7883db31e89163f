"""Conditional parameters: grids, samples, plain JSON, and rejected conditions."""

import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ray import tune

from tests.search.test_space import choices, finite_ranges, identity, ranges, scalars
from tune_hpc.errors import InvalidExperimentError, InvalidSpaceError
from tune_hpc.learning.config import TRIAL_KEYS
from tune_hpc.search.space.conditional import when
from tune_hpc.search.space.parsing import parse_settings
from tune_hpc.search.space.space import Space

NAMES = ["a", "b", "c", "d", "e"]


ANY = choices | ranges() | scalars
FINITE = choices | finite_ranges | scalars


@st.composite
def conditional_spaces(draw, domains=ANY):
    """Draw a space whose parameters depend on earlier ones in a hidden order."""
    names = draw(st.permutations(NAMES[: draw(st.integers(1, 5))]))
    parameters = {}
    for number, name in enumerate(names):
        so_far = Space(parameters, keys={})
        controls = [one for one in names[:number] if _is_short(so_far, one)]
        if not controls or draw(st.booleans()):
            parameters[name] = draw(domains)
            continue
        value = None
        for _ in range(draw(st.integers(1, 2))):
            controlling = draw(st.lists(st.sampled_from(controls), min_size=1, max_size=2, unique=True))
            conditions = {
                one: draw(st.lists(st.sampled_from(so_far.reachable_values(one)), min_size=1, max_size=2))
                for one in controlling
            }
            case = when(draw(domains), **conditions)
            value = case if value is None else value | case
        parameters[name] = value | draw(domains) if draw(st.booleans()) else value
    return Space({name: parameters[name] for name in draw(st.permutations(names))}, keys={})


def _is_short(space, name):
    try:
        return len(space.reachable_values(name)) <= 6
    except InvalidSpaceError:
        return False


finite_conditional_spaces = conditional_spaces(FINITE)


@given(conditional_spaces())
def test_every_space_survives_json_and_back(space):
    text = json.dumps(space.to_json(), allow_nan=False)
    again = Space.from_json(json.loads(text), keys={})
    assert again == space
    assert json.dumps(again.to_json()) == text


@given(conditional_spaces(), st.integers(0, 2**32))
def test_samples_satisfy_conditions_and_bounds(space, seed):
    generator = np.random.default_rng(seed)
    for config in (space.sample(generator) for _ in range(5)):
        assert space.admits(config)
        for name, value in space.items():
            if name in config or not hasattr(value, "cases"):
                continue
            # The parameter is absent: no case holds.
            for case in value.cases:
                assert any(
                    other not in config or identity(config[other]) not in list(map(identity, allowed))
                    for other, allowed in case.conditions.items()
                )


@given(conditional_spaces(), st.integers(0, 2**32))
def test_configuration_with_a_missing_or_surplus_parameter_is_no_member(space, seed):
    config = space.sample(np.random.default_rng(seed))
    for name in space:
        if name in config:
            without = {key: value for key, value in config.items() if key != name}
            assert not space.admits(without)
        else:
            # The parameter must be absent, or a parameter that depends on it is missing.
            assert not space.admits(config | {name: 0})
    assert not space.admits(config | {"unknown": 1})


@given(finite_conditional_spaces, st.integers(0, 2**32))
@settings(max_examples=50)
def test_grid_has_every_configuration_once_and_all_samples(space, seed):
    assume(space.size <= 2000)
    grid = [tuple((name, identity(value)) for name, value in config.items()) for config in space.grid()]
    assert len(set(grid)) == len(grid) == space.size
    assert all(space.admits(config) for config in space.grid())
    drawn = space.sample(np.random.default_rng(seed))
    assert tuple((name, identity(value)) for name, value in drawn.items()) in grid


SPACE = Space(
    {
        "momentum": when(tune.choice([0.8, 0.9]), optimizer=["momentum", "nesterov"]),
        "optimizer": tune.choice(["adam", "momentum", "nesterov"]),
        "learning_rate": when(tune.choice([1e-3]), optimizer="adam") | tune.choice([0.01, 0.1]),
    },
    roles={"optimizer": "scientific"},
)


def test_grid_omits_parameters_whose_condition_does_not_hold():
    assert SPACE.size == 1 + 4 + 4
    assert next(SPACE.grid()) == {"optimizer": "adam", "learning_rate": 1e-3}
    assert list(SPACE.grid())[1] == {"momentum": 0.8, "optimizer": "momentum", "learning_rate": 0.01}


def test_cases_are_described_in_words():
    assert SPACE.describe("momentum") == "choice(0.8, 0.9) where optimizer is momentum or nesterov"
    assert SPACE.describe("learning_rate") == "choice(0.001) where optimizer is adam; choice(0.01, 0.1) elsewhere"
    both = Space({"a": 1, "b": tune.choice([2, 3]), "c": when(5, a=1, b=[2, 3])}, keys={})
    assert both.describe("c") == "5 where a is 1 and b is 2 or 3"
    assert [(text, parameter.describe()) for text, parameter in SPACE.cases("learning_rate")] == [
        ("where optimizer is adam", "choice(0.001)"), ("elsewhere", "choice(0.01, 0.1)"),
    ]  # fmt: skip
    assert SPACE.cases("optimizer") == []


def test_first_case_that_holds_applies():
    assert SPACE.case("optimizer", {}) == (0, SPACE.parameters["optimizer"])
    number, domain = SPACE.case("learning_rate", {"optimizer": "momentum"})
    assert (number, domain.values) == (1, (0.01, 0.1))
    assert SPACE.case("learning_rate", {"optimizer": "adam"})[0] == 0
    assert SPACE.case("momentum", {"optimizer": "adam"}) is None
    assert SPACE.domain("momentum", {"optimizer": "adam"}) is None
    assert SPACE.domain("momentum", {"optimizer": "nesterov"}).values == (0.8, 0.9)
    # Without the controlling value, no condition holds; True is not 1.
    assert SPACE.case("momentum", {}) is None
    flagged = Space({"a": tune.choice([1, True]), "b": when(2, a=True)}, keys={})
    assert [len(config) for config in flagged.grid()] == [1, 2]


def test_given_values_are_not_drawn():
    generator = np.random.default_rng(0)
    for _ in range(10):
        config = SPACE.sample(generator, {"optimizer": "nesterov", "momentum": 0.9})
        assert (config["optimizer"], config["momentum"]) == ("nesterov", 0.9)
        assert SPACE.admits(config)
    drawn = {SPACE.sample(generator, {"optimizer": "momentum"})["momentum"] for _ in range(30)}
    assert drawn == {0.8, 0.9}
    steps = Space({"steps": tune.randint(1, 9)}, keys={}).sample(generator, {"steps": 3.0})["steps"]
    assert (steps, type(steps)) == (3, int)
    rate = Space({"rate": tune.quniform(0, 1, 0.1)}, keys={}).sample(generator, {"rate": 0.3})["rate"]
    assert rate == 3 * 0.1 != 0.3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"speed": 1}, "speed is no parameter of the space, which has momentum, optimizer, learning_rate"),
        ({"momentum": 0.9}, "momentum=0.9 depends on optimizer; give optimizer as well"),
        (
            {"optimizer": "adam", "momentum": 0.9},
            "momentum=0.9: the space has the parameter only choice(0.8, 0.9) where",
        ),
        ({"optimizer": "nesterov", "momentum": 0.7}, "momentum=0.7 is outside the space, which has choice(0.8, 0.9)"),
        ({"optimizer": "sgd"}, "optimizer='sgd' is outside the space, which has choice(adam, momentum, nesterov)"),
    ],
)
def test_given_value_outside_the_space_is_rejected(given, message):
    with pytest.raises(InvalidSpaceError) as caught:
        SPACE.sample(np.random.default_rng(0), given)
    assert str(caught.value).startswith(message)


def test_configuration_in_a_row_has_the_types_of_the_space():
    space = Space({"layers": tune.choice([64, 128]), "rate": when(tune.uniform(0, 1), layers=64)}, keys={})
    row = {"rate": 1, "layers": 64.0, "loss": 0.5}
    found = space.config_in(row)
    assert (found, list(found)) == ({"layers": 64, "rate": 1.0}, ["layers", "rate"])
    assert [type(value) for value in found.values()] == [int, float]
    assert space.config_in({"layers": 128, "rate": 0.5}) == {"layers": 128}
    assert space.config_in({"layers": 64}) is None
    assert space.config_in({"layers": 32, "rate": 0.5}) is None
    assert not space.admits({"layers": 128, "rate": 0.5})


def test_changed_spaces_keep_keys_and_roles():
    space = Space(
        {"optimizer": tune.choice(["adam", "ftrl"]), "batch_size": tune.choice([1, 2]), "steps": 5},
        keys=TRIAL_KEYS, roles={"optimizer": "scientific", "steps": "fixed"},
    )  # fmt: skip
    for changed in (space | {"steps": 6}, space.without("steps"), space.with_keys(TRIAL_KEYS)):
        assert changed.value_keys == TRIAL_KEYS
        assert changed.scientific == ("optimizer",)
        with pytest.raises(InvalidSpaceError, match="batch_size must be"):
            changed | {"batch_size": 0.5}
    assert (space | Space({"batch_size": tune.choice([1, 3])}, roles={"batch_size": "scientific"})).scientific == (
        "optimizer", "batch_size",
    )  # fmt: skip
    assert space.without("optimizer").scientific == ()
    assert (space.with_keys({}) | {"batch_size": 0.5})["batch_size"] == 0.5
    assert space != Space(dict(space), keys=TRIAL_KEYS)
    assert {space.role(name): name for name in space} == {
        "scientific": "optimizer", "nuisance": "batch_size", "fixed": "steps",
    }  # fmt: skip


def test_space_without_a_controlling_parameter_is_rejected():
    with pytest.raises(InvalidSpaceError, match="its condition is on optimizer, which is no parameter of the space"):
        SPACE.without("optimizer")


def test_condition_that_never_holds_lists_the_first_values():
    with pytest.raises(InvalidSpaceError, match=r"a=99 never holds; a is one of 0, 1, .*, 19 and others$"):
        Space({"a": tune.choice(list(range(21))), "b": when(1, a=99)}, keys={})
    with pytest.raises(InvalidSpaceError, match=r"a=99 never holds; a is one of 0, 1, .*, 19$"):
        Space({"a": tune.choice(list(range(20))), "b": when(1, a=99)}, keys={})


def test_narrower_space_drops_unreachable_cases():
    narrow = SPACE | {"optimizer": "adam"}
    assert list(narrow) == ["optimizer", "learning_rate"]
    assert narrow.scientific == ()
    assert list(narrow.grid()) == [{"optimizer": "adam", "learning_rate": 1e-3}]
    fewer = SPACE | {"optimizer": tune.choice(["adam", "nesterov"])}
    assert fewer["momentum"].cases[0].conditions == {"optimizer": ("nesterov",)}
    assert fewer.scientific == ("optimizer",)
    assert Space.from_json(fewer.to_json()) == fewer


def test_dropped_parameter_drops_its_dependents():
    nested = Space({"a": tune.choice([1, 2]), "b": when(tune.choice([3, 4]), a=1), "c": when(5, b=4)}, keys={})
    assert nested.size == 1 + 1 + 1
    assert list(nested | {"a": 2}) == ["a"]


def test_roles_are_in_the_json_form():
    assert [SPACE.role(name) for name in SPACE] == ["nuisance", "scientific", "nuisance"]
    assert Space({"steps": 3}).role("steps") == "fixed"
    assert SPACE.to_json()["optimizer"] == {"choice": ["adam", "momentum", "nesterov"], "role": "scientific"}


@pytest.mark.parametrize(
    ("parameters", "roles", "message"),
    [
        ({"b": when(1, a=2)}, {}, "b: its condition is on a, which is no parameter"),
        ({"a": when(1, b=1), "b": when(1, a=1)}, {}, "cycle; those of a, b do"),
        ({"a": tune.choice([1, 2]), "b": when(1, a=3)}, {}, "b: its condition a=3 never holds; a is one of 1, 2"),
        ({"a": 1, "b": when(1, a=True)}, {}, "a=True never holds"),
        ({"a": tune.uniform(0, 1), "b": when(1, a=0.5)}, {}, "a is uniform"),
        ({"a": 1, "b": when(1, a=1) | 2 | 3}, {}, "b: a case without a condition must be the last"),
        ({"a": 1, "b": when(tune.uniform(1, 0), a=1)}, {}, "b: the lower bound of uniform must be below"),
        ({"a": 1}, {"a": "scientific"}, "a: a fixed parameter has one value"),
        ({"a": tune.choice([1, 2])}, {"a": "fixed"}, "a: a fixed parameter has one value"),
        ({"a": tune.choice([1, 2])}, {"a": "main"}, "a: a role must be one of scientific, nuisance, fixed; got 'main'"),
        ({"a": 1}, {"b": "fixed"}, "b has a role but is no parameter"),
        ({"a": tune.uniform(0, 1)}, {"a": "scientific"}, "a is uniform"),
        (
            {"a": 1, "b": when(tune.choice([1, 2]), a=1)},
            {"b": "scientific"},
            "b: a scientific parameter must not have conditions",
        ),
    ],
)
def test_broken_rule_is_rejected_with_the_parameter(parameters, roles, message):
    with pytest.raises(InvalidSpaceError, match=message.replace("[", r"\[")):
        Space(parameters, keys={}, roles=roles)


def test_condition_without_a_value_is_rejected():
    with pytest.raises(InvalidSpaceError, match="at least one condition"):
        when(1)
    with pytest.raises(InvalidSpaceError, match="a: a condition needs at least one value"):
        when(1, a=[])


def test_trial_keys_hold_for_conditions():
    with pytest.raises(InvalidSpaceError, match="optimizer must be one of"):
        Space({"optimizer": tune.choice(["adam", "ftrl"]), "momentum": when(0.9, optimizer="adaam")}, keys=TRIAL_KEYS)


@pytest.mark.parametrize(
    "plain",
    [
        {"b": {"cases": []}},
        {"b": {"cases": 3}},
        {"b": {"cases": [{"when": {}}]}},
        {"b": {"cases": [{"when": [], "value": 1}]}},
        {"b": {"cases": [{"when": {"a": 1}, "value": 1, "more": 2}]}},
        {"b": {"cases": [{"when": {"a": 1}, "value": {"cases": []}}]}},
        {"b": {"role": "scientific"}},
    ],
)
def test_malformed_json_is_rejected(plain):
    with pytest.raises(InvalidSpaceError, match=r"^b: "):
        Space.from_json({"a": 1, **plain}, keys={})


def test_as_grid_rejects_conditions():
    with pytest.raises(InvalidSpaceError, match="Ray Tune does not support conditions"):
        SPACE.as_grid()


class TestParseSettings:
    def test_conditions_are_written_in_brackets(self):
        values = parse_settings(
            ["optimizer=adam,momentum", "momentum[optimizer=momentum]=uniform(0.8, 0.9)",
             "learning_rate[optimizer=adam & momentum=0.9]=1e-3", "learning_rate[ optimizer = adam ] = 2e-3",
             "learning_rate=0.1"]
        )  # fmt: skip
        assert values["optimizer"].values == ("adam", "momentum")
        assert values["momentum"].cases[0].conditions == {"optimizer": ("momentum",)}
        rate = values["learning_rate"]
        assert [case.value.to_json() for case in rate.cases] == [1e-3, 2e-3, 0.1]
        assert [case.conditions for case in rate.cases] == [
            {"optimizer": ("adam",), "momentum": (0.9,)}, {"optimizer": ("adam",)}, {}
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (["steps"], "KEY=VALUE"),
            (["=3"], "KEY=VALUE"),
            (["a[b=1=3"], "KEY=VALUE"),
            (["a[]=3"], "conditions as"),
            (["a[b]=3"], "conditions as"),
            (["a[b=1&b=2]=3"], "conditions as"),
            (["a=1", "a=2"], "a is given twice"),
            (["a=1", "a[b=1]=2"], "a is given twice"),
        ],
    )
    def test_malformed_setting_is_rejected(self, settings, message):
        with pytest.raises(InvalidExperimentError, match=message):
            parse_settings(settings)


def test_number_of_controlling_combinations_is_bounded():
    wide = {name: tune.choice(list(range(30))) for name in "abc"}
    with pytest.raises(InvalidSpaceError, match=r"at most 10000 combinations of values; those on a, b, c have 27000"):
        Space({**wide, "x": when(1, a=0, b=0, c=0)}, keys={})
    with pytest.raises(InvalidSpaceError, match="s: at most 100000 values can be listed; got 1099511627776"):
        Space({"s": tune.randint(0, 2**40), "x": when(1, s=0)}, keys={})
