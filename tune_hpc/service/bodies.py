"""What a request may ask for. Names lead to what the operator registered; values are plain JSON, and are never run.

Types are checked here, meanings where they are for everybody: by the space, the experiment and the options of a run.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

#: A request names at most so many parameters.
MAX_PARAMETERS = 100

Name = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=1, le=100_000)]
Parameters = Annotated[dict[Name, Any], Field(max_length=MAX_PARAMETERS)]
Positive = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Options(_Body):
    """How trials run; all may be left out."""

    cpus_per_trial: Positive | None = Field(default=None, description="CPU cores a trial, or each of its workers")
    gpus_per_trial: Annotated[float, Field(ge=0, le=1e4, allow_inf_nan=False)] | None = Field(
        default=None, description="GPUs a trial, or each of its workers"
    )
    max_concurrent: Count | None = Field(default=None, description="trials that run at once, at most")
    fuse: Count | Literal["auto", "off"] | None = Field(default=None, description="trials that train as one program")
    time_budget_s: Positive | None = Field(default=None, description="seconds after which the search ends")
    target: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        default=None, description="the search ends when a trial reaches such a metric"
    )

    def options(self) -> dict[str, Any]:
        """Return those that were given, as a run takes them."""
        return {name: getattr(self, name) for name in Options.model_fields if getattr(self, name) is not None}


class NewSearch(Options):
    """A search: a registered experiment, and what is to be otherwise."""

    space: Name = Field(description="the name of a registered experiment, as GET /spaces lists them")
    quick: bool = Field(default=False, description="fewer steps and values, for a first look")
    parameters: Parameters | None = Field(
        default=None, description="the whole space, in place of the experiment's own: as GET /spaces gives it, changed"
    )
    set: Parameters = Field(
        default_factory=dict,
        description="parameters that change: a constant, or a domain like {'choice': [1, 2]} or {'uniform': [0, 1]}",
    )
    searcher: Name | None = Field(default=None, description="grid, random, quasi_random, tpe or gp")
    num_samples: Count | None = Field(default=None, description="configurations that any but the grid tries")
    scheduler: Name | None = Field(default=None, description="none, asha, asha_stopping, hyperband, median or pbt")
    seeds: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None, description="run every configuration with the seeds 0 to seeds - 1"
    )
    search_seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(default=0, description="fixes what is drawn")
    metric: Name | None = Field(
        default=None, description="what ranks trials; another than the experiment's own needs mode"
    )
    mode: Literal["min", "max"] | None = Field(default=None, description="whether less or more of the metric is better")


class Stop(_Body):
    """How to stop a search."""

    force: bool = Field(default=False, description="end its driver at once: trials go on from the state they kept last")


class Extension(Options):
    """How many more configurations to try."""

    num_samples: Count = Field(description="how many more")
    experiment: Name | None = Field(default=None, description="of which experiment, where the search has several")


class Told(BaseModel):
    """What is told of an error."""

    kind: str
    message: str


class ErrorAnswer(BaseModel):
    """The answer to a request that is refused: the rule, the value and the remedy, in one line."""

    error: Told
