"""Searches on Ray. The tests share one run of several experiments."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ray import tune

from tests.search import trainables
from tune_hpc import Experiment, Space, load, run, run_all
from tune_hpc.errors import ClusterError, FolderError, InvalidExperimentError
from tune_hpc.learning.config import complete
from tune_hpc.learning.training import train

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

X = Space({"x": tune.choice([1, 2, 3])})
MINIMIZE = {"metric": "loss", "mode": "min", "seeds": ()}

SOFTMAX = Space(
    {
        "model": "softmax",
        "optimizer": tune.choice(["momentum", "adam"]),
        "learning_rate": tune.choice([0.05, 0.005]),
        "batching": "shuffled",
        "decay_rate": 0.5,
        "steps": 40,
        "num_evaluations": 4,
        "num_evaluation_images": 500,
    }
)
CNN = {"model": "cnn", "optimizer": "adam", "learning_rate": 1e-3, "width": 0.125, "dropout": 0.5, "batch_size": 20,
       "batching": "shuffled", "steps": 20, "num_evaluations": 4, "num_evaluation_images": 200}  # fmt: skip


@pytest.fixture(scope="module")
def mixed(ray_session, mnist, tmp_path_factory):
    """Return several experiments of one run: healthy, failing, diverging and dying trials side by side."""
    parent = tmp_path_factory.mktemp("mixed")
    experiments = [
        Experiment("softmax", SOFTMAX, metric="valid_loss", mode="min", seeds=(0, 1)),
        Experiment("parabola", Space({"learning_rate": tune.choice([0.1, 0.5])}), trainables.parabola, **MINIMIZE),
        Experiment("fails", X, trainables.fails_at_two, **MINIMIZE),
        Experiment("not_finite", X, trainables.not_finite, **MINIMIZE),
        Experiment(
            "rates", SOFTMAX | {"learning_rate": tune.choice([0.05, 1e6]), "optimizer": "adam"}, metric="valid_accuracy"
        ),
        Experiment("dies", X, trainables.dies, **MINIMIZE),
        Experiment("cnn", Space(CNN)),
        Experiment(
            "resumed",
            Space({**CNN, "data": "mnist", "marker": str(parent / "died")}, keys={}),
            "tests.search.trainables:train_and_die_once",
            seeds=(0,),
        ),
    ]
    results = run_all(
        experiments,
        folders=[parent / one.name for one in experiments],
        checkpoint_interval_s=0.0,
        show_progress=False,
        fuse="off",
    )
    return {one.name: one for one in results}


def separate_history(config: dict, mnist) -> pd.DataFrame:
    """Return the history of a trial that runs in this process."""
    import torch

    from tune_hpc.storage.trial_file import TrialFileWriter

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    record = TrialFileWriter({})
    train(config, record.add, images=mnist, device="cpu")
    torch.set_num_threads(threads)
    return record.history()


def history(results, trial_id: str) -> pd.DataFrame:
    rows = results.history[results.history["trial_id"] == trial_id].drop(columns="trial_id")
    return rows.dropna(axis="columns", how="all").reset_index(drop=True)


def test_trial_in_a_reused_actor_has_the_bits_of_a_separate_one(mixed, mnist):
    trials = mixed["softmax"].trials
    assert len(trials) == 8
    for trial in trials.to_dict("records"):
        keys = ("model", "optimizer", "learning_rate", "batching", "decay_rate", "steps", "num_evaluations",
                "num_evaluation_images", "seed")  # fmt: skip
        expected = separate_history({key: trial[key] for key in keys}, mnist)
        pd.testing.assert_frame_equal(history(mixed["softmax"], trial["trial_id"]), expected, check_exact=True)


def test_order_of_trials_does_not_change_their_bits(mixed, tmp_path):
    turned = SOFTMAX | {"learning_rate": tune.choice([0.005, 0.05]), "optimizer": tune.choice(["adam", "momentum"])}
    again = run(
        Experiment("softmax", turned, metric="valid_loss", mode="min", seeds=(1, 0)),
        output_dir=tmp_path / "again", max_concurrent=1, show_progress=False, fuse="off",
    )  # fmt: skip
    keys = ["optimizer", "learning_rate", "seed"]
    both = mixed["softmax"].trials.merge(again.trials, on=keys, suffixes=("", "_again"))
    assert len(both) == 8
    assert list(both["trial_id"]) != list(both["trial_id_again"])
    for first, second in zip(both["trial_id"], both["trial_id_again"], strict=True):
        pd.testing.assert_frame_equal(history(mixed["softmax"], first), history(again, second), check_exact=True)


def test_trial_of_a_dead_process_resumes_to_the_same_bits(mixed, mnist):
    resumed, whole = mixed["resumed"], mixed["cnn"]
    assert Path(resumed.trials.loc[0, "marker"]).exists()
    assert resumed.counts() == {"finished": 1}
    pd.testing.assert_frame_equal(history(resumed, "t00000"), history(whole, "t00000"), check_exact=True)
    pd.testing.assert_frame_equal(history(whole, "t00000"), separate_history(CNN, mnist), check_exact=True)


def test_failed_trial_has_its_error_and_does_not_affect_others(mixed):
    trials = mixed["fails"].trials.set_index("x")
    assert list(trials["status"]) == ["finished", "failed", "finished"]
    assert trials.loc[2, "error"].startswith("RuntimeError: two is not allowed (in fails_at_two, trainables.py line ")
    assert trials.loc[2, "loss"] == 0.5
    log = mixed["fails"].folder / "logs" / f"{trials.loc[2, 'trial_id']}.log"
    assert log.read_text(encoding="utf-8").startswith("about to fail\nTraceback (most recent call last):\n")
    assert list(log.parent.iterdir()) == [log]
    assert trials.loc[3, "loss"] == pytest.approx(0.5 / 3)


def test_trial_of_a_dead_process_does_not_affect_others(mixed):
    trials = mixed["dies"].trials.set_index("x")
    assert list(trials["status"]) == ["finished", "failed", "finished"]
    assert trials.loc[2, "stop_reason"] == "process died"
    assert trials.loc[2, "error"].startswith("the trial's process died: Worker unexpectedly exits")
    assert len(trials.loc[2, "error"]) < 200
    assert (mixed["dies"].folder / "logs" / f"{trials.loc[2, 'trial_id']}.log").is_file()


def test_non_finite_metric_ends_the_trial_as_diverged(mixed):
    trials = mixed["not_finite"].trials.set_index("x")
    assert list(trials["status"]) == ["finished", "diverged", "finished"]
    assert trials.loc[2, "stop_reason"] == "non-finite loss at step 4"
    assert trials.loc[2, "steps_run"] == 3
    assert np.isfinite(mixed["not_finite"].history["loss"]).all()


def test_diverged_trial_does_not_spoil_the_report(mixed, tmp_path):
    from tune_hpc import write_report

    results = mixed["rates"]
    trials = results.trials.set_index("learning_rate")
    assert trials.loc[1e6, "status"] == "diverged"
    assert trials.loc[1e6, "steps_run"] < 10
    assert trials.loc[0.05, "status"] == "finished"
    assert results.best()["learning_rate"] == 0.05
    page = write_report([results], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "1 diverged" in page
    assert trials.loc[1e6, "stop_reason"] in page


def test_every_row_has_configuration_metrics_times_and_host(mixed):
    row = mixed["softmax"].trials.iloc[0]
    completed = complete({"optimizer": row["optimizer"]})
    assert set(completed) <= set(mixed["softmax"].trials)
    metrics = ("train_loss", "valid_loss", "valid_accuracy", "test_loss", "test_accuracy", "best_test_accuracy")
    times = (
        "best_step", "steps_run", "setup_s", "train_s", "eval_s", "samples_per_s", "num_fused", "host", "device",
        "ended_at",
    )  # fmt: skip
    for column in metrics + times:
        assert pd.notna(row[column]), column
    assert row["stop_reason"] == "all steps done"


@pytest.fixture(scope="module")
def fused(ray_session, tmp_path_factory):
    """Return healthy and diverging trials of ``mixed`` as fused groups, and trials of a user's function."""
    parent = tmp_path_factory.mktemp("fused")
    experiments = [
        Experiment("softmax", SOFTMAX, metric="valid_loss", mode="min", seeds=(0, 1)),
        Experiment(
            "rates", SOFTMAX | {"learning_rate": tune.choice([0.05, 1e6]), "optimizer": "adam"}, metric="valid_accuracy"
        ),
        Experiment("parabola", Space({"learning_rate": tune.choice([0.1, 0.5])}), trainables.parabola, **MINIMIZE),
    ]
    results = run_all(experiments, folders=[parent / one.name for one in experiments], show_progress=False)
    return {one.name: one for one in results}


