"""Request and response models of the API.

Options of a search become fields of requests. Types and bounds are checked here; the space and the experiment check the
rest. Unknown fields and parameters are rejected, because they are typing errors.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlencode

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from starlette.requests import Request

from tune_hpc.analysis.frame_query import FrameQuery, split_names
from tune_hpc.errors import RequestError
from tune_hpc.jobs.status import JobState
from tune_hpc.report.chart_data import MAX_CURVES, MAX_POINTS
from tune_hpc.search.options import (
    MAX_REQUEST_SAMPLES,
    SCHEDULERS,
    SEARCHERS,
    ExperimentOverrides,
    Option,
    OptionSet,
    RunOptions,
    options_of,
)

MAX_PARAMETERS = 100
#: States of a search. ``unreadable``: its files cannot be read.
STATES = (*(str(state) for state in JobState), "unreadable")

Name = Annotated[str, Field(min_length=1, max_length=200)]
Parameters = Annotated[dict[Name, Any], Field(max_length=MAX_PARAMETERS)]
Offset = Annotated[int, Field(ge=0, le=10_000_000_000)]
State = Annotated[str, Field(json_schema_extra={"enum": list(STATES)})]
Text = Annotated[str, Field(max_length=200)]
_Texts = Annotated[list[Annotated[str, Field(max_length=500)]], Field(max_length=30)]


class Body(BaseModel):
    """Body of a request."""

    model_config = ConfigDict(extra="forbid", strict=True)


BodyType = TypeVar("BodyType", bound=Body)


def read_fields(model: type[BodyType], fields: Mapping[str, Any]) -> BodyType:
    """Return a request from the fields of a form, whose numbers are texts; unknown fields are ignored."""
    try:
        known = {name: value for name, value in fields.items() if name in model.model_fields}
        return model.model_validate(known, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        name, value = ".".join(map(str, first["loc"])), str(first["input"])[:100]
        raise RequestError(f"{name}: {first['msg']}; got {value!r}: correct it, or leave it empty") from None


def _option_type(option: Option) -> Any:
    """Return the type of an option in a request, with its bounds."""
    if option.hint is bool:
        return bool
    if option.is_mapping:
        return Annotated[list[Parameters], Field(max_length=MAX_REQUEST_SAMPLES)]
    if option.number is None:
        words = Annotated[Name, Field(json_schema_extra={"enum": list(option.choices)})] if option.choices else Name
        return words if option.is_open or not option.choices else Literal[option.choices]
    limits: dict[str, Any] = {"ge": option.minimum, "gt": option.above, "le": option.request_maximum}
    if option.number is float:
        limits["allow_inf_nan"] = False
    number = Annotated[option.number, Field(**limits)]  # type: ignore[name-defined]
    return number | Literal[option.choices] if option.choices else number


def _options_model(option_set: type[OptionSet], **defaults: Any) -> Any:
    """Return a model with a field for each option that requests can set; the default is None unless given."""
    model_fields: dict[str, Any] = {}
    for option in options_of(option_set):
        if option.label:
            kind, default = _option_type(option), defaults.get(option.name)
            field = Field(default=default, description=option.help)
            model_fields[option.name] = (kind | None if default is None else kind, field)
    return create_model(option_set.__name__, __base__=Body, **model_fields)


class _RunRequest(_options_model(RunOptions)):  # type: ignore[misc]
    def run_options(self) -> dict[str, Any]:
        """Return the options that were given."""
        return self.model_dump(include=set(_RunRequest.model_fields), exclude_none=True)


class SearchRequest(_RunRequest, _options_model(ExperimentOverrides, quick=False)):  # type: ignore[misc]
    """A search to start: a registered experiment, with changes."""

    model_config = ConfigDict(json_schema_extra={"examples": [
        {"space": "exercise1_1stpart", "quick": True, "set": {"learning_rate": {"choice": [0.01, 0.1]}}}
    ]})  # fmt: skip

    space: Name = Field(description="the name of a registered experiment; GET /api/v1/spaces lists them")
    parameters: Parameters | None = Field(
        default=None,
        description="the whole space, instead of that of the experiment; in the form of GET /api/v1/spaces",
    )
    set: Parameters = Field(
        default_factory=dict,
        description="parameters to change: a constant, or a domain like {'choice': [1, 2]} or {'uniform': [0, 1]}",
    )

    def overrides(self) -> ExperimentOverrides:
        """Return the changes to the experiment."""
        return ExperimentOverrides(**{one.name: getattr(self, one.name) for one in options_of(ExperimentOverrides)})


_RETRY_FAILED = next(option.help for option in options_of(RunOptions) if option.name == "retry_failed")


class DeleteRequest(Body):
    """Deletion of a search."""


class StopRequest(Body):
    """Options of a stop."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"force": False}]})

    force: bool = Field(default=False, description="kill the driver; trials resume from their last checkpoint")


class RestartRequest(_RunRequest):
    """Options of a resume or an extension."""

    attempt: int | None = Field(
        default=None, ge=1, le=100_000, description="latest attempt that the client knows; 409 if there is a newer one"
    )
    force: bool = Field(default=False, description="resume a search of state unknown; its driver, if it runs, stops")


class ResumeRequest(RestartRequest):
    """Options of a resume."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"attempt": 1, "max_concurrent": 4}]})

    retry_failed: bool | None = Field(default=None, description=_RETRY_FAILED)


class ExtendRequest(RestartRequest):
    """Options of an extension."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"num_samples": 10}]})

    num_samples: int = Field(ge=1, le=MAX_REQUEST_SAMPLES, description="number of additional configurations")
    experiment: Name | None = Field(default=None, description="the experiment, if the search has several")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


