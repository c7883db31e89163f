"""Several workers that share batches learn what one learns alone."""

import pytest
import torch
from torch import multiprocessing

from tests.learning.synthetic_data import synthetic_images
from tests.scaling.replicas import CONFIGS, NUMBERS, WAYS, train_together
from tune_hpc.learning.config import complete
from tune_hpc.learning.tasks import ImageClassification


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The parameters of each configuration, on each number of workers, of each of them."""
    folder = tmp_path_factory.mktemp("trained")
    multiprocessing.spawn(train_together, (str(folder),), nprocs=max(NUMBERS))
    return {
        (way, rank): torch.load(folder / f"{way}-{rank}.pt", weights_only=True) for way in WAYS for rank in range(2)
    } | {
        (name, number, rank): torch.load(folder / f"{name}-{number}-{rank}.pt", weights_only=True)
        for name in CONFIGS for number in NUMBERS for rank in range(number)
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_after_twenty_steps_are_those_of_one_worker(trained, name, number):
    alone = trained[name, 1, 0]
    for rank in range(number):
        for one, other in zip(alone, trained[name, number, rank], strict=True):
            torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["small_buckets", "bucket_view"])
def test_how_gradients_are_packed_changes_nothing(trained, way):
    for rank in range(2):
        for one, other in zip(trained["softmax", 1, 0], trained[way, rank][0], strict=True):
            torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_gradients_of_two_bytes_change_little_and_the_same_for_all(trained):
    for one, other, alone in zip(trained["bf16", 0][0], trained["bf16", 1][0], trained["softmax", 1, 0], strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, alone)
        # Adam's steps are of the size of the rate, 0.01, whatever the gradient.
        torch.testing.assert_close(one, alone, rtol=0, atol=0.05)


@pytest.mark.slow
def test_between_two_exchanges_workers_go_their_own_ways_and_then_they_agree(trained):
    (first_before, first), (second_before, second) = trained["local_steps", 0], trained["local_steps", 1]
    for one, other, mean, same in zip(first_before, second_before, first, second, strict=True):
        assert not torch.equal(one, other)
        torch.testing.assert_close(mean, (one + other) / 2, rtol=1e-12, atol=1e-12)
        assert torch.equal(mean, same)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("batch_size", [150, 7, 64])
def test_every_image_is_seen_once_in_a_pass_whatever_the_shares(number, batch_size):
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