def test_fused_trials_have_the_rows_of_separate_ones(fused, mixed):
    separate, together = mixed["softmax"], fused["softmax"]
    assert list(separate.trials["num_fused"]) == [1] * 8
    # Twelve trials on two cores, eight of these in two groups: one for each seed, with the same batches.
    assert list(together.trials["num_fused"]) == [4] * 8
    exact = ["trial_id", "status", "stop_reason", "optimizer", "learning_rate", "seed", "steps_run"]
    pd.testing.assert_frame_equal(together.trials[exact], separate.trials[exact])
    pd.testing.assert_frame_equal(
        together.history.sort_values(["trial_id", "step"], ignore_index=True),
        separate.history.sort_values(["trial_id", "step"], ignore_index=True),
        rtol=1e-4,
        atol=1e-5,
    )
    assert (together.trials[["train_s", "eval_s", "setup_s"]] > 0).all(axis=None)
    assert not list((together.folder / "logs").iterdir())


def test_diverged_trial_does_not_affect_its_group(fused, mixed):
    separate, together = (each["rates"].trials.set_index("learning_rate") for each in (mixed, fused))
    assert list(together["num_fused"]) == [2, 2]
    for column in ("status", "stop_reason", "steps_run"):
        assert together[column].to_dict() == separate[column].to_dict()
    assert together.loc[0.05, "valid_loss"] == pytest.approx(separate.loc[0.05, "valid_loss"], rel=1e-4)


