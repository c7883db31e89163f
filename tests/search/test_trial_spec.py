"""Typed records of trials: their columns, and their way through Ray Tune."""

import copy
import json
import math
import pickle

import numpy as np
import pytest
from ray import cloudpickle
from ray.tune.utils import flatten_dict

from tune_hpc.search.trial_spec import TrialGroup, TrialSpec
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


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config)),
               lambda config: cloudpickle.loads(cloudpickle.dumps(config)), flatten_dict]
)  # fmt: skip
def test_group_survives_the_copies_of_ray_tune(copied):
    config = {"group": TrialGroup("b00000", (TrialSpec("x", "t00001", {"rate": 0.1}, max_step=5),), is_sequential=True)}
    assert copied(config) == config
    assert "rate" in json.dumps(config, default=str)
