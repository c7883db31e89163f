"""Spaces and experiments as JSON: equal after a round trip; changed documents are rejected or read as they are."""

import json
import math
from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzz.profile import check_message, examples
from tune_hpc.errors import TuneHpcError
from tune_hpc.search.experiment import Experiment
from tune_hpc.search.experiment_json import experiment_from_json
from tune_hpc.search.space.parameter import RANGES
from tune_hpc.search.space.parsing import parse_parameter
from tune_hpc.search.space.space import Space

#: Texts of JSON, with the characters that UTF-8 cannot encode.
NAMES = st.text(min_size=1, max_size=5) | st.sampled_from(["a", "b", "c", "role", "cases", "choice", "seed", "steps"])
NUMBERS = st.one_of(
    st.integers(-(2**64), 2**64), st.floats(),
    st.sampled_from([0, 1, 2, -1, 0.0, 1e-320, 1e308, -1e308, 2**63 - 1, -(2**63), 1e-4, 0.1, 5e-324, 2**53 + 1]),
)  # fmt: skip
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=5) | st.sampled_from(["a", "1", "None", "nan", ""])
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6
)
RANGE = st.builds(lambda kind, numbers: {kind: numbers}, st.sampled_from(sorted(RANGES)), st.lists(NUMBERS, max_size=3))
#: Ranges whose bounds are in order.
ORDERED = st.builds(
    lambda kind, numbers, step: {kind: [*sorted(numbers), step][: RANGES[kind]]},
    st.sampled_from(sorted(RANGES)), st.lists(NUMBERS, min_size=2, max_size=2), st.sampled_from([1, 2, 0.1, 3, 0.5]),
)  # fmt: skip
CHOICE = st.lists(JSON, max_size=4).map(lambda values: {"choice": values})
DOMAIN = SCALARS | RANGE | ORDERED | CHOICE
FLAT = st.dictionaries(NAMES, DOMAIN, max_size=4)


@st.composite
def spaces(draw: Any) -> dict[str, Any]:
    """Return a space in JSON, some of whose parameters depend on a choice or on each other."""
    plain = draw(FLAT)
    controls = [name for name, value in plain.items() if not isinstance(value, dict) or "choice" in value]
    for name in draw(st.lists(NAMES, max_size=3)):
        cases = []
        for other in draw(st.lists(st.sampled_from(controls), max_size=2)) if controls else ():
            values = plain[other].get("choice", []) if isinstance(plain[other], dict) else [plain[other]]
            if isinstance(plain[other], dict) and "cases" in plain[other]:
                values = [case["value"] for case in plain[other]["cases"]]
            some = draw(st.lists(st.sampled_from(values), max_size=2)) if values else []
            cases.append({"when": {other: some}, "value": draw(DOMAIN)})
        if draw(st.booleans()):
            cases.append({"when": {}, "value": draw(DOMAIN)})
        if name not in plain:
            plain[name] = {"cases": cases}
            controls.append(name)
    for name in draw(st.lists(st.sampled_from(sorted(plain)), max_size=1)) if plain else ():
        if isinstance(plain[name], dict):
            plain[name]["role"] = draw(st.sampled_from(["scientific", "nuisance", "fixed"]) | JSON)
    return plain


def space_of(plain: Any) -> Space | None:
    """Return the space of a document; ``None`` if it is rejected."""
    try:
        return Space.from_json(plain)
    except TuneHpcError as error:
        check_message(error)
        return None


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False).encode("utf-8"))


@examples(150)
@given(spaces())
@example({"a": "\ud800"})
@example({"\ud800": 1})
@example({"a": {"choice": [{"b": "\ud800"}]}})
def test_space_is_rejected_or_equal_after_a_round_trip(plain):
    if (space := space_of(plain)) is None:
        return
    again = Space.from_json(through_json(space.to_json()))
    assert again == space
    assert list(again) == list(space)
    assert {name: again.role(name) for name in again} == {name: space.role(name) for name in space}
    for name in space:
        name.encode("utf-8")
        space.describe(name).encode("utf-8")