def test_user_function_is_not_fused(fused):
    assert list(fused["parabola"].trials["num_fused"]) == [1, 1]
    assert fused["parabola"].counts() == {"finished": 2}


def test_folder_has_the_results_of_the_run(mixed):
    results = mixed["softmax"]
    loaded = load(results.folder)
    pd.testing.assert_frame_equal(loaded.trials, results.trials)
    assert loaded.experiment["state"] == "finished"
    assert loaded.experiment["provenance"]["wall_s"] > 0
    assert not (results.folder / "trials").exists()


def test_folder_with_an_experiment_is_not_changed(mixed):
    folder = mixed["parabola"].folder
    before = (folder / "experiment.json").read_bytes()
    with pytest.raises(FolderError, match="already holds the experiment parabola"):
        run(Experiment("other", X, trainables.fails_at_two, **MINIMIZE), output_dir=folder)
    assert (folder / "experiment.json").read_bytes() == before


def test_two_experiments_with_one_name_are_rejected(tmp_path):
    twice = Experiment("twice", X, trainables.fails_at_two, **MINIMIZE)
    with pytest.raises(InvalidExperimentError, match="given once"):
        run_all([twice, twice], folders=[tmp_path / "a", tmp_path / "b"])
    assert not any(tmp_path.iterdir())


def test_message_on_an_impossible_request_has_the_numbers(tmp_path):
    with pytest.raises(ClusterError, match="a trial requests 64 CPU cores and 0 GPUs; the largest node has 2 and 0"):
        run(
            Experiment("large", X, trainables.fails_at_two, **MINIMIZE),
            output_dir=tmp_path / "large",
            cpus_per_trial=64,
        )
    assert not any(tmp_path.iterdir())


def test_user_function_runs_by_its_name(write_module, tmp_path, capsys, monkeypatch):
    from tune_hpc.cli import main

    # Ray Tune would import MLflow for its telemetry.
    monkeypatch.setattr("ray.air._internal.usage._count_callbacks", lambda callbacks: pytest.fail("was counted"))
    write_module(
        "my_own_search",
        """
def train(config, report):
    x = 0.0
    for step in range(1, 51):
        x -= config["rate"] * 2 * (x - 3)
        report(step, {"loss": (x - 3) ** 2})
""",
    )
    code = main(["run", "my_own_search:train", "--set", "rate=0.1,0.4,2.0", "--output-dir", str(tmp_path / "out")])
    assert code == 0
    results = load(tmp_path / "out")
    assert results.best()["rate"] == 0.4
    assert results.counts() == {"finished": 3}
    assert (tmp_path / "out" / "report.html").is_file()
    assert "best loss" in capsys.readouterr().out


