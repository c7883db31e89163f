"""Optuna study over a space: suggestions and outcomes."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from ray import tune

from tests.search.test_conditional import conditional_spaces
from tune_hpc.search.searchers.optuna_study import NUM_STARTUP, AskTellStudy
from tune_hpc.search.space.conditional import when
from tune_hpc.search.space.space import Space
from tune_hpc.search.trial_spec import TrialOutcome

PLANE = Space({"x": tune.uniform(-5, 5), "y": tune.uniform(-5, 5)}, keys={})
OPTIMIZERS = Space(
    {
        "optimizer": tune.choice(["adam", "momentum"]),
        "learning_rate": when(tune.loguniform(1e-4, 1e-2), optimizer="adam") | tune.loguniform(1e-2, 1),
        "momentum": when(tune.uniform(0.5, 0.99), optimizer="momentum"),
        "steps": 100,
    }
)


def finished(value):
    return TrialOutcome("finished", value, 0)


def distance(config):
    return (config["x"] - 1) ** 2 + (config["y"] + 2) ** 2


def test_mean_of_huge_values_is_finite():
    study = AskTellStudy(PLANE, "tpe", "min", 0)
    outcome = study.aggregate([finished(1.6e308), finished(1.7e308)])
    assert outcome.mean == pytest.approx(1.65e308)


def test_cases_of_equal_description_are_separate_parameters():
    cases = when(tune.uniform(0, 1), a=0) | when(tune.uniform(5, 6), a="0") | when(tune.choice(["x"]), a=0)
    space = Space({"a": tune.choice([0, "0"]), "b": cases}, keys={})
    study = AskTellStudy(space, "tpe", "min", 0)
    names = [one.name for one in study.parameters.values()]
    assert names == ["a", "b[a=0]", "b[a=0] (case 2)", "b[a=0] (case 3)"]
    study.add({"a": "0", "b": 5.5}, study.aggregate([finished(1.0)]))
    assert study.trials[0].params == {"a": "0", "b[a=0] (case 2)": 5.5}


@given(conditional_spaces(), st.integers(0, 1000))
@settings(max_examples=40)
def test_suggestions_are_members_and_survive_the_study(space, seed):
    if not space.varying:
        return
    study = AskTellStudy(space, "tpe", "min", seed)
    for _ in range(3):
        number, config = study.ask()
        assert space.admits(config)
        again = AskTellStudy(space, "tpe", "min", seed)
        again.add(config, again.aggregate([finished(1.0)]))
        assert set(again.trials[0].params) == set(study.trials[number].params)
        study.tell(number, study.aggregate([finished(float(number))]))


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "num_trials"), [("tpe", 60), ("gp", 25)])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_sampler_finds_the_optimum(sampler, num_trials, mode):
    sign = 1 if mode == "min" else -1
    study = AskTellStudy(PLANE, sampler, mode, 0)
    found = []
    for _ in range(num_trials):
        number, config = study.ask()
        found.append(distance(config))
        study.tell(number, study.aggregate([finished(sign * distance(config))]))
    # Random search comes this close in 3 of 100 runs: a circle of radius r has the fraction pi r^2 / 100 of the square.
    assert min(found[NUM_STARTUP:]) < 0.05


def test_startup_is_evenly_spread_and_reproducible():
    first = [AskTellStudy(PLANE, "tpe", "min", 3).ask()[1] for _ in range(2)]
    assert first[0] == first[1]
    study = AskTellStudy(PLANE, "tpe", "min", 3)
    configs = [study.ask()[1] for _ in range(8)]
    assert len({int((one["x"] + 5) / 10 * 8) for one in configs}) == 8


def test_many_trials_may_be_open():
    study = AskTellStudy(OPTIMIZERS, "tpe", "max", 0)
    numbers = [study.ask()[0] for _ in range(30)]
    assert numbers == list(range(30))
    for number in numbers:
        study.tell(number, study.aggregate([finished(0.5)]))
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_each_status_has_its_optuna_state():
    study = AskTellStudy(PLANE, "tpe", "min", 0)
    outcomes = [
        (["finished", "finished"], [1.0, 3.0]),
        (["stopped"], [5.0]),
        (["finished", "diverged"], [1.0, None]),
        (["failed"], [None]),
        (["finished"], [None]),
        (["finished"], [math.nan]),
    ]
    for statuses, values in outcomes:
        number, _ = study.ask()
        study.tell(number, study.aggregate([*map(TrialOutcome, statuses, values, [30, 40])]))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "COMPLETE", "FAIL", "FAIL", "FAIL"]
    assert [trial.value for trial in study.trials[:3]] == [2.0, 5.0, math.inf]
    assert [trial.constraints for trial in study.trials[:3]] == [{"diverged": -1}, {"diverged": -1}, {"diverged": 1}]
    assert study.trials[1].intermediate_values == {30: 5.0}
    assert study.study.best_trial.number == 0


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_sampler_avoids_diverging_values(sampler):
    """Check that a sampler suggests the diverging third of the range less often than random search."""
    num_searches = {"tpe": 20, "gp": 1}[sampler]
    num_diverged = 0
    for seed in range(num_searches):
        study = AskTellStudy(PLANE, sampler, "min", seed)
        for index in range(40):
            number, config = study.ask()
            has_diverged = config["x"] > 1.67
            num_diverged += has_diverged and index >= NUM_STARTUP
            outcome = TrialOutcome("diverged", None, 0) if has_diverged else finished(distance(config))
            study.tell(number, study.aggregate([outcome]))
    assert num_diverged / num_searches < 30 / 3
    assert all(trial.state.is_finished() for trial in study.trials)


def test_study_continues_from_earlier_trials_without_repetition():
    first = AskTellStudy(PLANE, "tpe", "min", 0)
    tried = []
    for _ in range(20):
        number, config = first.ask()
        first.tell(number, first.aggregate([finished(distance(config))]))
        tried.append(config)
    second = AskTellStudy(PLANE, "tpe", "min", 0)
    for number, config in enumerate(tried):
        assert second.add(config, second.aggregate([finished(distance(config))])) == number
    assert [trial.params for trial in second.trials] == [trial.params for trial in first.trials]
    suggested = [second.ask() for _ in range(20)]
    assert [number for number, _ in suggested] == list(range(20, 40))
    assert not [config for _, config in suggested if config in tried]


def test_each_case_is_an_optuna_parameter():
    study = AskTellStudy(OPTIMIZERS, "tpe", "max", 0)
    numbers = [study.ask()[0] for _ in range(2)]
    assert [set(study.trials[number].params) for number in numbers] == [
        {"optimizer", "learning_rate[optimizer=adam]"},
        {"optimizer", "learning_rate", "momentum"},
    ]
