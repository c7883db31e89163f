"""Experiments: rejected contradictions, changes, configurations and their JSON; also of all registered ones."""

import functools
import json
import pickle
import re
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from ray import tune

from search_spaces import exercise3
from tune_hpc.analysis.frames import FIT_METRICS, MEASURES, METRICS
from tune_hpc.errors import FolderError, InvalidExperimentError, InvalidSpaceError, TuneHpcError
from tune_hpc.learning.config import TRIAL_KEYS, complete
from tune_hpc.report.plots.figures import KINDS
from tune_hpc.search.experiment import (
    TRAIN,
    Claim,
    Experiment,
    Published,
)
from tune_hpc.search.experiment_checks import LINE_METRICS, MAX_TRIALS
from tune_hpc.search.experiment_json import experiment_from_json
from tune_hpc.search.experiment_registry import registered_experiments
from tune_hpc.search.options import ADAPTIVE
from tune_hpc.search.space.space import Space

GRID = Space({"optimizer": tune.choice(["adam", "momentum"]), "learning_rate": tune.choice([0.1, 0.01])})
RANGE = Space({"learning_rate": tune.loguniform(1e-4, 1), "batch_size": tune.randint(1, 500)})
EVERYTHING = [
    pytest.param(one, id=f"{one.name}{'-quick' if one.quick else ''}")
    for full in registered_experiments()
    for one in (full, full.quick_version())
]
#: Columns of a scaling measurement beyond the standard ones.
SCALING_COLUMNS = {
    "train_s", "extrapolated", "num_timed_steps", "step_s", "warmup_s", "startup_s", "samples_per_s", "speedup",
    "efficiency", "cores_per_worker", "oversubscribed", "compute_s", "communicate_s", "data_s", "gradient_bytes",
    "global_batch_size", "worker_s",
}  # fmt: skip


#: Kinds of figures over a parameter.
BY_PARAMETER = ("response", "heatmap", "stack", "speedup", "cost", "links")


def without_adaptive_searcher(experiment):
    """Return an experiment whose configurations are known in advance."""
    return experiment.replace(searcher="quasi_random") if experiment.searcher in ADAPTIVE else experiment


def function(config, report):
    """Do nothing, as a trainable of a user."""


def test_configuration_is_followed_by_itself_with_the_next_seed():
    experiment = Experiment("x", GRID, seeds=(3, 1))
    assert [(one["optimizer"], one["learning_rate"], one["seed"]) for one in experiment.configs()] == [
        ("adam", 0.1, 3), ("adam", 0.1, 1), ("adam", 0.01, 3), ("adam", 0.01, 1),
        ("momentum", 0.1, 3), ("momentum", 0.1, 1), ("momentum", 0.01, 3), ("momentum", 0.01, 1),
    ]  # fmt: skip
    assert experiment.num_trials == 8


def test_seeds_of_a_random_search_share_configurations():
    experiment = Experiment("x", RANGE, searcher="random", num_samples=3, seeds=[0, 1])
    configs = list(experiment.configs())
    assert experiment.num_trials == len(configs) == 6
    for first, second in zip(configs[::2], configs[1::2], strict=True):
        assert first | {"seed": 1} == second
    assert len({config["learning_rate"] for config in configs}) == 3


def test_search_seed_determines_the_configurations():
    def configs(search_seed, num_samples=5):
        return list(
            Experiment("x", RANGE, searcher="random", num_samples=num_samples, search_seed=search_seed).configs()
        )

    assert configs(7) == configs(7)
    assert configs(7, 9)[:5] == configs(7)
    assert configs(7) != configs(8)


def test_seed_in_the_space_replaces_the_seeds():
    experiment = Experiment("x", Space({"seed": tune.choice([4, 5])}))
    assert experiment.seeds == ()
    assert list(experiment.configs()) == [{"seed": 4}, {"seed": 5}]
    assert experiment.num_trials == 2
    with pytest.raises(InvalidExperimentError, match=r"seed=choice\(4, 5\) in the space and seeds=\[0, 1\]"):
        experiment.replace(seeds=(0, 1))


