"""The form by which a search is started: made from a space, and read back into what a request may ask for.

Values are written as on the command line (``0.1``, ``0.1,0.01``, ``loguniform(1e-4, 1)``) and read by the same grammar.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from tune_hpc.errors import InvalidExperimentError, RequestError
from tune_hpc.search.domains import describe, parse_domain, to_plain
from tune_hpc.search.experiment import Experiment
from tune_hpc.service.bodies import NewSearch

#: A choice of so many words or fewer has a box to tick for each.
MOST_BOXES = 20
#: A form has at most so many fields.
MOST_FIELDS = 500
#: Fields of the request, each with the kind of number that it holds.
NUMBERS = {
    "num_samples": int, "seeds": int, "search_seed": int, "max_concurrent": int, "cpus_per_trial": float,
    "gpus_per_trial": float, "time_budget_s": float, "target": float,
}  # fmt: skip
WORDS = ("searcher", "scheduler")
_PARAMETER, _BOX, _CASE = "p.", "c.", "k."

Form = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Field:
    """One parameter in the form.

    Attributes:
        name: Of the parameter.
        kind: ``boxes`` (words to tick), ``text``, or ``cases`` (it has conditions, and a text for each of them).
        text: Its values as they are written.
        boxes: Each word, and whether it is ticked.
        doc: What may be written.
        varies: Whether it has several values.
        cases: Of one with conditions: the name of each input, when it holds, and its values as they are written.
    """

    name: str
    kind: str
    text: str
    boxes: tuple[tuple[str, bool], ...]
    doc: str
    varies: bool
    cases: tuple[tuple[str, str, str], ...] = ()


def fields(experiment: Experiment, form: Form) -> list[Field]:
    """Return the fields of an experiment's form, filled in as the form was, or as the experiment is."""
    return [_field(experiment, name, form) for name in experiment.space]


def _field(experiment: Experiment, name: str, form: Form) -> Field:
    space = experiment.space
    plain, varies = space.to_json()[name], name in space.varying
    key = space.keys_of_values.get(name)
    doc = key.allowed if key else "a value, a list (1,2,3) or a range (uniform(0, 1))"
    if known := space.cases(name):
        inputs = [f"{_CASE}{number}.{name}" for number in range(len(known))]
        cases = tuple(
            (key, when, _text(form, key) or _as_written(value))
            for key, (when, value) in zip(inputs, known, strict=True)
        )
        return Field(name, "cases", space.describe(name), (), doc, varies, cases)
    text = form[_PARAMETER + name][0] if form.get(_PARAMETER + name) else space.describe(name)
    words = plain.get("choice", []) if isinstance(plain, dict) else []
    if words and len(words) <= MOST_BOXES and all(isinstance(one, str) for one in words):
        ticked = form.get(_BOX + name, []) if form else words
        return Field(name, "boxes", text, tuple((word, word in ticked) for word in words), doc, varies)
    if isinstance(plain, dict) and "choice" in plain:
        text = text.removeprefix("choice(").removesuffix(")") if not form else text
    return Field(name, "text", text, (), doc, varies)


def read_form(experiment: Experiment, form: Form) -> NewSearch:
    """Return what a form asks for: only what differs from the experiment is a change.

    Raises:
        RequestError: a field holds what it cannot.
        InvalidSpaceError: a value that cannot be read.
    """
    asked: dict[str, Any] = {"space": experiment.name, "quick": "quick" in form}
    for name, kind in NUMBERS.items():
        if text := _text(form, name):
            asked[name] = _number(name, text, kind)
    asked |= {name: text for name in WORDS if (text := _text(form, name))}
    if text := _text(form, "fuse"):
        asked["fuse"] = int(text) if text.isdigit() else text
    asked["set"] = _changes(experiment, form)
    try:
        return NewSearch(**asked)
    except ValidationError as error:
        one = error.errors()[0]
        raise RequestError(f"{'.'.join(map(str, one['loc']))}: {one['msg']}; got {str(one['input'])[:100]!r}") from None


def _changes(experiment: Experiment, form: Form) -> dict[str, Any]:
    held = experiment.space.to_json()
    changed: dict[str, Any] = {}
    for field in fields(experiment, {}):
        name = field.name
        if field.kind == "boxes":
            known = [word for word, _ in field.boxes]
            ticked = [word for word in known if word in form.get(_BOX + name, ())]
            if not ticked:
                raise InvalidExperimentError(f"{name}: tick at least one of {', '.join(known)}")
            if ticked != known:
                changed[name] = {"choice": ticked} if len(ticked) > 1 else ticked[0]
        elif field.kind == "cases":
            before = held[name]["cases"]
            cases = [
                {**case, "value": to_plain(name, parse_domain(name, text))}
                if (text := _text(form, key)) and text != written
                else case
                for (key, _, written), case in zip(field.cases, before, strict=True)
            ]
            if cases != before:
                changed[name] = {"cases": cases}
        else:
            text = _text(form, _PARAMETER + name)
            if text and text != field.text:
                plain = to_plain(name, parse_domain(name, text))
                before = {key: one for key, one in held[name].items() if key != "role"} if field.varies else held[name]
                if plain != before or type(plain) is not type(before):
                    changed[name] = plain
    return changed


def _as_written(value: Any) -> str:
    """Return values as they are written in the form: several have commas between them."""
    text = describe(value)
    return text.removeprefix("choice(").removesuffix(")") if text.startswith("choice(") else text


def _text(form: Form, name: str) -> str:
    return next(iter(form.get(name, ())), "").strip()


def _number(name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise RequestError(f"{name} is {what}; got {text[:100]!r}: correct it, or leave it empty") from None


def new_key(form: Form) -> str:
    """Return what makes one filled-in form one search, however often it is sent."""
    return next(iter(form.get("key", ())), None) or secrets.token_urlsafe(16)


def in_words(experiment: Experiment) -> str:
    """Return in a line what an experiment would try."""
    seeds = f", {len(experiment.seeds)} seeds" if len(experiment.seeds) > 1 else ""
    trials = "1 trial" if experiment.num_trials == 1 else f"{experiment.num_trials} trials"
    scheduler = f", {experiment.scheduler}" if experiment.scheduler != "none" else ""
    return f"{trials} ({experiment.searcher}{scheduler}{seeds})"
