"""A table as text to be read: each number with the digits that mean something, nothing that says nothing.

``attrs["metric_of"]`` of a frame names the metric that a column holds, where the column's own name does not tell.

``presented`` serves Markdown and HTML alike. Columns that hold no information in this table (deviations of a single
seed, notes that nothing called for) are left out; a quick run's measurement says so in its heading.
"""

from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.formatting import MISSING, format_value, heading, number

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
            texts = [heading(str(value)) for value in column]
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
    return number(value, f"{metric}_deviation" if name == "deviation" else metric)


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
        return number(float(value), column) if measured or _is_measured(column) else format_value(float(value))
    return str(value)


def _is_measured(column: str) -> bool:
    return (
        any(word in column for word in ("accuracy", "loss", "deviation"))
        or column.endswith("_s")
        or column.endswith("_share")
        or column.startswith(("num_", "chance_"))
        or column == "importance"
    )
