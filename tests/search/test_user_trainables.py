"""Trainables as users write them: late metrics, reserved names, exits, processes, and values of every type."""

import json
import multiprocessing
import random
import sys
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from optuna.trial import FixedTrial
from ray import tune

from tune_hpc import Experiment, Space, compare, extend, load, load_all, resume, run, to_optuna, when
from tune_hpc.analysis.frame_query import csv_chunks, records
from tune_hpc.analysis.frames import read_parquet, trials_frame, write_parquet
from tune_hpc.analysis.interactions import interactions
from tune_hpc.cli.main import main
from tune_hpc.errors import UnknownNameError
from tune_hpc.report.plots.figures import MAX_RESPONSES, default_figures, draw
from tune_hpc.search.searchers.optuna_searcher import OptunaSearcher
from tune_hpc.search.searchers.optuna_study import StudyParameter
from tune_hpc.search.space.parameter import Parameter, identity
from tune_hpc.service.problems import to_json
from tune_hpc.service.schemas import SearchRequest
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.trial_file import config_to_row, row_to_config


@pytest.fixture
def search(tmp_path):
    """Return a function that runs a trainable in this process."""

    def run_trainable(trainable, space, **changes):
        fields = {"metric": "loss", "mode": "min", "seeds": ()} | changes
        experiment = Experiment("mine", Space(space), trainable, **fields)
        return run(experiment, output_dir=tmp_path / "mine", runner="local", show_progress=False)

    return run_trainable


def late(config, report, checkpoint):
    """Report the ranking metric at every fourth step only."""
    state = checkpoint.load() or {"step": 0}
    for step in range(state["step"] + 1, config["epochs"] + 1):
        report(step, {"train_loss": 1.0})
        if step % 4 == 0 or step == config["epochs"]:
            report(step, {"valid_loss": config["x"] + 1 / step})
        checkpoint.save(step, lambda step=step: {"step": step})


@pytest.mark.parametrize("scheduler", ["asha", "pbt"])
def test_trial_pauses_once_its_metric_is_known(search, scheduler):
    space = {"x": tune.choice([1, 2, 3, 4, 5, 6]), "epochs": 27}
    results = search(late, space, metric="valid_loss", scheduler=scheduler, budget="epochs")
    assert results.counts().get("finished", 0) >= 1
    assert (results.trials["steps_run"] >= 4).all()
    assert results.best()["x"] == 1


def test_budget_may_be_a_number(search):
    def train(config, report, checkpoint):
        late({**config, "epochs": 27}, report, checkpoint)

    assert (
        search(train, {"x": tune.choice([1, 2, 3])}, metric="valid_loss", scheduler="asha", budget=27).best()["x"] == 1
    )


def never(config, report, checkpoint):
    for step in range(1, 28):
        report(step, {"accuracy": 1.0, "speed": 2.0})
        checkpoint.save(step, lambda: {})


@pytest.mark.parametrize("scheduler", ["none", "asha", "asha_stopping", "median"])
def test_metric_that_is_never_reported_fails_the_trial_with_those_that_were(search, scheduler):
    results = search(never, {"x": tune.choice([1, 2]), "steps": 27}, metric="acuracy", mode="max", scheduler=scheduler)
    assert results.counts() == {"failed": 2}
    assert results.trials["error"][0] == (
        "the trial never reported acuracy, which ranks trials; it reported accuracy, speed: name one of these as "
        "metric, with its mode"
    )


