"""Chart data for the service: learning curves, a metric as a function of a parameter, parallel coordinates."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.formatting import axis_label, format_config, format_metric, format_value
from tune_hpc.analysis.frame_query import apply_filters, records
from tune_hpc.analysis.reader import ResultsSnapshot
from tune_hpc.analysis.results import Results
from tune_hpc.errors import RequestError
from tune_hpc.report.plots.parallel_coordinates import ParallelAxis, parallel_table
from tune_hpc.report.plots.response import response_table
from tune_hpc.report.plots.series import even_sample, free_parameters, is_geometric, is_numeric, values_of

#: Learning curves, and points of each.
MAX_CURVES, MAX_POINTS = 100, 200
#: Values of a parameter that get a color each.
MAX_GROUPS = 10
#: Points of a response curve in all; lines of parallel coordinates.
MAX_RESPONSE_POINTS, MAX_LINES = 2000, 150
#: Layout of parallel coordinates, in units of the SVG.
WIDTH, HEIGHT, TOP, SIDE, BOTTOM = 1080, 300, 34, 70, 16
MIN_AXIS_DISTANCE, MAX_AXIS_DISTANCE = 150, 320
#: Colors of the lines of parallel coordinates, from the worst to the best.
NUM_SHADES = 5


@dataclass(frozen=True)
class Curve:
    """Learning curve of a trial."""

    trial_id: str
    status: str
    label: str
    group: str
    steps: list[int]
    values: list[float | None]


@dataclass(frozen=True)
class CurveList:
    """Learning curves of a metric; ``num_trials`` trials have one."""

    experiment: str
    metric: str
    metrics: list[str]
    group: str | None
    num_trials: int
    is_thinned: bool
    curves: list[Curve]


@dataclass(frozen=True)
class ResponseLine:
    """Points of a response curve, which are joined if they differ in ``x`` only."""

    label: str
    is_joined: bool
    x: list[float]
    mean: list[float]
    num_trials: list[int]


@dataclass(frozen=True)
class ResponseCurve:
    """A metric as a function of a parameter."""

    experiment: str
    metric: str
    metrics: list[str]
    parameter: str | None
    parameters: list[str]
    group: str | None = None
    is_log: bool = False
    num_points: int = 0
    lines: list[ResponseLine] = field(default_factory=list)


def group_parameter(results: Results, *excluded: str) -> str | None:
    """Return the parameter that colors distinguish: the first with few words, or else with few numbers."""
    names = free_parameters(results, excluded)
    candidates = [name for name in names if 1 < len(values_of(results, name)) <= MAX_GROUPS]
    return next((name for name in candidates if not is_numeric(results, name)), next(iter(candidates), None))


def learning_curves(
    results: ResultsSnapshot, metric: str | None, filters: Sequence[str], max_curves: int, max_points: int
) -> CurveList:
    """Return downsampled learning curves, each with its first and last point, of running trials and of the best ones.

    ``metric`` is by default the one that ranks trials, or the first of the history.

    Raises:
        RequestError: There is no such metric, or a filter is malformed.
    """
    ranking_metric = results.metric.removeprefix("best_").removeprefix("selected_")
    metrics = [name for name in results.histories.columns if name not in ("trial_id", "step")]
    metrics.sort(key=lambda name: name != ranking_metric)
    _check_known(results, metric, metrics, "metric")
    metric = metric or next(iter(metrics), results.metric)
    trials = apply_filters(results.trials, filters)
    trials = trials[trials["trial_id"].isin(results.histories.trials_with(metric))]
    drawn = _running_and_best(results, trials, max_curves)
    points = _history_points(results, drawn, metric)
    names, group = [name for name in results.varied_parameters if name in drawn], group_parameter(results)
    curves = [
        Curve(
            row["trial_id"],
            row["status"],
            format_config({name: row[name] for name in names if row[name] is not None}),
            format_value(row[group]) if group else "",
            *_downsample(*points[row["trial_id"]], max_points),
        )
        for row in records(drawn[["trial_id", "status", *names]])
    ]
    is_thinned = any(len(points[curve.trial_id][0]) > len(curve.steps) for curve in curves)
    return CurveList(results.name, metric, metrics, group, len(trials), is_thinned, curves)


def _running_and_best(results: Results, trials: pd.DataFrame, limit: int) -> pd.DataFrame:
    """Return the trials whose curves are drawn; the best is last, above the others."""
    if len(trials) > limit:
        running = trials[trials["status"] == "running"].tail(limit // 2)
        others = trials[~trials["trial_id"].isin(running["trial_id"])]
        trials = pd.concat([_ranked(results, others).head(limit - len(running)), running])
    return _ranked(results, trials).iloc[::-1]


def _ranked(results: Results, trials: pd.DataFrame) -> pd.DataFrame:
    if results.metric not in trials:
        return trials
    return trials.sort_values(results.metric, ascending=results.experiment["mode"] == "min", kind="stable")


def _history_points(
    results: ResultsSnapshot, trials: pd.DataFrame, metric: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return steps and values of a metric by trial."""
    if trials.empty:
        return {}
    history = results.histories.frame(trials["trial_id"]).dropna(subset=[metric]).sort_values("step", kind="stable")
    steps, values = history["step"].to_numpy().astype(int), history[metric].to_numpy(float)
    rows = history.groupby("trial_id", observed=True).indices
    return {str(trial_id): (steps[indices], values[indices]) for trial_id, indices in rows.items()}


def _downsample(steps: np.ndarray, values: np.ndarray, limit: int) -> tuple[list[int], list[float | None]]:
    indices = even_sample(len(steps), limit)
    return steps[indices].tolist(), [value if np.isfinite(value) else None for value in values[indices].tolist()]