def test_configuration_without_seeds_has_no_seed():
    experiment = Experiment("x", Space({"a": 1}, keys={}), function, seeds=())
    assert list(experiment.configs()) == [{"a": 1}]
    assert experiment.num_trials == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, "name of an experiment is letters, digits, underscores, dots and hyphens; got 'a/b'"),
        ({"name": "../x"}, "got '../x'"),
        ({"name": ""}, "got ''"),
        ({"mode": "maximum"}, "mode must be min or max; got 'maximum'"),
        ({"searcher": "bayes"}, "searcher must be one of .*; got 'bayes'"),
        ({"seeds": (1, 1)}, r"each seed is given once; got \[1, 1\]"),
        ({"seeds": (-1,)}, r"a seed is a whole number from 0 to 2147483647; got \[-1\]"),
        ({"seeds": (0.5,)}, r"got \[0.5\]"),
        ({"search_seed": -1}, "search_seed must be at least 0; got -1"),
        ({"metric": ""}, "the name of a metric must be a word; got ''"),
        ({"metric": "loss\n"}, r"the name of a metric must be a word; got 'loss\\n'"),
        ({"search_seed": 2**32}, "search_seed must be at most 2147483647; got 4294967296"),
        (
            {"searcher": "grid", "num_samples": 5},
            "a grid runs every configuration once; got num_samples=5",
        ),
        ({"searcher": "random"}, "a random search needs num_samples; it was left out"),
        ({"searcher": "random", "num_samples": 0}, "num_samples must be at least 1; got 0"),
        ({"metric": "accuracy"}, "metric of x must be one of train_loss, .*, samples_per_s; got 'accuracy'"),
        ({"space": GRID | {"model": "line"}}, "metric of x must be one of train_loss, W, b, .*; got 'test_accuracy'"),
        ({"trainable": functools.partial(function)}, "a trainable is a function .* or package.module:function; got"),
        ({"searcher": "random", "num_samples": MAX_TRIALS + 1}, "at most 100000 trials; x has 100001: narrow"),
        ({"space": Space({"seed": tune.randint(0, 10**9)})}, "at most 100000 trials; x has 1000000000"),
    ],
)
def test_contradictions_are_rejected(changes, message):
    with pytest.raises(InvalidExperimentError, match=message):
        Experiment(**{"name": "x", "space": GRID} | changes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 0.1}, "no such key 'learning_rat'; a trial's keys are model, data, optimizer, learning_rate"),
        ({"beta1": 0.5, "optimizer": "momentum"}, "beta1 belongs to adam; the space has optimizer=momentum"),
        (
            {"momentum": 0.5},
            "momentum belongs to momentum, nesterov, rmsprop; the space has optimizer=gradient_descent",
        ),
        ({"optimizer": tune.choice(["adam", "ftrl"]), "rho": 0.5}, "rho belongs to adadelta, rmsprop; .*=adam, ftrl"),
    ],
)
def test_parameter_without_an_effect_is_rejected(values, message):
    with pytest.raises(InvalidSpaceError, match=message):
        Experiment("x", Space(values))


def test_hyperparameter_of_one_optimizer_is_accepted_beside_others():
    experiment = Experiment(
        "x", Space({"optimizer": tune.choice(["adam", "momentum"]), "momentum": tune.choice([0.5, 0.9])})
    )
    assert ["momentum" in complete(config) for config in experiment.configs()] == [False, False, True, True]


def test_user_function_may_have_any_keys():
    experiment = Experiment("x", Space({"optimizer": "mine", "colour": "red"}, keys={}), function, metric="score")
    assert experiment.to_json()["trainable"] == f"{__name__}:function"
    with pytest.raises(InvalidSpaceError, match="status is a column of the results; rename the parameter"):
        Experiment("x", Space({"status": 1}, keys={}), function)


def test_quick_values_are_checked_by_the_constructor():
    with pytest.raises(InvalidSpaceError, match="steps must be"):
        Experiment("x", GRID, quick_values={"steps": 0})
    experiment = Experiment("x", Space({"steps": "all"}, keys={}), function, quick_values={"steps": "few"})
    assert experiment.to_json()["quick_values"] == {"steps": "few"}
    assert experiment.quick_version().space["steps"] == "few"


