"""Format numbers, names, configurations and tables for readers.

Tables have the columns' own names, which users query. ``display_name`` is for sentences, ``column_heading`` for tables,
and ``axis_label`` for figures. ``attrs["metric_of"]`` of a frame names the metric of a column, for example of ``mean``.
"""

import math
import numbers
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.storage.experiment_folder import numbered_names

MISSING = "–"
QUICK_NOTE = "quick run: not comparable"

_WORDS = {
    "train_loss": "training loss",
    "train_accuracy": "training accuracy",
    "valid_loss": "validation loss",
    "valid_accuracy": "validation accuracy",
    "best_valid_accuracy": "best validation accuracy",
    "selected_test_accuracy": "test accuracy, step selected on validation",
    "fit_loss": "loss on training images",
    "fit_accuracy": "accuracy on training images",
    "W": "weight W",
    "b": "bias b",
    "train_s": "training time",
    "eval_s": "evaluation time",
    "setup_s": "set-up time",
    "num_workers": "number of workers",
    "num_values": "number of values",
    "prob_best": "probability of the best",
    "prob_all_diverged": "probability that all diverge",
}
_AXES = {
    "selected_test_accuracy": "test accuracy (selected on validation)",
}
#: Columns that are omitted from a table if they are empty.
_OPTIONAL = (
    "low", "high", "deviation", "degrees", "zone_low", "zone_high", "verdict", "p_holm", "best_over", "measured_best",
    "published_best", "best_agrees", "duplicate_of", "note", "source", "stop_reason",
)  # fmt: skip
#: Columns with values of the metric in the row's column ``metric``.
_MEASURED = ("measured", "low", "high", "deviation", "difference", "zone_low", "zone_high")
#: Columns with measured values.
_METRIC = re.compile(r"accuracy|loss|deviation|_s$|_share$|^num_|^prob_|^importance$|^frequency$")
_STEPS = {"step", "steps", "steps_run", "best_step", "selected_step", "taken_at"}


def display_name(name: str) -> str:
    """Return a column's name for a sentence: ``test_loss`` is "test loss"."""
    if name in _WORDS:
        return _WORDS[name]
    text = name.removeprefix("num_").replace("_", " ")
    if name.endswith("_per_s"):
        return text.removesuffix(" per s") + " per second"
    return text.removesuffix(" s") if name.endswith("_s") else text


def axis_label(name: str) -> str:
    """Return a column's name with its unit, for an axis."""
    return _AXES.get(name) or column_heading(name)


def column_heading(name: str) -> str:
    """Return a column's name for the head of a table; a duration with its unit."""
    return f"{display_name(name)} (s)" if name.endswith("_s") and not name.endswith("_per_s") else display_name(name)


def format_number(value: float, digits: int = 6) -> str:
    """Return a short number: 0.05, 1e-04, 150."""
    if float(value).is_integer() and abs(value) < 1e12:
        return str(int(value))
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{exponent}"
    return f"{value:.{digits}g}"


def format_metric(value: float, column: str = "") -> str:
    """Return a measured number: an accuracy with four decimals, others with the significant digits of their column."""
    if math.isnan(value):
        return MISSING
    value += 0.0  # -0.0 becomes 0.0
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if column.endswith("_deviation") and "accuracy" not in column:
        return f"{value:.2g}"
    if "accuracy" in column:
        return f"{value:.4f}"
    if column.startswith("prob_") or column.endswith("_share") or column in ("importance", "frequency"):
        return f"{value:.2f}"
    if column.endswith("_per_s"):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if column.endswith("_s"):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if column.startswith("num_") or column in _STEPS:
        return f"{value:.0f}"
    return f"{value:.4g}"


def describe_metric(value: float, column: str) -> str:
    """Return a measured number with its column's name and the unit of a duration, for a sentence."""
    unit = " s" if column_heading(column).endswith(" (s)") and not math.isnan(value) else ""
    return f"{display_name(column)} {format_metric(value, column)}{unit}"


def format_value(value: Any, digits: int = 6) -> str:
    """Return a configuration value: a short number, yes or no, a name, or a dash if it is missing.

    A number with more than six significant digits comes from random sampling and is shortened to four.
    """
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, numbers.Real):
        if math.isnan(value):
            return MISSING
        is_sampled = not math.isclose(float(f"{value:.6g}"), value, rel_tol=1e-12)
        return format_number(float(value), min(digits, 4) if is_sampled else digits)
    return MISSING if value is None or value is pd.NA else str(value)


def format_config(config: Mapping[str, Any]) -> str:
    """Return configuration values as text: ``optimizer adam, learning rate 0.005``."""
    return ", ".join(f"{display_name(name)} {format_value(value, 4)}" for name, value in config.items())


