"""Starting configurations: they run first, count, are completed and validated, and survive interruptions."""

import json

import pytest
from ray import tune

from tune_hpc import Experiment, Space, compare, extend, load, resume, run, to_optuna, when
from tune_hpc.cli.main import main
from tune_hpc.errors import InvalidExperimentError, InvalidSpaceError
from tune_hpc.search.experiment_json import experiment_from_json
from tune_hpc.storage.trial_file import row_to_config

SPACE = Space(
    {
        "kind": tune.choice(["adam", "momentum", None]),
        "rate": tune.loguniform(1e-4, 1),
        "momentum": when(tune.uniform(0.5, 1), kind="momentum"),
        "layers": tune.choice([[64, 64], [128]]),
        "units": tune.randint(1, 100),
        "steps": 27,
    }
)
FIRST = {"kind": "momentum", "rate": 0.01, "momentum": 0.9, "layers": [128], "units": 7, "steps": 27}
POINTS = [FIRST, {"kind": None, "units": 8}]
OPTIONS = {"runner": "local", "show_progress": False}


def train(config, report, checkpoint):
    state = checkpoint.load() or {"step": 0}
    for step in range(state["step"] + 1, config["steps"] + 1):
        report(step, {"loss": config["rate"] / step})
        checkpoint.save(step, lambda step=step: {"step": step})


def experiment(**changes):
    fields = {"searcher": "random", "num_samples": 6, "seeds": (), "points_to_evaluate": POINTS} | changes
    return Experiment("mine", SPACE, train, metric="loss", mode="min", **fields)


def configs_of(results):
    return [row_to_config(row) for row in results.trials.to_dict("records")]


def check_first(configs):
    assert json.dumps(configs[0]) == json.dumps(FIRST)
    assert (configs[1]["kind"], configs[1]["units"], configs[1]["steps"]) == (None, 8, 27)
    assert "momentum" not in configs[1]
    assert all(map(SPACE.admits, configs))


@pytest.mark.parametrize("searcher", ["random", "quasi_random", "tpe", "gp"])
def test_configurations_run_first_and_count(tmp_path, searcher):
    space = SPACE.without("momentum") if searcher == "gp" else SPACE
    points = [{key: value for key, value in point.items() if key in space} for point in POINTS]
    fields = {"searcher": searcher, "num_samples": 6, "seeds": (), "points_to_evaluate": points}
    mine = Experiment("mine", space, train, metric="loss", mode="min", **fields)
    results = run(mine, output_dir=tmp_path / "a", **OPTIONS)
    configs = configs_of(results)
    assert len(configs) == 6
    if searcher == "gp":
        assert configs[0] == points[0]
    else:
        check_first(configs)
    assert len({json.dumps(config) for config in configs}) == 6
    extended = extend(results.folder, num_samples=2, trainable=train, **OPTIONS)
    assert configs_of(extended)[:6] == configs
    assert len(extended.trials) == len(to_optuna(extended).trials) == 8


@pytest.mark.parametrize("searcher", ["random", "quasi_random"])
def test_longer_search_begins_with_a_shorter_one(searcher):
    shorter, longer = (list(experiment(searcher=searcher, num_samples=number).configs()) for number in (4, 9))
    assert longer[:4] == shorter
    assert (
        longer[2:]
        == [config for config in experiment(searcher=searcher, num_samples=9, points_to_evaluate=()).configs()][:7]
    )


@pytest.mark.parametrize("scheduler", ["none", "asha", "pbt"])
@pytest.mark.parametrize("searcher", ["random", "tpe"])
def test_interruption_changes_neither_configurations_nor_results(tmp_path, searcher, scheduler):
    if (searcher, scheduler) == ("tpe", "pbt"):
        pytest.skip("pbt has its own search")
    mine, interrupted = experiment(searcher=searcher, scheduler=scheduler), tmp_path / "b"
    whole = run(mine, output_dir=tmp_path / "a", **OPTIONS)

    def stop_in_first(config, report, checkpoint):
        if len(list((interrupted / "logs").glob("*"))) < 2 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            raise KeyboardInterrupt
        train(config, report, checkpoint)

    with pytest.raises(KeyboardInterrupt):
        run(mine.replace(trainable=stop_in_first), output_dir=interrupted, **OPTIONS)
    (resumed,) = resume(interrupted, trainable=train, **OPTIONS)
    assert configs_of(resumed) == configs_of(whole)
    assert resumed.trials["loss"].tolist() == whole.trials["loss"].tolist()
    if scheduler != "pbt":
        check_first(configs_of(resumed))


