"""Records of a training run: history and checkpoints."""

import math

import numpy as np
import pytest
import torch

from tune_hpc.learning.checkpoint import load_state, save_state

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class History(dict):
    """A ``report`` that stores every number by (metric, step), each only once."""

    def __call__(self, step, metrics):
        for name, values in metrics.items():
            for number, value in zip(np.atleast_1d(step), np.atleast_1d(values), strict=True):
                assert (name, int(number)) not in self
                self[name, int(number)] = float(value)

    def steps(self, name):
        return [step for metric, step in self if metric == name]

    def curve(self, name):
        return [value for (metric, _), value in self.items() if metric == name]


class FileCheckpoint:
    """A checkpoint file that stores the first state offered at or after a step."""

    def __init__(self, path, since=math.inf):
        self.path, self.since, self.saved_at = path, since, None
        self.offered = []

    def load(self):
        return load_state(self.path) if self.path.is_file() else None

    def save(self, step, make_state):
        self.offered.append(step)
        if step >= self.since and self.saved_at is None:
            self.saved_at = step
            save_state(self.path, make_state())

    def keep(self, step, make_state, **options):
        """Keep nothing."""


def same_bits(parameters, others):
    return all(torch.equal(one, other) for one, other in zip(parameters, others, strict=True))
