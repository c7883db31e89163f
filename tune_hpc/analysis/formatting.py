"""Words and numbers for people: how columns, values and conditions are written in tables, figures and sentences.

Pure functions on names and values; nothing here reads a frame. A column keeps its own name in tables (that is what one
queries); ``display_name`` is for prose, ``axis_label`` adds the unit.
"""

import math
import numbers
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

MISSING = "–"
QUICK_NOTE = "quick run: not comparable"

_WORDS = {
    "train_loss": "training loss",
    "train_accuracy": "training accuracy",
    "valid_loss": "validation loss",
    "valid_accuracy": "validation accuracy",
    "best_valid_accuracy": "best validation accuracy",
    "selected_test_accuracy": "test accuracy, step chosen on validation",
    "W": "weight W",
    "b": "bias b",
    "train_s": "training time",
    "eval_s": "evaluation time",
    "setup_s": "set-up time",
    "num_workers": "number of workers",
    "num_values": "how many",
    "step": "step",
}
_UNITS = {
    "step": "optimizer steps",
    "steps": "optimizer steps",
    "steps_run": "optimizer steps",
    "best_step": "best moment (optimizer steps)",
    "batch_size": "batch size (images)",
    "selected_test_accuracy": "test accuracy (chosen on validation)",
}


def display_name(name: str) -> str:
    """Return a column's name as it reads in a sentence: ``test_loss`` is "test loss"."""
    if name in _WORDS:
        return _WORDS[name]
    text = name.removeprefix("num_").replace("_", " ")
    if name.endswith("_per_s"):
        return text[: -len(" per s")] + " per second"
    return text[: -len(" s")] if name.endswith("_s") else text


def axis_label(name: str) -> str:
    """Return a column's name with its unit, for an axis."""
    return _UNITS.get(name) or column_heading(name)


def column_heading(name: str) -> str:
    """Return a column's name as the head of a table's column: words, durations with their unit."""
    return f"{display_name(name)} (s)" if name.endswith("_s") and not name.endswith("_per_s") else display_name(name)


def format_number(value: float, digits: int = 6) -> str:
    """Return a number as briefly as it can be told from its neighbours: 0.05, 1e-04, 150."""
    if float(value).is_integer() and abs(value) < 1e12:
        return str(int(value))
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{exponent}"
    return f"{value:.{digits}g}"


def format_metric(value: float, column: str = "") -> str:
    """Return a measured number with the digits that mean something in its column.

    Args:
        value: Any number; not a number gives a dash.
        column: The column it stands in: accuracies have four decimals, losses four significant digits, durations three.
    """
    if math.isnan(value):
        return MISSING
    value += 0.0  # Minus nothing is nothing.
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if column.endswith("_deviation") and "accuracy" not in column:
        return f"{value:.2g}"
    if "accuracy" in column:
        return f"{value:.4f}"
    if column.startswith("chance_") or column.endswith("_share") or column == "importance":
        return f"{value:.2f}"
    if column.endswith("_per_s"):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if column.endswith("_s"):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if column.startswith("num_") or column in {"step", "steps", "steps_run", "best_step", "selected_step", "taken_at"}:
        return f"{value:.0f}"
    return f"{value:.4g}"


def describe_metric(value: float, column: str) -> str:
    """Return a measured number in a sentence: with its column's words, and the unit of a duration."""
    unit = " s" if column_heading(column).endswith(" (s)") and not math.isnan(value) else ""
    return f"{display_name(column)} {format_metric(value, column)}{unit}"


def format_value(value: Any, digits: int = 6) -> str:
    """Return a configuration value: numbers short, truth as yes or no, names as they are, a dash for a missing one.

    A number with more than six digits was drawn, not chosen, and reads better with four.
    """
    if type(value).__name__ in {"bool", "bool_"}:  # Python's and NumPy's
        return "yes" if value else "no"
    if isinstance(value, numbers.Real):
        if math.isnan(value):
            return MISSING
        is_drawn = not math.isclose(float(f"{value:.6g}"), value, rel_tol=1e-12)
        return format_number(float(value), min(digits, 4) if is_drawn else digits)
    if value is None or type(value).__name__ == "NAType":
        return MISSING
    return str(value)


def format_config(where: Mapping[str, Any]) -> str:
    """Return configuration values as text: ``optimizer adam, learning rate 0.005``."""
    return ", ".join(f"{display_name(name)} {format_value(value, 4)}" for name, value in where.items())


