"""Filters, order and pages of data frames."""

import contextlib
import re
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_hpc.analysis.frame_query import FrameQuery, csv_chunks, records, select, split_names
from tune_hpc.errors import RequestError

DF = pd.DataFrame(
    {
        "trial_id": ["t0", "t1", "t2", "t3"],
        "status": pd.Categorical(
            ["failed", "finished", "running", "finished"], categories=["finished", "failed", "running"]
        ),
        "rate": [0.1, np.nan, 0.01, 1.0],
        "steps": [1, 2, 3, 4],
        "fused": [True, False, True, False],
        "error": ["Out of Memory", None, None, "odd, very"],
    }
)


def ids(*filters, **more):
    page, _ = select(DF, FrameQuery(filters, **more))
    return "".join(name[1] for name in page["trial_id"])


@pytest.mark.parametrize(
    ("filters", "passing"),
    [
        ((), "0123"),
        (("status=finished",), "13"),
        (("status=finished,failed",), "013"),
        (("status!=finished",), "02"),
        (("rate<=0.1",), "02"),
        (("rate > 0.1",), "3"),
        (("rate=0.01,1",), "23"),
        (("rate=",), "1"),
        (("rate!=",), "023"),
        (("steps>=2", "steps<4"), "12"),
        (("fused=true",), "02"),
        (("error~memory",), "0"),
        (("error~,",), "3"),
        (("error=",), "12"),
        (("trial_id=t3",), "3"),
        (("status=nothing",), ""),
    ],
)
def test_filter_selects_rows(filters, passing):
    assert ids(*filters) == passing


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (FrameQuery(("rate",)), "a filter reads COLUMN OPERATOR VALUE, like learning_rate<=0.01; got 'rate'"),
        (FrameQuery(("none=1",)), "no column has the name 'none'; there are trial_id, status, rate"),
        (FrameQuery(("rate<fast",)), "< compares numbers; got 'fast'"),
        (FrameQuery(("status<1",)), "< compares numbers; status has none"),
        (FrameQuery(("rate=fast",)), "rate contains numbers; got 'fast'"),
        (FrameQuery(sort=("none",)), "no column has the name 'none'"),
        (FrameQuery(sort=("rate", "-rate")), "sort must name each column once"),
        (FrameQuery(columns=("none",)), "no column has the name 'none'"),
        (FrameQuery(limit=10_001), "limit must be at most 10000 for JSON; got 10001"),
    ],
)
def test_invalid_query_is_refused_with_the_rule(query, words):
    with pytest.raises(RequestError, match=re.escape(words)):
        select(DF, query)


def test_rows_are_sorted_categories_in_their_order_and_missing_values_last():
    assert ids(sort=("-steps",)) == "3210"
    assert ids(sort=("status", "-steps")) == "3102"
    assert ids(sort=("rate",)) == ids(sort=("rate", "trial_id")) == "2031"
    assert ids(sort=("-rate",)) == "3021"
    assert ids(sort=("error",)) == "0312"


@given(st.integers(1, 5), st.sampled_from(["json", "csv", "parquet"]))
def test_pages_add_up_to_the_whole_frame(limit, kind):
    pages = [select(DF, FrameQuery(limit=limit, offset=offset, format=kind)) for offset in range(0, 8, limit)]
    assert [total for _, total in pages] == [4] * len(pages)
    pd.testing.assert_frame_equal(pd.concat([page for page, _ in pages]), DF, check_categorical=False)


@given(st.text(max_size=40))
def test_no_filter_text_fails_or_adds_rows(text):
    with contextlib.suppress(RequestError):
        page, total = select(DF, FrameQuery((text,)))
        assert len(page) == total <= 4


def test_records_are_plain_data_and_missing_values_are_none():
    first, second, *_ = records(DF)
    assert first == {"trial_id": "t0", "status": "failed", "rate": 0.1, "steps": 1, "fused": True,
                     "error": "Out of Memory"}  # fmt: skip
    assert (second["rate"], second["error"]) == (None, None)
    assert type(second["steps"]) is int


def test_columns_are_in_the_order_of_the_query():
    page, total = select(DF, FrameQuery(columns=("steps", "trial_id"), format="csv", limit=1))
    assert (b"".join(csv_chunks(page)), total) == (b"steps,trial_id\n1,t0\n", 4)
    assert split_names(["a, b", "c"]) == ("a", "b", "c")


def test_csv_is_written_in_chunks_that_add_up_to_the_frame():
    df = pd.DataFrame({"x": np.arange(50_000)})
    chunks = list(csv_chunks(df))
    assert [chunk.count(b"\n") for chunk in chunks] == [20_001, 20_000, 10_000]
    assert b"".join(chunks).decode() == df.to_csv(index=False)
    assert list(csv_chunks(df.head(0))) == [b"x\n"]


def test_filter_is_parsed_in_linear_time():
    start = time.monotonic()
    for text in (" " * 100_000, " " * 100_000 + "=1", "a" + " " * 100_000 + "=", "=" * 100_000):
        with contextlib.suppress(RequestError):
            select(DF, FrameQuery((text,)))
    assert time.monotonic() - start < 1