def test_message_on_a_grid_over_a_range_has_the_remedy():
    experiment = Experiment("x", RANGE)
    for attempt in (lambda: list(experiment.configs()), lambda: experiment.num_trials, experiment.to_json):
        with pytest.raises(
            InvalidSpaceError, match=r"learning_rate is loguniform.*: list its values, or search at random"
        ):
            attempt()


def test_experiment_is_immutable():
    values = {"steps": 5}
    experiment = Experiment("x", GRID, quick_values=values)
    with pytest.raises(FrozenInstanceError):
        experiment.name = "y"
    values["steps"] = 0
    assert experiment.quick_values == {"steps": 5}
    changed = experiment.with_values({"learning_rate": 0.5}).replace(name="y")
    assert (changed.name, changed.num_trials, changed.space["learning_rate"]) == ("y", 2, 0.5)
    assert (experiment.name, experiment.num_trials) == ("x", 4)


def test_quick_version_is_marked():
    experiment = Experiment("x", GRID, quick_values={"steps": 5})
    quick = experiment.quick_version()
    assert (quick.quick, quick.space["steps"]) == (True, 5)
    assert not experiment.quick
    assert "steps" not in experiment.space


@pytest.mark.parametrize("experiment", EVERYTHING)
def test_json_of_an_experiment_is_plain(experiment):
    plain = experiment.to_json()
    again = json.loads(json.dumps(plain, allow_nan=False))
    assert again["num_trials"] == experiment.num_trials == len(list(without_adaptive_searcher(experiment).configs()))
    assert Space.from_json(again["space"]) == experiment.space
    assert again["quick"] is experiment.quick
    assert len(again["published"]) == len(experiment.published)
    for name in ("name", "metric", "mode", "seeds", "searcher", "title", "description", "source", "figures", "tables"):
        assert name in again


@pytest.mark.parametrize("experiment", EVERYTHING)
def test_experiment_can_be_pickled(experiment):
    assert pickle.loads(pickle.dumps(experiment)).to_json() == experiment.to_json()


@pytest.mark.parametrize("experiment", EVERYTHING)
def test_training_accepts_every_configuration(experiment):
    for config in without_adaptive_searcher(experiment).configs():
        complete({name: value for name, value in config.items() if name in TRIAL_KEYS})
        assert set(config) - set(TRIAL_KEYS) <= {"workers", "num_timed_steps", "repeats"}


@pytest.mark.parametrize("experiment", EVERYTHING)
def test_figures_tables_and_published_numbers_have_known_columns(experiment):
    columns = {*METRICS, *FIT_METRICS, *MEASURES, *(LINE_METRICS if experiment.space["model"] == "line" else ())}
    if experiment.trainable != TRAIN:
        columns = SCALING_COLUMNS
    history = set(LINE_METRICS) if experiment.space["model"] == "line" else set(METRICS[:5])
    assert experiment.metric in columns
    for figure in experiment.figures:
        assert figure.kind in KINDS
        assert set(figure.metrics) <= (history if figure.kind in ("curve", "target") else columns)
        assert {figure.line, figure.page, figure.parameter} - {None} <= set(experiment.space.varying)
        assert (figure.parameter is not None) == (figure.kind in BY_PARAMETER)
        assert (figure.target is not None) == (figure.kind == "target")
        if figure.published:
            assert figure.published in {one.metric for one in experiment.published}
    for table in experiment.tables:
        assert table.kind in ("best_per", "pivot", "trials", "at_steps")
        assert set(table.metrics) <= (history if table.kind == "at_steps" else columns)
        assert {table.rows, table.columns} - {None} <= set(experiment.space.varying)
    for published in experiment.published:
        assert published.metric in columns
        assert set(published.where) <= {*experiment.space, "workers"}
        assert published.best_over in {None, *experiment.space.varying}
        assert bool(published.best_values) == bool(published.best_over)
        assert published.source.startswith("report, ")


