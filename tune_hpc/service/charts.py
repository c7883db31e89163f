"""What the page's charts show beside curves: a metric against one parameter, and all parameters side by side."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.parallel import Scale, parallel_table
from tune_hpc.analysis.plot_data import is_geometric, is_numeric, response_table, values_of
from tune_hpc.analysis.results import Results
from tune_hpc.analysis.wording import axis_label, condition, number, value_text
from tune_hpc.errors import RequestError

#: Values of a parameter that get a colour each; more cannot be told apart.
MOST_GROUPS = 10
#: Points of a chart in all; lines of parallel coordinates.
MOST_DOTS = 2000
MOST_LINES = 150
#: The size of parallel coordinates, in units of the drawing: its height, between axes, and around them.
HEIGHT, LEAST_BETWEEN, ABOVE, BESIDE, BELOW = 300, 150, 34, 70, 16
#: As wide as the page, where there are few axes; but no wider between two of them than this.
WIDTH, MOST_BETWEEN = 1080, 320
#: Lines are coloured in so many steps, from the worst to the best.
NUM_SHADES = 5


def group_parameter(results: Results, *taken: str) -> str | None:
    """Return the parameter whose values get a colour each: the first one of a few names, or else of a few numbers."""
    few = [
        name
        for name in results.varying
        if name not in taken and name != "seed" and 1 < len(values_of(results, name)) <= MOST_GROUPS
    ]
    return next((name for name in few if not is_numeric(results, name)), next(iter(few), None))


def response_parameters(results: Results) -> list[str]:
    """Return the parameters that a metric can be drawn against, a learning rate first."""
    names = [
        name
        for name in results.varying
        if name != "seed" and is_numeric(results, name) and len(values_of(results, name)) > 1
    ]
    return sorted(names, key=lambda name: name != "learning_rate")


def response_metrics(results: Results) -> list[str]:
    """Return the columns that can be drawn against a parameter: an accuracy first, then what ranks trials."""
    known = [
        str(name)
        for name in results.trials
        if name not in (*results.config_columns, "trial_id") and is_numeric(results, str(name))
        and results.trials[name].notna().any()
    ]  # fmt: skip
    order = ["test_accuracy", "valid_accuracy", results.metric]
    return sorted(known, key=lambda name: order.index(name) if name in order else len(order))


def response(results: Results, metric: str | None, parameter: str | None) -> dict[str, Any]:
    """Return a metric of the trials that ended against one parameter, seeds taken together.

    Args:
        results: Of one experiment.
        metric: A numeric column of the trials; by default an accuracy, or what ranks trials.
        parameter: One that varies and is a number; by default the learning rate, or the first such.

    Returns:
        ``metric``, ``metrics``, ``parameter``, ``parameters``, ``group`` (the parameter whose values are the lines, or
        null), ``is_log``, and ``lines``: ``label``, ``is_joined`` (whether points differ in nothing but ``x``), ``x``,
        ``mean``, ``num_trials``.

    Raises:
        RequestError: no such parameter or metric.
    """
    parameters, metrics = response_parameters(results), response_metrics(results)
    for asked, known, what in ((parameter, parameters, "parameter of several numbers"), (metric, metrics, "metric")):
        if asked is not None and asked not in known:
            there = f"there are {', '.join(known)}" if known else "there is none yet"
            raise RequestError(f"{results.name} has no {what} {asked!r}; {there}")
    told: dict[str, Any] = {"experiment": results.name, "metrics": metrics, "parameters": parameters, "group": None}
    chosen, x = metric or next(iter(metrics), results.metric), parameter or next(iter(parameters), None)
    told |= {"metric": chosen, "parameter": x, "is_log": False, "lines": [], "num_points": 0}
    if x is None or chosen not in metrics:
        return told
    group = group_parameter(results, x)
    table = response_table(results, chosen, x, group, {})
    told |= {"group": group, "is_log": is_geometric(values_of(results, x)), "num_points": len(table)}
    for label, one in table.head(MOST_DOTS).groupby("line", sort=False, observed=True):
        told["lines"].append(
            {
                "label": value_text(label) if group else "",
                "is_joined": bool(one["is_joined"].all()),
                "x": one["x"].astype(float).tolist(),
                "mean": one["mean"].tolist(),
                "num_trials": one["num_trials"].astype(int).tolist(),
            }
        )
    told["lines"].sort(key=lambda one: one["label"])
    return told


@dataclass(frozen=True)
class Axis:
    """One axis of parallel coordinates, as it is drawn.

    Attributes:
        name: The parameter or metric.
        label: The same in words.
        x: Where it stands.
        ticks: Heights and texts along it.
    """

    name: str
    label: str
    x: int
    ticks: list[tuple[float, str]]


def parallel(results: Results) -> dict[str, Any] | None:
    """Return parallel coordinates as they are drawn; ``None`` where nothing can be compared.

    Returns:
        ``width``, ``height``, ``axes``, ``lines`` (``points`` of an SVG path, ``shade`` from 0, the worst, to
        ``NUM_SHADES - 1``, ``label``), ``num_configurations`` in all.
    """
    if results.metric not in results.trials:
        return None
    table, scales, num_configurations = parallel_table(results, results.metric, {})
    if table.empty:
        return None
    between = min(MOST_BETWEEN, max(LEAST_BETWEEN, (WIDTH - 2 * BESIDE - 60) // (len(scales) - 1)))
    axes = [_axis(scale, BESIDE + place * between) for place, scale in enumerate(scales)]
    kept = np.unique(np.linspace(0, len(table) - 1, min(len(table), MOST_LINES)).round().astype(int))
    table = table.iloc[kept].reset_index(drop=True)
    heights = [HEIGHT - scale.positions(table[scale.name]) * HEIGHT + ABOVE for scale in scales]
    lines = []
    for row in range(len(table)):
        points = [(axis.x, height[row]) for axis, height in zip(axes, heights, strict=True)]
        where = {scale.name: table[scale.name].iloc[row] for scale in scales[:-1]}
        value = number(float(table[results.metric].iloc[row]), results.metric)
        lines.append(
            {
                "points": _path(points),
                "shade": min(NUM_SHADES - 1, row * NUM_SHADES // len(table)),
                "label": f"{condition(where)}: {value}",
            }
        )
    return {
        "width": 2 * BESIDE + between * (len(axes) - 1),
        "height": HEIGHT + ABOVE + BELOW,
        "top": ABOVE,
        "bottom": ABOVE + HEIGHT,
        "axes": axes,
        "lines": lines,
        "num_configurations": num_configurations,
        "metric": results.metric,
    }


def _axis(scale: Scale, x: int) -> Axis:
    if scale.is_wordy or len(scale.values) <= 8:
        values = list(dict.fromkeys(scale.values))
    elif scale.is_log:
        values = list(np.geomspace(scale.low, scale.high, 5))
    else:
        values = list(np.linspace(scale.low, scale.high, 5))
    is_chosen = scale.is_wordy or len(scale.values) <= 8
    texts = [value_text(value) if is_chosen else f"{value:.3g}" for value in values]
    heights = (ABOVE + HEIGHT - scale.positions(pd.Series(values)) * HEIGHT).tolist()
    return Axis(scale.name, axis_label(scale.name), x, list(zip(heights, texts, strict=True)))


def _path(points: list[tuple[int, float]]) -> str:
    """Return a line through points as an SVG path; where a value is missing, it breaks off."""
    text, pen_is_down = [], False
    for x, y in points:
        if np.isnan(y):
            pen_is_down = False
            continue
        text.append(f"{'L' if pen_is_down else 'M'}{x} {y:.1f}")
        pen_is_down = True
    return "".join(text)
