import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_hpc.errors import ClusterError, InvalidExperimentError
from tune_hpc.search.resources import MAX_TRIALS_PER_GPU, TrialResources, check_request, choose_resources

LAPTOP = {"CPU": 8.0}
FOUR_GPUS = {"CPU": 8.0, "GPU": 4.0}


def test_on_cpus_each_trial_gets_one_core():
    assert choose_resources([LAPTOP], 72) == TrialResources(cpus=1, gpus=0, num_slots=8)
    assert choose_resources([LAPTOP], 72).as_ray() == {"CPU": 1}


def test_no_more_trials_run_at_once_than_there_are():
    assert choose_resources([LAPTOP], 3).num_slots == 3
    assert choose_resources([LAPTOP], 72, max_concurrent=2).num_slots == 2
    assert choose_resources([LAPTOP], 72, max_concurrent=20).num_slots == 8


def test_trials_of_several_cores_take_fewer_slots():
    assert choose_resources([LAPTOP], 72, cpus_per_trial=3).num_slots == 2
    assert choose_resources([LAPTOP], 72, cpus_per_trial=0.5).num_slots == 16


def test_gpus_are_shared_as_far_as_there_are_cores_to_feed_them():
    chosen = choose_resources([FOUR_GPUS], 72)
    assert chosen == TrialResources(cpus=1, gpus=0.5, num_slots=8)
    assert chosen.as_ray() == {"CPU": 1, "GPU": 0.5}
    assert choose_resources([{"CPU": 64, "GPU": 4}], 72) == TrialResources(1, 1 / MAX_TRIALS_PER_GPU, 16)
    assert choose_resources([{"CPU": 2, "GPU": 4}], 72) == TrialResources(1, 1, 2)


def test_few_trials_get_a_gpu_each():
    assert choose_resources([FOUR_GPUS], 4) == TrialResources(1, 1, 4)
    assert choose_resources([FOUR_GPUS], 5) == TrialResources(1, 0.5, 5)


def test_half_a_gpu_holds_two_trials_and_two_gpus_hold_one():
    assert choose_resources([FOUR_GPUS], 72, gpus_per_trial=0.5).num_slots == 8
    assert choose_resources([FOUR_GPUS], 72, gpus_per_trial=0.4).num_slots == 8
    assert choose_resources([FOUR_GPUS], 72, gpus_per_trial=2).num_slots == 2
    assert choose_resources([FOUR_GPUS], 72, gpus_per_trial=3).num_slots == 1
    assert choose_resources([FOUR_GPUS], 72, gpus_per_trial=0) == TrialResources(1, 0, 8)


def test_a_trial_fits_on_one_node_of_several():
    assert choose_resources([{"CPU": 3}, {"CPU": 3}], 72, cpus_per_trial=2).num_slots == 2
    assert choose_resources([FOUR_GPUS, {"CPU": 2, "GPU": 1}], 72) == TrialResources(1, 0.5, 10)
    # The head of a cluster often has cores and no GPU.
    assert choose_resources([{"CPU": 16}, FOUR_GPUS], 72) == TrialResources(1, 0.5, 8)
    with pytest.raises(ClusterError, match="asks for 4 CPU cores and 0 GPUs; the largest node has 3 and 0"):
        choose_resources([{"CPU": 3}, {"CPU": 3}], 72, cpus_per_trial=4)


