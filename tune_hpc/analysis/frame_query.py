"""Filter, sort and page a data frame; JSON rows, CSV and Parquet.

A filter is ``COLUMN OPERATOR VALUES``, like ``status=finished,stopped`` or ``learning_rate<0.01``. The operators are
``=`` ``!=`` ``<`` ``<=`` ``>`` ``>=`` and ``~`` (contains, ignoring case). ``=`` and ``!=`` take several values,
separated by commas; an empty value stands for a missing one. Filters are parsed in linear time.
"""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.errors import RequestError

_BOUNDS = {"<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}
_OPERATORS = ("<=", ">=", "!=", "=", "<", ">", "~")
MEDIA_TYPES = {"json": "application/json", "csv": "text/csv", "parquet": "application/vnd.apache.parquet"}
#: Rows of a page of JSON: by default and at most.
PAGE_ROWS, MAX_ROWS = 100, 10_000
#: Rows of a CSV file that are in memory at once.
CHUNK_ROWS = 20_000


@dataclass(frozen=True)
class FrameQuery:
    """Selection of rows and columns for ``json``, ``csv`` or ``parquet``.

    Attributes:
        filters: Filters that a row must pass.
        sort: Columns to sort by; a hyphen before a column means descending order.
        columns: Columns of the result; empty: all.
        limit: Maximum number of rows; ``None``: a page of JSON, all of a file.
    """

    filters: tuple[str, ...] = ()
    sort: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    limit: int | None = None
    offset: int = 0
    format: str = "json"


def select(df: pd.DataFrame, query: FrameQuery) -> tuple[pd.DataFrame, int]:
    """Return a page of the rows that pass the filters, and the number of all these rows.

    Raises:
        RequestError: There is no such column, a filter is malformed, or the page is too large.
    """
    df = apply_filters(df, query.filters)
    names = [one.removeprefix("-") for one in query.sort]
    for name in (*names, *query.columns):
        _check_column(df, name)
    if query.sort:
        if len(set(names)) < len(names):
            raise RequestError(f"sort must name each column once; got {', '.join(query.sort)}")
        ascending = [not one.startswith("-") for one in query.sort]
        df = df.sort_values(names, ascending=ascending, kind="stable", key=_comparable)
    if query.format == "json" and query.limit is not None and query.limit > MAX_ROWS:
        raise RequestError(
            f"limit must be at most {MAX_ROWS} for JSON; got {query.limit}: use offset to get pages, or get a file"
        )
    limit = PAGE_ROWS if query.limit is None and query.format == "json" else query.limit
    page = df.iloc[query.offset : None if limit is None else query.offset + limit]
    if query.columns:
        page = page[list(dict.fromkeys(query.columns))]
    return page, len(df)


def apply_filters(df: pd.DataFrame, filters: Sequence[str]) -> pd.DataFrame:
    """Return the rows that pass all filters; errors as for ``select``."""
    for text in filters:
        df = df[_passes(df, text)]
    return df


def records(df: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows as dictionaries for JSON; missing and non-finite values are ``None``."""
    columns = {str(name): [_plain(value) for value in df[name].tolist()] for name in df.columns}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def with_nullable_integers(df: pd.DataFrame) -> pd.DataFrame:
    """Return a frame whose columns of whole numbers, floats because a value is missing, are nullable integers."""
    gaps = [name for name in df.select_dtypes("float") if df[name].isna().any() and df[name].notna().any()]
    whole = [name for name in gaps if (df[name].dropna() % 1 == 0).all() and (df[name].dropna().abs() < 2**53).all()]
    return df.astype(dict.fromkeys(whole, "Int64"))


def csv_text(df: pd.DataFrame, *, header: bool = True) -> str:
    """Return a frame as CSV. If there is a carriage return, which pandas does not quote, all texts are quoted."""
    df = with_nullable_integers(df)
    text = str(df.to_csv(index=False, header=header))
    return str(df.to_csv(index=False, header=header, quoting=csv.QUOTE_NONNUMERIC)) if "\r" in text else text


def csv_chunks(df: pd.DataFrame) -> Iterator[bytes]:
    """Yield a CSV file in chunks of ``CHUNK_ROWS`` rows."""
    for start in range(0, max(1, len(df)), CHUNK_ROWS):
        chunk = df.iloc[start : start + CHUNK_ROWS]
        yield csv_text(chunk, header=start == 0).encode("utf-8", "replace")


def split_names(values: Sequence[str] | None) -> tuple[str, ...]:
    """Return names from repeated parameters, or from lists with commas."""
    return tuple(name for one in values or () for name in (part.strip() for part in one.split(",")) if name)


def _plain(value: Any) -> Any:
    is_missing = value is pd.NA or (isinstance(value, float) and not math.isfinite(value))
    return None if is_missing else value


def _check_column(df: pd.DataFrame, name: str) -> None:
    if name not in df:
        raise RequestError(f"no column has the name {name!r}; there are {', '.join(map(str, df.columns))}")


def _passes(df: pd.DataFrame, text: str) -> np.ndarray:
    start = next((index for index, character in enumerate(text) if character in "=!<>~"), len(text))
    operator = next((one for one in _OPERATORS if text.startswith(one, start)), "")
    name, value = text[:start].strip(), text[start + len(operator) :].lstrip()
    if not operator or not name:
        raise RequestError(f"a filter reads COLUMN OPERATOR VALUE, like learning_rate<=0.01; got {text!r}")
    _check_column(df, name)
    column = df[name]
    if operator == "~":
        if pd.api.types.is_numeric_dtype(column):
            raise RequestError(f"~ searches texts, and {name} has numbers: use = or <")
        return column.astype("str").str.contains(value, case=False, regex=False).to_numpy(bool)
    if operator in _BOUNDS:
        return _compare(column, operator, value)
    matches = np.zeros(len(column), bool)
    for word in value.split(","):
        matches |= _equals(column, word.strip())
    return ~matches if operator == "!=" else matches


def _compare(column: pd.Series, operator: str, value: str) -> np.ndarray:
    number = _number(value, f"{operator} compares numbers; got {value!r}: use =, != or ~")
    if not pd.api.types.is_numeric_dtype(column):
        raise RequestError(f"{operator} compares numbers; {column.name} has none: use =, != or ~")
    with np.errstate(invalid="ignore"):
        passes: np.ndarray = _BOUNDS[operator](column.to_numpy(float, na_value=np.nan), number)
    return passes


def _equals(column: pd.Series, value: str) -> np.ndarray:
    if value == "":
        return column.isna().to_numpy(bool)
    if pd.api.types.is_bool_dtype(column):
        return (column.astype("str").str.lower() == value.lower()).to_numpy(bool)
    if pd.api.types.is_numeric_dtype(column):
        number = _number(value, f"{column.name} contains numbers; got {value!r}: use a number")
        return column.to_numpy(float, na_value=np.nan) == number
    return (column.astype("str") == value).to_numpy(bool) & column.notna().to_numpy(bool)


def _number(text: str, message: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RequestError(message) from None


def _comparable(column: pd.Series) -> pd.Series:
    """Return sortable values: the codes of categories, text of other objects."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.codes
    return column.astype("str") if pd.api.types.is_object_dtype(column) else column
