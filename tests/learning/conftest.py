import hashlib

import numpy as np
import pytest
import torch

from tests.learning.synthetic_data import synthetic_images
from tests.learning.training_runs import History
from tune_hpc.learning import download, training
from tune_hpc.learning.config import complete
from tune_hpc.learning.optimizers.stacked import stack_order
from tune_hpc.learning.training import Training, train, train_fused


@pytest.fixture(autouse=True)
def _one_thread():
    """Use one thread, so that sums do not depend on the machine and small tensors are processed quickly."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def images():
    return synthetic_images()


@pytest.fixture
def small_splits():
    """Images, with values pixel / 256, and labels of seven, three and four samples."""
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 256, (n, 784)) / 256, rng.integers(0, 10, n)) for n in (7, 3, 4)]


@pytest.fixture
def small_files(monkeypatch, small_splits):
    """Four small IDX files whose sums replace those of both data sets."""
    files = download._files_from_splits(small_splits)
    sums = [hashlib.md5(content).hexdigest() for content in files.values()]
    monkeypatch.setattr(download, "MD5_SUMS", {"mnist": sums, "fashion_mnist": sums})
    return files


@pytest.fixture
def made(monkeypatch):
    """Collect every ``Training`` that a run makes."""
    trainings = []

    class Recorded(Training):
        def __init__(self, *args):
            super().__init__(*args)
            trainings.append(self)

    monkeypatch.setattr(training, "Training", Recorded)
    return trainings


@pytest.fixture
def run(images, made):
    """Return a function that trains one model and returns the row, the history and the final parameters."""

    def run_one(config, **kwargs):
        history = History()
        row = train(config, history, images=images, device="cpu", **kwargs)
        return row, history, [parameter.detach().clone() for parameter in made[-1].model.parameters()]

    return run_one


@pytest.fixture
def run_fused(images, made):
    """Return a function that trains several models as one program and returns the results of ``run`` for each."""

    def run_all(configs, **kwargs):
        histories = [History() for _ in configs]
        rows = train_fused(configs, histories, images=images, device="cpu", **kwargs)
        order = stack_order([complete(config) for config in configs])
        parameters = [
            [parameter.detach()[[order.index(member)]] for parameter in made[-1].model.parameters()]
            for member in range(len(configs))
        ]
        return list(zip(rows, histories, parameters, strict=True))

    return run_all
