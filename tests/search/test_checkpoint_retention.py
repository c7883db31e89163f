"""Checkpoints that remain after a search, the folder of a trial, and the models in retained checkpoints."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from ray import tune

from search_spaces.exercise2 import softmax
from search_spaces.exercise3 import open_winner
from tune_hpc import Experiment, Space, accuracy_interval, compare_predictions, load, load_state, resume, run
from tune_hpc.errors import FolderError, InvalidExperimentError
from tune_hpc.report.findings import findings
from tune_hpc.search.checkpoint_retention import TrialRetention
from tune_hpc.search.options import PAUSING, STOPPING
from tune_hpc.search.trial_spec import RankedMetric
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.trial_file import TrialFileWriter

LOCAL = {"runner": "local", "show_progress": False}
#: Losses of the steps 1 to 9; the best one is that of step 4.
LOSSES = [9.0, 7.0, 3.0, 1.0, 2.0, 4.0, 3.0, 5.0, 6.0]


def learns(config, report, checkpoint):
    """Report ``LOSSES``, raised by ``x``; fail at step 5 if ``x`` is 3."""
    state = checkpoint.load() or {"step": 0}
    for step in range(state["step"] + 1, len(LOSSES) + 1):
        if config["x"] == 3 and step == 5:
            raise ValueError("a broken configuration")
        report(step, {"loss": LOSSES[step - 1] + config["x"]})
        checkpoint.save(step, lambda step=step: {"step": step, "x": config["x"], "weights": torch.tensor([step])})


def search(trainable=learns, **fields) -> Experiment:
    fields = {"metric": "loss", "mode": "min", "seeds": (0, 1), "judge": "best"} | fields
    return Experiment("retained", Space({"x": tune.choice([2, 0, 3, 1]), "steps": len(LOSSES)}), trainable, **fields)


def retained(results) -> dict[str, list[int]]:
    folder = results.folder / "checkpoints"
    trials = sorted(folder.iterdir()) if folder.exists() else []
    return {trial.name: sorted(int(file.stem) for file in trial.iterdir()) for trial in trials if any(trial.iterdir())}


@pytest.mark.parametrize(
    ("policy", "judge", "steps", "trials"),
    [
        ("none", "best", [], ()),
        ("best", "best", [4], (2, 3)),
        ("best", "last", [9], (2, 3)),
        ("best", "mean_of_last_3", [9], (2, 3)),
        ("last", "best", [9], (0, 1, 2, 3, 6, 7)),
        ("all", "best", [4, 9], (0, 1, 2, 3, 6, 7)),
        ("all", "last", [9], (0, 1, 2, 3, 6, 7)),
    ],
)
def test_policy_defines_the_states_that_remain(tmp_path, policy, judge, steps, trials):
    results = run(search(judge=judge, keep_checkpoints=policy), output_dir=tmp_path / "out", **LOCAL)
    assert results.counts() == {"finished": 6, "failed": 2}
    assert retained(results) == {f"t{number:05d}": steps for number in trials}
    if policy == "none":
        with pytest.raises(FolderError, match=r"no checkpoint of t00002 was retained in .*keep_checkpoints is none"):
            results.best_checkpoint()
    else:
        expected = 4 if judge == "best" and policy != "last" else 9
        assert load_state(results.best_checkpoint()) == {"step": expected, "x": 0, "weights": torch.tensor([expected])}
        assert torch.load(results.best_checkpoint())["step"] == expected


def test_unknown_policy_is_rejected():
    with pytest.raises(
        InvalidExperimentError, match="keep_checkpoints must be one of none, best, last, all; got 'top'"
    ):
        search(keep_checkpoints="top")


def test_state_of_the_best_step_remains_if_metrics_are_reported_more_often_than_states(tmp_path):
    def saves_seldom(config, report, checkpoint):
        for step, loss in enumerate(LOSSES, 1):
            report(step, {"loss": loss})
            if step % 3 == 0:
                checkpoint.save(step, lambda step=step: {"step": step})

    results = run(search(saves_seldom).with_values({"x": 0}), output_dir=tmp_path / "out", **LOCAL)
    assert load_state(results.best_checkpoint()) == {"step": 6}


def test_smaller_state_remains_instead_of_the_saved_one(tmp_path):
    def keeps_weights(config, report, checkpoint):
        for step, loss in enumerate(LOSSES, 1):
            report(step, {"loss": loss})
            checkpoint.keep(step, lambda step=step: {"weights": step})
            checkpoint.save(step, lambda step=step: {"weights": step, "optimizer": [0.0] * 100})

    results = run(search(keeps_weights).with_values({"x": 0}), output_dir=tmp_path / "out", **LOCAL)
    assert load_state(results.best_checkpoint()) == {"weights": 4}


def test_storage_that_does_not_answer_does_not_fail_the_trial(tmp_path, capsys, monkeypatch):
    def silent(folder):
        raise FolderError("control cannot be read: Permission denied")

    folder, writer = ExperimentFolder(tmp_path, attempt=1), TrialFileWriter({"trial_id": "t00000"})
    retention = TrialRetention(folder, writer, RankedMetric("loss", "min", "best"), "best")
    writer.add(1, {"loss": 1.0})
    monkeypatch.setattr(ExperimentFolder, "read_control", silent)
    retention.offer(1, lambda: {"weights": 1})
    assert "the state after step 1 is not retained: control cannot be read" in capsys.readouterr().out
    retention.finish("finished")
    assert "the retained states are not tidied up: control cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize("error", [SystemExit(0), KeyError("weights")])
def test_state_that_cannot_be_made_after_the_end_leaves_the_trial_finished(tmp_path, capsys, error):
    def breaks(config, report, checkpoint):
        def make_state():
            raise error

        report(1, {"loss": 1.0})
        checkpoint.save(1, make_state)

    results = run(search(breaks, judge="last"), output_dir=tmp_path / "out", **LOCAL)
    assert results.counts() == {"finished": 8}
    assert "the last state is not retained" in capsys.readouterr().out
    with pytest.raises(FolderError, match="the log of the trial has the reason"):
        results.best_checkpoint()


@pytest.mark.parametrize("scheduler", [*PAUSING, *STOPPING])
@pytest.mark.parametrize("judge", ["best", "last"])
def test_best_state_remains_after_every_scheduler(tmp_path, scheduler, judge):
    experiment = search(searcher="random", num_samples=9, scheduler=scheduler, judge=judge, seeds=())
    experiment = experiment.with_values({"x": tune.uniform(0, 1)})
    results = run(experiment, output_dir=tmp_path / "out", **LOCAL)
    with warnings.catch_warnings():
        # Two members of a population may have the same configuration.
        warnings.simplefilter("default" if scheduler == "pbt" else "error")
        path = results.best_checkpoint()
    state, trial = load_state(path), results.trials.set_index("trial_id").loc[path.parent.name]
    # A member of a population may have copied its state from another configuration.
    assert scheduler == "pbt" or state["x"] == trial["x"]
    history = results.history[results.history["trial_id"] == path.parent.name].set_index("step")["loss"]
    # A scheduler stops a trial in its report, before the trial offers the state of this step.
    assert state["step"] == history.idxmin() if judge == "best" else state["step"] >= history.index.max() - 1
    assert trial["loss"] == pytest.approx(results.best_trial()["loss"], abs=0.01)
    assert len(retained(results)) == 1 or scheduler == "pbt"


#: A search whose trial 3 kills its process once, after the state of step 6 was saved.
KILLED = """
import os, signal, sys
from pathlib import Path
from tests.search.test_checkpoint_retention import LOSSES, learns, search
from tune_hpc import run

