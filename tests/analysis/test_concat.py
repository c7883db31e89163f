"""Several searches as one, with the search as a parameter."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.analysis.test_comparison import made
from tune_hpc.analysis.results import concat
from tune_hpc.errors import UnknownNameError


def named(name, folder=None, **truth):
    results = made(truth, deviation=0.001, generator=np.random.default_rng(len(name)))
    return replace(results, experiment={**results.experiment, "name": name}, folder=folder and Path(folder))


def test_searches_are_ranked_by_their_best_configurations():
    both = concat([named("one", a=0.9, b=0.95), named("other", a=0.8, b=0.85)])
    assert len(both.trials) == 20
    assert both.trials["trial_id"].is_unique
    values = both.compare("search").values
    assert list(values["search"]) == ["one", "other"]
    assert list(values["optimizer"]) == ["b", "b"]
    assert list(values["rank"]) == [1, 2]
    assert both.compare("optimizer").values["search"].tolist() == ["one", "one"]


def test_equal_names_are_replaced_by_folder_names_or_numbered():
    apart = concat([named("one", "runs/one", a=0.9), named("one", "runs/one-2", a=0.8)])
    assert set(apart.trials["search"]) == {"one", "one-2"}
    alike = concat([named("one", a=0.9), named("one", a=0.8)])
    assert set(alike.trials["search"]) == {"one (1)", "one (2)"}


def test_searches_with_different_metrics_are_rejected():
    lossy = made({"a": 0.1}, metric="loss")
    other = replace(lossy, experiment={**lossy.experiment, "name": "two"})
    with pytest.raises(UnknownNameError, match="one by the max of test_accuracy, two by the max of loss; compare"):
        concat([named("one", a=0.9), other])
    with pytest.raises(UnknownNameError, match="nothing to compare"):
        concat([])
