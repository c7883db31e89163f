"""Batching policies."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tune_hpc.errors import InvalidConfigError
from tune_hpc.learning.batching import Batching
from tune_hpc.learning.config import BATCHING_POLICIES

INFINITE = tuple(policy for policy in BATCHING_POLICIES if policy != "single_pass")


@st.composite
def sizes(draw):
    """Number of samples and batch size."""
    num_samples = draw(st.integers(1, 60))
    return num_samples, draw(st.integers(1, num_samples))


def stream(batching, num_batches):
    return torch.cat([batching.indices(step) for step in range(num_batches)])


class TestPasses:
    @given(st.sampled_from(["sequential", "shuffled"]), sizes(), st.integers(0, 5))
    def test_each_pass_visits_every_sample_once_for_any_batch_size(self, policy, size, seed):
        num_samples, batch_size = size
        num_passes = 3
        order = stream(Batching(policy, num_samples, batch_size, seed), -(-num_passes * num_samples // batch_size))
        for visited in order[: num_passes * num_samples].split(num_samples):
            assert visited.sort().values.tolist() == list(range(num_samples))

    @given(sizes(), st.integers(0, 5))
    def test_single_pass_consists_of_slices_of_the_stored_order(self, size, seed):
        num_samples, batch_size = size
        batching = Batching("single_pass", num_samples, batch_size, seed)
        assert batching.num_batches == num_samples // batch_size
        for step in range(batching.num_batches):
            expected = torch.arange(step * batch_size, (step + 1) * batch_size)
            assert torch.equal(batching.indices(step), expected)

    @given(sizes())
    def test_single_pass_ends_with_the_last_full_batch(self, size):
        batching = Batching("single_pass", *size, seed=0)
        for beyond in (batching.num_batches, batching.num_batches + 7):
            with pytest.raises(IndexError, match=f"a single pass has {batching.num_batches} batches of {size[1]}"):
                batching.indices(beyond)

    @given(sizes())
    def test_single_pass_begins_like_the_sequential_order(self, size):
        single, infinite = (Batching(policy, *size, seed=0) for policy in ("single_pass", "sequential"))
        assert torch.equal(stream(single, single.num_batches), stream(infinite, single.num_batches))

    def test_sequential_order_wraps_around(self):
        assert stream(Batching("sequential", 5, 3, 0), 4).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]

    def test_each_pass_has_another_permutation(self):
        first, second = stream(Batching("shuffled", 100, 100, 0), 2).split(100)
        assert not torch.equal(first, second)
        assert not torch.equal(first, torch.arange(100))

    def test_random_batches_are_uniform_with_replacement(self):
        drawn = stream(Batching("random", 1000, 100, 0), 1000)
        counts = drawn.bincount(minlength=1000)
        assert counts.max() > 100 > counts.min()
        assert counts.float().var().item() == pytest.approx(100, rel=0.2)

    @pytest.mark.parametrize("policy", INFINITE)
    def test_other_policies_are_infinite(self, policy):
        batching = Batching(policy, 7, 3, 0)
        assert batching.num_batches is None
        assert len(batching.indices(10**6)) == 3


class TestPurity:
    @given(
        st.sampled_from(INFINITE),
        sizes(),
        st.integers(0, 2**31 - 1),
        st.lists(st.integers(0, 50), min_size=1, max_size=12),
    )
    def test_batch_depends_only_on_policy_seed_and_step(self, policy, size, seed, steps):
        batching = Batching(policy, *size, seed)
        for step in steps:
            batch = batching.indices(step)
            assert batch.shape == (size[1],)
            assert batch.dtype == torch.int64
            assert torch.equal(batch, Batching(policy, *size, seed).indices(step))

    @given(st.sampled_from(INFINITE), sizes(), st.data())
    def test_stream_does_not_depend_on_the_batch_size(self, policy, size, data):
        num_samples, batch_size = size
        other_size = data.draw(st.integers(1, num_samples))
        first, second = (Batching(policy, num_samples, one, 3) for one in (batch_size, other_size))
        shared = min(4 * batch_size, 4 * other_size)
        assert torch.equal(stream(first, 4)[:shared], stream(second, 4)[:shared])

    @pytest.mark.parametrize("policy", ["shuffled", "random"])
    def test_seeds_give_different_results(self, policy):
        orders = {tuple(stream(Batching(policy, 50, 10, seed), 10).tolist()) for seed in range(20)}
        assert len(orders) == 20

    def test_global_generator_is_unchanged(self):
        before = torch.get_rng_state()
        Batching("shuffled", 50, 10, 0).indices(3)
        assert torch.equal(torch.get_rng_state(), before)


class TestEpochs:
    @given(st.sampled_from(INFINITE), sizes(), st.integers(0, 100))
    def test_epoch_counts_complete_passes(self, policy, size, step):
        num_samples, batch_size = size
        assert Batching(policy, num_samples, batch_size, 0).epoch(step) == step * batch_size // num_samples

    def test_single_pass_of_the_report_has_333_steps_of_150(self):
        batching = Batching("single_pass", 50_000, 150, 0)
        assert batching.num_batches == 333
        assert batching.epoch(332) == 0

    def test_500_steps_of_100_images_are_one_pass(self):
        batching = Batching("shuffled", 50_000, 100, 0)
        assert [batching.epoch(step) for step in (0, 499, 500, 999, 1000)] == [0, 0, 1, 1, 2]


class TestValidation:
    @pytest.mark.parametrize("batch_size", [0, -1, 101])
    def test_batch_larger_than_the_data_is_rejected(self, batch_size):
        with pytest.raises(InvalidConfigError, match=f"batch_size must be 1 to 100, the .* samples; got {batch_size}"):
            Batching("shuffled", 100, batch_size, 0)

    def test_unknown_policy_is_rejected_with_the_known_names(self):
        with pytest.raises(InvalidConfigError, match=r"batching must be one of single_pass, .*; got 'sorted'"):
            Batching("sorted", 100, 10, 0)
