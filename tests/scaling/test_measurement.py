"""Tiny measurements on a real Ray."""

import numpy as np
import pandas as pd
import pytest
from ray import tune

from tune_hpc import load, scaling
from tune_hpc.analysis.speedup import speedups
from tune_hpc.errors import InvalidConfigError, TrialError
from tune_hpc.report.findings import findings
from tune_hpc.report.report import write_report
from tune_hpc.report.scaling_tables import predicted_against_measured
from tune_hpc.scaling.plan import Plan
from tune_hpc.storage.experiment_folder import ExperimentFolder

CONFIG = {"model": "softmax", "batch_size": 60, "batching": "shuffled", "seed": 5}
QUIET = {"show_progress": False}

pytestmark = pytest.mark.ray


@pytest.mark.slow
def test_each_case_and_repeat_has_a_row_whose_parts_add_up(ray_session, mnist, tmp_path):
    results = scaling.measure(
        CONFIG | {"steps": 40, "num_evaluation_images": 500}, workers=(2, 1), mode="weak", repeats=2,
        num_timed_steps=8, options=("none", "larger_steps"), output_dir=tmp_path / "out", **QUIET,
    )  # fmt: skip
    assert results.trials.equals(load(tmp_path / "out").trials)
    assert set(results.varied_parameters) == {"workers", "option", "seed"}
    # On a busy machine disturbed repeats are followed by more, at most one each.
    assert len(results.trials) <= 2 * 8
    # So short a step can be disturbed in every repeat; test_workers.py has the rule.
    first = results.trials[results.trials["seed"] < 7]
    results = results.with_trials(first.assign(status="finished"))
    larger = results.trials[results.trials["option"] == "larger_steps"]
    # All ten steps of four batches run, so the trained model is evaluated.
    assert set(larger["global_batch_size"]) == {240, 480}
    assert set(larger["batch_size"]) == {60}
    assert not larger["extrapolated"].any()
    assert set(larger["num_timed_steps"]) == {7}
    assert (larger["valid_accuracy"] > 0.3).all()
    np.testing.assert_allclose(larger["train_s"], 10 * larger["step_s"])
    trials = results.trials[results.trials["option"] == "none"]
    assert trials["valid_accuracy"].isna().all()
    np.testing.assert_allclose(trials["worker_s"], trials["train_s"] * trials["workers"])
    table = predicted_against_measured(results)
    assert table[["workers", "mode", "batch_size"]].to_numpy().tolist() == [[2, "weak", 60]]
    assert (table["predicted_s"] > 0).all()
    assert list(trials["workers"]) == [2, 2, 1, 1]
    assert list(trials["seed"]) == [5, 6, 5, 6]
    assert list(trials["global_batch_size"]) == [120, 120, 60, 60]
    assert set(trials["batch_size"]) == {60}
    parts = trials[["compute_s", "communicate_s", "data_s"]]
    assert (parts >= 0).all(axis=None)
    np.testing.assert_allclose(parts.sum(axis="columns"), trials["step_s"])
    np.testing.assert_allclose(trials["samples_per_s"], trials["global_batch_size"] / trials["step_s"])
    single = trials[trials["workers"] == 1].set_index("seed")
    assert (single["speedup"] == 1).all()
    assert (single["communicate_s"] == 0).all()
    pairs = trials[trials["workers"] == 2].set_index("seed")
    np.testing.assert_allclose(pairs["efficiency"], pairs["speedup"] / 2)
    assert set(trials["gradient_bytes"]) == {(784 + 1) * 10 * 4}
    # Two products with the weights, forward and backward, of 60 images for each worker.
    np.testing.assert_allclose(trials["flop_per_gradient_byte"], 2 * 2 * 784 * 10 * 60 / 31_400)
    np.testing.assert_allclose(larger["flop_per_gradient_byte"], 4 * 2 * 2 * 784 * 10 * 60 / 31_400)
    assert not trials["oversubscribed"].any()
    assert trials["extrapolated"].all()
    np.testing.assert_allclose(trials["train_s"], 40 * trials["step_s"])
    # The repeats are the samples of the confidence intervals.
    compared = results.compare("workers", "samples_per_s", where={"option": "none"})
    assert compared.values.set_index("workers")["num_seeds"].to_dict() == {1: 2, 2: 2}


@pytest.mark.slow
def test_deeper_networks_have_more_computation_for_each_byte(ray_session, mnist, tmp_path):
    config = {"model": "cnn", "width": 0.05, "batch_size": 20, "depth": tune.choice([0, 2])}
    results = scaling.measure(config, workers=(1, 2), num_timed_steps=5, output_dir=tmp_path / "out", **QUIET)
    # So short steps are disturbed on a busy machine.
    results = results.with_trials(results.trials.assign(status="finished"))
    table = speedups(results)
    assert table[["depth", "workers"]].to_numpy().tolist() == [[0, 1], [0, 2], [2, 1], [2, 2]]
    plain, deep = table.groupby("depth")["flop_per_gradient_byte"].mean()
    assert deep > 2 * plain
    assert set(pd.DataFrame(results.experiment["predictions"])["width"]) == {0.05}
    assert list(predicted_against_measured(results)["workers"]) == [2]
    (sentence,) = (sentence for sentence in findings(results) if "FLOP for each byte" in sentence)
    assert sentence.startswith(f"With {deep:.0f} instead of {plain:.0f} FLOP for each byte of gradients the efficiency")

    alone = scaling.measure(config | {"depth": 2}, workers=(1, 2), repeats=1, num_timed_steps=5,
                            output_dir=tmp_path / "deep", **QUIET)  # fmt: skip
    assert alone.experiment["predictions"] == []
    assert "2 workers reach a speed-up of" in "".join(findings(alone))
    assert write_report([alone], tmp_path / "report").is_file()


@pytest.mark.slow
def test_failed_worker_raises_an_error_without_results(ray_session, mnist, tmp_path, monkeypatch):
    # A batch larger than the data, which is otherwise rejected earlier.
    monkeypatch.setattr(Plan, "check_fits", lambda plan, num_samples: None)
    with pytest.raises(TrialError, match=r"a worker ended: .*batch_size must be 1 to 50000, .*; nothing was measured"):
        scaling.measure(
            {**CONFIG, "batch_size": 30_000}, (2,), "weak", num_timed_steps=1, output_dir=tmp_path / "out", **QUIET
        )
    folder = ExperimentFolder(tmp_path / "out")
    assert folder.read()["state"] == "interrupted"
    assert not folder.trials_file.exists()


def test_invalid_measurement_is_rejected_before_ray_starts(mnist, tmp_path):
    for changes, message in (
        ({"workers": ()}, "workers is empty; name at least one"),
        ({"width": ()}, "width is empty; name at least one"),
        ({"mode": "both"}, "mode must be one of strong, weak; got 'both'"),
        ({"workers": (61,)}, "workers must be a whole number from 1 to the batch size 60; got 61"),
        ({"config": {**CONFIG, "batch_size": 30_000}, "mode": "weak"},
         "2 workers with batches of 30000 each see 60000 samples a step; there are 50000: use fewer workers, or"),
    ):  # fmt: skip
        with pytest.raises(InvalidConfigError, match=message):
            scaling.measure(**{"config": CONFIG, "output_dir": tmp_path / "out", **QUIET, **changes})
    assert not (tmp_path / "out").exists()