def response_parameters(results: Results) -> list[str]:
    """Return the numeric parameters that vary, a learning rate first."""
    names = free_parameters(results, [])
    names = [name for name in names if is_numeric(results, name) and len(values_of(results, name)) > 1]
    return sorted(names, key=lambda name: name != "learning_rate")


def _response_metrics(results: Results) -> list[str]:
    """Return the numeric columns that are not parameters: an accuracy first, then the one that ranks trials."""
    parameters = {*results.config_columns, "trial_id"}
    columns = [str(name) for name in results.trials if str(name) not in parameters and is_numeric(results, str(name))]
    first = ["test_accuracy", "valid_accuracy", results.metric]
    return sorted(
        (name for name in columns if results.trials[name].notna().any()),
        key=lambda name: first.index(name) if name in first else len(first),
    )


def response_curve(results: Results, metric: str | None, parameter: str | None) -> ResponseCurve:
    """Return a metric of ended trials as a function of a parameter, averaged over seeds.

    Defaults are an accuracy or the metric that ranks trials, and the learning rate or the first numeric parameter that
    varies.

    Raises:
        RequestError: There is no such parameter or metric.
    """
    parameters, metrics = response_parameters(results), _response_metrics(results)
    _check_known(results, parameter, parameters, "numeric parameter that varies")
    _check_known(results, metric, metrics, "metric")
    metric, parameter = metric or next(iter(metrics), results.metric), parameter or next(iter(parameters), None)
    curve = ResponseCurve(results.name, metric, metrics, parameter, parameters)
    if parameter is None or metric not in metrics:
        return curve
    group = group_parameter(results, parameter)
    table = response_table(results, metric, parameter, group, {})
    lines = [
        ResponseLine(
            format_value(label) if group else "",
            bool(line["is_joined"].all()),
            line["x"].astype(float).tolist(),
            line["mean"].tolist(),
            line["num_trials"].astype(int).tolist(),
        )
        for label, line in table.head(MAX_RESPONSE_POINTS).groupby("line", sort=False, observed=True)
    ]
    is_log = is_geometric(values_of(results, parameter))
    lines.sort(key=lambda line: line.label)
    return replace(curve, group=group, is_log=is_log, num_points=len(table), lines=lines)


def _check_known(results: Results, name: str | None, known: Sequence[str], kind: str) -> None:
    if name is not None and name not in known:
        alternatives = f"there are {', '.join(known)}" if known else "there is none yet"
        raise RequestError(f"{results.name} has no {kind} {name!r}; {alternatives}")


def parallel_coordinates(results: Results) -> dict[str, Any] | None:
    """Return parallel coordinates as SVG paths; ``None`` if there are no two configurations to compare.

    Returns:
        ``width``, ``height``, ``top``, ``bottom``, ``axes`` (``label``, ``x``, ``ticks``: heights and texts), ``lines``
        (``points`` of an SVG path, ``shade`` from 0, the worst, to ``NUM_SHADES - 1``, ``label``),
        ``num_configurations`` in all.
    """
    if results.metric not in results.trials:
        return None
    table, scales, num_configurations = parallel_table(results, results.metric, {})
    if table.empty:
        return None
    distance = min(MAX_AXIS_DISTANCE, max(MIN_AXIS_DISTANCE, (WIDTH - 2 * SIDE - 60) // (len(scales) - 1)))
    positions = [SIDE + index * distance for index in range(len(scales))]
    table = table.iloc[even_sample(len(table), MAX_LINES)].reset_index(drop=True)
    heights = [TOP + HEIGHT - scale.positions(table[scale.name]) * HEIGHT for scale in scales]
    lines = []
    for row in range(len(table)):
        config = {scale.name: table[scale.name].iloc[row] for scale in scales[:-1]}
        value = format_metric(float(table[results.metric].iloc[row]), results.metric)
        lines.append(
            {
                "points": _svg_path([(x, height[row]) for x, height in zip(positions, heights, strict=True)]),
                "shade": min(NUM_SHADES - 1, row * NUM_SHADES // len(table)),
                "label": f"{format_config(config)}: {value}",
            }
        )
    return {
        "width": positions[-1] + SIDE, "height": TOP + HEIGHT + BOTTOM, "top": TOP, "bottom": TOP + HEIGHT,
        "axes": [
            {"label": axis_label(scale.name), "x": x, "ticks": _ticks(scale)}
            for x, scale in zip(positions, scales, strict=True)
        ],
        "lines": lines, "num_configurations": num_configurations,
    }  # fmt: skip


def _ticks(scale: ParallelAxis) -> list[tuple[float, str]]:
    """Return the heights and texts of an axis's labels: all values if they are few."""
    has_all_values = scale.is_categorical or len(scale.values) <= 8
    if has_all_values:
        values = list(dict.fromkeys(scale.values))
    else:
        values = list((np.geomspace if scale.is_log else np.linspace)(scale.low, scale.high, 5))
    texts = [format_value(value) if has_all_values else f"{value:.3g}" for value in values]
    heights = (TOP + HEIGHT - scale.positions(pd.Series(values)) * HEIGHT).tolist()
    return list(zip(heights, texts, strict=True))


def _svg_path(points: list[tuple[int, float]]) -> str:
    """Return a line through points; it is interrupted where a value is missing."""
    text, command = "", "M"
    for x, y in points:
        if np.isnan(y):
            command = "M"
        else:
            text += f"{command}{x} {y:.1f}"
            command = "L"
    return text
