"""Declarations of an experiment for its report: published numbers, claims, figures and tables. All are data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tune_hpc.analysis.claims import MEASURE_NAMES, ORDERS, RELATIONS
from tune_hpc.errors import InvalidExperimentError


@dataclass(frozen=True)
class Published:
    """One published number, and the trials to compare with it.

    Attributes:
        where: Configuration values of the number.
        metric: Column of the trials frame that measures the same quantity.
        value: The number as published, in the unit of the column.
        source: Table or page of the publication.
        best_over: Parameter over which the number is the best one; ``None``: ``where`` names everything.
        best_values: Best values of ``best_over`` according to the source.
        resolution: Last printed digit, in the unit of the column: 0.001 for an accuracy of 99.1 %.
        size: Configuration values that a comparable measurement needs, such as steps and the width of the network.
    """

    where: Mapping[str, Any]
    metric: str
    value: float
    source: str
    best_over: str | None = None
    best_values: tuple[Any, ...] = ()
    resolution: float = 0.0
    size: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("value", self.value), ("resolution", self.resolution)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise InvalidExperimentError(f"{name} of a published number must be a number; got {value!r}")
        if self.resolution < 0:
            raise InvalidExperimentError(f"resolution must be at least 0; got {self.resolution}")
        if self.metric.endswith("_s") and self.value <= 0:
            raise InvalidExperimentError(f"a published {self.metric} must be above 0; got {self.value:g}")
        if self.metric.endswith("accuracy") and not 0 <= self.value <= 1:
            raise InvalidExperimentError(
                f"a published {self.metric} must be a fraction from 0 to 1; got {self.value:g}: 99 % is 0.99"
            )


@dataclass(frozen=True)
class Claim:
    """A published sentence, and the numbers that confirm or refute it: one for each value of a parameter.

    Attributes:
        text: The sentence, short.
        source: Page of the publication.
        parameter: Parameter whose values are compared.
        values: The values, in the order that the sentence implies.
        measure: ``result`` (the metric of the best configuration with the value), or a measure of its history: one of
            ``analysis.claims.MEASURES``.
        metric: Column of the trials (``result``) or of the history.
        relation: Relation of the numbers: ``rising`` or ``falling`` (in the order of the values), ``first_lowest``,
            ``first_highest``, ``some_above_first``; ``at_most``, ``below`` or ``above`` (each number, the bound), or
            ``within`` (each number's distance from the target, the bound).
        steps: Number of steps of the sentence; shorter trials are inconclusive.
        bound: Bound of the relation.
        target: Target of the metric.
        tolerance: Distance from the target that counts as reached.
        where: Configuration values of the sentence, such as the width of the network.
    """

    text: str
    source: str
    parameter: str
    values: tuple[Any, ...]
    measure: str
    metric: str
    relation: str
    steps: int
    bound: float = 0.0
    target: float = 0.0
    tolerance: float = 0.0
    where: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value, known in (("relation", self.relation, RELATIONS), ("measure", self.measure, MEASURE_NAMES)):
            if value not in known:
                raise InvalidExperimentError(f"{name} of a claim must be one of {', '.join(known)}; got {value!r}")
        if len(self.values) < (at_least := 1 + (self.relation in ORDERS)):
            raise InvalidExperimentError(
                f"a claim that is {self.relation} needs at least {at_least} values; got {len(self.values)}: add values"
            )


@dataclass(frozen=True)
class Figure:
    """A figure of the report.

    Attributes:
        kind: ``curve``: metrics against steps; ``response``: final metrics against one parameter; ``heatmap``: final
            metrics over two parameters, ``parameter`` across and ``line`` down; ``published``: published numbers beside
            measured ones, with verdicts; ``parallel``: parallel coordinates, one figure for each metric; ``ranking``:
            values of ``line`` with their intervals, the best first; ``budget``: expected best value of smaller
            searches; ``target``: fraction of configurations that reached ``target`` against time; ``stack``: stacked
            parts, one bar for each value of ``parameter``; ``speedup``: metrics against the number of workers, beside
            the ideal ones.
        metrics: Columns of the history (``curve``) or of the trials (all others), one panel each; for ``published``, an
            empty tuple means all metrics with published numbers.
        title: Subject of the figure, without numbers.
        line: Parameter with one line for each value; the rows of a heat map, or of a ranking.
        page: Parameter with one figure for each value.
        parameter: Horizontal axis of a response; columns of a heat map.
        last_step: Last step of a curve.
        log_x: Whether the horizontal axis is logarithmic.
        log_y: Whether the vertical axis is logarithmic.
        published: Metric of the published numbers in a response.
        target: Target of the metric, in its unit.
    """

    kind: str
    metrics: tuple[str, ...]
    title: str
    line: str | None = None
    page: str | None = None
    parameter: str | None = None
    last_step: int | None = None
    log_x: bool = False
    log_y: bool = False
    published: str | None = None
    target: float | None = None


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        kind: ``best_per``: the best trial for each value of ``rows``; ``pivot``: the mean of ``metrics[0]`` by ``rows``
            and ``columns``; ``trials``: ``metrics`` of each trial; ``at_steps``: the same at some of its steps.
        title: Subject of the table.
        metrics: Columns of the trials; for ``at_steps``, of the history.
        rows: Parameter of the rows.
        columns: Parameter of the columns.
        steps: Steps of ``at_steps``.
    """

    kind: str
    title: str
    metrics: tuple[str, ...]
    rows: str | None = None
    columns: str | None = None
    steps: tuple[int, ...] = ()
