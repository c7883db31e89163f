"""Checkpoints of trials: how often they are saved, and their contents; stop requests are in test_stopping.py."""

import numpy as np
import pytest
import torch

from tune_hpc.search import trial_checkpoint
from tune_hpc.search.trial_checkpoint import TrialCheckpoint
from tune_hpc.storage.trial_file import TrialFileWriter


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 50.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(trial_checkpoint.time, "monotonic", clock.monotonic)
    return clock


def test_checkpoint_is_saved_once_per_interval(tmp_path, clock):
    made = []
    checkpoint = TrialCheckpoint(tmp_path / "t.checkpoint", [TrialFileWriter({})], interval_s=60)

    def state():
        made.append(clock.now)
        return {"weights": torch.ones(2)}

    assert checkpoint.load() is None
    for step in range(10):
        clock.now += 20
        checkpoint.save(step, state)
    assert len(made) == 3
    assert [file.name for file in tmp_path.iterdir()] == ["t.checkpoint"]


def test_checkpoint_restores_state_and_metrics(tmp_path, clock):
    writer = TrialFileWriter({})
    writer.add(np.arange(3), {"train_loss": np.array([3.0, 2.0, 1.0])})
    writer.add(3, {"test_loss": 0.5})
    clock.now += 1
    TrialCheckpoint(tmp_path / "t.checkpoint", [writer], interval_s=0).save(3, lambda: {"step": 3, "w": torch.ones(2)})

    again = TrialFileWriter({})
    again.add(99, {"train_loss": 9.0})
    state = TrialCheckpoint(tmp_path / "t.checkpoint", [again], interval_s=0).load()
    assert state["step"] == 3
    assert torch.equal(state["w"], torch.ones(2))
    assert again.history().equals(writer.history())
