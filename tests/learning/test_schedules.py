import pytest

from tune_hpc.learning.batching import Batching
from tune_hpc.learning.config import complete
from tune_hpc.learning.schedules import build_schedule


def schedule(num_samples=50_000, **config):
    completed = complete({"learning_rate": 1e-3, "batch_size": 150, **config})
    return build_schedule(completed, Batching("shuffled", num_samples, completed["batch_size"], 0).epoch)


class TestSchedule:
    def test_the_rate_is_constant_unless_a_decay_is_asked_for(self):
        rate = schedule()
        assert {rate(step) for step in range(5000)} == {1e-3}

    def test_the_report_s_decay_steps_down_by_0_95_once_a_pass(self):
        rate = schedule(decay_rate=0.95)
        rates = [rate(step) for step in range(5000)]
        # 5000 steps of 150 images are 15 passes over the 50,000; the last one has just begun.
        falls = [step for step in range(1, 5000) if rates[step] != rates[step - 1]]
        assert falls == [-(-50_000 * epoch // 150) for epoch in range(1, 15)]
        assert [rates[0], *(rates[step] for step in falls)] == pytest.approx(
            [1e-3 * 0.95**n for n in range(15)], rel=1e-14
        )

    def test_where_the_batch_divides_the_data_the_fall_is_at_the_first_step_of_the_next_pass(self):
        rate = schedule(batch_size=100, decay_rate=0.5)
        assert [rate(step) for step in (0, 499, 500, 999, 1000)] == [1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4]
