"""Labels of values that look alike."""

import json

import pandas as pd
import pytest
from ray import tune

from tests.analysis.synthetic_results import searched
from tune_hpc import Experiment, Space, run
from tune_hpc.analysis.concatenation import concat
from tune_hpc.analysis.value_labels import with_value_labels
from tune_hpc.report.plots import figures
from tune_hpc.storage.trial_file import config_to_row


def made(configs):
    return searched(
        {name: {} for name in configs[0]},
        [config_to_row(config) | {"loss": float(number)} for number, config in enumerate(configs)],
    )


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([1, "1", None], ["1", '"1"', "None"]),
        (["None", None, "a"], ['"None"', "None", "a"]),
        ([[1], "[1]"], ["[1]", '"[1]"']),
        ([0.123456789, None], ["0.1235", "None"]),
        ([True, "yes", False], ["yes", '"yes"', "no"]),
        ([0.123456789, 0.123456788, None], ["0.123456789", "0.123456788", "None"]),
    ],
)
def test_values_that_look_alike_have_labels(values, labels):
    labelled = with_value_labels(made([{"x": value, "y": 1} for value in values]))
    assert labelled.trials["x"].tolist() == labels
    # A second call changes nothing.
    pd.testing.assert_frame_equal(with_value_labels(labelled).trials, labelled.trials)


@pytest.mark.parametrize("values", [[1, 2], [0.1, 0.2], ["a", "b"], [True, False], [1, "auto"]])
def test_other_values_are_unchanged(values):
    results = made([{"x": value} for value in values])
    assert with_value_labels(results) is results


def test_absent_parameter_is_missing_beside_none():
    results = made([{"kind": "a", "x": None}, {"kind": "a", "x": 2}, {"kind": "b", "x": 1}])
    configs = [json.loads(text) for text in results.trials["config"]]
    del configs[2]["x"]
    results.trials["config"] = [json.dumps(config) for config in configs]
    labels = with_value_labels(results).trials["x"]
    assert labels.tolist()[:2] == ["None", "2"]
    assert pd.isna(labels[2])


@pytest.mark.slow
def test_figures_show_none_and_texts_apart():
    results = made([{"x": x, "y": y} for x in (None, 1, "1") for y in (0.1, 0.2, 0.3)])
    sheets = [
        sheet
        for specification in (
            {"kind": "response", "metrics": ["loss"], "title": "a", "parameter": "y", "line": "x"},
            {"kind": "response", "metrics": ["loss"], "title": "b", "parameter": "x"},
        )
        for sheet in figures.draw(with_value_labels(results), specification)
    ]
    assert [text.get_text() for legend in sheets[0].figure.legends for text in legend.get_texts()] == [
        "None", "1", '"1"',
    ]  # fmt: skip
    assert [label.get_text() for label in sheets[1].axes[0].get_xticklabels()] == ["None", "1", '"1"']
    sheet = figures.draw(with_value_labels(results), {"kind": "parallel", "metrics": ["loss"], "title": "c"})[0]
    assert "gap" not in sheet.caption


def searching(tmp_path, values, loss):
    space = Space({"x": tune.choice(values), "y": tune.choice([0.0, 1.0])}, keys={})
    experiment = Experiment("alike", space, lambda config, report: report(1, {"loss": loss(config) + config["y"]}),
                            metric="loss", mode="min", seeds=(0, 1))  # fmt: skip
    return run(experiment, output_dir=tmp_path, runner="local", show_progress=False)


def test_values_that_look_alike_are_compared_separately(tmp_path):
    results = searching(tmp_path / "a", [[1], "[1]"], lambda config: float(len(config["x"])))
    values = results.compare("x").values
    assert dict(zip(values["x"], values["mean"], strict=True)) == {"[1]": 1.0, '"[1]"': 3.0}
    other = searching(tmp_path / "b", [[1, 2]], lambda config: 2.0)
    assert concat([results, other]).compare("search").values["mean"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("first", [None, 0.5])
def test_large_integers_are_separate_configurations(tmp_path, first):
    values = [first, 2**60, 2**60 + 1, 2**60 + 2]

    def loss(config):
        return 9.0 if config["x"] == first else 2**60 + 2 - config["x"]

    results = searching(tmp_path / "out", values, loss)
    assert results.best_config()["x"] == 2**60 + 2
    assert len(results.top(10)) == 8


def test_condition_may_be_none(tmp_path):
    results = searching(tmp_path / "out", [None, 0.5], lambda config: 1.0)
    assert results.compare("y", where={"x": None}).values["num_seeds"].tolist() == [2, 2]
