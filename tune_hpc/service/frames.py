"""Data frames as answers: filtered, ordered, a page of them, as JSON, CSV or Parquet.

A filter is ``COLUMN OPERATOR VALUES``, like ``status=finished,stopped`` or ``learning_rate<0.01``: the operators are
``=`` ``!=`` ``<`` ``<=`` ``>`` ``>=`` and ``~`` (contains, in any case). ``=`` and ``!=`` take several values with
commas between them; no value stands for a missing one. Text is read by this grammar alone.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.errors import RequestError
from tune_hpc.service.answers import Answer, disposition, to_json

_FILTER = re.compile(r"\s*([^=!<>~]+?)\s*(<=|>=|!=|=|<|>|~)\s*(.*)\Z", re.DOTALL)
_BOUNDS = {"<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}
MEDIA_TYPES = {"json": "application/json", "csv": "text/csv", "parquet": "application/vnd.apache.parquet"}
#: Rows of a page of JSON, unless told otherwise and at most; files have all rows unless told otherwise.
PAGE, MOST_ROWS = 100, 10_000


@dataclass(frozen=True)
class Query:
    """Which part of a frame is asked for, and how.

    Attributes:
        filters: All of which a row must pass.
        sort: Columns by which rows are ordered, each with a hyphen before it where the largest comes first.
        columns: Which columns, in this order; empty: all.
        limit: How many rows at most; ``None``: a page of JSON, all of a file.
        offset: How many rows of the result are left out before.
        kind: ``json``, ``csv`` or ``parquet``.
    """

    filters: tuple[str, ...] = ()
    sort: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    limit: int | None = None
    offset: int = 0
    kind: str = "json"


def select(df: pd.DataFrame, query: Query) -> tuple[pd.DataFrame, int]:
    """Return the page of a frame that is asked for, and how many rows there are in all pages.

    Raises:
        RequestError: no such column, a filter that cannot be read, or a page that is too large.
    """
    df = passing(df, query.filters)
    if query.sort:
        names = [one.removeprefix("-") for one in query.sort]
        for name in names:
            _check_column(df, name)
        if len(set(names)) < len(names):
            raise RequestError(f"sort names each column once; got {', '.join(query.sort)}")
        ascending = [not one.startswith("-") for one in query.sort]
        df = df.sort_values(names, ascending=ascending, kind="stable", key=_comparable)
    if query.kind == "json" and query.limit is not None and query.limit > MOST_ROWS:
        raise RequestError(
            f"limit is at most {MOST_ROWS} for JSON; got {query.limit}: ask for pages with offset, or for a file"
        )
    limit = PAGE if query.limit is None and query.kind == "json" else query.limit
    page = df.iloc[query.offset : None if limit is None else query.offset + limit]
    if query.columns:
        for name in query.columns:
            _check_column(df, name)
        page = page[list(dict.fromkeys(query.columns))]
    return page, len(df)


def passing(df: pd.DataFrame, filters: Sequence[str]) -> pd.DataFrame:
    """Return the rows that pass all filters.

    Raises:
        RequestError: no such column, or a filter that cannot be read.
    """
    for text in filters:
        df = df[_passes(df, text)]
    return df


def as_answer(df: pd.DataFrame, query: Query, name: str, what: str = "rows") -> Answer:
    """Return the part of a frame that is asked for.

    Args:
        df: The whole frame.
        query: What is asked for.
        name: The file's name, without its ending.
        what: What the rows of JSON are called.

    Raises:
        RequestError: as ``select``.
    """
    page, total = select(df, query)
    headers = {"X-Total-Count": str(total)}
    if query.kind == "json":
        told = {"total": total, "offset": query.offset, "columns": [str(column) for column in page.columns]}
        return Answer(to_json({**told, what: records(page)}), MEDIA_TYPES["json"], headers)
    headers |= disposition(f"{name}.{query.kind}")
    if query.kind == "csv":
        return Answer(page.to_csv(index=False).encode("utf-8", "replace"), MEDIA_TYPES["csv"], headers)
    buffer = io.BytesIO()
    page.to_parquet(buffer, index=False)
    return Answer(buffer.getvalue(), MEDIA_TYPES["parquet"], headers)


def records(df: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows as plain data; what is missing or not finite is null."""
    columns = {str(name): [_plain(value) for value in df[name].tolist()] for name in df.columns}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return None if value is pd.NA or value is None else value


def _check_column(df: pd.DataFrame, name: str) -> None:
    if name not in df:
        raise RequestError(f"no column is called {name!r}; there are {', '.join(map(str, df.columns))}")


def _passes(df: pd.DataFrame, text: str) -> Any:
    match = _FILTER.match(text)
    if not match:
        raise RequestError(f"a filter reads COLUMN OPERATOR VALUE, like learning_rate<=0.01; got {text!r}")
    name, operator, given = match.groups()
    _check_column(df, name)
    column = df[name]
    if operator == "~":
        return column.astype("str").str.contains(given, case=False, regex=False).to_numpy(bool)
    if operator in _BOUNDS:
        return _within(column, operator, given)
    wanted = np.zeros(len(column), bool)
    for value in given.split(","):
        wanted |= _equals(column, value.strip())
    return ~wanted if operator == "!=" else wanted


def _within(column: pd.Series, operator: str, given: str) -> np.ndarray:
    number = _number(given)
    if number is None or not pd.api.types.is_numeric_dtype(column):
        what = f"{given!r} is none" if number is None else f"{column.name} holds none"
        raise RequestError(f"{operator} compares numbers; {what}: use =, != or ~")
    with np.errstate(invalid="ignore"):
        passes: np.ndarray = _BOUNDS[operator](column.to_numpy(float, na_value=np.nan), number)
    return passes


def _equals(column: pd.Series, given: str) -> np.ndarray:
    if given == "":
        return column.isna().to_numpy(bool)
    number = _number(given)
    if pd.api.types.is_bool_dtype(column):
        return (column.astype("str").str.lower() == given.lower()).to_numpy(bool)
    if pd.api.types.is_numeric_dtype(column):
        if number is None:
            raise RequestError(f"{column.name} holds numbers; got {given!r}: use a number")
        return column.to_numpy(float, na_value=np.nan) == number
    return (column.astype("str") == given).to_numpy(bool) & column.notna().to_numpy(bool)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _comparable(column: pd.Series) -> pd.Series:
    """Return values that can be ordered: a category's words as such, in its own order."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.codes
    return column.astype("str") if pd.api.types.is_object_dtype(column) else column


def split(values: Sequence[str] | None) -> tuple[str, ...]:
    """Return names that were given several times, or with commas between them."""
    return tuple(name for one in values or () for name in (part.strip() for part in one.split(",")) if name)
