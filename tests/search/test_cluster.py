"""Resources of trials on clusters of many shapes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_hpc.errors import ClusterError, InvalidExperimentError
from tune_hpc.search.cluster import MAX_TRIALS_PER_GPU, TrialResources, check_gpus, choose_resources
from tune_hpc.search.options import RunOptions

LAPTOP = {"CPU": 8.0}
FOUR_GPUS = {"CPU": 8.0, "GPU": 4.0}


def test_trial_has_one_core_by_default():
    assert choose_resources([LAPTOP], 72) == TrialResources(cpus=1, gpus=0, num_slots=8)
    assert choose_resources([LAPTOP], 72).as_ray() == {"CPU": 1}


def test_number_of_slots_is_limited_by_the_trials():
    assert choose_resources([LAPTOP], 3).num_slots == 3
    assert choose_resources([LAPTOP], 72, max_concurrent=2).num_slots == 2
    assert choose_resources([LAPTOP], 72, max_concurrent=20).num_slots == 8


def test_larger_trials_have_fewer_slots():
    assert choose_resources([LAPTOP], 72, cpus_per_trial=3).num_slots == 2
    assert choose_resources([LAPTOP], 72, cpus_per_trial=0.5).num_slots == 16


def test_gpus_are_shared_if_there_are_cores_for_them():
    resources = choose_resources([FOUR_GPUS], 72)
    assert resources == TrialResources(cpus=1, gpus=0.5, num_slots=8)
    assert resources.as_ray() == {"CPU": 1, "GPU": 0.5}
    assert choose_resources([{"CPU": 64, "GPU": 4}], 72) == TrialResources(1, 1 / MAX_TRIALS_PER_GPU, 16)
    assert choose_resources([{"CPU": 2, "GPU": 4}], 72) == TrialResources(1, 1, 2)


def test_few_trials_have_a_gpu_each():
    assert choose_resources([FOUR_GPUS], 4) == TrialResources(1, 1, 4)
    assert choose_resources([FOUR_GPUS], 5) == TrialResources(1, 0.5, 5)


def test_gpu_fractions_and_multiples_fill_the_gpus():
    assert choose_resources([FOUR_GPUS], 72, gpus_per_trial=0.5).num_slots == 8
    assert choose_resources([FOUR_GPUS], 72, gpus_per_trial=0.4).num_slots == 8
    assert choose_resources([FOUR_GPUS], 72, gpus_per_trial=2).num_slots == 2
    assert choose_resources([FOUR_GPUS], 72, gpus_per_trial=3).num_slots == 1
    assert choose_resources([FOUR_GPUS], 72, gpus_per_trial=0) == TrialResources(1, 0, 8)


def test_trial_must_fit_on_one_node():
    assert choose_resources([{"CPU": 3}, {"CPU": 3}], 72, cpus_per_trial=2).num_slots == 2
    assert choose_resources([FOUR_GPUS, {"CPU": 2, "GPU": 1}], 72) == TrialResources(1, 0.5, 10)
    # The head of a cluster often has cores and no GPU.
    assert choose_resources([{"CPU": 16}, FOUR_GPUS], 72) == TrialResources(1, 0.5, 8)
    with pytest.raises(ClusterError, match="requests 4 CPU cores and 0 GPUs; the largest node has 3 and 0"):
        choose_resources([{"CPU": 3}, {"CPU": 3}], 72, cpus_per_trial=4)


@pytest.mark.parametrize(
    ("nodes", "request_", "message"),
    [
        (
            [LAPTOP],
            {"cpus_per_trial": 9},
            "a trial requests 9 CPU cores and 0 GPUs; the largest node has 8 and 0: request",
        ),
        ([LAPTOP], {"gpus_per_trial": 1}, "a trial requests 1 CPU cores and 1 GPUs; the largest node has 8 and 0"),
        ([LAPTOP, FOUR_GPUS], {"gpus_per_trial": 5}, "requests 1 CPU cores and 5 GPUs; the largest node has 8 and 4"),
        (
            [{"CPU": 1, "GPU": 1}],
            {"cpus_per_trial": 2},
            "requests 2 CPU cores and 1 GPUs; the largest node has 1 and 1",
        ),
        ([], {}, "the largest node has 0 and 0"),
    ],
)
def test_message_on_a_small_cluster_has_the_numbers(nodes, request_, message):
    with pytest.raises(ClusterError, match=message):
        choose_resources(nodes, 72, **request_)


@pytest.mark.parametrize("gpus", [1.5, -1, math.nan, math.inf])
def test_impossible_numbers_of_gpus_are_rejected(gpus):
    message = f"gpus_per_trial must be a fraction up to 1, or a whole number; got {gpus}"
    with pytest.raises(InvalidExperimentError, match=message):
        check_gpus(gpus)
    with pytest.raises(InvalidExperimentError, match=message):
        choose_resources([FOUR_GPUS], 72, gpus_per_trial=gpus)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cpus_per_trial": 0}, "cpus_per_trial must be above 0; got 0"),
        ({"cpus_per_trial": math.nan}, "cpus_per_trial must be a finite number; got nan"),
        ({"max_concurrent": 0}, "max_concurrent must be at least 1; got 0"),
    ],
)
def test_requests_out_of_bounds_are_rejected(options, message):
    with pytest.raises(InvalidExperimentError, match=message):
        RunOptions(**options)


nodes = st.lists(
    st.fixed_dictionaries({"CPU": st.integers(0, 64).map(float)}, optional={"GPU": st.integers(0, 8).map(float)}),
    max_size=4,
)


@given(
    nodes,
    st.integers(1, 500),
    st.none() | st.sampled_from([0.25, 0.5, 1, 2, 3]),
    st.none() | st.sampled_from([0, 0.1, 0.3, 1 / 3, 0.5, 0.7, 1, 2, 3]),
    st.none() | st.integers(1, 20),
)
def test_slots_never_exceed_the_nodes(nodes, num_trials, cpus, gpus, max_concurrent):
    try:
        resources = choose_resources(nodes, num_trials, cpus, gpus, max_concurrent)
    except ClusterError:
        return
    assert 1 <= resources.num_slots <= num_trials
    assert resources.num_slots <= (max_concurrent or num_trials)
    capacity = 0
    for node in nodes:
        # Place trials one by one: a fraction lives on one GPU, several whole ones are taken together.
        free, cores = [1.0] * int(node.get("GPU", 0)), node["CPU"]
        while cores + 1e-9 >= resources.cpus:
            if resources.gpus > 1:
                if len(free) < resources.gpus:
                    break
                free = free[int(resources.gpus) :]
            elif resources.gpus:
                holder = next((gpu for gpu, left in enumerate(free) if left + 1e-9 >= resources.gpus), None)
                if holder is None:
                    break
                free[holder] -= resources.gpus
            cores -= resources.cpus
            capacity += 1
    assert resources.num_slots <= capacity


def test_slots_have_room_for_all_workers_of_a_trial():
    resources = choose_resources([LAPTOP], 72, workers=3)
    assert resources == TrialResources(cpus=1, gpus=0, num_slots=2, workers=3)
    assert resources.per_worker == {"CPU": 1}
    assert "GPU" not in resources.as_ray()
    assert resources.as_ray()["CPU"] == 0
    assert choose_resources([LAPTOP], 72, workers=8).num_slots == 1
    assert choose_resources([LAPTOP, LAPTOP], 72, workers=3).num_slots == 5
    assert choose_resources([LAPTOP], 72, cpus_per_trial=0.5, workers=3).num_slots == 5
    assert choose_resources([LAPTOP], 72, max_concurrent=1, workers=3).num_slots == 1


def test_each_worker_has_a_gpu_if_there_are_any():
    resources = choose_resources([FOUR_GPUS], 72, workers=2)
    assert (resources.per_worker, resources.num_slots) == ({"CPU": 1, "GPU": 1}, 2)
    assert choose_resources([FOUR_GPUS], 72, gpus_per_trial=0, workers=2).num_slots == 4


def test_message_on_too_many_workers_has_the_numbers():
    with pytest.raises(ClusterError, match="9 workers of 1 CPU cores and 0 GPUs each; the cluster has room for 8: use"):
        choose_resources([LAPTOP], 72, workers=9)


@given(
    cores=st.lists(st.integers(0, 16), min_size=1, max_size=4), workers=st.integers(1, 20),
    cpus=st.sampled_from([0.5, 1.0, 2.0, 3.0]),
)  # fmt: skip
def test_workers_of_all_concurrent_trials_fit(cores, workers, cpus):
    nodes = [{"CPU": float(number)} for number in cores]
    room = sum(int(number / cpus) for number in cores)
    try:
        resources = choose_resources(nodes, 1000, cpus_per_trial=cpus, workers=workers)
    except ClusterError:
        assert room < workers
    else:
        assert resources.num_slots * workers <= room < (resources.num_slots + 1) * workers
