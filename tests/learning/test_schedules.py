import numpy as np
import pytest

from tune_hpc.learning.config import complete
from tune_hpc.learning.schedules import learning_rates


def rates(steps, num_samples=50_000, **config):
    completed = complete({"learning_rate": 1e-3, "batch_size": 150, **config})
    epochs = np.asarray(steps) * completed["batch_size"] // num_samples
    return learning_rates(completed, epochs).tolist()


class TestSchedule:
    def test_the_rate_is_constant_unless_a_decay_is_asked_for(self):
        assert set(rates(range(5000))) == {1e-3}

    def test_the_report_s_decay_steps_down_by_0_95_once_a_pass(self):
        curve = rates(range(5000), decay_rate=0.95)
        # 5000 steps of 150 images are 15 passes over the 50,000; the last one has just begun.
        falls = [step for step in range(1, 5000) if curve[step] != curve[step - 1]]
        assert falls == [-(-50_000 * epoch // 150) for epoch in range(1, 15)]
        assert [curve[0], *(curve[step] for step in falls)] == pytest.approx(
            [1e-3 * 0.95**n for n in range(15)], rel=1e-14
        )

    def test_where_the_batch_divides_the_data_the_fall_is_at_the_first_step_of_the_next_pass(self):
        assert rates([0, 499, 500, 999, 1000], batch_size=100, decay_rate=0.5) == [1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4]

    def test_a_rate_is_in_double_precision_whatever_the_model_s(self):
        epochs = np.arange(3)
        curve = learning_rates(complete({"learning_rate": 0.1, "decay_rate": 0.9, "precision": "float32"}), epochs)
        assert (curve.dtype, curve.shape) == (np.float64, (3,))
        assert curve.tolist() == pytest.approx([0.1, 0.09, 0.081], rel=1e-15)
