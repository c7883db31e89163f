"""Searches with several workers for each trial, on a real Ray."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ray import tune
from ray.util.state import list_actors, list_placement_groups

from tune_hpc import Experiment, Space, run
from tune_hpc.errors import ClusterError, InvalidConfigError, InvalidExperimentError
from tune_hpc.learning.config import complete
from tune_hpc.learning.training import train

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
QUIET = {"show_progress": False}
#: Actors that Ray Train starts for a trial.
ACTORS = ("TrainController", "RayTrainWorker", "PlacementGroupCleaner")
SPACE = {
    "model": "softmax", "optimizer": "adam", "batch_size": 75, "steps": 54, "precision": "float64", "workers": 2,
    "num_evaluations": 9, "num_evaluation_images": 500,
}  # fmt: skip


def ray_train_processes():
    """Return the command lines of Ray Train's live actors below this process, by process id."""
    found, parents = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            text = (path / "cmdline").read_bytes().decode(errors="replace")
            parents[path.name] = (path / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1]
        except OSError:
            continue
        if text.startswith("ray::") and any(name in text for name in ACTORS):
            found[path.name] = text

    def is_ours(process):
        # Tests that run at the same time have another Ray.
        while process in parents and process != str(os.getpid()):
            process = parents[process]
        return process == str(os.getpid())

    return {process: text for process, text in found.items() if is_ours(process)}


def left_behind():
    """Return the placement groups, actors and processes of Ray Train."""
    groups = [one for one in list_placement_groups() if one.state != "REMOVED"]
    actors = [one for one in list_actors(filters=[("state", "!=", "DEAD")]) if one.class_name in ACTORS]
    return [*groups, *actors, *ray_train_processes().values()]


def left_after_shutdown():
    """Return what is left behind after up to half a minute."""
    deadline = time.monotonic() + 30
    while left_behind() and time.monotonic() < deadline:
        time.sleep(0.5)
    return left_behind()


@pytest.mark.slow
def test_finished_and_stopped_trials_of_two_workers_leave_no_process(mnist, tmp_path):
    assert left_after_shutdown() == []  # Earlier tests must leave none either.
    rates = [1e-2, 1e-4, 1e-6]
    experiment = Experiment(
        "together", Space(SPACE | {"learning_rate": tune.choice(rates)}), metric="valid_accuracy",
        scheduler="asha_stopping",
    )  # fmt: skip
    results = run(experiment, output_dir=tmp_path / "out", **QUIET)
    trials = results.trials.set_index("learning_rate")
    assert trials["status"].to_dict() == {1e-2: "finished", 1e-4: "stopped", 1e-6: "stopped"}
    assert set(trials["workers"]) == {2}
    # Two workers learn the same as one.
    single = {}
    train(
        complete({name: value for name, value in SPACE.items() if name != "workers"} | {"learning_rate": 1e-2}),
        lambda step, metrics: single.update(metrics),
    )
    best = trials.loc[1e-2]
    assert best["steps_run"] == 54
    np.testing.assert_allclose(best["valid_loss"], single["valid_loss"], rtol=1e-9)
    np.testing.assert_allclose(best["train_loss"], single["train_loss"][-1], rtol=1e-9)
    with torch.inference_mode():
        predicted = results.load_model()(mnist.valid_images[:500].double() / 255).argmax(1)
        classes = results.load_model()(mnist.test_images[:500].double() / 255).argmax(1)
    assert (predicted == mnist.valid_labels[:500]).double().mean().item() == best["valid_accuracy"]
    assert results.predictions().tolist() == classes.tolist()
    assert (results.predictions() == results.labels()).mean() == best["test_accuracy"]
    assert best["setup_s"] > 1
    assert left_after_shutdown() == []


def test_more_workers_than_the_cluster_has_are_rejected(mnist, tmp_path):
    experiment = Experiment("wide", Space(SPACE | {"workers": tune.randint(1, 10)}), searcher="random", num_samples=2)
    with pytest.raises(ClusterError, match="requests 9 workers of 1 CPU cores and 0 GPUs each; the cluster has room"):
        run(experiment, output_dir=tmp_path / "out", **QUIET)
    assert not (tmp_path / "out" / "trials.parquet").exists()


def test_more_workers_than_images_per_step_are_rejected(tmp_path):
    with pytest.raises(InvalidConfigError, match="workers must be at most the batch size 75; got 80"):
        run(Experiment("wide", Space(SPACE | {"workers": 80})), output_dir=tmp_path / "out", **QUIET)
    with pytest.raises(InvalidConfigError, match="the model line cannot share its four points"):
        complete({"model": "line", "workers": 2})


def test_trials_with_and_without_workers_cannot_share_a_run(mnist, tmp_path):
    from tune_hpc import run_all

    experiments = [Experiment("one", Space({"model": "softmax"})), Experiment("two", Space(SPACE))]
    with pytest.raises(InvalidExperimentError, match="got two with workers and one without: run one after the other"):
        run_all(experiments, folders=[tmp_path / one.name for one in experiments], **QUIET)


def test_one_process_rejects_several_workers():
    with pytest.raises(InvalidConfigError, match="workers=2 needs Ray, in a search or a scaling measurement"):
        train({"model": "softmax", "workers": 2}, lambda step, metrics: None)