def format_duration(seconds: float | None) -> str:
    """Return a duration: 42 s, 3 min 20 s, 2 h 05 min."""
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
    """Return a title as the stem of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "untitled"


def unique_slug(text: str, taken: set[str]) -> str:
    """Return ``slug(text)``, with a number if it is taken, and add it to ``taken``."""
    name = next(name for name in numbered_names(slug(text)) if name not in taken)
    taken.add(name)
    return name


def format_table(df: pd.DataFrame) -> pd.DataFrame:
    """Format a table as texts, without columns that have no information in it.

    Returns:
        Strings only; the headings of a quick run's measurements end in `` (quick)``. ``attrs["is_text"]`` has,
        for each column, whether it is text; ``attrs["source"]`` is the source that all rows share, else empty.
    """
    metric_of = df.attrs.get("metric_of", {})
    is_quick = "quick" in df and bool(df["quick"].any())
    df = df.drop(columns=[name for name in df if _is_uninformative(df, str(name))])
    metrics = df.get("metric")
    source = ""
    if "source" in df and len(df["source"].drop_duplicates()) == 1:
        source = str(df.pop("source").iloc[0])
    df = _name_shared_parameter(df)
    columns: dict[str, list[str]] = {}
    is_text: list[bool] = []
    for position, name in enumerate(map(str, df.columns)):
        column = df.iloc[:, position]
        if name == "metric":
            texts = [column_heading(str(value)) for value in column]
        elif name == "published":
            texts = _same_decimals(column)
        elif metrics is not None and name in _MEASURED:
            texts = [_format_measured(value, name, metric) for value, metric in zip(column, metrics, strict=True)]
        else:
            texts = [_format_cell(value, metric_of.get(name, name), name in metric_of) for value in column]
        columns[f"{name} (quick)" if is_quick and name in {"measured", "difference"} else name] = texts
        is_text.append(not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column))
    text = pd.DataFrame(columns, index=range(len(df)), dtype=object)
    text.attrs |= {"is_text": is_text, "source": source}
    return text


def _name_shared_parameter(df: pd.DataFrame) -> pd.DataFrame:
    """Move the parameter of all best values, if it is the same, into the headings."""
    if "best_over" not in df or len(df["best_over"].drop_duplicates()) != 1 or df["best_over"].isna().any():
        return df
    names = {
        "measured_best": f"measured best {df['best_over'].iloc[0]}", "published_best": "published best",
        "best_agrees": "agrees",
    }  # fmt: skip
    # The diverged trials are those of all values, not of the best one.
    return df.drop(columns=["best_over", "num_diverged"], errors="ignore").rename(columns=names)


def _is_uninformative(df: pd.DataFrame, name: str) -> bool:
    column = df[name]
    if name in ("quick", "best_of") or (name == "configuration" and "published" in df):
        return True
    if name == "num_diverged":
        return not column.any()
    has_zone = "zone_low" in df and df["zone_low"].notna().any()
    if name == "deviation" and not has_zone and "low" in df and df["low"].notna().any():
        return True  # The interval includes it.
    if name in ("low", "high", "degrees") and has_zone:
        return True  # The zone includes them.
    if name == "taken_at":
        return bool((column.isna() | (column == df["step"])).all())
    if name in _OPTIONAL or name.endswith("_deviation"):
        return bool((column.isna() | (column.astype(str) == "")).all())
    return False


def _format_measured(value: float, name: str, metric: str) -> str:
    if np.isnan(value):
        return MISSING
    if name == "difference":
        digits = ".4f" if "accuracy" in metric else ".1f" if metric.endswith("_s") else ".2g"
        return f"{value:+{digits}}"
    return format_metric(value, f"{metric}_deviation" if name == "deviation" else metric)


def _same_decimals(column: pd.Series) -> list[str]:
    """Return numbers with the decimals of the most precise one: 0.99 beside 0.991 is 0.990."""
    texts = [format_value(value) for value in column]
    if any("e" in text for text in texts):
        return texts
    decimals = max((len(text.partition(".")[2]) for text in texts), default=0)
    return [MISSING if np.isnan(value) else f"{value:.{decimals}f}" for value in column]


def _format_cell(value: Any, column: str, is_metric: bool) -> str:
    if column == "holds" and value is pd.NA:
        return "inconclusive"
    if isinstance(value, bool | np.bool_) or value is None or value is pd.NA:
        return format_value(value)
    if isinstance(value, int | float | np.number):
        is_metric = is_metric or _METRIC.search(column) is not None
        return format_metric(float(value), column) if is_metric else format_value(float(value))
    return str(value)
