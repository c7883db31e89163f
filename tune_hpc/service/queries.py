"""What the address of a request may ask for, as pydantic models; unknown words are refused, for they are misspelt."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from tune_hpc.service.curves import MOST_CURVES, MOST_POINTS
from tune_hpc.service.frames import Query, split

_Texts = Annotated[list[Annotated[str, Field(max_length=500)]], Field(max_length=30)]


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid")


class OfExperiment(_Query):
    """Which experiment of a search."""

    experiment: Annotated[str, Field(max_length=200)] | None = Field(
        default=None, description="which experiment, where the search has several"
    )


class Rows(OfExperiment):
    """Which rows and columns of a frame, in which order and form."""

    filter: _Texts = Field(
        default_factory=list,
        description="COLUMN OPERATOR VALUES, like status=finished,stopped or learning_rate<0.01; repeatable; the "
        "operators are = != < <= > >= and ~ (contains)",
    )
    sort: _Texts = Field(default_factory=list, description="columns, with a hyphen before one whose largest come first")
    columns: _Texts = Field(default_factory=list, description="which columns, in this order; all by default")
    limit: Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(
        default=None, description="rows at most: of JSON 100 by default and 10,000 at most, of files all by default"
    )
    offset: Annotated[int, Field(ge=0, le=10_000_000_000)] = Field(default=0, description="rows to leave out before")
    format: Literal["json", "csv", "parquet"] = Field(default="json", description="of the answer")

    def query(self) -> Query:
        """Return it as frames take it."""
        return Query(
            tuple(self.filter), split(self.sort), split(self.columns), self.limit, self.offset, self.format
        )  # fmt: skip


class HistoryRows(Rows):
    """The same of the history."""

    trial: _Texts = Field(default_factory=list, description="ids of trials; all by default")


class Curves(OfExperiment):
    """Which curves."""

    metric: Annotated[str, Field(max_length=200)] | None = Field(
        default=None, description="by default what ranks trials"
    )
    filter: _Texts = Field(default_factory=list, description="which trials, as for /trials")
    max_curves: Annotated[int, Field(ge=1, le=MOST_CURVES)] = Field(default=MOST_CURVES, description="curves at most")
    max_points: Annotated[int, Field(ge=2, le=MOST_POINTS)] = Field(
        default=MOST_POINTS, description="points of each at most"
    )


class Response(OfExperiment):
    """Which metric against which parameter."""

    metric: Annotated[str, Field(max_length=200)] | None = Field(
        default=None, description="a column of the trials; by default an accuracy, or what ranks trials"
    )
    parameter: Annotated[str, Field(max_length=200)] | None = Field(
        default=None, description="one that varies and is a number; by default the learning rate, or the first"
    )


class Listing(_Query):
    """Which searches."""

    state: _Texts = Field(default_factory=list, description="only searches in these states, like running; repeatable")
    name: Annotated[str, Field(max_length=200)] | None = Field(
        default=None, description="only those whose id contains this"
    )
    limit: Annotated[int, Field(ge=1, le=1000)] = Field(default=100, description="searches at most")
    offset: Annotated[int, Field(ge=0, le=10_000_000_000)] = Field(
        default=0, description="searches to leave out before"
    )


class Tail(_Query):
    """How much of a log."""

    bytes: Annotated[int, Field(ge=1, le=1_000_000)] = Field(default=100_000, description="of its end, at most")


class TrialTail(Tail, OfExperiment):
    """How much of which trial's log."""
