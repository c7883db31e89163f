"""Loading and summaries of results."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.analysis.test_comparison import made
from tests.results_fixtures import KEYS
from tune_hpc.analysis import results
from tune_hpc.analysis.concatenation import concat
from tune_hpc.analysis.frames import read_frames, trials_frame, write_frames
from tune_hpc.analysis.loading import load, load_all
from tune_hpc.errors import FolderError, UnknownNameError


def test_frames_round_trip(folder, grid):
    made = grid()
    write_frames(folder, made.trials, made.history)
    loaded = load(folder.path)
    pd.testing.assert_frame_equal(loaded.trials, made.trials)
    pd.testing.assert_frame_equal(loaded.history, made.history)
    assert loaded.folder == folder.path


def test_trial_files_of_a_running_search_are_loaded(folder, write, trial):
    write(trial("00000"))
    write(trial("00001", status="failed"))
    (folder.trials / ".00002.parquet.7.tmp").write_bytes(b"half")
    loaded = load(folder.path)
    assert list(loaded.trials["status"]) == ["finished", "failed"]
    assert set(loaded.history["trial_id"]) == {"00000"}
    assert loaded.counts() == {"finished": 1, "failed": 1}


def test_trial_file_replaces_the_row_of_a_running_trial(folder, write, trial):
    row, history = trial("00000", status="running")
    write_frames(folder, trials_frame([row], KEYS), history.assign(trial_id="00000").iloc[:3])
    write(trial("00000"))
    loaded = load(folder.path)
    assert loaded.counts() == {"finished": 1}
    assert len(loaded.history) == len(history)


def test_search_without_trials_is_loaded(folder):
    loaded = load(folder.path)
    assert loaded.trials.empty
    assert loaded.counts() == {}
    assert loaded.varied_parameters == []
    assert loaded.trials["status"].dtype == pd.CategoricalDtype(results.STATUSES)
    with pytest.raises(UnknownNameError, match="no metric 'test_loss' in the history"):
        loaded.curve("test_loss")


@pytest.mark.parametrize("name", ["trials.parquet", "history.parquet", "trials/00099.parquet"])
def test_error_names_a_damaged_parquet_file(folder, grid, name):
    made = grid()
    write_frames(folder, made.trials, made.history)
    (folder.path / name).parent.mkdir(exist_ok=True)
    (folder.path / name).write_bytes(b"PAR1 garbage")
    with pytest.raises(FolderError, match=rf"{name} is not readable as Parquet \(.*\); restore it from a copy"):
        load(folder.path)


def test_error_names_a_foreign_parquet_file(folder):
    folder.trials.mkdir()
    pd.DataFrame({"x": [1]}).to_parquet(folder.trial_file("00000"))
    with pytest.raises(FolderError, match="is not a trial file"):
        load(folder.path)
    pd.DataFrame({"x": [1]}).to_parquet(folder.trials_file)
    with pytest.raises(FolderError, match="has no column status, trial_id"):
        load(folder.path)


def test_several_experiments_are_loaded_by_load_all_only(folder):
    assert load(folder.path.parent).name == "made.up"
    shutil.copytree(folder.path, folder.path.parent / "second")
    with pytest.raises(FolderError, match=r"holds some \(run, second\); name one, or use load_all"):
        load(folder.path.parent)
    assert [one.name for one in load_all(folder.path.parent)] == ["made.up", "made.up"]


def test_best_trials_are_completed_ones(trial, results_of):
    made = results_of(
        trial("00000", 0.5), trial("00001", 0.1, "diverged"), trial("00002", 0.2), trial("00003", status="failed"),
        trial("00004", 0.05, "running"), trial("00005", 0.3, "stopped"),
    )  # fmt: skip
    assert made.best_trial()["trial_id"] == "00002"
    assert made.best_trial("test_accuracy")["trial_id"] == "00002"
    for metric, message in (
        ("speed", r"no column 'speed' in the trials of made\.up"),
        ("optimizer", r"column optimizer of made\.up is not numeric; numeric columns are learning_rate, "),
    ):
        with pytest.raises(UnknownNameError, match=message):
            made.best_trial(metric)
        with pytest.raises(UnknownNameError, match=message):
            made.top(metric=metric)
    diverged = results_of(trial("00000", status="diverged"))
    with pytest.raises(UnknownNameError, match=r"no trial of made\.up finished with a value of test_loss"):
        diverged.best_trial()
    with pytest.raises(UnknownNameError, match=r"no configuration of made\.up has a value of test_loss and neither"):
        diverged.best()


def test_best_configuration_is_the_mean_over_its_seeds(trial, results_of):
    losses = {0.1: (0.1, 0.9), 0.2: (0.3, 0.4), 0.3: (0.0, None), 0.4: (0.0, "failed")}
    trials = []
    for rate, values in losses.items():
        for seed, loss in enumerate(values):
            status = "finished" if isinstance(loss, float) else loss or "diverged"
            value = loss if status == "finished" else 0.0
            trials.append(trial(f"{len(trials):05d}", value, status, learning_rate=rate, seed=seed))
    made = results_of(*trials)
    assert made.best_trial()["learning_rate"] == 0.3
    assert made.best()["learning_rate"] == 0.2
    assert made.top()["learning_rate"].tolist() == [0.2, 0.1]
    assert made.top()["num_seeds"].tolist() == [2, 2]
    assert made.best_config() == {"optimizer": "adam", "learning_rate": 0.2, "batch_size": 100}


@pytest.mark.parametrize("mode", ["minimize", "MIN", "", 5])
def test_mode_other_than_min_and_max_is_rejected(trial, results_of, mode):
    made = results_of(*(trial(f"t{loss}", loss, learning_rate=loss) for loss in (0.1, 0.2)))
    for method in (made.best, made.top, made.best_config, made.best_trial, made.is_lower_better):
        arguments = {"metric": "test_loss"} if method == made.is_lower_better else {}
        with pytest.raises(UnknownNameError, match=r"mode must be min or max; got "):
            method(mode=mode, **arguments)
    with pytest.raises(UnknownNameError, match=r"mode must be min or max; got "):
        made.compare("learning_rate", "test_loss", mode=mode)


def test_configuration_with_a_seed_that_has_no_value_is_not_best(trial, results_of):
    # A time limit stopped two slow seeds before their first report.
    made = results_of(
        trial("t0", 0.1, learning_rate=0.1, seed=0),
        trial("t1", np.nan, learning_rate=0.1, seed=1, status="stopped"),
        trial("t2", 0.3, learning_rate=0.2, seed=0),
        trial("t3", 0.3, learning_rate=0.2, seed=1),
    )
    assert made.best(mode="min")["learning_rate"] == 0.2
    assert made.top(mode="min")["learning_rate"].tolist() == [0.2]


@pytest.mark.parametrize("n", [0, -1, 1.5, True])
def test_top_needs_a_positive_number(trial, results_of, n):
    with pytest.raises(UnknownNameError, match="must be a whole number of at least 1"):
        results_of(trial("t0", 0.1)).top(n)


def test_metric_without_a_direction_needs_a_mode(trial, results_of):
    fast, slow = trial("00000", learning_rate=0.1), trial("00001", learning_rate=0.2)
    fast[0]["latency_ms"], slow[0]["latency_ms"] = 1.0, 9.0
    made = results_of(fast, slow)
    for call in (made.best, made.top, made.best_trial, lambda metric: made.compare("learning_rate", metric)):
        with pytest.raises(UnknownNameError, match=r"the direction of latency_ms in made\.up is unknown"):
            call(metric="latency_ms")
    assert made.best("latency_ms", "min")["learning_rate"] == 0.1
    assert made.compare("learning_rate", "latency_ms", mode="max").values["learning_rate"].tolist() == [0.2, 0.1]
    declared = results_of(fast, slow, metrics={"latency_ms": "min"})
    assert declared.best("latency_ms")["learning_rate"] == 0.1


def test_short_durations_and_high_rates_are_best(trial, results_of):
    first, second = trial("00000"), trial("00001")
    first[0].update(train_s=1.0, samples_per_s=10.0)
    second[0].update(train_s=2.0, samples_per_s=20.0)
    made = results_of(first, second)
    assert made.best_trial("train_s")["trial_id"] == "00000"
    assert made.best_trial("samples_per_s")["trial_id"] == "00001"


def test_direction_follows_from_the_name_of_a_metric(results_of):
    made = results_of(metric="score", mode="max", metrics={"loss_ratio": "min", "my_loss": "max"})
    lower = {"score": False, "loss_ratio": True, "my_loss": False, "train_s": True, "valid_loss": True,
             "rows_per_s": False, "speedup": False, "efficiency": False, "test_accuracy": False}  # fmt: skip
    assert {metric: made.is_lower_better(metric) for metric in lower} == lower
    assert made.is_lower_better("score", "min")
    with pytest.raises(UnknownNameError, match=r"declare it in the experiment, as metrics=\{'memory': 'min'\}"):
        made.is_lower_better("memory")


def test_table_of_the_best_configurations_has_parameters_metric_and_seeds(grid):
    top = grid().top(2)
    assert list(top) == ["optimizer", "learning_rate", "test_loss", "test_loss_deviation", "num_seeds"]
    assert list(top.index) == [0, 1]
    assert top["learning_rate"].tolist() == [0.01, 0.1]
    assert top["test_loss_deviation"].tolist() == pytest.approx([0.01 / 2**0.5] * 2)
    ascending = grid().top(12, "test_accuracy", "min")["test_accuracy"]
    assert len(ascending) == 6
    assert ascending.is_monotonic_increasing


def test_first_of_equal_trials_is_the_best(trial, results_of):
    made = results_of(*(trial(f"0000{number}", 0.5, learning_rate=number) for number in range(3)))
    assert made.best_trial()["trial_id"] == "00000"
    assert made.best()["learning_rate"] == 0


def test_error_without_a_best_trial_has_the_statuses(trial, results_of):
    diverged = results_of(trial("00000", status="diverged"), trial("00001", status="diverged", learning_rate=1))
    with pytest.raises(UnknownNameError, match=r"finished with a value of test_loss: 2 diverged$"):
        diverged.best_trial()
    with pytest.raises(UnknownNameError, match=r"neither a diverged nor a failed seed \(2 diverged\)$"):
        diverged.best()
    none = diverged.with_trials(diverged.trials.iloc[:0])
    with pytest.raises(UnknownNameError, match=r"finished with a value of test_loss: no trials$"):
        none.best_trial()
    with pytest.raises(UnknownNameError, match=r"\(no trials\)$"):
        none.best()
    failed = results_of(trial("00000", status="failed"), trial("00001", status="diverged"))
    with pytest.raises(UnknownNameError, match=r"test_loss: 1 of 2 trials failed, 00000: RuntimeError"):
        failed.best_trial()


def test_summary_has_the_best_value_if_there_is_any(trial, results_of):
    assert repr(results_of(trial("00000", 0.5))) == "Results of made.up: 1 trials (1 finished); best test_loss 0.5366"
    assert repr(results_of(trial("00000", status="diverged"))) == "Results of made.up: 1 trials (1 diverged)"
    assert repr(results_of()) == "Results of made.up: 0 trials"


def test_parameter_without_a_value_is_in_no_configuration(trial, results_of):
    made = results_of(trial("00000", 0.5, optimizer=None), trial("00001", 0.9))
    assert made.best_config() == {"learning_rate": 0.1, "batch_size": 100}


def test_curve_has_one_column_per_trial(trial, results_of):
    made = results_of(trial("00000", 0.1), trial("00001", 0.2, num_steps=5))
    curve = made.curve("test_loss")
    assert list(curve.columns) == ["00000", "00001"]
    assert curve.shape == (21, 2)
    assert curve["00001"].notna().sum() == 6


@pytest.mark.parametrize("name", ["step", "trial_id", "none"])
def test_curve_of_no_metric_is_an_error(grid, name):
    with pytest.raises(UnknownNameError, match=f"no metric '{name}' in the history of made.up; there are train_loss, "):
        grid().curve(name)


def test_values_of_several_types_keep_them(folder):
    rows = [
        {"trial_id": str(number), "status": "finished", "layers": value}
        for number, value in enumerate([3, "auto", [64, 32], None, 3.5])
    ]
    df = trials_frame(rows, ["layers"])
    write_frames(folder, df, pd.DataFrame({"trial_id": [], "step": []}))
    for trials in (df, read_frames(folder)[0]):
        assert trials["layers"].tolist()[:3] == [3, "auto", "[64, 32]"]
        assert trials["layers"].isna().tolist() == [False, False, False, True, False]
        assert trials.sort_values("layers")["trial_id"].tolist()[0] == "0"


def test_results_import_neither_matplotlib_nor_torch_nor_ray():
    code = "import sys, tune_hpc.analysis.results; print({'matplotlib', 'torch', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_varied_parameters_are_the_searched_ones(trial, results_of):
    keys = ["optimizer", "learning_rate", "momentum", "steps", "seed"]
    trials = [
        trial("00000", optimizer="adam", steps=5, seed=0),
        trial("00001", optimizer="momentum", momentum=0.9, steps=5, seed=0),
    ]
    space = {"optimizer": {"choice": ["adam", "momentum"]}, "learning_rate": {"choice": [0.1]}, "steps": 5}
    assert results_of(*trials, config_keys=keys, space=space).varied_parameters == ["optimizer", "learning_rate"]
    assert results_of(*trials, config_keys=keys).varied_parameters == ["optimizer", "momentum"]
    again = trial("00002", optimizer="adam", steps=5, seed=1)
    repeated = results_of(*trials, again, config_keys=keys, space=space)
    assert repeated.varied_parameters == ["optimizer", "learning_rate", "seed"]


def test_incomplete_experiment_json_is_an_error(folder):
    folder.write({"name": "made.up", "mode": "min"})
    with pytest.raises(FolderError, match="describes no experiment: it has no config_keys, metric; restore it"):
        load(folder.path)


def test_repr_summarizes_counts_and_the_best_trial(grid):
    made = grid()
    summary = "made.up: 12 trials (12 finished); best test_loss 0.3416 with optimizer=adam, learning_rate=0.01"
    assert repr(made) == f"Results of {summary}"
    html = made._repr_html_()
    assert html.startswith(f"<p>{summary}</p><table")
    assert html.count("<tr") == 7


def test_markup_in_a_name_is_escaped(results_of):
    assert "&lt;b&gt;" in results_of(name="<b>")._repr_html_()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_both_frames_are_exported(grid, tmp_path, kind):
    made = grid()
    files = getattr(made, f"to_{kind}")(tmp_path / "new")
    assert [file.name for file in files] == [f"trials.{kind}", f"history.{kind}"]
    read = pd.read_csv if kind == "csv" else pd.read_parquet
    assert len(read(files[0])) == len(made.trials)
    assert len(read(files[1])) == len(made.history)


def named(name, folder=None, **truth):
    results = made(truth, deviation=0.001, generator=np.random.default_rng(len(name)))
    return replace(results, experiment={**results.experiment, "name": name}, folder=folder and Path(folder))


def test_searches_are_ranked_by_their_best_configurations():
    both = concat([named("one", a=0.9, b=0.95), named("other", a=0.8, b=0.85)])
    assert len(both.trials) == 20
    assert both.trials["trial_id"].is_unique
    values = both.compare("search").values
    assert list(values["search"]) == ["one", "other"]
    assert list(values["optimizer"]) == ["b", "b"]
    assert list(values["rank"]) == [1, 2]
    assert both.compare("optimizer").values["search"].tolist() == ["one", "one"]


def test_equal_names_are_replaced_by_folder_names_or_numbered():
    apart = concat([named("one", "runs/one", a=0.9), named("one", "runs/one-2", a=0.8)])
    assert set(apart.trials["search"]) == {"one", "one-2"}
    alike = concat([named("one", a=0.9), named("one", a=0.8)])
    assert set(alike.trials["search"]) == {"one (1)", "one (2)"}


def test_searches_with_different_metrics_are_rejected():
    lossy = made({"a": 0.1}, metric="loss")
    other = replace(lossy, experiment={**lossy.experiment, "name": "two"})
    with pytest.raises(UnknownNameError, match="one by the max of test_accuracy, two by the max of loss; compare"):
        concat([named("one", a=0.9), other])
    with pytest.raises(UnknownNameError, match="nothing to compare"):
        concat([])


def test_text_of_top_has_all_columns(trial, results_of, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    names = [f"parameter_{number}" for number in range(30)]
    rows = [trial(f"{n:05d}", **{name: n + 0.123456789 for name in names}) for n in range(3)]
    top = results_of(*rows, config_keys=names, space={name: {} for name in names}).top(2)
    text = str(top)
    assert all(name in text for name in [*names, "test_loss", "num_seeds"])
    assert "..." not in text
    assert max(map(len, text.splitlines())) <= 60
    assert isinstance(top, pd.DataFrame)
    assert type(top[names]) is pd.DataFrame


def test_results_without_a_completed_trial_name_the_first_failure(trial, results_of):
    trials = [trial(f"{number:05d}", status="failed") for number in range(3)]
    failed = results_of(*trials)
    message = "3 of 3 trials failed, 00000: RuntimeError"
    assert message in repr(failed)
    for method in (failed.top, failed.best, failed.best_config, failed.best_trial):
        with pytest.raises(UnknownNameError, match=f"no trial of made.up has a value of test_loss: {message}"):
            method()
    mixed = results_of(*trials, trial("00003", status="diverged"))
    with pytest.raises(UnknownNameError, match="neither a diverged nor a failed seed"):
        mixed.best()
    # With a completed trial, an unknown column is the cause.
    with pytest.raises(UnknownNameError, match="no column 'loss'"):
        results_of(*trials, trial("00004")).top(metric="loss")
