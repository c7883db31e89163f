"""Names of parameters and metrics that the tables of the analysis also have."""

import pandas as pd
import pytest
from ray import tune

from tune_hpc import Experiment, Space, run
from tune_hpc.analysis.concatenation import concat
from tune_hpc.analysis.frames import TABLE_COLUMNS
from tune_hpc.errors import InvalidExperimentError, InvalidSpaceError
from tune_hpc.report.report import write_report

QUIET = {"show_progress": False, "runner": "local"}


def search(folder, *, parameter="x", metric="loss"):
    """Return the results of a search whose parameter and metric have these names."""

    def train(config, report):
        for step in (1, 2, 3):
            noise = 0.01 * ((7 * config["seed"] + 3 * config[parameter]) % 5)
            report(step, {metric: 1 / config[parameter] + noise + 0.1 * config["lr"] + 1 / step})

    space = Space({parameter: tune.choice([2, 4, 8]), "lr": tune.choice([0.1, 0.2])}, keys={})
    experiment = Experiment("names", space, train, metric=metric, mode="min", seeds=(0, 1, 2))
    return run(experiment, output_dir=folder, **QUIET)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return search(tmp_path_factory.mktemp("plain") / "out")


@pytest.mark.parametrize(
    "names",
    [
        {"parameter": name}
        for name in ("rank", "mean", "low", "high", "deviation", "lead_low", "may_be_best", "value", "first", "p")
    ]
    + [{"metric": name} for name in ("value", "mean", "rank", "low", "first", "has_diverged", "parameter")],
)
@pytest.mark.slow
def test_names_of_columns_change_no_result(plain, tmp_path, names):
    results = search(tmp_path / "out", **names)
    parameter = names.get("parameter", "x")
    assert list(results.best_config().values())[:2] == list(plain.best_config().values())[:2]
    for by, expected in ((parameter, plain.compare("x")), ("lr", plain.compare("lr"))):
        found = results.compare(by)
        assert found.values.shape == expected.values.shape
        assert found.values.to_numpy().tolist() == expected.values.to_numpy().tolist()
        pd.testing.assert_frame_equal(found.pairs, expected.pairs)
    assert str(results.compare("lr")).split(":")[0] == str(plain.compare("lr")).split(":")[0]
    assert results.top(3).iloc[:, :2].to_numpy().tolist() == plain.top(3).iloc[:, :2].to_numpy().tolist()
    assert write_report([results], tmp_path / "report.html").stat().st_size > 10_000
    both = concat([results, results]).compare("search")
    assert both.values["mean"].tolist() == pytest.approx([results.compare("lr").values["mean"].min()] * 2)


@pytest.mark.parametrize("name", [*TABLE_COLUMNS, "loss_deviation"])
def test_parameter_with_the_name_of_a_column_is_rejected(name):
    with pytest.raises(InvalidSpaceError, match=f"{name} is a column of the results; rename the parameter"):
        Experiment("names", Space({name: tune.choice([1, 2])}, keys={}), print, metric="loss", mode="min")


def test_metric_with_the_name_of_a_deviation_is_rejected():
    space = Space({"x": tune.choice([1, 2])}, keys={})
    with pytest.raises(InvalidExperimentError, match="loss_deviation is a column of the results"):
        Experiment("names", space, print, metric="loss", mode="min", metrics={"loss_deviation": "min"})
    assert Experiment("names", space, print, metric="std_deviation", mode="min").metric == "std_deviation"


@pytest.mark.parametrize("name", [*TABLE_COLUMNS, "seed", "status", "host", "step"])
def test_metric_with_the_name_of_a_column_is_rejected(name, tmp_path):
    space = Space({"x": tune.choice([1, 2])}, keys={})
    with pytest.raises(InvalidExperimentError, match=f"{name} is a column of the results; report it under another"):
        Experiment("names", space, print, metric=name, mode="min")

    def train(config, report):
        report(1, {"loss": config["x"], name: 1.0})

    results = run(Experiment("names", space, train, metric="loss", mode="min", seeds=()), output_dir=tmp_path, **QUIET)
    assert results.counts() == {"failed": 2}
    assert "is a column of the results" in results.first_error