def format_duration(seconds: float | None) -> str:
    """Return a duration as one reads it on a clock: 42 s, 3 min 20 s, 2 h 05 min."""
    if seconds is None or math.isnan(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def slug(text: str) -> str:
    """Return a title as a file name without its ending."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "untitled"


def unique_slug(text: str, taken: set[str]) -> str:
    """Return ``slug(text)``, numbered when another one has it, and note it in ``taken``."""
    base = name = slug(text)
    count = 1
    while name in taken:
        count += 1
        name = f"{base}-{count}"
    taken.add(name)
    return name


_OPTIONAL = (
    "low",
    "high",
    "deviation",
    "verdict",
    "best_over",
    "measured_best",
    "published_best",
    "best_agrees",
    "note",
    "source",
    "stop_reason",
)
_JUDGED = ("measured", "low", "high", "deviation", "difference")


def format_table(df: pd.DataFrame) -> pd.DataFrame:
    """Return the table as strings.

    Returns:
        Strings only; ``attrs["wordy"]`` says for each column whether it holds words (flush left) or numbers,
        ``attrs["source"]`` where every published number stands, or nothing.
    """
    metric_of = df.attrs.get("metric_of", {})
    quick = "quick" in df and bool(df["quick"].any())
    df = df.drop(columns=[name for name in df if _is_uninformative(df, str(name))])
    metrics = df.get("metric")
    df, source = _one_source(df)
    df = _one_parameter(df)
    columns: dict[str, list[str]] = {}
    wordy: list[bool] = []
    for position, name in enumerate(map(str, df.columns)):
        column = df.iloc[:, position]
        if name == "metric":
            texts = [column_heading(str(value)) for value in column]
        elif name == "published":
            texts = _alike(column)
        elif metrics is not None and name in _JUDGED:
            texts = [_judged(value, name, metric) for value, metric in zip(column, metrics, strict=True)]
        else:
            texts = [_cell(value, metric_of.get(name, name), name in metric_of) for value in column]
        columns[f"{name} (quick)" if quick and name in {"measured", "difference"} else name] = texts
        wordy.append(not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column))
    text = pd.DataFrame(columns, index=range(len(df)), dtype=object)
    text.attrs |= {"wordy": wordy, "source": source}
    return text


def _one_source(df: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Take a source that all rows share out of the table."""
    if "source" not in df or len(df["source"].drop_duplicates()) != 1:
        return df, ""
    return df.drop(columns="source"), str(df["source"].iloc[0])


def _one_parameter(df: pd.DataFrame) -> pd.DataFrame:
    """Name the one parameter of all best values in the headings."""
    if "best_over" not in df or len(df["best_over"].drop_duplicates()) != 1 or df["best_over"].isna().any():
        return df
    over = df["best_over"].iloc[0]
    names = {"measured_best": f"measured best {over}", "published_best": "published best", "best_agrees": "agrees"}
    # A condition of many rates counts those that diverged far from the best one: no word on this measurement.
    return df.drop(columns=["best_over", "num_diverged"], errors="ignore").rename(columns=names)


def _is_uninformative(df: pd.DataFrame, name: str) -> bool:
    column = df[name]
    if name == "quick":
        return True
    if name == "num_diverged":
        return not column.any()
    if name == "deviation" and "low" in df and df["low"].notna().any():
        return True  # The interval says as much.
    if name == "taken_at":
        return bool((column.isna() | (column == df["step"])).all())
    if name in _OPTIONAL or name.endswith("_deviation"):
        return bool((column.isna() | (column.astype(str) == "")).all())
    return False


def _judged(value: float, name: str, metric: str) -> str:
    if np.isnan(value):
        return MISSING
    if name == "difference":
        # As many digits as the measurement beside it, and no more significance than it has.
        digits = ".4f" if "accuracy" in metric else ".1f" if metric.endswith("_s") else ".2g"
        return f"{value:+{digits}}"
    return format_metric(value, f"{metric}_deviation" if name == "deviation" else metric)


def _alike(column: pd.Series) -> list[str]:
    """Return published numbers with the decimals of the most exact of them: 0.99 beside 0.991 is 0.990."""
    texts = [format_value(value) for value in column]
    if any("e" in text for text in texts):
        return texts
    decimals = max((len(text.partition(".")[2]) for text in texts), default=0)
    return [f"{value:.{decimals}f}" for value in column]


def _cell(value: Any, column: str, measured: bool) -> str:
    if isinstance(value, bool | np.bool_) or value is None or value is pd.NA:
        return format_value(value)
    if isinstance(value, int | float | np.number):
        return format_metric(float(value), column) if measured or _is_measured(column) else format_value(float(value))
    return str(value)


def _is_measured(column: str) -> bool:
    return (
        any(word in column for word in ("accuracy", "loss", "deviation"))
        or column.endswith("_s")
        or column.endswith("_share")
        or column.startswith(("num_", "chance_"))
        or column == "importance"
    )