def dies(config, report, checkpoint):
    def report_or_die(step, metrics):
        if config["x"] == 0 and config["seed"] == 1 and step == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        report(step, metrics)
    learns(config, report_or_die, checkpoint)

run(search(dies), output_dir=sys.argv[1], runner="local", show_progress=False, checkpoint_interval_s=0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 4, 5, 9])
def test_killed_and_resumed_search_keeps_the_states_of_an_undisturbed_one(tmp_path, step):
    folder = tmp_path / "out"
    code = subprocess.run([sys.executable, "-c", KILLED, folder, str(step)], cwd=os.getcwd(), check=False).returncode
    assert code == -signal.SIGKILL
    (results,) = resume(folder, trainable=learns, checkpoint_interval_s=0, **LOCAL)
    assert retained(results) == {"t00002": [4], "t00003": [4]}
    assert load_state(folder / "checkpoints" / "t00003" / "4.checkpoint")["step"] == 4


def test_retried_trial_replaces_the_best_one(tmp_path):
    results = run(search(), output_dir=tmp_path / "out", **LOCAL)
    assert retained(results) == {"t00002": [4], "t00003": [4]}

    def is_better(config, report, checkpoint):
        report(1, {"loss": -1.0})
        checkpoint.save(1, lambda: {"step": 1})

    (results,) = resume(tmp_path / "out", trainable=is_better, retry_failed=True, **LOCAL)
    assert retained(results) == {"t00004": [1], "t00005": [1]}


def test_number_of_states_is_bounded_while_the_search_runs(tmp_path):
    numbers = []

    def improves(config, report, checkpoint):
        for step in range(1, 30):
            report(step, {"loss": config["x"] - step})
            checkpoint.save(step, lambda step=step: {"step": step})
            numbers.append(sum(len(steps) for steps in retained(Retained).values()))

    class Retained:
        folder = tmp_path / "out"

    run(search(improves), output_dir=tmp_path / "out", checkpoint_interval_s=0, **LOCAL)
    # Two states of a running trial; two trials of the best configuration; one complete trial of the current one.
    assert max(numbers) <= 5


