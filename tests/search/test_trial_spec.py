"""Typed records of trials: their columns, and their way through Ray Tune."""

import copy
import json
import math
import pickle

import numpy as np
import pytest
from ray import cloudpickle
from ray.tune.utils import flatten_dict

from tune_hpc.search.trial_spec import RankedMetric, TrialGroup, TrialSpec, budget_of, num_steps
from tune_hpc.storage.trial_file import to_jsonable


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None), (True, True), (3, 3), (0.5, 0.5), ("a", "a"), (math.nan, None), (math.inf, None),
        (np.float64(0.5), 0.5), (np.int64(3), 3), (np.bool_(True), True), (np.float32(math.nan), None),
        ([1, 2], "[1, 2]"), ({"a": (1, 2)}, '{"a": [1, 2]}'), ({1}, '"{1}"'),
    ],
)  # fmt: skip
def test_every_value_becomes_jsonable(value, expected):
    made = to_jsonable(value)
    assert made == expected
    assert type(made) is type(expected)
    json.dumps(made, allow_nan=False)


def test_columns_of_a_trial_are_jsonable():
    assert TrialSpec("x", "t00001", {"steps": np.int64(5), "layers": [1, 2]}).columns() == {
        "experiment": "x", "trial_id": "t00001", "steps": 5, "layers": "[1, 2]",
        "config": '{"steps": 5, "layers": [1, 2]}',
    }  # fmt: skip


@pytest.mark.parametrize("stage", [None, 2])
def test_run_of_a_paused_trial_has_a_new_identifier(stage):
    trial = TrialSpec("x", "t00001", {}, stage=stage)
    assert trial.run_id == TrialGroup.single(trial).group_id == ("t00001" if stage is None else "t00001.2")


def test_group_of_one_trial_has_its_experiment():
    trial = TrialSpec("x", "t00001", {})
    group = TrialGroup.single(trial)
    assert (group.trials, group.experiment, group.is_sequential) == ((trial,), "x", False)


REPORTED = [3.0, 1.0, math.nan, 4.0, 2.0, math.inf]


@pytest.mark.parametrize(
    ("mode", "judge", "retained", "value"),
    [
        ("min", "last", [2], 2), ("max", "last", [2], 2), ("min", "best", [1], 1), ("max", "best", [4], 4),
        ("min", "mean_of_last_2", [4, 2], 3), ("max", "mean_of_last_3", [1, 4, 2], 7 / 3),
        ("min", "mean_of_last_9", [3, 1, 4, 2], 2.5),
    ],
)  # fmt: skip
def test_value_of_a_trial_is_the_last_best_or_mean_of_its_finite_reports(mode, judge, retained, value):
    metric = RankedMetric("loss", mode, judge)
    assert metric.retain(np.array(REPORTED)).tolist() == retained
    assert metric.value(np.array(REPORTED)) == pytest.approx(value)
    assert math.isnan(metric.value(np.array([])))
    assert math.isnan(metric.value(np.array([math.nan, math.inf])))
    # The retained values and later ones determine later values.
    later = [5.0, 0.5]
    assert metric.value(np.array(retained + later)) == metric.value(np.array(REPORTED + later))


def test_default_judge_is_the_last_report():
    assert RankedMetric("loss", "min") == RankedMetric("loss", "min", "last")


@pytest.mark.parametrize(
    ("config", "budget", "expected"),
    [({"steps": 8}, "steps", 8), ({"steps": 0.5}, "steps", 0.5), ({"steps": 1}, 20, 20), ({}, "steps", None),
     ({"steps": 0}, "steps", None), ({"steps": -1}, "steps", None), ({"steps": "8"}, "steps", None)],
)  # fmt: skip
def test_budget_is_a_positive_number_of_steps(config, budget, expected):
    assert budget_of(config, budget) == expected


def test_number_of_steps_is_that_of_the_budget():
    assert num_steps({"epochs": 4.0, "steps": 9}, "epochs", 7) == 4
    assert num_steps({"steps": 9}, "epochs", 7) == 7
    assert num_steps({"steps": 9}, 20, 7) == 20


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config)),
               lambda config: cloudpickle.loads(cloudpickle.dumps(config)), flatten_dict]
)  # fmt: skip
def test_group_survives_the_copies_of_ray_tune(copied):
    config = {"group": TrialGroup("b00000", (TrialSpec("x", "t00001", {"rate": 0.1}, max_step=5),), is_sequential=True)}
    assert copied(config) == config
    assert "rate" in json.dumps(config, default=str)