@pytest.mark.parametrize(("judge", "value"), [("last", 3.0), ("best", 1.0), ("mean_of_last_3", 2.0)])
def test_judge_defines_the_value_of_the_metric_everywhere(search, judge, value):
    def train(config, report):
        for step, loss in enumerate((5.0, 1.0, 2.0, 3.0)):
            report(step, {"loss": loss + config["x"]})

    results = search(train, {"x": tune.choice([0, 1])}, judge=judge)
    assert results.trials["loss"].tolist() == [value, value + 1]
    assert results.best()["loss"] == value
    progress = json.loads((results.folder / "progress.json").read_text(encoding="utf-8"))
    assert progress["best"]["value"] == value


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"trial_id": 3}, "the metric 'trial_id', which is a column of the results; report it under another name"),
        ({"step": 3}, "the metric 'step', which is a column of the results"),
        ({"best_valid_accuracy": 0.5}, "the metric 'best_valid_accuracy', which is a column of the results"),
        ({"x": 3}, "the metric 'x', which is a parameter; report it under another name"),
        ({"": 3}, "the name of a metric must be a word; got ''"),
        ({7: 3}, "the name of a metric must be a word; got 7"),
        ({"note": "high"}, "report takes one number for each step; note has 'high' for 1"),
    ],
)
def test_metric_with_a_reserved_name_fails_the_trial_and_keeps_the_others(search, metrics, message):
    def train(config, report):
        report(1, {"loss": 0.1, **(metrics if config["x"] else {})})

    results = search(train, {"x": tune.choice([0, 1])})
    assert results.counts() == {"finished": 1, "failed": 1}
    assert message in results.trials["error"][1]
    assert load(results.folder).counts() == results.counts()
    assert resume(results.folder, runner="local", show_progress=False)[0].counts() == results.counts()


def test_last_value_of_another_metric_may_be_unknown(tmp_path):
    def train(config, report):
        for step in (1, 2, 3):
            report(step, {"loss": config["x"], "acc": np.nan if config["x"] == 1 and step == 3 else 0.5})

    space = Space({"x": tune.choice([1, 2])}, keys={})
    experiment = Experiment("mine", space, train, metric="loss", mode="min", metrics={"acc": "max"}, seeds=())
    results = run(experiment, output_dir=tmp_path, runner="local", show_progress=False)
    assert results.trials["acc"].isna().tolist() == [True, False]
    assert results.best(metric="acc")["x"] == 2


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((0.5,), "a step must be a whole number from 0 on, at most 2**53; got 0.5: count steps, epochs or batches"),
        ((-1,), "a step must be a whole number from 0 on, at most 2**53; got -1"),
        (("one",), "a step must be a whole number from 0 on, at most 2**53; got 'one'"),
        ((3, 3), "report takes each step of a metric once, in ascending order; got loss at step 3 after step 3"),
        ((3, 2), "in ascending order; got loss at step 2 after step 3"),
        (([1, 1],), "in ascending order; got loss at step 1"),
    ],
)
def test_steps_are_ascending_whole_numbers(search, steps, message):
    def train(config, report):
        for step in steps:
            report(step, {"loss": 0.1})

    results = search(train, {"x": 1})
    assert message in results.trials["error"][0]


def test_steps_of_a_metric_ascend_after_a_resumption(search, tmp_path):
    def train(config, report, checkpoint):
        state = checkpoint.load() or {"step": 0}
        for step in range(state["step"] + 1, 9):
            report(step, {"loss": 1 / step})
            checkpoint.save(step, lambda step=step: {"step": step})

    results = search(train, {"x": tune.choice([1, 2, 3]), "steps": 8}, scheduler="asha")
    assert not results.counts().get("failed")
    assert results.history.groupby("trial_id")["step"].is_monotonic_increasing.all()


@pytest.mark.parametrize("code", [2, 0, "no data"])
def test_exit_of_a_trainable_fails_its_trial_only(search, code):
    def train(config, report):
        if config["x"]:
            sys.exit(code)
        report(1, {"loss": 0.1})

    results = search(train, {"x": tune.choice([1, 0])})
    assert results.trials["status"].tolist() == ["failed", "finished"]
    assert results.trials["error"][0].startswith(f"SystemExit: {code} (in train, ")


