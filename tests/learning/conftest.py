import pytest
import torch

from tests.learning.synthetic_data import synthetic_images
from tests.learning.training_runs import History
from tune_hpc.learning import training
from tune_hpc.learning.config import complete
from tune_hpc.learning.optimizers.stacked import stack_order
from tune_hpc.learning.training import Training, train, train_fused


@pytest.fixture(autouse=True)
def _one_thread():
    """One core a test: sums do not depend on the machine, and small tensors are not spread over idle threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def images():
    return synthetic_images()


@pytest.fixture
def made(monkeypatch):
    """Every ``Training`` that a run makes, for a look at its parameters."""
    trainings = []

    class Recorded(Training):
        def __init__(self, *args):
            super().__init__(*args)
            trainings.append(self)

    monkeypatch.setattr(training, "Training", Recorded)
    return trainings


@pytest.fixture
def run(images, made):
    """Train one model on the made-up images; returns the row, the history and the final parameters."""

    def run_one(config, **kwargs):
        history = History()
        row = train(config, history, images=images, device="cpu", **kwargs)
        return row, history, [parameter.detach().clone() for parameter in made[-1].model.parameters()]

    return run_one


@pytest.fixture
def run_fused(images, made):
    """Train several as one program; returns for each what ``run`` does."""

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
