"""How a scaling measurement is planned; tests/test_scripts.py runs one on Ray."""

import pytest

from search_spaces import exercise4
from tune_hpc.errors import InvalidConfigError
from tune_hpc.scaling.measure import NUM_TIMED_STEPS_ON_CPU, make_plan

CPUS = {"CPU": 2.0}
BASE = {"model": "softmax", "batch_size": 150, "steps": 5000}


def plan(workers=(1, 2, 4), cluster=CPUS, **changes):
    return make_plan([{**BASE, **changes, "workers": number} for number in workers], cluster)


def test_exercise_4_is_planned_on_1_2_and_4_workers():
    made = make_plan(list(exercise4.experiment.configs()), CPUS)
    assert made.workers == (1, 2, 4)
    assert (made.config["batch_size"], made.config["steps"], made.config["learning_rate"]) == (150, 5000, 1e-3)


def test_cpus_use_gloo_and_time_fewer_steps():
    made = plan()
    assert (made.backend, made.use_gpu, made.num_timed_steps) == ("gloo", False, NUM_TIMED_STEPS_ON_CPU)


def test_gpus_use_nccl_and_time_every_step():
    made = plan(cluster={"CPU": 16.0, "GPU": 4.0})
    assert (made.backend, made.use_gpu, made.num_timed_steps) == ("nccl", True, 5000)
    assert made.resources_per_worker == {"CPU": 1.0, "GPU": 1.0}


def test_fewer_gpus_than_workers_share_them_over_gloo():
    made = plan(cluster={"CPU": 16.0, "GPU": 1.0})
    assert made.backend == "gloo"
    assert made.resources_per_worker["GPU"] == 0.25


def test_more_workers_than_cores_or_gpus_are_marked():
    on_cpus, on_gpus = plan(), plan(cluster={"CPU": 16.0, "GPU": 2.0})
    assert [on_cpus.oversubscribed(number) for number in (1, 2, 4)] == [False, False, True]
    assert [on_gpus.oversubscribed(number) for number in (1, 2, 4)] == [False, False, True]


def test_all_workers_fit_on_the_cores_there_are():
    assert plan().resources_per_worker == {"CPU": 0.5}
    assert plan(workers=(1, 2)).resources_per_worker == {"CPU": 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": (0,)}, "workers must be a whole number from 1 to the batch size 150; got 0"),
        ({"workers": (1, 151)}, "workers must be a whole number from 1 to the batch size 150; got 151"),
        ({"workers": (1.5,)}, "got 1.5"),
        ({"num_timed_steps": 5001}, "num_timed_steps must be a whole number from 1 to the 5000 steps; got 5001"),
        ({"num_timed_steps": "many"}, "got 'many'"),
        ({"model": "line", "data": "line"}, "the line's four points are not worth sharing"),
        ({"colour": "red"}, "no such key 'colour'"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(changes, message):
    with pytest.raises(InvalidConfigError) as error:
        plan(**changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_only_the_number_of_workers_may_vary():
    with pytest.raises(InvalidConfigError, match="varies workers alone"):
        make_plan([{**BASE, "workers": 1, "batch_size": size} for size in (100, 150)], CPUS)