@pytest.mark.parametrize("changes", [{}, {"searcher": "tpe", "num_samples": 3}, {"scheduler": "median", "budget": 9}])
def test_failed_trials_run_again_on_request(search, tmp_path, changes):
    def train(config, report, checkpoint):
        for step in range(1, 10):
            if config["x"] == 1 and not (tmp_path / "corrected").exists():
                raise ValueError("a bug")
            report(step, {"loss": config["x"]})
            checkpoint.save(step, lambda step=step: {"step": step})

    first = search(train, {"x": tune.choice([1, 2, 3])}, **changes)
    failed = first.trials.loc[first.trials["status"] == "failed", "config"].tolist()
    assert failed or changes.get("searcher")
    (tmp_path / "corrected").touch()
    options = {"trainable": train, "runner": "local", "show_progress": False}
    assert resume(first.folder, **options)[0].counts() == first.counts()
    (again,) = resume(first.folder, retry_failed=True, **options)
    assert "failed" not in again.counts()
    assert again.trials["config"].tolist() == first.trials["config"].tolist()
    assert load(again.folder).best()["x"] == 1
    finished = first.trials["status"] == "finished"
    assert again.trials.loc[finished, "train_s"].tolist() == first.trials.loc[finished, "train_s"].tolist()


def square(number):
    return number**2


@pytest.mark.slow
def test_pool_of_processes_ends(search):
    def train(config, report):
        # A pool that ends at once sends SIGTERM while its processes start.
        multiprocessing.get_context("fork").Pool(4).terminate()
        with multiprocessing.get_context("fork").Pool(2) as pool:
            report(1, {"loss": sum(pool.map(square, range(4)))})

    assert search(train, {"x": tune.choice(list(range(10)))}).trials["loss"].tolist() == [14.0] * 10


VALUES = [1, 5, "auto", "1", None, [64, 64], {"depth": 2}]


def test_values_keep_their_types_everywhere(search, tmp_path):
    seen = []

    def train(config, report):
        seen.append(config["x"])
        report(1, {"loss": 0.0 if config["x"] == [64, 64] else 1.0 + len(str(config["x"]))})

    results = search(train, {"x": tune.choice(VALUES), "n": tune.choice([3])})
    assert seen == VALUES
    assert load(results.folder).best_config() == {"x": [64, 64], "n": 3}
    assert results.best()["x"] == [64, 64]
    assert [row_to_config(row)["x"] for row in load(results.folder).trials.to_dict("records")] == VALUES
    study = to_optuna(results)
    assert len(study.trials) == len(VALUES)
    assert study.best_params["x"] == "[64, 64]"


def test_adaptive_search_with_values_of_several_types_is_extended_from_its_folder(search, tmp_path):
    def train(config, report):
        report(1, {"loss": 0.0 if config["x"] == "auto" else 1.0})

    space = {"x": tune.choice([1, 5, "auto"]), "y": tune.uniform(0, 1), "n": tune.randint(1, 9)}
    results = search(train, space, searcher="tpe", num_samples=12)
    more = extend(results.folder, num_samples=6, trainable=train, runner="local", show_progress=False)
    assert len(more.trials) == 18
    assert len(to_optuna(more).trials) == 18
    assert {type(row_to_config(row)["x"]) for row in more.trials.to_dict("records")} == {int, str}


def test_comparison_runs_winners_with_whole_numbers(tmp_path):
    def train(config, report):
        assert isinstance(config["n"], int)
        report(1, {"loss": config["n"] + (config["arm"] == "b")})

    space = Space({"arm": tune.choice(["a", "b"]), "n": tune.randint(1, 50)}, roles={"arm": "scientific"})
    experiment = Experiment("arms", space, train, metric="loss", mode="min", searcher="random", num_samples=4)
    comparison = compare(
        experiment, budget=4, seeds=2, output_dir=tmp_path / "arms", runner="local", show_progress=False
    )
    assert {status for results in load_all(tmp_path / "arms") for status in results.counts()} == {"finished"}
    assert "a" in str(comparison)


MIXED = [1, True, "1", "[1]", [1], None, "null", 0, False, {"a": 1}, '{"a": 1}', "a\rb"]


