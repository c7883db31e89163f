"""Analyses of arbitrary frames: an answer with intervals in order, or an error of tune_hpc in one line."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import tune_hpc
from tests.fuzz.profile import check_message, examples
from tune_hpc.analysis import speedup
from tune_hpc.analysis.frames import LazyHistory, trials_frame
from tune_hpc.analysis.reader import ResultsSnapshot
from tune_hpc.analysis.results import Results
from tune_hpc.analysis.value_labels import with_value_labels
from tune_hpc.errors import TuneHpcError
from tune_hpc.report import chart_data, tables
from tune_hpc.report.findings import findings
from tune_hpc.report.plots import figures
from tune_hpc.report.plots.heatmap import heat_table
from tune_hpc.report.plots.parallel_coordinates import parallel_table
from tune_hpc.report.plots.response import response_table

KEYS = ["optimizer", "rate", "flag", "mixed", "seed"]
SPACE = {
    "optimizer": {"choice": ["adam", "momentum", None]}, "rate": {"loguniform": [1e-4, 1]},
    "flag": {"choice": [True, False]}, "mixed": {"choice": [1, "1", None, [1], 2.5]}, "layers": 3,
}  # fmt: skip
METRICS = ["loss", "test_accuracy", "selected_test_accuracy", "best_test_accuracy", "train_s"]
STATUSES = ["finished", "stopped", "diverged", "failed", "running"]
FINITE = st.floats(-1e6, 1e6) | st.sampled_from([0.0, 0.5, 1.0, 1e-300, -0.0, 0.25])
NUMBERS = FINITE | st.sampled_from([math.nan, math.inf, -math.inf, 1e150, -1e150, 5e-324])
VALUES = {
    "optimizer": st.sampled_from(["adam", "momentum", "adam", None, math.nan, "", "gradient_descent"]),
    "rate": st.sampled_from([0.1, 0.01, 0.001, 1, None]) | st.floats(1e-4, 1),
    "flag": st.sampled_from([True, False, None]),
    "mixed": st.sampled_from([1, "1", None, [1], 2.5, True, {"a": 1}]),
    "seed": st.sampled_from([0, 1, 2, 2**31 - 1]),
}
#: Columns of a metric: what trainables report, and what frames from elsewhere may have.
COLUMNS = {
    "numbers": NUMBERS, "finite": FINITE, "integers": st.integers(-3, 3), "large": st.integers(-(10**30), 10**30),
    "truth": st.booleans(), "text": st.sampled_from(["0.5", "a", "", "nan"]), "missing": st.none(),
    "mixed": st.sampled_from([1, 0.5, True, "a", None, math.nan]), "constant": st.just(0.5),
    "two": st.sampled_from([0.25, 0.5]),
    "zero": st.just(0), "accuracies": st.floats(0, 1),
}  # fmt: skip
CLAIM = {
    "text": "so it is", "source": "report", "parameter": "optimizer", "values": ("adam", "momentum"), "steps": 2,
    "measure": "value", "metric": "loss", "relation": "rising", "bound": 0.0, "target": 0.0, "tolerance": 0.0,
}  # fmt: skip
CLAIMS = st.fixed_dictionaries(
    {key: st.just(value) for key, value in CLAIM.items()} | {
        "parameter": st.sampled_from([*KEYS, "unknown"]), "metric": st.sampled_from([*METRICS, "optimizer",
        "trial_id", "unknown"]),
        "values": st.lists(st.sampled_from(["adam", "momentum", 0.1, None, True, 1]), min_size=2, max_size=3),
        "measure": st.sampled_from(["result", "value", "settling_step", "crossings", "reversals", "max_departure",
        "max_departure_step", "remaining_fraction"]),
        "relation": st.sampled_from(["rising", "falling", "first_lowest", "some_above_first", "at_most", "below",
        "within"]),
        "steps": st.sampled_from([0, 1, 2]), "bound": FINITE, "target": FINITE, "tolerance": st.sampled_from([0.0,
        0.5]),
        "where": st.sampled_from([{}, {"flag": True}, {"unknown": 1}]),
    }
)  # fmt: skip
PUBLISHED = st.fixed_dictionaries(
    {
        "where": st.dictionaries(st.sampled_from(["optimizer", "rate", "flag"]), st.sampled_from(["adam", 0.1, 0.01,
        True, None]), max_size=2),
        "metric": st.sampled_from(METRICS), "value": FINITE, "source": st.just("report"),
    },
    optional={
        "best_over": st.sampled_from(["rate", "optimizer", None]), "best_values": st.lists(st.sampled_from([0.1,
        "adam"]), max_size=2),
        "resolution": st.sampled_from([0.0, 0.1]), "size": st.sampled_from([{}, {"rate": 0.1}, {"unknown": 1}]),
    },
)  # fmt: skip


@st.composite
def searches(draw: Any) -> Results:
    """Return results with arbitrary columns."""
    num_trials = draw(st.sampled_from([0, 1, 2, 3, 6, 12]))
    status = draw(st.sampled_from([STATUSES[:1], STATUSES[:1], STATUSES, ["failed"], ["diverged", "finished"]]))
    kinds = {
        name: draw(st.sampled_from(sorted(COLUMNS))) for name in draw(st.lists(st.sampled_from(METRICS), unique=True))
    }
    kinds.setdefault("loss", draw(st.sampled_from(["numbers", "finite", "two"])))
    rows = []
    for number in range(num_trials):
        row = {
            "experiment": "made.up",
            "trial_id": f"t{number:05d}",
            "steps_run": draw(st.sampled_from([0, 1, 2, None])),
        }
        row |= {"status": draw(st.sampled_from(status)), "error": draw(st.sampled_from([None, "E: a|b"]))}
        row |= {name: draw(values) for name, values in VALUES.items()}
        row |= {name: draw(COLUMNS[kind]) for name, kind in kinds.items()}
        rows.append(row)
    keys = draw(st.sampled_from([KEYS, KEYS, KEYS[:2], KEYS[:4]]))
    trials = trials_frame(rows, keys)
    if draw(st.booleans()):
        trials = trials.drop(
            columns=draw(st.sampled_from(["error", "loss", "seed", "optimizer", "steps_run", "host"])), errors="ignore"
        )
    steps = [0, 1, 2]
    history = pd.DataFrame({"trial_id": [row["trial_id"] for row in rows for _ in steps], "step": steps * len(rows)})
    history = history.astype({"trial_id": "str", "step": "int64"})
    for name in ("loss", "test_accuracy")[: draw(st.integers(0, 2))]:
        kind = draw(st.sampled_from(["numbers", "finite", "integers", "constant"]))
        history[name] = pd.Series([draw(COLUMNS[kind]) for _ in range(len(history))], index=history.index)
    if draw(st.booleans()):
        history = history.iloc[: draw(st.integers(0, 3))]
    experiment = {
        "name": "made.up", "metric": draw(st.sampled_from(["loss", "loss", "loss", "test_accuracy",
        "best_test_accuracy", "optimizer"])),
        "mode": draw(st.sampled_from(["min", "max"])), "config_keys": keys,
        "space": {name: SPACE[name] for name in SPACE if name in keys},
        "claims": draw(st.lists(CLAIMS, max_size=2)), "published": draw(st.lists(PUBLISHED, max_size=2)),
        "seeds": [0, 1],
        "state": "finished", "searcher": draw(st.sampled_from(["random", "grid", "tpe"])), "num_samples": 12,
        "judge": draw(st.sampled_from(["last", "best"])), "trainable": draw(st.sampled_from(["m:f",
        "tune_hpc.learning.training:train"])),
        "quick": draw(st.booleans()),
    }  # fmt: skip
    if draw(st.booleans()):
        del experiment["space"]
    return Results(experiment, trials, history)


def snapshot(results: Results) -> ResultsSnapshot:
    """Return the results as the HTTP service has them."""
    return ResultsSnapshot(results.experiment, results.trials, LazyHistory(results.history, {}))


SPECIFICATIONS = [
    {"kind": "ranking", "metrics": ["loss", "test_accuracy"], "title": "Ranking", "line": "optimizer"},
    {"kind": "heatmap", "metrics": ["loss"], "title": "Map", "line": "optimizer", "parameter": "rate"},
    {"kind": "curve", "metrics": ["loss"], "title": "Curves", "line": "optimizer"},
    {"kind": "response", "metrics": ["loss"], "title": "Response", "parameter": "rate", "log_x": True},
    {"kind": "target", "metrics": ["loss"], "title": "Target", "line": "optimizer", "target": 0.5},
    {"kind": "published", "metrics": [], "title": "Published"},
]
FUNCTIONS = {
    "repr": repr,
    "html": lambda results: results._repr_html_(),
    "best": lambda results: (results.best(), results.best_config(), results.best_trial()),
    "best accuracy": lambda results: results.best("test_accuracy", "max"),
    "failures": lambda results: (results.failures, results.counts(), results.varied_parameters),
    "curve": lambda results: results.curve("loss"),
    "compare": lambda results: (str(results.compare("optimizer")), results.compare("optimizer").values),
    "compare mixed": lambda results: results.compare("mixed", "test_accuracy", confidence=0.9).pairs,
    "compare where": lambda results: results.compare("rate", where={"flag": True}).pairs,
    "published": tune_hpc.compare_to_published,
    "joint test": tune_hpc.joint_test,
    "claims": tune_hpc.check_claims,
    "boundaries": tune_hpc.check_boundaries,
    "budget": tune_hpc.budget_curve,
    "budget of accuracy": lambda results: tune_hpc.budget_curve(results, (1, 2, 100), "test_accuracy"),
    "time to target": lambda results: tune_hpc.time_to_target(results, 0.5),
    "selection bias": tune_hpc.selection_bias,
    "special cases": tune_hpc.special_cases,
    "selection frequencies": tune_hpc.selection_frequencies,
    "rung correlation": lambda results: results.rung_correlation(),
    "searches": lambda results: tune_hpc.compare_searches([results] * 2, [results,
    results.with_trials(results.trials[:3])]),
    "interactions": tune_hpc.interactions,
    "importance": tune_hpc.importance,
    "concatenation": lambda results: tune_hpc.concat([results, results]).compare("search").values,
    "labels": with_value_labels,
    "findings": findings,
    "tables": tables.report_tables,
    "best of values": lambda results: tables.best_per(results, "mixed", ["loss", "test_accuracy"]),
    "pivot": lambda results: tables.pivot(results, "optimizer", "rate", "loss"),
    "at steps": lambda results: tables.metrics_at_steps(results, [1, 2], ["loss"]),
    "markdown": lambda results: tables.to_markdown(tables.best_configurations(results)),
    "statuses": lambda results: (tables.status_table(results), tables.search_space_table(results)),
    "heat map": lambda results: heat_table(results, "loss", "rate", "optimizer", {}),
    "response": lambda results: response_table(results, "loss", "rate", None, {}),
    "parallel coordinates": lambda results: parallel_table(results, "loss", {}),
    "chart of curves": lambda results: chart_data.learning_curves(snapshot(results), None, [], 5, 5),
    "chart of responses": lambda results: chart_data.response_curve(results, None, None),
    "chart of coordinates": chart_data.parallel_coordinates,
    "csv": lambda results: chart_data.apply_filters(results.trials, ["loss<1", "optimizer=adam", "optimizer~a"]),
    "optuna": tune_hpc.to_optuna,
}  # fmt: skip


def check_answer(answer: Any) -> None:
    """Check that an answer has a text, and that its intervals are in order."""
    assert str(answer) != ""
    for df in answer if isinstance(answer, tuple) else [answer]:
        if isinstance(df, pd.DataFrame) and {"low", "high"} <= set(df):
            low, high = (pd.to_numeric(df[name], errors="coerce") for name in ("low", "high"))
            assert not (low > high).any(), df


def check_call(function: Any, *arguments: Any) -> None:
    """Check that a function returns an answer or raises an error of tune_hpc in one line."""
    try:
        check_answer(function(*arguments))
    except TuneHpcError as error:
        check_message(error)


@pytest.mark.parametrize("name", FUNCTIONS)
@examples(8)
@given(searches())
def test_function_gives_an_answer_or_a_one_line_error(name, results):
    check_call(FUNCTIONS[name], results)


@pytest.mark.slow
@pytest.mark.parametrize("specification", SPECIFICATIONS, ids=lambda specification: specification["kind"])
@examples(4)
@given(searches())
def test_figure_is_drawn_or_a_one_line_error(specification, results):
    check_call(figures.draw, results, specification)


@st.composite
def measurements(draw: Any) -> Results:
    """Return results of a scaling measurement with arbitrary times."""
    times = draw(st.sampled_from([st.floats(0.1, 10), st.sampled_from([0.0, 1.0, 2.0]), NUMBERS]))
    rows = []
    for number in range(draw(st.sampled_from([0, 1, 2, 4, 8]))):
        row = {name: draw(times) for name in ("train_s", "speedup", "efficiency")}
        row |= {name: draw(st.floats(0.1, 10)) for name in ("step_s", "communicate_s", "compute_s")}
        row |= {
            "workers": draw(st.sampled_from([1, 2, 4])),
            "seed": draw(st.sampled_from([0, 1])),
            "mode": draw(st.sampled_from(["strong", "strong", "weak"])),
        }
        row |= {
            "experiment": "made.up",
            "oversubscribed": draw(st.booleans()),
            "trial_id": f"t{number:05d}",
            "status": draw(st.sampled_from(["finished", "finished", "disturbed", "failed"])),
            "width": 1.0,
        }
        rows.append(row)
    trials = trials_frame(rows, ["workers", "seed", "mode", "width"])
    if draw(st.booleans()):
        trials = trials.drop(
            columns=draw(st.sampled_from(["oversubscribed", "seed", "mode", "train_s"])), errors="ignore"
        )
    published = [
        {
            "where": {"workers": workers},
            "metric": "train_s",
            "value": draw(st.sampled_from([0.0, 1.0, -1.0, 19.2])),
            "size": {},
            "source": "report",
        }
        for workers in draw(st.lists(st.sampled_from([1, 2, 4]), unique=True))
    ]
    experiment = {
        "name": "made.up", "metric": "train_s", "mode": "min", "published": published, "quick": False,
        "config_keys": ["workers", "seed", "mode", "width"], "space": {"workers": {"choice": [1, 2, 4]}},
    }  # fmt: skip
    return Results(experiment, trials, pd.DataFrame({"trial_id": pd.Series(dtype="str"), "step": []}))


SCALING = {
    "speed-ups": speedup.speedups, "serial fractions": speedup.serial_fractions, "findings": findings,
    "tables": tables.report_tables,
    "published": tune_hpc.compare_to_published, "compare": lambda results: results.compare("workers").pairs,
}  # fmt: skip


@pytest.mark.parametrize("name", SCALING)
@examples(15)
@given(measurements())
def test_scaling_measurement_gives_an_answer_or_a_one_line_error(name, results):
    check_call(SCALING[name], results)


ARRAYS = st.one_of(
    st.lists(st.integers(0, 2), max_size=4), st.lists(st.sampled_from(["a", "b"]), max_size=4), st.integers(0, 2),
    st.none(),
    st.lists(st.lists(st.integers(0, 1), max_size=2), max_size=2), st.lists(st.sampled_from([0, "a", None, 0.5,
    math.nan]), max_size=4),
    st.lists(st.integers(0, 2), min_size=2, max_size=2).map(np.array), st.lists(st.sampled_from([0.5, math.nan,
    1.0]), max_size=3),
)  # fmt: skip
LEVELS = st.sampled_from([0.95, 0.95, 0.5, 0, 1, 95, -1, math.nan, "0.9", None])


def check_misuse(function: Any, *arguments: Any) -> None:
    """Check that a function returns an answer, or rejects its arguments by ValueError or TypeError in one line."""
    try:
        check_answer(function(*arguments))
    except (TuneHpcError, ValueError, TypeError) as error:
        check_message(error)


@examples(60)
@given(ARRAYS, ARRAYS, ARRAYS, LEVELS)
@example(["a", "b"], ["a", "a"], ["b", "b"], 0.95)
@example([0, 1], [0, 0], [0, 1], 95)
def test_predictions_are_compared_or_rejected(labels, first, second, confidence):
    check_misuse(tune_hpc.compare_predictions, labels, first, second, confidence)
    check_misuse(tune_hpc.accuracy_interval, labels, [first, second], confidence)
    check_misuse(tune_hpc.accuracy_interval, labels, (one for one in [first, second]), confidence)


@examples(10)
@given(searches(), LEVELS)
def test_confidence_level_is_a_fraction_or_rejected(results, confidence):
    check_misuse(lambda: results.compare("optimizer", confidence=confidence).pairs)
