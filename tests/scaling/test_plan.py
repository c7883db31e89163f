"""Benchmark plans; tests/test_scripts.py runs one on Ray."""

import pytest

from search_spaces import exercise4
from tune_hpc.errors import ClusterError, InvalidConfigError
from tune_hpc.scaling.plan import NUM_TIMED_STEPS_ON_CPU, OPTIONS, make_plan

CPUS = {"CPU": 2.0}
BASE = {"model": "softmax", "batch_size": 150, "steps": 5000}


def plan(workers=(1, 2, 4), cluster=CPUS, **changes):
    return make_plan([{**BASE, **changes, "workers": number} for number in workers], cluster)


def test_exercise_4_plans_1_2_and_4_workers():
    made = make_plan(list(exercise4.experiment.configs()), CPUS)
    assert [case.workers for case in made.cases] == [1, 2, 4]
    config = made.cases[0].config
    assert (config["batch_size"], config["steps"], config["learning_rate"]) == (150, 5000, 1e-3)
    assert {case.mode for case in made.cases} == {"strong"}
    assert made.repeats == 3


@pytest.mark.parametrize(
    ("cluster", "backend", "num_timed_steps", "resources"),
    [
        (CPUS, "gloo", NUM_TIMED_STEPS_ON_CPU, {"CPU": 0.5}),
        ({"CPU": 16.0, "GPU": 4.0}, "nccl", 5000 - 3, {"CPU": 1.0, "GPU": 1.0}),
        ({"CPU": 16.0, "GPU": 1.0}, "gloo", 5000 - 3, {"CPU": 1.0, "GPU": 0.25}),
    ],
    ids=["cpus", "gpus", "shared_gpu"],
)
def test_cluster_determines_backend_timed_steps_and_resources(cluster, backend, num_timed_steps, resources):
    made = plan(cluster=cluster)
    assert (made.backend, made.use_gpu, made.resources_per_worker) == (backend, "GPU" in cluster, resources)
    assert made.cases[0].num_timed_steps == num_timed_steps
    assert made.cases[0].covers_all_steps == made.use_gpu


def test_more_workers_than_cores_or_gpus_are_oversubscribed():
    on_cpus, on_gpus = plan(), plan(cluster={"CPU": 16.0, "GPU": 2.0})
    assert [on_cpus.is_oversubscribed(number) for number in (1, 2, 4)] == [False, False, True]
    assert [on_gpus.is_oversubscribed(number) for number in (1, 2, 4)] == [False, False, True]


def test_workers_have_a_core_each_if_there_are_enough():
    assert plan(workers=(1, 2)).resources_per_worker == {"CPU": 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": (0,)}, "workers must be a whole number from 1 to the batch size 150; got 0"),
        ({"workers": (1, 151)}, "workers must be a whole number from 1 to the batch size 150; got 151"),
        ({"workers": (1.5,)}, "got 1.5"),
        ({"num_timed_steps": 5001}, "num_timed_steps must be a whole number from 1 to the 5000 steps; got 5001"),
        ({"num_timed_steps": "many"}, "got 'many'"),
        ({"model": "line", "data": "line"}, "the model line cannot share its four points"),
        ({"colour": "red"}, "no such key 'colour'"),
        ({"mode": "huge"}, "mode must be one of strong, weak; got 'huge'"),
        ({"repeats": 0}, "repeats must be a whole number from 1 to 100; got 0"),
        (
            {"option": "magic"},
            "option must be one of none, small_buckets, bucket_view, bf16, larger_steps, local_steps",
        ),
        ({"local_steps": 0}, "local_steps must be a whole number at least 1; got 0"),
        ({"bucket_mb": 0}, "bucket_mb must be a number above 0 and at most 1e+06; got 0"),
        ({"compression": "zip"}, "compression must be one of none, bf16; got 'zip'"),
        (
            {"compression": "bf16", "local_steps": 2},
            "with local_steps=2 workers send no gradients; leave compression and bucket_view out",
        ),
        ({"batches_per_step": 0}, "batches_per_step must be a whole number from 1 to the 5000 steps; got 0"),
        ({"batching": "single_pass"}, "a single pass may end before the timed steps do; use batching=sequential"),
    ],
)
def test_invalid_configuration_is_rejected_in_one_line(changes, message):
    with pytest.raises(InvalidConfigError) as error:
        plan(**changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_global_batch_is_constant_in_strong_and_grows_in_weak_scaling():
    strong, weak = plan(), plan(mode="weak")
    assert [case.batch_size for case in strong.cases] == [150, 150, 150]
    assert [case.batch_size for case in weak.cases] == [150, 300, 600]
    assert [case.single_worker.batch_size for case in weak.cases] == [150, 150, 150]
    assert weak.cases[2].training_config(repeat=2) == {**weak.cases[0].config, "batch_size": 600, "seed": 2}


def test_larger_steps_contain_more_batches_and_are_fewer():
    (case,) = plan(workers=(2,), option="larger_steps").cases
    assert (case.config["batch_size"], case.config["steps"]) == (600, 1250)
    assert (case.requested_config["batch_size"], case.requested_config["steps"]) == (150, 5000)
    assert case.single_worker.config == case.config
    assert plan(workers=(2,), option="larger_steps", batches_per_step=2).cases[0].config["batch_size"] == 300


def test_each_option_changes_one_key_of_the_baseline():
    baseline = plan(workers=(2,)).cases[0]
    for name in set(OPTIONS) - {"none"}:
        (case,) = plan(workers=(2,), option=name).cases
        changed = {key for key, value in case.options.items() if value != baseline.options[key]}
        assert len(changed - {"option"}) == 1
    assert plan(workers=(2,), option="none").cases[0] == baseline


def test_workers_on_separate_nodes_need_as_many_nodes():
    made = plan(workers=(1, 2))
    made.check_nodes([{"CPU": 1.0}, {"CPU": 1.0}])
    with pytest.raises(ClusterError, match="2 workers on a node each need as many nodes; the cluster has 1 with 1 CPU"):
        made.check_nodes([{"CPU": 2.0}, {"CPU": 0.0}])


def test_several_configurations_share_a_plan_unless_seed_or_data_differ():
    configs = [{**BASE, "workers": number, "batch_size": size} for size in (100, 150) for number in (1, 2)]
    assert [(case.batch_size, case.workers) for case in make_plan(configs, CPUS).cases] == [
        (100, 1), (100, 2), (150, 1), (150, 2),
    ]  # fmt: skip
    with pytest.raises(InvalidConfigError, match="has one value of seed; got 0, 1; its repeats have distinct seeds"):
        make_plan([{**BASE, "seed": seed} for seed in (0, 1)], CPUS)
    with pytest.raises(InvalidConfigError, match="has one value of data; got mnist, fashion_mnist"):
        make_plan([{**BASE, "data": name} for name in ("mnist", "fashion_mnist")], CPUS)