def test_equal_looking_values_keep_their_types_in_adaptive_searches_and_csv(search, tmp_path):
    seen = []

    def train(config, report):
        seen.append(config["x"])
        report(1, {"loss": 1.0})

    points = [{"x": value, "y": 0.5} for value in MIXED]
    space = {"x": tune.choice(MIXED), "y": tune.uniform(0, 1)}
    results = search(train, space, searcher="tpe", num_samples=14, points_to_evaluate=points)
    assert json.dumps(seen[: len(MIXED)]) == json.dumps(MIXED)
    assert all(json.dumps(value) in map(json.dumps, MIXED) for value in seen)
    assert len({trial.params["x"] for trial in to_optuna(results).trials}) == len(MIXED)
    more = extend(results.folder, num_samples=2, trainable=train, runner="local", show_progress=False)
    assert len(to_optuna(more).trials) == 16
    trials, _ = more.to_csv(tmp_path / "csv")
    rows = pd.read_csv(trials).to_dict("records")
    assert json.dumps([row_to_config(row)["x"] for row in rows][: len(MIXED)]) == json.dumps(MIXED)
    assert len(rows) == 16


def test_warm_start_keeps_the_types_of_values(search, tmp_path):
    values, seen = [None, 1, "1", [1, 2]], []

    def train(config, report):
        seen.append(config["x"])
        report(1, {"loss": 0.0 if config["x"] == "1" else 1.0})

    space = {"x": tune.choice(values), "y": tune.uniform(0, 1)}
    points = [{"x": value} for value in values]
    first = search(train, space, searcher="tpe", num_samples=4, points_to_evaluate=points)
    assert json.dumps(seen) == json.dumps(values)
    experiment = Experiment(
        "second", Space(space, keys={}), train, metric="loss", mode="min", seeds=(), searcher="tpe", num_samples=6
    )
    searcher = OptunaSearcher(experiment, ExperimentFolder(tmp_path / "second"), warm_start=[load(first.folder)])
    known = [trial.params["x"] for trial in searcher.study.trials]
    assert [searcher.study.parameters["x", 0].from_value(value) for value in values] == known
    assert searcher.study.study.best_trial.params["x"] == known[2]


def test_whole_numbers_of_conditional_parameters_are_printed_as_integers(search, tmp_path, capsys):
    def train(config, report):
        report(1, {"loss": config.get("units", 500) / 7})

    space = {"kind": tune.choice(["a", "b"]), "units": when(tune.choice([192, 64]), kind="a"), "rate": 0.5}
    results = search(train, space)
    assert str(results.top()["units"].tolist()) == "[64, 192, <NA>]"
    assert isinstance(results.best_config()["units"], int)
    trials, _ = results.to_csv(tmp_path / "csv")
    assert "192.0" not in trials.read_text(encoding="utf-8")
    assert ",192," in trials.read_text(encoding="utf-8")
    assert main(["show", str(results.folder)]) == 0
    assert "192.0" not in capsys.readouterr().out
    assert load(results.folder).compare("kind").values["kind"].tolist() == ["a", "b"]


@pytest.mark.slow
def test_search_of_many_parameters_is_reported(search, tmp_path):
    def train(config, report):
        report(1, {"loss": config["p0"], "latency_ms": 1.0})

    space = {f"p{index}": tune.uniform(0, 1) for index in range(300)}
    results = search(train, space, searcher="random", num_samples=5, metrics={"latency_ms": "min"})
    with pytest.raises(UnknownNameError, match="interactions of pairs are for at most 50 parameters; mine has 300"):
        interactions(results)
    assert len(results.top()) == 5
    figures = default_figures(results)
    assert figures[0]["metrics"] == ["loss", "latency_ms"]
    assert sum(figure["kind"] == "response" for figure in figures) == MAX_RESPONSES
    (sheet,) = draw(results, figures[0])
    texts = [text.get_text() for legend in sheet.figure.legends for text in legend.get_texts()]
    assert set(texts) == {f"t{number:05d}" for number in range(5)}
    (sheet,) = draw(results, next(figure for figure in figures if figure["kind"] == "parallel"))
    assert len(sheet.figure.axes) < 10


NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
VALID = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS.map("k{}".format), inner, max_size=3),
)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(st.lists(st.fixed_dictionaries({"a": VALID, "b": VALID}), min_size=1, max_size=4))
def test_any_configuration_survives_frame_parquet_csv_json_optuna_http(tmp_path_factory, configs):
    rows = [{"trial_id": f"t{n}", "status": "finished", **config_to_row(config)} for n, config in enumerate(configs)]
    df = trials_frame(json.loads(json.dumps(rows)), ["a", "b"])
    path = tmp_path_factory.getbasetemp() / "trials.parquet"
    write_parquet(df, path)
    csv = pd.read_csv(BytesIO(b"".join(csv_chunks(df))))
    listing = json.loads(to_json({"trials": records(df)}))["trials"]
    for frame in (*(frame.to_dict("records") for frame in (df, read_parquet(path), csv)), listing):
        found = [row_to_config(row) for row in frame]
        assert json.dumps(found) == json.dumps(configs)
    choices = {json.dumps(config["a"], sort_keys=True): config["a"] for config in configs}
    # 0 and 0.0 are one value of a choice.
    assume(len(set(map(identity, choices.values()))) == len(choices))
    space = Space({"a": tune.choice(list(choices.values()))})
    for config in configs:
        member = space.config_in({"a": config["a"]})
        assert json.dumps(member, sort_keys=True) == json.dumps({"a": config["a"]}, sort_keys=True)
    assert Space.from_json(json.loads(json.dumps(space.to_json()))) == space
    parameter = StudyParameter("a", Parameter.from_value("a", space["a"]))
    for value in choices.values():
        stored = json.loads(json.dumps(parameter.from_value(value)))
        assert json.dumps(parameter.suggest(FixedTrial({"a": stored}))) == json.dumps(value)
    body = json.dumps({"space": "mine", "set": space.to_json(), "points_to_evaluate": configs})
    request = SearchRequest.model_validate_json(body)
    assert json.dumps(request.overrides().points_to_evaluate) == json.dumps(configs)
    assert json.dumps(Space.from_json(request.set).to_json()) == json.dumps(space.to_json())


def test_global_generators_have_the_seed_of_the_trial(tmp_path):
    def draws(config, report):
        report(1, {"loss": random.random() + np.random.rand() + torch.rand(()).item()})  # noqa: NPY002

    def losses(name, seeds):
        experiment = Experiment(
            "draws", Space({"x": tune.choice([1, 2])}), draws, metric="loss", mode="min", seeds=seeds
        )
        results = run(experiment, output_dir=tmp_path / name, runner="local", show_progress=False)
        return results.trials.set_index(["x", "seed"])["loss"].to_dict()

    both, single = losses("both", (0, 1)), losses("single", (1,))
    assert both[1, 0] == both[2, 0] != both[1, 1] == both[2, 1]
    assert single == {(1, 1): both[1, 1], (2, 1): both[2, 1]}


def test_search_with_a_number_of_samples_is_random_by_default():
    space = Space({"x": tune.uniform(0, 1)})
    experiment = Experiment(
        "samples", space, "tests.search.trainables:parabola", metric="loss", mode="min", num_samples=3
    )
    assert experiment.searcher == "random"
    assert experiment.replace(searcher="tpe").searcher == "tpe"
    assert Experiment("grid", Space({"x": tune.choice([1, 2])}), "tests.search.trainables:parabola").searcher == "grid"


@pytest.mark.parametrize(
    "values",
    [[[1], "[1]", 2], [{"a": 1}, '{"a": 1}', 2], [1, "1", True], [1, "1", None, [2], True], ["True", True, "x"]],
)
def test_values_that_look_alike_are_different_configurations(tmp_path, values):
    def reports(config, report):
        report(1, {"loss": float(values.index(config["v"]) if config["v"] is not True else values.index(True))})

    experiment = Experiment("alike", Space({"v": tune.choice(values)}), reports, "loss", "min")
    results = run(experiment, output_dir=tmp_path / "out", runner="local", show_progress=False)
    assert len(results.top(10)) == len(values)
    assert results.best_config()["v"] == values[0]
    assert type(results.best_config()["v"]) is type(values[0])