class TestBuiltInModels:
    def check(self, results, images, column="test_accuracy"):
        """Compare predictions and accuracy of each loaded model with the retained predictions and the table."""
        trials = results.trials.set_index("trial_id")
        for trial_id in retained(results):
            with torch.inference_mode():
                predicted = results.load_model(trial_id)(images.test_images[:500].float() / 255).argmax(1)
            predictions, labels = results.predictions(trial_id), results.labels(trial_id)
            assert (predictions.dtype, labels.dtype) == (np.uint8, np.uint8)
            assert predictions.tolist() == predicted.tolist()
            assert labels.tolist() == images.test_labels[:500].tolist()
            assert (predictions == labels).mean() == pytest.approx(trials.loc[trial_id, column], abs=1e-9)
        assert results.predictions().tolist() == results.predictions(results.best_checkpoint().parent.name).tolist()

    def small(self, experiment, **values):
        return experiment.with_values({"steps": 20, "num_evaluations": 4, "num_evaluation_images": 500} | values)

    def test_fused_trials_keep_their_own_weights(self, tmp_path, mnist):
        experiment = self.small(softmax, optimizer="adam", learning_rate=tune.choice([1e-4, 0.01, 1e-3]))
        results = run(experiment.replace(keep_checkpoints="last"), output_dir=tmp_path / "out", **LOCAL)
        assert set(results.trials["num_fused"]) == {3}
        self.check(results, mnist)
        for trial in results.trials.to_dict("records"):
            model = results.load_model(trial["trial_id"])
            assert model.config["learning_rate"] == trial["learning_rate"]

    @pytest.mark.slow
    def test_model_of_the_selected_step_has_the_accuracy_in_the_table(self, tmp_path, mnist):
        experiment = self.small(open_winner, width=0.125, learning_rate=0.02)
        results = run(experiment, output_dir=tmp_path / "out", **LOCAL)
        self.check(results, mnist, "selected_test_accuracy")

    @pytest.mark.slow
    @pytest.mark.parametrize("scheduler", PAUSING)
    def test_model_is_loaded_after_a_pausing_scheduler(self, tmp_path, mnist, scheduler):
        experiment = self.small(softmax, steps=27, optimizer="adam", learning_rate=tune.loguniform(1e-4, 1e-1))
        experiment = experiment.replace(searcher="random", num_samples=6, scheduler=scheduler)
        results = run(experiment, output_dir=tmp_path / "out", **LOCAL)
        self.check(results, mnist)

    @pytest.mark.ray
    @pytest.mark.slow
    def test_killed_and_resumed_search_has_the_model_of_an_undisturbed_one(self, ray_session, tmp_path, mnist):
        experiment = self.small(open_winner, width=0.0625, steps=600, num_evaluations=60)
        undisturbed = run(experiment, output_dir=tmp_path / "undisturbed", show_progress=False)
        options = {"show_progress": False, "checkpoint_interval_s": 0}
        stop_file = tmp_path / "stop"

        def stop_after_a_state():
            while not (tmp_path / "out" / "trials" / "t00000.checkpoint").exists():
                time.sleep(0.01)
            stop_file.touch()

        threading.Thread(target=stop_after_a_state, daemon=True).start()
        interrupted = run(experiment, output_dir=tmp_path / "out", stop_file=stop_file, **options)
        assert interrupted.counts() == {"running": 1}
        (resumed,) = resume(tmp_path / "out", **options)
        assert resumed.counts() == {"finished": 1}
        pairs = zip(undisturbed.load_model().parameters(), resumed.load_model().parameters(), strict=True)
        assert all(torch.equal(first, second) for first, second in pairs)
        self.check(resumed, mnist, "selected_test_accuracy")

    def test_states_of_all_trials_give_the_accuracy_over_seeds_and_images(self, tmp_path, mnist):
        experiment = self.small(softmax, optimizer="adam", learning_rate=tune.choice([1e-3, 0.01]), batching="shuffled")
        experiment = experiment.replace(keep_checkpoints="all", seeds=(0, 1, 2))
        results = run(experiment, output_dir=tmp_path / "out", **LOCAL)
        assert len(retained(results)) == 6
        best = results.trials.query("learning_rate == 0.01")
        table = accuracy_interval(results.labels(), [results.predictions(trial_id) for trial_id in best["trial_id"]])
        (sentence,) = [text for text in findings(results) if "over seeds and images" in text]
        accuracy, *bounds = [
            f"{value:.4f}" for value in [table["accuracy"][0], *table.loc[[0, 2], ["low", "high"]].to_numpy().flat]
        ]
        assert sentence == (
            f"The models of the best configuration classify 500 test images with accuracy {accuracy}; 95 % interval "
            f"over 3 seeds {bounds[0]} to {bounds[1]}, over seeds and images {bounds[2]} to {bounds[3]}."
        )

    def test_line_has_no_predictions(self, tmp_path):
        experiment = Experiment("line", Space({"model": "line", "steps": 5}), metric="train_loss", mode="min")
        results = run(experiment, output_dir=tmp_path / "out", **LOCAL)
        with pytest.raises(FolderError, match=r"has no predictions: the state that the trainable offers needs a 1-D"):
            results.predictions()

    def test_state_of_a_function_is_no_built_in_model(self, tmp_path):
        results = run(search(), output_dir=tmp_path / "out", **LOCAL)
        with pytest.raises(FolderError, match=r"is not a built-in model; tune_hpc.load_state"):
            results.load_model()