@examples(25)
@given(spaces(), st.integers(0, 2**32))
@example({"x": {"qrandint": [-3020991290509780, 63501364159559216, 3]}}, 0)
def test_configuration_of_a_space_is_a_member_and_equal_after_a_round_trip(plain, seed):
    if (space := space_of(plain)) is None:
        return
    config = space.sample(np.random.default_rng(seed))
    assert space.admits(config), config
    assert space.config_in(through_json(config)) == config
    for value in config.values():
        assert not isinstance(value, float) or math.isfinite(value)


@examples(100)
@given(
    JSON
    | st.dictionaries(
        NAMES,
        JSON
        | st.fixed_dictionaries({"cases": JSON})
        | st.fixed_dictionaries({"cases": st.lists(st.fixed_dictionaries({"when": JSON, "value": JSON}), max_size=2)}),
        max_size=3,
    )
)
def test_any_json_is_rejected_or_a_space(plain):
    if (space := space_of(plain)) is not None:
        assert Space.from_json(through_json(space.to_json())) == space


@examples(100)
@given(ORDERED | NUMBERS)
def test_text_of_a_range_or_a_number_is_parsed_to_it(plain):
    if (space := space_of({"x": plain})) is not None:
        # A number may lose its type: 1.0 is described as 1.
        assert parse_parameter("x", space.describe("x")) == space.parameters["x"]


EXPERIMENTS = st.fixed_dictionaries(
    {"space": spaces()},
    optional={
        "name": st.sampled_from(["made.up", "a"]), "metric": st.text(max_size=5), "mode": st.sampled_from(["min",
        "max"]),
        "metrics": st.dictionaries(NAMES, st.sampled_from(["min", "max", "x"]), max_size=2),
        "seeds": st.lists(NUMBERS, max_size=3), "num_samples": st.none() | NUMBERS, "search_seed": NUMBERS,
        "searcher": st.sampled_from(["auto", "grid", "random", "quasi_random", "tpe", "gp", "x"]),
        "scheduler": st.sampled_from(["none", "asha", "pbt", "hyperband"]), "budget": NAMES | NUMBERS,
        "points_to_evaluate": st.lists(st.dictionaries(NAMES, SCALARS, max_size=2), max_size=2),
        "quick_values": FLAT, "title": st.text(max_size=5), "judge": st.sampled_from(["last", "best",
        "mean_of_last_3", "x"]),
    },
)  # fmt: skip


def experiment_of(plain: dict[str, Any]) -> Experiment | None:
    """Return an experiment with some fields; ``None`` if it is rejected."""
    try:
        spaces = {key: Space.from_json(plain[key]) for key in ("space", "quick_values") if key in plain}
        experiment = Experiment(**{"name": "made.up", "trainable": "module:train"} | plain | spaces)
        # A grid over a range has no number of trials.
        _ = experiment.num_trials
        return experiment
    except TuneHpcError as error:
        check_message(error)
        return None


@examples(100)
@given(EXPERIMENTS)
def test_experiment_is_rejected_or_equal_after_a_round_trip(plain):
    if (experiment := experiment_of(plain)) is None:
        return
    document = through_json(experiment.to_json())
    again = experiment_from_json(document)
    assert again == experiment
    assert again.to_json() == document
    if experiment.searcher not in ("tpe", "gp"):
        assert next(iter(again.configs())) == next(iter(experiment.configs()))


DOCUMENT = through_json(
    Experiment(
        "made.up", Space.from_json({"a": {"choice": [1, 2]}, "b": {"cases": [{"when": {"a": [1]},
        "value": {"uniform": [0, 1]}}]}, "steps": 9}),
        "module:train", metric="loss", mode="min", num_samples=3, scheduler="asha", points_to_evaluate=[{"a": 1,
        "b": 0.5}], quick_values={"steps": 3},
    ).to_json()
)  # fmt: skip


@examples(150)
@given(st.sampled_from(sorted(DOCUMENT)), JSON, st.booleans())
def test_changed_experiment_is_rejected_or_read(name, value, is_removed):
    document = {key: old for key, old in DOCUMENT.items() if key != name} if is_removed else DOCUMENT | {name: value}
    try:
        experiment = experiment_from_json(document)
    except TuneHpcError as error:
        check_message(error)
    else:
        plain = through_json(experiment.to_json())
        assert experiment_from_json(plain) == experiment
        if name not in ("num_trials", "searcher", "space", "quick_values", "runner") and not is_removed:
            assert plain[name] == value