@pytest.mark.parametrize(
    ("nodes", "request_", "message"),
    [
        ([LAPTOP], {"cpus_per_trial": 9}, "a trial asks for 9 CPU cores and 0 GPUs; the largest node has 8 and 0: ask"),
        ([LAPTOP], {"gpus_per_trial": 1}, "a trial asks for 1 CPU cores and 1 GPUs; the largest node has 8 and 0"),
        ([LAPTOP, FOUR_GPUS], {"gpus_per_trial": 5}, "asks for 1 CPU cores and 5 GPUs; the largest node has 8 and 4"),
        (
            [{"CPU": 1, "GPU": 1}],
            {"cpus_per_trial": 2},
            "for 2 CPU cores and 1 GPUs; the largest node has 1 and 1",
        ),
        ([], {}, "the largest node has 0 and 0"),
    ],
)
def test_a_cluster_that_is_too_small_is_told_with_numbers(nodes, request_, message):
    with pytest.raises(ClusterError, match=message):
        choose_resources(nodes, 72, **request_)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"gpus_per_trial": 1.5}, "gpus_per_trial must be a fraction up to 1, or a whole number; got 1.5"),
        ({"gpus_per_trial": -1}, "gpus_per_trial must be .*; got -1"),
        ({"gpus_per_trial": math.nan}, "gpus_per_trial must be .*; got nan"),
        ({"gpus_per_trial": math.inf}, "gpus_per_trial must be .*; got inf"),
        ({"cpus_per_trial": 0}, "cpus_per_trial must be above 0; got 0"),
        ({"cpus_per_trial": math.nan}, "cpus_per_trial must be above 0; got nan"),
        ({"max_concurrent": 0}, "max_concurrent must be at least 1; got 0"),
    ],
)
def test_a_request_that_no_cluster_could_grant_is_refused_before_one_is_asked(request_, message):
    with pytest.raises(InvalidExperimentError, match=message):
        check_request(**request_)
    with pytest.raises(InvalidExperimentError, match=message):
        choose_resources([FOUR_GPUS], 72, **request_)


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
def test_slots_never_exceed_what_the_nodes_hold(nodes, num_trials, cpus, gpus, max_concurrent):
    try:
        chosen = choose_resources(nodes, num_trials, cpus, gpus, max_concurrent)
    except ClusterError:
        return
    assert 1 <= chosen.num_slots <= num_trials
    assert chosen.num_slots <= (max_concurrent or num_trials)
    capacity = 0
    for node in nodes:
        # Place trials one by one: a fraction lives on one GPU, several whole ones are taken together.
        free, cores = [1.0] * int(node.get("GPU", 0)), node["CPU"]
        while cores + 1e-9 >= chosen.cpus:
            if chosen.gpus > 1:
                if len(free) < chosen.gpus:
                    break
                free = free[int(chosen.gpus) :]
            elif chosen.gpus:
                holder = next((gpu for gpu, left in enumerate(free) if left + 1e-9 >= chosen.gpus), None)
                if holder is None:
                    break
                free[holder] -= chosen.gpus
            cores -= chosen.cpus
            capacity += 1
    assert chosen.num_slots <= capacity


def test_trials_of_several_workers_run_only_where_all_of_these_have_room():
    chosen = choose_resources([LAPTOP], 72, workers=3)
    assert chosen == TrialResources(cpus=1, gpus=0, num_slots=2, workers=3)
    assert chosen.per_worker == {"CPU": 1}
    assert "GPU" not in chosen.as_ray()
    assert chosen.as_ray()["CPU"] == 0
    assert choose_resources([LAPTOP], 72, workers=8).num_slots == 1
    assert choose_resources([LAPTOP, LAPTOP], 72, workers=3).num_slots == 5
    assert choose_resources([LAPTOP], 72, cpus_per_trial=0.5, workers=3).num_slots == 5
    assert choose_resources([LAPTOP], 72, max_concurrent=1, workers=3).num_slots == 1


def test_each_worker_has_a_gpu_where_there_are_any():
    chosen = choose_resources([FOUR_GPUS], 72, workers=2)
    assert (chosen.per_worker, chosen.num_slots) == ({"CPU": 1, "GPU": 1}, 2)
    assert choose_resources([FOUR_GPUS], 72, gpus_per_trial=0, workers=2).num_slots == 4


def test_workers_for_which_there_is_never_room_are_refused_with_the_numbers():
    with pytest.raises(ClusterError, match="9 workers of 1 CPU cores and 0 GPUs each; the cluster has room for 8: use"):
        choose_resources([LAPTOP], 72, workers=9)


@given(
    cores=st.lists(st.integers(0, 16), min_size=1, max_size=4), workers=st.integers(1, 20),
    cpus=st.sampled_from([0.5, 1.0, 2.0, 3.0]),
)  # fmt: skip
def test_all_workers_of_all_trials_that_run_at_once_fit(cores, workers, cpus):
    nodes = [{"CPU": float(number)} for number in cores]
    room = sum(int(number / cpus) for number in cores)
    try:
        chosen = choose_resources(nodes, 1000, cpus_per_trial=cpus, workers=workers)
    except ClusterError:
        assert room < workers
    else:
        assert chosen.num_slots * workers <= room < (chosen.num_slots + 1) * workers
