"""Options: one definition reaches flags, requests, form and documentation."""

import argparse
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from ray import tune

from tune_hpc.cli.main import _parser
from tune_hpc.cli.options import add_options
from tune_hpc.errors import InvalidExperimentError
from tune_hpc.search.experiment import Experiment
from tune_hpc.search.options import (
    ExperimentOverrides,
    OptionSet,
    RunOptions,
    markdown_table,
    metadata,
    options_of,
    update_page,
)
from tune_hpc.search.runner import run
from tune_hpc.search.space.space import Space
from tune_hpc.service.experiments import OVERRIDES, RUN_OPTIONS
from tune_hpc.service.schemas import ExtendRequest, ResumeRequest, SearchRequest, _options_model

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "options.md"
COMMANDS = {
    ExperimentOverrides: [["run", "x"], ["submit", "x"], ["slurm", "x", "--time=9"]],
    RunOptions: [
        ["run", "x"], ["submit", "x"], ["slurm", "x", "--time=9"], ["resume", "x"], ["extend", "x", "--num-samples=3"]
    ],
}  # fmt: skip
FLAGS = [(option_set, option) for option_set in COMMANDS for option in options_of(option_set) if option.flag]
VALUES = {
    "mode": "max",
    "time_budget_s": "30m",
    "trial_time_limit_s": "30m",
    "fuse": "off",
    "keep_checkpoints": "all",
    "points_to_evaluate": '{"x": 1}',
}


@pytest.mark.parametrize(("option_set", "option"), FLAGS, ids=[option.flag for _, option in FLAGS])
def test_option_is_a_flag_of_each_command(option_set, option):
    words = [option.flag] if option.hint is bool else [option.flag, VALUES.get(option.name, "7")]
    for command in COMMANDS[option_set]:
        flags = vars(_parser().parse_args([*command, *words]))
        assert flags[option.name] not in (None, option.default)
        assert vars(_parser().parse_args(command))[option.name] in (None, option.default)


def test_options_are_fields_of_requests_and_of_the_form():
    overrides, run_options = ({one.name for one in options_of(kind) if one.label} for kind in COMMANDS)
    assert {*overrides, *run_options} <= SearchRequest.model_fields.keys()
    assert run_options <= ResumeRequest.model_fields.keys() & ExtendRequest.model_fields.keys()
    # A request sets neither addresses nor folders of the server.
    assert {"address", "data_dir", "export"}.isdisjoint(SearchRequest.model_fields)
    assert {one.name for one in OVERRIDES} == overrides - {"quick", "points_to_evaluate"}
    assert {one.name for one in RUN_OPTIONS} == run_options


def test_page_of_options_is_current():
    page = PAGE.read_text(encoding="utf-8")
    assert update_page(page) == page, f"run python -m tune_hpc.search.options {PAGE}"
    for option in (*options_of(ExperimentOverrides), *options_of(RunOptions)):
        assert f"`{option.name}`" in page


def test_new_option_is_one_field():
    @dataclass(frozen=True)
    class NewOptions(OptionSet):
        patience: int | None = field(default=None, metadata=metadata("steps", "stop criteria", "Patience", minimum=2))

    parser = argparse.ArgumentParser()
    add_options(parser, options_of(NewOptions))
    assert parser.parse_args(["--patience", "3"]).patience == 3
    assert _options_model(NewOptions).model_json_schema()["properties"]["patience"]["anyOf"][0]["minimum"] == 2
    assert "| `--patience` | `patience` | whole number, at least 2 | steps |" in markdown_table(NewOptions)
    with pytest.raises(InvalidExperimentError, match="patience must be at least 2; got 1"):
        NewOptions(patience=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cpus_per_trial": 0}, "cpus_per_trial must be above 0; got 0"),
        ({"gpus_per_trial": -0.5}, "gpus_per_trial must be at least 0; got -0.5"),
        ({"max_concurrent": 0}, "max_concurrent must be at least 1; got 0"),
        ({"time_budget_s": float("nan")}, "time_budget_s must be a finite number; got nan"),
    ],
)
def test_value_out_of_bounds_is_rejected(values, message):
    with pytest.raises(InvalidExperimentError, match=message):
        RunOptions(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"time_budget_s": "30m"}, "time_budget_s must be a number of seconds; got '30m'"),
        ({"trial_time_limit_s": True}, "trial_time_limit_s must be a number of seconds; got True"),
        ({"target": "1"}, "target must be a number; got '1'"),
        ({"max_failures": "2"}, "max_failures must be a whole number; got '2'"),
        ({"max_concurrent": 1.5}, "max_concurrent must be a whole number; got 1.5"),
        ({"checkpoint_interval_s": -1}, "checkpoint_interval_s must be at least 0; got -1"),
        ({"retry_failed": "no"}, "retry_failed must be True or False; got 'no'"),
    ],
)
def test_value_of_another_type_is_rejected_before_the_start(tmp_path, values, message):
    experiment = Experiment("mine", Space({"x": 1}), lambda config, report: {"loss": 1.0}, metric="loss", mode="min")
    with pytest.raises(InvalidExperimentError, match=f"^{re.escape(message)}$"):
        run(experiment, output_dir=tmp_path / "out", runner="local", show_progress=False, **values)
    assert not (tmp_path / "out").exists()


def test_numbers_of_numpy_are_numbers():
    assert RunOptions(max_concurrent=np.int64(2), time_budget_s=np.float32(1.5), fuse="off").max_concurrent == 2


def test_overrides_change_an_experiment():
    experiment = Experiment("made.up", Space({"x": 1}, keys={}), "a:b", metric="loss", mode="min", seeds=(0,))
    changed = ExperimentOverrides(num_samples=3, seeds=2, search_seed=5).apply(experiment, {"x": 2})
    assert (changed.searcher, changed.num_samples, changed.seeds, changed.search_seed) == ("random", 3, (0, 1), 5)
    assert changed.space["x"] == 2
    with pytest.raises(InvalidExperimentError, match="metric score needs a mode, min or max"):
        ExperimentOverrides(metric="score").apply(experiment)
    assert ExperimentOverrides(metric="score", mode="max").apply(experiment).metric == "score"


def test_override_that_is_not_given_changes_nothing():
    space = Space({"x": tune.uniform(0, 1)}, keys={})
    experiment = Experiment(
        "made.up", space, "a:b", metric="loss", mode="min", searcher="tpe", num_samples=9, search_seed=7
    )
    assert ExperimentOverrides().apply(experiment) == experiment
    assert ExperimentOverrides(num_samples=2).apply(experiment) == experiment.replace(num_samples=2)
    assert ExperimentOverrides(searcher="random").apply(experiment) == experiment.replace(searcher="random")
    grid = Experiment("made.up", Space({"x": tune.choice([1, 2])}, keys={}), "a:b", metric="loss", mode="min")
    assert ExperimentOverrides(num_samples=5).apply(grid).searcher == "random"
    assert ExperimentOverrides(searcher="grid").apply(
        experiment.with_values({"x": tune.choice([1, 2])})
    ) == grid.replace(search_seed=7)


def test_changed_values_hold_in_a_quick_run():
    experiment = Experiment("x", Space({"steps": 500}), quick_values={"steps": 20})
    assert experiment.with_values({"steps": 100}).quick_version().space["steps"] == 100
    assert ExperimentOverrides(quick=True).apply(experiment, {"steps": 7}).space["steps"] == 7