def test_adaptive_searcher_learns_their_values(tmp_path):
    study = to_optuna(run(experiment(searcher="tpe", num_samples=3), output_dir=tmp_path / "a", **OPTIONS))
    assert study.trials[0].params == {
        "kind": "momentum", "rate": 0.01, "momentum": 0.9, "layers": "[128]", "units": 7
    }  # fmt: skip


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"rate": 2.0}, "points_to_evaluate: rate=2.0 is outside the space, which has loguniform(0.0001, 1)"),
        ({"rate": "fast"}, "rate='fast' is outside the space"),
        ({"units": 1.5}, "units=1.5 is outside the space, which has randint(1, 100)"),
        ({"steps": 28}, "steps=28 is outside the space, which has 27"),
        ({"kind": "none"}, "kind='none' is outside the space, which has choice(adam, momentum, null)"),
        ({"depth": 1}, "depth is no parameter of the space, which has kind, rate, momentum, layers, units, steps"),
        ({"momentum": 0.9}, "momentum=0.9 depends on kind; give kind as well"),
        (
            {"momentum": 0.9, "kind": "adam"},
            "momentum=0.9: the space has the parameter only uniform(0.5, 1) where kind is momentum",
        ),
    ],
)
def test_value_outside_the_space_is_rejected(point, message):
    with pytest.raises(InvalidSpaceError) as error:
        experiment(points_to_evaluate=[point])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 1}, "2 configurations, which count among num_samples=1: raise it"),
        ({"searcher": "grid", "num_samples": None}, "a grid has all of them; use another searcher"),
        ({"points_to_evaluate": ["adam"]}, "points_to_evaluate is a list of mappings of names to values; got 'adam'"),
        ({"points_to_evaluate": FIRST}, "points_to_evaluate must be a list; got {"),
    ],
)
def test_contradiction_is_rejected(changes, message):
    with pytest.raises(InvalidExperimentError, match=message):
        experiment(**changes)


def test_json_keeps_the_configurations_and_early_folders_have_none():
    plain = json.loads(json.dumps(experiment().to_json()))
    assert experiment_from_json(plain, train).points_to_evaluate == tuple(POINTS)
    del plain["points_to_evaluate"]
    assert experiment_from_json(plain, train).points_to_evaluate == ()


def test_quick_version_has_configurations_of_its_own_space():
    quick = experiment(quick_values={"steps": 3}, num_samples=20).quick_version()
    assert [config["steps"] for config in quick.initial_configs] == [3, 3]
    assert quick.initial_configs[0]["rate"] == 0.01


def test_comparison_runs_them_in_their_arms(tmp_path):
    space = Space(
        {"arm": tune.choice(["a", "b"]), "rate": tune.loguniform(1e-4, 1), "steps": 1}, roles={"arm": "scientific"}
    )
    points = [{"arm": "a", "rate": 0.5}, {"rate": 0.25}]
    mine = experiment(points_to_evaluate=()).replace(space=space, points_to_evaluate=points, seeds=(0,))
    compared = compare(mine, budget=3, seeds=2, output_dir=tmp_path / "arms", **OPTIONS)
    assert [arm.trials["rate"].tolist().count(0.25) for arm in compared.arms] == [1, 1]
    assert [0.5 in arm.trials["rate"].tolist() for arm in compared.arms] == [True, False]


USER_CODE = """
def train(config, report):
    report(1, {"loss": config["x"]})
"""


@pytest.mark.parametrize("origin", ["flag", "yaml", "json"])
def test_command_line_and_search_files_have_them(tmp_path, monkeypatch, capsys, origin):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user_points.py").write_text(USER_CODE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    flags = ["--local", "--no-report", "--output-dir", "out"]
    if origin == "flag":
        words = ["user_points:train", "--set", "x=uniform(0, 1)", "--set", "y=a,null", "--searcher", "random"]
        words += ["--num-samples", "3", "--points-to-evaluate", '{"x": 0.5, "y": null}']
        assert main(["run", *words, "--points-to-evaluate", '{"x": 1e-1}', *flags]) == 0
    else:
        fields = {
            "space": "user_points:train", "searcher": "random", "num_samples": 3,
            "set": {"x": {"uniform": [0, 1]}, "y": ["a", None]},
            "points_to_evaluate": [{"x": 0.5, "y": None}, {"x": 1e-1}],
        }  # fmt: skip
        text = json.dumps(fields).replace("1e-1", "0.1")
        (tmp_path / f"search.{origin}").write_text(text, encoding="utf-8")
        assert main(["run", f"search.{origin}", *flags]) == 0
    found = configs_of(load(tmp_path / "out"))
    assert found[0] == {"x": 0.5, "y": None, "seed": 0}
    assert found[1]["x"] == 0.1
    assert len(found) == 3
    capsys.readouterr()
    words = ["user_points:train", "--set", "x=uniform(0, 1)", "--searcher", "random", "--num-samples", "3"]
    for value in ("x=3", "[1]"):
        with pytest.raises(SystemExit, match="2"):
            main(["run", *words, "--points-to-evaluate", value])
        error = capsys.readouterr().err
        assert 'a configuration is JSON like {"learning_rate": 0.01}' in error
        assert error.count("\n") == 1
    assert main(["run", *words, "--points-to-evaluate", '{"x": 7}']) == 2
    assert "points_to_evaluate: x=7 is outside the space, which has uniform(0, 1)" in capsys.readouterr().err