def test_changed_experiment_of_the_report_runs(tmp_path):
    from search_spaces import exercise3

    smaller = exercise3.learning_rate.with_values(
        {"learning_rate": tune.choice([1e-3, 2e-3]), "batch_size": 20, "width": 0.125, "steps": 5,
         "num_evaluations": 1, "num_evaluation_images": 100}
    )  # fmt: skip
    results = run(smaller, output_dir=tmp_path / "smaller", show_progress=False)
    assert results.counts() == {"finished": 2}
    assert set(results.trials["learning_rate"]) == {1e-3, 2e-3}


def test_space_is_a_param_space_of_ray_tune(tmp_path):
    space = Space({"x": tune.choice([1, 3]), "constant": 7})

    def trainable(config):
        tune.report({"loss": config["x"] * config["constant"]})

    tuner = tune.Tuner(
        trainable,
        param_space=dict(space),
        tune_config=tune.TuneConfig(num_samples=2, metric="loss", mode="min"),
        run_config=tune.RunConfig(storage_path=str(tmp_path), name="plain", verbose=0),
    )
    assert all(result.metrics["loss"] in (7, 21) for result in tuner.fit())


FOUR_GPUS = """
    import sys
    import ray
    from tune_hpc import Experiment, Space, run
    from ray import tune
    from tests.search.trainables import which_gpu

    if __name__ == "__main__":
        ray.init(address="local", num_cpus=8, num_gpus=4, include_dashboard=False, log_to_driver=False,
                 logging_level="ERROR")
        space = Space({"number": tune.choice(list(range(8))), "meeting": sys.argv[1], "of": 8}, keys={})
        experiment = Experiment("gpus", space, which_gpu, metric="loss", mode="min", seeds=())
        run(experiment, output_dir=sys.argv[2], gpus_per_trial=0.5, show_progress=False)
"""


def test_two_trials_with_half_a_gpu_share_one(tmp_path):
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    script = tmp_path / "four_gpus.py"
    script.write_text(textwrap.dedent(FOUR_GPUS), encoding="utf-8")
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, str(script), str(meeting), str(tmp_path / "out")],
        check=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, timeout=300,
    )  # fmt: skip
    trials = load(tmp_path / "out").trials
    assert set(trials["met"]) == {8}, "all eight ran at once"
    assert trials["gpu"].astype(str).value_counts().to_dict() == {"0": 2, "1": 2, "2": 2, "3": 2}


TWO_GPUS = """
    import sys
    from functools import partial
    import ray
    from tune_hpc import Experiment, Space, run
    from tests.search.trainables import which_gpu

    if __name__ == "__main__":
        ray.init = partial(ray.init, num_gpus=2)
        space = Space({"number": 0, "meeting": sys.argv[1], "of": 1}, keys={})
        experiment = Experiment("gpus", space, which_gpu, metric="loss", mode="min", seeds=())
        for gpus in (0, 1):
            run(experiment, output_dir=f"{sys.argv[1]}/{gpus}", gpus_per_trial=gpus, show_progress=False)
"""


@pytest.mark.ray
def test_trial_without_a_gpu_sees_none(tmp_path):
    script = tmp_path / "two_gpus.py"
    script.write_text(textwrap.dedent(TWO_GPUS), encoding="utf-8")
    root = Path(__file__).parents[2]
    variables = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    variables |= {"PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": "3,5"}
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, cwd=root, env=variables, timeout=300)
    seen = [str(load(tmp_path / number).trials["gpu"].iloc[0]) for number in ("0", "1")]
    assert seen == ["", "3"]


@pytest.mark.ray
def test_function_with_images_receives_its_data_set(ray_session, mnist, tmp_path):
    space = Space({"data": "mnist", "x": tune.choice([1, 2])}, keys={})
    experiment = Experiment("images", space, trainables.mean_image, metric="mean", mode="min", seeds=())
    results = run(experiment, output_dir=tmp_path / "run", show_progress=False)
    expected = float(mnist.train_images[:10].double().mean())
    assert results.counts() == {"finished": 2}
    assert results.trials["mean"].tolist() == pytest.approx([expected] * 2, rel=1e-6)
