"""What answers look like, for the OpenAPI description; the answers themselves are made elsewhere, once for all."""

from typing import Any

from pydantic import BaseModel

from tune_hpc.service.bodies import ErrorAnswer
from tune_hpc.service.frames import MEDIA_TYPES

_MEANINGS = {
    400: "The body is no JSON.",
    401: "No token, or another service's.",
    403: "A browser's request that did not come from this service's own page.",
    404: "Nothing is called so.",
    409: "It is not in a state for that, or somebody else does it at this moment.",
    413: "The body is too large.",
    422: "A rule is broken.",
    429: "Too many requests; Retry-After says how long to wait.",
    502: "The cluster cannot be reached, or refuses.",
    507: "The storage is full.",
}


def errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Return the errors of a route, as FastAPI takes them."""
    return {code: {"model": ErrorAnswer, "description": _MEANINGS[code]} for code in codes}


class ExperimentTold(BaseModel):
    """How far one experiment of a search is."""

    name: str
    title: str | None
    state: str
    metric: str
    mode: str | None
    quick: bool | None
    searcher: str | None
    scheduler: str | None
    num_trials: int
    num_ended: int
    ended: dict[str, int]
    running: int
    best_value: float | None
    best_trial: str | None
    left_s: float | None


class SearchStatus(BaseModel):
    """How a search stands."""

    id: str
    state: str
    is_active: bool
    reason: str
    num_trials: int
    num_ended: int
    attempt: int
    place: dict[str, Any]
    asked_at: str | None
    began_at: str | None
    ended_at: str | None
    experiments: list[ExperimentTold]


class SearchTold(SearchStatus):
    """How a search stands, and what was asked."""

    submitted: str | None
    options: dict[str, Any]
    parameters: dict[str, Any]


class SearchList(BaseModel):
    """A page of searches."""

    total: int
    offset: int
    searches: list[SearchStatus]


class TrialList(BaseModel):
    """A page of the trials frame."""

    total: int
    offset: int
    columns: list[str]
    trials: list[dict[str, Any]]


class HistoryList(BaseModel):
    """A page of the history frame."""

    total: int
    offset: int
    columns: list[str]
    history: list[dict[str, Any]]


class Curve(BaseModel):
    """One trial's curve."""

    trial_id: str
    status: str
    label: str
    group: str
    steps: list[int]
    values: list[float | None]


class CurveList(BaseModel):
    """Curves for a chart."""

    experiment: str
    metric: str
    metrics: list[str]
    group: str | None
    num_trials: int
    is_thinned: bool
    curves: list[Curve]


class ResponseLine(BaseModel):
    """The points of one line."""

    label: str
    is_joined: bool
    x: list[float]
    mean: list[float]
    num_trials: list[int]


class ResponseTold(BaseModel):
    """A metric against one parameter."""

    experiment: str
    metric: str
    metrics: list[str]
    parameter: str | None
    parameters: list[str]
    group: str | None
    is_log: bool
    num_points: int
    lines: list[ResponseLine]


class SpaceTold(BaseModel):
    """An experiment that may be asked for."""

    name: str
    title: str
    description: str
    source: str
    metric: str
    mode: str
    searcher: str
    num_samples: int | None
    scheduler: str
    seeds: list[int]
    num_trials: int
    quick_num_trials: int
    parameters: dict[str, Any]
    quick_parameters: dict[str, Any]
    varies: list[str]


class SpaceList(BaseModel):
    """All of them."""

    spaces: list[SpaceTold]


class Health(BaseModel):
    """Whether the service answers."""

    status: str
    version: str


def json_of(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Return the answers of a route that reads a search: JSON of this model."""
    return {200: {"model": model}, **errors(401, 404, 422, 429)}


def frame(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Return the answers of a route of frames: JSON of this model, or a file."""
    answers = json_of(model)
    answers[200]["content"] = {
        MEDIA_TYPES[kind]: {"schema": {"type": "string", "format": "binary"}} for kind in ("csv", "parquet")
    }
    return answers


def text(kind: str = "plain") -> dict[int | str, dict[str, Any]]:
    """Return the answers of a route of text, plain or HTML."""
    return {200: {"content": {f"text/{kind}": {"schema": {"type": "string"}}}}, **errors(401, 404, 422, 429)}
