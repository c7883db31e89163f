"""What an experiment declares beside its trials: published numbers, figures, tables. All of it is data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Published:
    """One published number, and which trials it is to be held against.

    Attributes:
        where: Configuration values that the number holds for.
        metric: The column of the trials frame that measures the same thing.
        value: The number as published, in that column's unit.
        source: Where it stands.
        best_over: A parameter over which the number is the best one; ``None``: ``where`` names everything.
        best_values: The values of ``best_over`` that the source names as the best.
        resolution: The last digit that was printed, in the column's unit: 0.001 of an accuracy of 99.1 %.
        size: Configuration values without which a measurement is not comparable: steps, the network's width.
    """

    where: Mapping[str, Any]
    metric: str
    value: float
    source: str
    best_over: str | None = None
    best_values: tuple[Any, ...] = ()
    resolution: float = 0.0
    size: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A published sentence, and the number of each trial by which it holds or does not.

    Attributes:
        text: The sentence, short.
        source: Where it stands.
        parameter: Whose values are held against one another.
        values: These, in the order that the sentence implies.
        measure: What is read off a trial's history; one of ``analysis.claims.MEASURES``.
        metric: Of this column.
        relation: What holds of the numbers: ``rising`` or ``falling`` (in the order of the values), ``first_lowest``,
            ``at_most`` or ``above`` (each of them, the bound), ``some_above_first``.
        steps: How far into the run; a shorter one cannot tell.
        bound: What the relation compares with.
        target: Where the metric should go.
        tolerance: How near is near enough.
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


@dataclass(frozen=True)
class Figure:
    """A figure of the report, as data.

    Attributes:
        kind: ``curve``: metrics against steps; ``response``: a trial's metrics against one parameter; ``heatmap``: a
            trial's metrics over two, ``parameter`` across and ``line`` down; ``published``: the published numbers
            beside ours, a row each, with their verdicts; ``parallel``: each configuration as a line across an axis per
            parameter and one for the metric, a figure for each metric; ``ranking``: the values of ``line``, the best
            first, with their intervals; ``budget``: what fewer configurations would have found; ``target``: which part
            of the configurations had reached ``target`` by when; ``stack``: parts on top of one another, a bar for each
            value of ``parameter``; ``speedup``: metrics against the number of workers, beside what they would be if no
            work were lost.
        metrics: One panel each. Columns of the history (``curve``) or of the trials (all others); of ``published``
            none means all that there are numbers of.
        title: What is shown, without numbers.
        line: The parameter whose values get a line each; the rows of a heat map, or of a ranking.
        page: The parameter whose values get a figure each.
        parameter: What a response is drawn against; the columns of a heat map.
        last_step: Where a curve is cut.
        log_x: Whether the horizontal axis is logarithmic.
        log_y: Whether the vertical axis is logarithmic.
        published: The metric of the published numbers that a response is drawn with.
        target: What the metric is to reach, in its own unit.
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
    """A table of the report, as data.

    Attributes:
        kind: ``best_per``: the best trial for each value of ``rows``; ``pivot``: the mean of ``metrics[0]`` by ``rows``
            and ``columns``; ``trials``: ``metrics`` of each trial; ``at_steps``: the same at some of its steps.
        title: What is shown.
        metrics: Columns of the trials, for ``at_steps`` of the history.
        rows: A parameter.
        columns: A parameter.
        steps: The steps at which ``at_steps`` reads.
    """

    kind: str
    title: str
    metrics: tuple[str, ...]
    rows: str | None = None
    columns: str | None = None
    steps: tuple[int, ...] = ()
