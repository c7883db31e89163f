"""Rows, histories and summaries of trials."""

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from tune_hpc.storage.trial_file import TrialFileWriter, summarise


def test_summary_has_last_best_and_selected_values():
    history = pd.DataFrame(
        {
            "step": [0, 10, 20, 30],
            "train_loss": [2.0, 1.0, np.inf, np.nan],
            "test_accuracy": [0.1, 0.9, 0.8, np.nan],
            "valid_accuracy": [0.1, 0.7, 0.85, np.nan],
        }
    )
    assert summarise(history) == {
        "train_loss": np.inf, "test_accuracy": 0.8, "valid_accuracy": 0.85, "best_test_accuracy": 0.9, "best_step": 10,
        "best_valid_accuracy": 0.85, "selected_step": 20, "selected_test_accuracy": 0.8,
    }  # fmt: skip
    assert summarise(pd.DataFrame({"step": [0], "test_accuracy": [np.nan]})) == {}


@given(st.data(), st.lists(st.floats(), min_size=1, max_size=30))
def test_history_does_not_depend_on_its_blocks(data, values):
    steps = np.arange(len(values))
    metrics = {"train_loss": np.array(values), "test_loss": -np.array(values)}
    whole = TrialFileWriter({})
    whole.add(steps, metrics)
    cuts = [*sorted(data.draw(st.sets(st.integers(1, len(values))))), len(values)]
    split = TrialFileWriter({})
    start = 0
    for cut in cuts:
        split.add(steps[start:cut], {name: column[start:cut] for name, column in metrics.items()})
        start = cut
    pd.testing.assert_frame_equal(split.history(), whole.history())
    one_by_one = TrialFileWriter({})
    for step in steps:
        one_by_one.add(step, {name: column[step] for name, column in metrics.items()})
    pd.testing.assert_frame_equal(one_by_one.history(), whole.history())


def test_metrics_of_one_step_share_a_row():
    record = TrialFileWriter({})
    assert list(record.history().columns) == ["step"]
    record.add([2, 3], {"train_loss": [0.2, 0.3]})
    record.add(0, {"train_loss": 0.0})
    record.add(2, {"test_loss": 9.0})
    history = record.history()
    assert list(history["step"]) == [0, 2, 3]
    assert list(history["train_loss"]) == [0.0, 0.2, 0.3]
    assert list(history["test_loss"].dropna()) == [9.0]
