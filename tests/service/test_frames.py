"""Filters, order and pages of frames."""

import contextlib
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_hpc.errors import RequestError
from tune_hpc.service.frames import Query, as_answer, records, select, split

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
    page, _ = select(DF, Query(filters, **more))
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
def test_a_filter_passes_rows(filters, passing):
    assert ids(*filters) == passing


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (Query(("rate",)), "a filter reads COLUMN OPERATOR VALUE, like learning_rate<=0.01; got 'rate'"),
        (Query(("none=1",)), "no column is called 'none'; there are trial_id, status, rate"),
        (Query(("rate<fast",)), "< compares numbers; 'fast' is none"),
        (Query(("status<1",)), "< compares numbers; status holds none"),
        (Query(("rate=fast",)), "rate holds numbers; got 'fast'"),
        (Query(sort=("none",)), "no column is called 'none'"),
        (Query(sort=("rate", "-rate")), "sort names each column once"),
        (Query(columns=("none",)), "no column is called 'none'"),
        (Query(limit=10_001), "limit is at most 10000 for JSON; got 10001"),
    ],
)
def test_what_cannot_be_asked_is_said(query, words):
    with pytest.raises(RequestError, match=re.escape(words)):
        select(DF, query)


def test_rows_are_ordered_a_category_in_its_own_order_and_missing_ones_last():
    assert ids(sort=("-steps",)) == "3210"
    assert ids(sort=("status", "-steps")) == "3102"
    assert ids(sort=("rate",)) == ids(sort=("rate", "trial_id")) == "2031"
    assert ids(sort=("-rate",)) == "3021"
    assert ids(sort=("error",)) == "0312"


@given(st.integers(1, 5), st.sampled_from(["json", "csv", "parquet"]))
def test_pages_together_are_the_whole(limit, kind):
    pages = [select(DF, Query(limit=limit, offset=offset, kind=kind)) for offset in range(0, 8, limit)]
    assert [total for _, total in pages] == [4] * len(pages)
    pd.testing.assert_frame_equal(pd.concat([page for page, _ in pages]), DF, check_categorical=False)


@given(st.text(max_size=40))
def test_no_text_of_a_filter_does_more_than_filter(text):
    with contextlib.suppress(RequestError):
        page, total = select(DF, Query((text,)))
        assert len(page) == total <= 4


def test_records_are_plain_and_missing_is_null():
    first, second, *_ = records(DF)
    assert first == {"trial_id": "t0", "status": "failed", "rate": 0.1, "steps": 1, "fused": True,
                     "error": "Out of Memory"}  # fmt: skip
    assert (second["rate"], second["error"]) == (None, None)
    assert type(second["steps"]) is int


def test_columns_come_in_the_order_asked_for():
    answer = as_answer(DF, Query(columns=("steps", "trial_id"), kind="csv", limit=1), "name")
    assert answer.body == b"steps,trial_id\n1,t0\n"
    assert split(["a, b", "c"]) == ("a", "b", "c")