def test_predictions_of_a_function_are_those_in_its_state(tmp_path):
    def predicts(config, report, checkpoint):
        predictions = np.arange(20) % (2 + config["seed"])
        report(1, {"loss": config["x"]})
        checkpoint.save(1, lambda: {"predictions": predictions})

    results = run(search(predicts), output_dir=tmp_path / "out", **LOCAL)
    first, second = results.predictions("t00002"), results.predictions("t00003")
    assert first.tolist() == [0, 1] * 10
    assert compare_predictions(np.arange(20) % 2, first, second).num_only_first_correct == 12
    with pytest.raises(
        FolderError, match=r"1\.checkpoint has no labels: the state .* needs a 1-D NumPy array 'labels'"
    ):
        results.labels()


@pytest.mark.parametrize("has_same_labels", [True, False])
def test_report_has_the_interval_of_a_function_whose_trials_have_the_same_labels(tmp_path, has_same_labels):
    def predicts(config, report, checkpoint):
        labels = (np.arange(20) + (0 if has_same_labels else config["seed"])) % 2
        predictions = np.where(np.arange(20) <= config["seed"], 2, labels)
        report(1, {"loss": config["x"]})
        checkpoint.save(1, lambda: {"predictions": predictions, "labels": labels})

    results = run(search(predicts), output_dir=tmp_path / "out", **LOCAL)
    found = [text for text in findings(results) if "classify 20 test images with accuracy 0.9250" in text]
    assert len(found) == has_same_labels


class TestTrial:
    """The argument ``trial`` of a trainable."""

    @staticmethod
    def writes(config, report, trial):
        (trial.folder / "notes.txt").write_text(f"{trial.id} {trial.seed} {trial.resources.device}", encoding="utf-8")
        report(1, {"loss": trial.resources.cores})

    def check(self, results):
        results = load(results.folder)
        for trial in results.trials.to_dict("records"):
            text = (results.folder / "artifacts" / trial["trial_id"] / "notes.txt").read_text(encoding="utf-8")
            assert text == f"{trial['trial_id']} {trial['seed']} cpu"
            assert trial["loss"] == 1

    def test_folder_of_a_local_trial_stays(self, tmp_path):
        self.check(run(search(self.writes), output_dir=tmp_path / "out", cpus_per_trial=1, **LOCAL))

    @pytest.mark.ray
    def test_folder_of_a_trial_on_ray_stays(self, ray_session, tmp_path):
        self.check(run(search(self.writes), output_dir=tmp_path / "out", show_progress=False))

    def test_files_of_a_trial_and_its_state_are_in_the_bucket(self, bucket, tmp_path):
        def writes_both(config, report, trial, checkpoint):
            self.writes(config, report, trial)
            checkpoint.save(1, lambda: {"x": config["x"]})

        results = run(search(writes_both), output_dir=f"{bucket}/out", **LOCAL)
        from tune_hpc.storage.filesystem import Storage

        names = [file.name for file in Storage(f"{bucket}/out").list_files()]
        assert [name for name in names if name.startswith("artifacts/")] == [
            f"artifacts/t{number:05d}/notes.txt" for number in range(8)
        ]
        # All trials have the same loss, and the first configuration stays the best one.
        assert [name for name in names if name.startswith("checkpoints/")] == [
            f"checkpoints/t{number:05d}/1.checkpoint" for number in range(2)
        ]
        results.best_checkpoint().unlink()
        assert load_state(results.best_checkpoint()) == {"x": 2}

    def test_unused_folder_is_not_made(self, tmp_path):
        def looks(config, report, trial):
            report(1, {"loss": float(trial.folder.is_dir())})

        results = run(search(looks), output_dir=tmp_path / "out", **LOCAL)
        assert set(results.trials["loss"]) == {1.0}
        assert not any((results.folder / "artifacts").iterdir())