@pytest.mark.parametrize("experiment", [one for one in EVERYTHING if not one.values[0].quick])
def test_every_published_number_has_trials(experiment):
    configs = list(without_adaptive_searcher(experiment).configs())
    for published in experiment.published:
        found = [config for config in configs if published.where.items() <= config.items()]
        assert found
        assert len(found) == 1
        if published.best_over:
            assert found[0][published.best_over] in published.best_values


def test_keys_of_a_replaced_schedule_or_optimizer_are_removed():
    decayed = Experiment("x", Space({"optimizer": "momentum", "momentum": 0.5, "decay_rate": 0.95}))
    assert dict(decayed.with_values({"schedule": "cosine"}).space) == {
        "optimizer": "momentum", "momentum": 0.5, "schedule": "cosine"
    }  # fmt: skip
    assert dict(decayed.with_values({"optimizer": "nesterov"}).space) == dict(decayed.space) | {"optimizer": "nesterov"}
    assert "momentum" not in decayed.with_values({"optimizer": "adam"}).space
    assert "momentum" in decayed.with_values({"optimizer": tune.choice(["adam", "momentum"])}).space
    # The requested values must be possible.
    with pytest.raises(InvalidSpaceError, match="decay_rate belongs to staircase; the space has schedule=one_cycle"):
        decayed.with_values({"schedule": "one_cycle", "decay_rate": 0.9})
    users = Experiment("x", Space({"schedule": "cosine", "momentum": 1}, keys={}), function)
    assert set(users.with_values({"optimizer": "mine", "schedule": "x"}).space) == {"schedule", "momentum", "optimizer"}


def test_description_lists_the_changes():
    winner = exercise3.winner
    smaller = winner.with_values({"width": 0.5, "batch_size": 150, "dropout": tune.choice([0.1, 0.5])})
    assert smaller.description == f"{winner.description} Changed here: width=0.5, dropout=choice(0.1, 0.5)."
    assert winner.with_values({"batch_size": 150}) == winner
    assert winner.replace(description="").with_values({"width": 0.5}).description == ""


def test_numpy_numbers_are_plain_in_json():
    published = (Published({"steps": np.float64(5)}, "test_loss", np.float64(0.5), "report"),)
    assert json.dumps(Experiment("x", GRID, published=published).to_json(), allow_nan=False)


def test_errors_are_value_errors():
    for error in (InvalidSpaceError, InvalidExperimentError):
        assert issubclass(error, TuneHpcError)
        assert issubclass(error, ValueError)


def test_folder_of_an_early_release_has_no_claims():
    plain = Experiment("plain", GRID).to_json()
    del plain["claims"]
    assert experiment_from_json(plain).claims == ()
    del plain["metric"]
    with pytest.raises(FolderError, match="has a missing or unknown field: 'metric'"):
        experiment_from_json(plain)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Published({}, "loss", "99 %", "x"), "value of a published number must be a number; got '99 %'"),
        (lambda: Published({}, "train_s", 0, "x"), "a published train_s must be above 0; got 0"),
        (lambda: Published({}, "loss", float("nan"), "x"), "value of a published number must be a number; got nan"),
        (lambda: Published({}, "loss", 1.0, "x", resolution=-0.1), "resolution must be at least 0; got -0.1"),
        (lambda: Published({}, "test_accuracy", 99.0, "x"), "must be a fraction from 0 to 1; got 99: 99 % is 0.99"),
        (lambda: Claim("c", "x", "lr", (1, 2), "value", "loss", "highest", 5), "relation of a claim must be one of"),
        (lambda: Claim("c", "x", "lr", (1, 2), "slope", "loss", "rising", 5), "measure of a claim must be one of"),
        (lambda: Claim("c", "x", "lr", (1,), "value", "loss", "rising", 5), "needs at least 2 values; got 1: add"),
    ],
)  # fmt: skip
def test_published_numbers_and_claims_are_checked(make, message):
    with pytest.raises(InvalidExperimentError, match=re.escape(message)):
        make()
