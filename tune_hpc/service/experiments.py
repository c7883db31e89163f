"""Registered experiments: the experiment of a request, and the form that makes a request.

Values in the form have the syntax of the command line: ``0.1``, ``0.1,0.01``, ``loguniform(1e-4, 1)``.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tune_hpc.errors import InvalidExperimentError, InvalidSpaceError, RequestError, UnknownNameError
from tune_hpc.search.experiment import Experiment
from tune_hpc.search.options import MAX_REQUEST_SAMPLES, ExperimentOverrides, RunOptions, options_of
from tune_hpc.search.space.parsing import parse_parameter
from tune_hpc.service.schemas import SearchRequest, SpaceDetail, read_fields

#: Maximum number of words of a choice that has checkboxes.
MAX_BOXES = 20
#: Values of a parameter or a condition.
MAX_VALUES = 1000
#: Options of the two sections of the form. The switch ``quick`` is above them, and configurations have no input.
OVERRIDES = [
    one for one in options_of(ExperimentOverrides) if one.label and one.hint is not bool and not one.is_mapping
]
RUN_OPTIONS = [option for option in options_of(RunOptions) if option.label]
#: Prefixes of the names of inputs: values of a parameter, checkboxes of words, values under a condition.
_PARAMETER, _BOX, _CASE = "p.", "c.", "k."

Form = Mapping[str, Sequence[str]]


class Registry:
    """Experiments that requests may start, by name."""

    def __init__(self, experiments: Iterable[Experiment]) -> None:
        self._by_name: dict[str, Experiment] = {}
        for experiment in experiments:
            if self._by_name.setdefault(experiment.name, experiment) != experiment:
                raise InvalidExperimentError(f"two registered experiments have the name {experiment.name}; rename one")
        self.describe = cache(self._describe)

    def __iter__(self) -> Iterator[Experiment]:
        return iter(self._by_name.values())

    def __getitem__(self, name: str) -> Experiment:
        """Return an experiment."""
        if name not in self._by_name:
            raise UnknownNameError(f"no space has the name {name[:200]!r}; there are {', '.join(self._by_name)}")
        return self._by_name[name]

    def build_experiment(self, request: SearchRequest) -> Experiment:
        """Return the experiment of a request, or raise the error of a field."""
        experiment = self[request.space]
        for plain in (request.parameters, request.set, *(request.points_to_evaluate or ())):
            _check_size(plain or {})
        built = request.overrides().apply_json(experiment, request.parameters, request.set)
        num_configurations = built.num_trials / max(1, len(built.seeds))
        if num_configurations > MAX_REQUEST_SAMPLES:
            raise RequestError(
                f"a search that is started over HTTP has at most {MAX_REQUEST_SAMPLES} configurations; got "
                f"{num_configurations:.0f}: use fewer values, or tune-hpc submit"
            )
        return built

    def _describe(self, name: str) -> dict[str, Any]:
        """Return the description of an experiment, as in responses."""
        experiment = self[name]
        plain, quick = experiment.to_json(), experiment.quick_version()
        values = plain | {
            "quick_num_trials": quick.num_trials,
            "parameters": plain["space"],
            "quick_parameters": quick.space.to_json(),
            "varies": experiment.space.varying,
        }
        return {name: values[name] for name in SpaceDetail.model_fields}


def _check_size(plain: Mapping[str, Any]) -> None:
    """Reject lists that would take long to evaluate; the space bounds its conditions."""
    for name, value in plain.items():
        waiting = [value]
        while waiting:
            current = waiting.pop()
            if isinstance(current, list) and len(current) > MAX_VALUES:
                text = f"a list has at most {MAX_VALUES} values; got {len(current)}: use fewer"
                raise InvalidSpaceError(f"{str(name)[:100]}: {text}")
            if isinstance(current, Mapping | list):
                waiting.extend(current.values() if isinstance(current, Mapping) else current)


@dataclass(frozen=True)
class Field:
    """Parameter in the form."""

    name: str
    #: ``boxes`` (words with checkboxes), ``text``, or ``cases`` (a text for each condition).
    kind: str
    text: str
    #: Words, and whether they are checked.
    boxes: tuple[tuple[str, bool], ...]
    help: str
    varies: bool
    #: Name of the input, condition, and values of each case.
    cases: tuple[tuple[str, str, str], ...] = ()


def fields(experiment: Experiment, form: Form) -> list[Field]:
    """Return the fields of an experiment, with the values of a form, or of the experiment for an empty form."""
    return [_field(experiment, name, form) for name in experiment.space]


def _field(experiment: Experiment, name: str, form: Form) -> Field:
    space = experiment.space
    plain, varies, key = space.to_json()[name], name in space.varying, space.value_keys.get(name)
    help_text = key.allowed if key else "a value, a list (1,2,3) or a range (uniform(0, 1))"
    if conditions := space.cases(name):
        cases = []
        for number, (condition, value) in enumerate(conditions):
            input_name = f"{_CASE}{number}.{name}"
            cases.append((input_name, condition, _text(form, input_name) or _without_choice(value.describe())))
        return Field(name, "cases", space.describe(name), (), help_text, varies, tuple(cases))
    text = _text(form, _PARAMETER + name) or space.describe(name)
    choice = plain.get("choice", []) if isinstance(plain, dict) else []
    if choice and len(choice) <= MAX_BOXES and all(isinstance(word, str) for word in choice):
        checked = form.get(_BOX + name, []) if form else choice
        return Field(name, "boxes", text, tuple((word, word in checked) for word in choice), help_text, varies)
    return Field(name, "text", text if form else _without_choice(text), (), help_text, varies)


def read_form(experiment: Experiment, form: Form) -> SearchRequest:
    """Return the request of a form, with the changes to the experiment only, or raise the error of a field."""
    options = {one.name: text for one in (*OVERRIDES, *RUN_OPTIONS) if (text := _text(form, one.name))}
    changes = {"space": experiment.name, "quick": "quick" in form, "set": _changes(experiment, form)}
    return read_fields(SearchRequest, options | changes)


def _changes(experiment: Experiment, form: Form) -> dict[str, Any]:
    """Return the parameters that the form changes."""
    space = experiment.space.to_json()
    changes: dict[str, Any] = {}
    for field in fields(experiment, {}):
        name, before = field.name, space[field.name]
        if field.kind == "boxes":
            words = [word for word, _ in field.boxes]
            checked = [word for word in words if word in form.get(_BOX + name, ())]
            if not checked:
                raise InvalidExperimentError(f"{name}: select at least one of {', '.join(words)}")
            if checked != words:
                changes[name] = {"choice": checked} if len(checked) > 1 else checked[0]
        elif field.kind == "cases":
            cases = [
                {**case, "value": parse_parameter(name, text).to_json()}
                if (text := _text(form, key)) and text != unchanged
                else case
                for (key, _, unchanged), case in zip(field.cases, before["cases"], strict=True)
            ]
            if cases != before["cases"]:
                changes[name] = {"cases": cases}
        elif (text := _text(form, _PARAMETER + name)) and text != field.text:
            plain = parse_parameter(name, text).to_json()
            if field.varies:
                before = {key: value for key, value in before.items() if key != "role"}
            if plain != before or type(plain) is not type(before):
                changes[name] = plain
    return changes


def _without_choice(text: str) -> str:
    """Return values in the syntax of the form, without ``choice(...)``."""
    return text.removeprefix("choice(").removesuffix(")") if text.startswith("choice(") else text


def _text(form: Form, name: str) -> str:
    return next(iter(form.get(name, ())), "").strip()


def summary(experiment: Experiment) -> str:
    """Return the size of an experiment in one line."""
    seeds = f", {len(experiment.seeds)} seeds" if len(experiment.seeds) > 1 else ""
    trials = "1 trial" if experiment.num_trials == 1 else f"{experiment.num_trials} trials"
    scheduler = f", {experiment.scheduler}" if experiment.scheduler != "none" else ""
    return f"{trials} ({experiment.searcher}{scheduler}{seeds})"
