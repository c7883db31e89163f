"""Learning rate schedules."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from tune_hpc.learning.config import SCHEDULES, complete
from tune_hpc.learning.optimizers.stacked import learning_rates


def rates(steps, num_samples=50_000, num_steps=5000, **config):
    completed = complete({"learning_rate": 1e-3, "batch_size": 150, **config})
    steps = np.asarray(steps)
    return learning_rates(completed, steps, steps * completed["batch_size"] // num_samples, num_steps).tolist()


def torch_rates(num_steps, scheduler, **arguments):
    """Return the rates of a torch scheduler for an optimizer with rate 0.3."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = scheduler(optimizer, **arguments)
    curve = []
    for _ in range(num_steps):
        curve.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return curve


class TestStaircase:
    def test_rate_is_constant_by_default(self):
        assert set(rates(range(5000))) == {1e-3}

    def test_decay_of_the_report_is_0_95_for_each_pass(self):
        curve = rates(range(5000), decay_rate=0.95)
        # 5000 steps of 150 images are 15 passes over 50,000 images; the last one has just begun.
        falls = [step for step in range(1, 5000) if curve[step] != curve[step - 1]]
        assert falls == [-(-50_000 * epoch // 150) for epoch in range(1, 15)]
        assert [curve[0], *(curve[step] for step in falls)] == pytest.approx(
            [1e-3 * 0.95**n for n in range(15)], rel=1e-14
        )

    def test_decay_happens_at_the_first_step_of_the_next_pass(self):
        assert rates([0, 499, 500, 999, 1000], batch_size=100, decay_rate=0.5) == [1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4]

    def test_rates_are_float64_in_every_precision(self):
        config = complete({"learning_rate": 0.1, "decay_rate": 0.9, "precision": "float32"})
        curve = learning_rates(config, np.arange(3), np.arange(3), 3)
        assert (curve.dtype, curve.shape) == (np.float64, (3,))
        assert curve.tolist() == pytest.approx([0.1, 0.09, 0.081], rel=1e-15)


class TestCosine:
    @pytest.mark.parametrize("num_steps", [1, 2, 100])
    def test_cosine_matches_torch(self, num_steps):
        expected = torch_rates(num_steps, CosineAnnealingLR, T_max=num_steps)
        assert rates(range(num_steps), num_steps=num_steps, learning_rate=0.3, schedule="cosine") == pytest.approx(
            expected, rel=1e-9
        )


class TestOneCycle:
    @pytest.mark.parametrize("num_steps", [4, 10, 999])
    @pytest.mark.parametrize("warmup", [0.3, 0.5, 0.77])
    def test_one_cycle_matches_torch(self, num_steps, warmup):
        expected = torch_rates(num_steps - 1, OneCycleLR, max_lr=0.3, total_steps=num_steps, pct_start=warmup)
        curve = rates(range(num_steps), num_steps=num_steps, learning_rate=0.3, schedule="one_cycle", warmup=warmup)
        assert curve[:-1] == pytest.approx(expected, rel=1e-9)
        assert curve[-1] == pytest.approx(0.3 / 25 / 1e4, rel=1e-9)

    @pytest.mark.parametrize("num_steps", [1, 2, 3])
    def test_run_of_few_steps_has_valid_rates(self, num_steps):
        curve = rates(range(num_steps), num_steps=num_steps, schedule="one_cycle")
        assert np.isfinite(curve).all()
        assert 0 < min(curve) <= max(curve) <= 1e-3


@given(
    schedule=st.sampled_from(SCHEDULES),
    num_steps=st.integers(1, 300),
    peak=st.floats(1e-6, 10),
    more=st.fixed_dictionaries({"decay_rate": st.floats(0.1, 1), "warmup": st.floats(0.01, 0.99)}),
)
def test_rates_are_between_zero_and_the_learning_rate(schedule, num_steps, peak, more):
    curve = rates(range(num_steps), num_steps=num_steps, learning_rate=peak, schedule=schedule, **more)
    assert min(curve) >= 0
    assert max(curve) <= peak * (1 + 1e-12)
