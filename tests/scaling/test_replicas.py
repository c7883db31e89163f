"""Training on several workers that share batches equals training on one worker."""

import pytest
import torch
from torch import multiprocessing

from tests.learning.synthetic_data import synthetic_images
from tests.scaling.replicas import CONFIGS, NUMBERS, SYNCS, train_together
from tune_hpc.learning.config import complete
from tune_hpc.learning.tasks import ImageClassification


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the parameters of each configuration, number of workers and rank."""
    folder = tmp_path_factory.mktemp("trained")
    multiprocessing.spawn(train_together, (str(folder),), nprocs=max(NUMBERS))
    return {
        (name, rank): torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for name in SYNCS for rank in range(2)
    } | {
        (name, number, rank): torch.load(folder / f"{name}-{number}-{rank}.pt", weights_only=True)
        for name in CONFIGS for number in NUMBERS for rank in range(number)
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_after_twenty_steps_are_those_of_one_worker(trained, name, number):
    for rank in range(number):
        torch.testing.assert_close(trained[name, number, rank], trained[name, 1, 0], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["small_buckets", "bucket_view"])
def test_packing_of_gradients_does_not_change_the_parameters(trained, option):
    for rank in range(2):
        torch.testing.assert_close(trained[option, rank][0], trained["softmax", 1, 0], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_bf16_gradients_change_parameters_little_and_equally(trained):
    for first, second, single in zip(
        trained["bf16", 0][0], trained["bf16", 1][0], trained["softmax", 1, 0], strict=True
    ):
        assert torch.equal(first, second)
        assert not torch.equal(first, single)
        # Adam's steps have the size of the rate, 0.01, for any gradient.
        torch.testing.assert_close(first, single, rtol=0, atol=0.05)


@pytest.mark.slow
def test_local_steps_diverge_until_parameters_are_averaged(trained):
    (first_before, first), (second_before, second) = trained["local_steps", 0], trained["local_steps", 1]
    for before, other, mean, same in zip(first_before, second_before, first, second, strict=True):
        assert not torch.equal(before, other)
        torch.testing.assert_close(mean, (before + other) / 2, rtol=1e-12, atol=1e-12)
        assert torch.equal(mean, same)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("batch_size", [150, 7, 64])
def test_each_image_is_seen_once_in_a_pass_for_any_number_of_workers(number, batch_size):
    images = synthetic_images()
    config = complete({"model": "softmax", "batch_size": batch_size, "batching": "shuffled", "seed": 1})
    tasks = [ImageClassification([config], images, torch.device("cpu"), 0, rank, number) for rank in range(number)]
    num_images = len(images.train_labels)
    num_steps = -(-num_images // batch_size)
    shares = [task.batch_indices(0, num_steps)[:, 0] for task in tasks]
    assert sum(share.shape[1] for share in shares) == batch_size
    assert max(share.shape[1] for share in shares) - min(share.shape[1] for share in shares) <= 1
    seen = torch.cat(shares, dim=1).flatten()[:num_images]
    assert torch.equal(seen.sort().values, torch.arange(num_images))