_Finite = Annotated[float | None, BeforeValidator(_finite)]


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid")


def next_link(request: Request, query: _Query, **changes: Any) -> dict[str, str]:
    """Return the Link header to the next page, whose query has these changes."""
    values = query.model_dump(exclude_defaults=True) | changes
    return {"Link": f'<{request.url.path}?{urlencode(values, doseq=True)}>; rel="next"'}


class ExperimentQuery(_Query):
    """Selects an experiment of a search."""

    experiment: Text | None = Field(default=None, description="the experiment, if the search has several")


class TrialsQuery(ExperimentQuery):
    """Selects rows and columns of a frame."""

    filter: _Texts = Field(
        default_factory=list,
        description="COLUMN OPERATOR VALUES, like status=finished,stopped or learning_rate<0.01; repeatable; the "
        "operators are = != < <= > >= and ~ (contains)",
    )
    sort: _Texts = Field(default_factory=list, description="columns to sort by; a hyphen before one: largest first")
    columns: _Texts = Field(default_factory=list, description="columns of the response; default: all")
    limit: int | None = Field(
        default=None, ge=1, le=10_000_000,
        description="maximum number of rows: 100 by default and at most 10,000 in JSON, all in files",
    )  # fmt: skip
    offset: Offset = Field(default=0, description="number of rows to skip")
    format: Literal["json", "csv", "parquet"] = Field(default="json", description="format of the response")

    def frame_query(self) -> FrameQuery:
        """Return the query of the frame."""
        names = split_names(self.sort), split_names(self.columns)
        return FrameQuery(tuple(self.filter), *names, self.limit, self.offset, self.format)


class HistoryQuery(TrialsQuery):
    """Selects rows and columns of the history."""

    trial: _Texts = Field(default_factory=list, description="ids of trials; default: all")


class CurvesQuery(ExperimentQuery):
    """Selects learning curves."""

    metric: Text | None = Field(default=None, description="default: the one that ranks trials")
    filter: _Texts = Field(default_factory=list, description="selects trials, as for /trials")
    max_curves: int = Field(default=MAX_CURVES, ge=1, le=MAX_CURVES, description="maximum number of curves")
    max_points: int = Field(default=MAX_POINTS, ge=2, le=MAX_POINTS, description="maximum number of points per curve")


class ResponseQuery(ExperimentQuery):
    """Selects a metric and a parameter."""

    metric: Text | None = Field(default=None, description="column of the trials; default: an accuracy, or the metric")
    parameter: Text | None = Field(
        default=None, description="a varied number; default: the learning rate, or the first"
    )


class SearchesQuery(_Query):
    """Selects searches."""

    state: list[State] = Field(default_factory=list, max_length=30, description="states of the searches; repeatable")
    name: Text | None = Field(default=None, description="a part of the id")
    limit: int = Field(default=100, ge=1, le=1000, description="maximum number of searches")
    after: str | None = Field(
        default=None, max_length=300, description="last id of the previous page, as in the Link header of that page"
    )


class LogQuery(_Query):
    """Selects the tail of a log."""

    bytes: int = Field(default=100_000, ge=1, le=1_000_000, description="size of the tail")


class TrialLogQuery(LogQuery, ExperimentQuery):
    """Selects the tail of the log of a trial."""


class CheckpointQuery(ExperimentQuery):
    """Selects a retained checkpoint."""

    trial: str | None = Field(default=None, max_length=200, description="id of the trial; default: the best trial")


class ExperimentDetail(BaseModel):
    """Progress of an experiment of a search."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    name: str
    title: str | None = None
    state: str
    metric: str
    mode: str | None = None
    quick: bool | None = None
    searcher: str | None = None
    scheduler: str | None = None
    num_trials: int
    num_ended: int
    counts: dict[str, int]
    num_running: int
    best_value: _Finite
    best_trial: str | None
    remaining_s: _Finite
    first_error: str = ""
    fraction: _Finite = None


class SearchStatus(BaseModel):
    """Status of a search."""

    id: str
    state: State
    is_active: bool
    reason: str
    num_trials: int
    num_ended: int
    attempt: int
    location: dict[str, Any]
    requested_at: str | None
    started_at: str | None
    ended_at: str | None
    experiments: list[ExperimentDetail]


class SearchDetail(SearchStatus):
    """Status of a search, and its request."""

    submitted: str | None
    options: dict[str, Any]
    parameters: dict[str, Any]


class SearchList(BaseModel):
    """A page of searches."""

    total: int
    searches: list[SearchStatus]


class _FramePage(BaseModel):
    total: int
    offset: int
    columns: list[str]


class TrialList(_FramePage):
    """A page of the trials."""

    trials: list[dict[str, Any]]


class HistoryList(_FramePage):
    """A page of the history."""

    history: list[dict[str, Any]]


class SpaceDetail(BaseModel):
    """A registered experiment."""

    name: str
    title: str
    description: str
    source: str
    metric: str
    mode: Literal["min", "max"]
    searcher: Annotated[str, Field(json_schema_extra={"enum": list(SEARCHERS)})]
    num_samples: int | None
    scheduler: Annotated[str, Field(json_schema_extra={"enum": list(SCHEDULERS)})]
    seeds: list[int]
    num_trials: int
    quick_num_trials: int
    parameters: dict[str, Any]
    quick_parameters: dict[str, Any]
    varies: list[str]


class SpaceList(BaseModel):
    """The registered experiments."""

    spaces: list[SpaceDetail]


class Health(BaseModel):
    """Liveness or readiness of the service."""

    status: Literal["ok"]
    version: str
