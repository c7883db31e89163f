"""Ray Tune's stopping schedulers, and sequential groups of short trials."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from optuna.trial import TrialState
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tests.search import trainables
from tune_hpc import Experiment, Space, extend, run, run_all
from tune_hpc.analysis.results import Results
from tune_hpc.errors import InvalidExperimentError
from tune_hpc.search.options import STOPPING
from tune_hpc.search.reporter import SchedulerReporter
from tune_hpc.search.schedulers.ray_schedulers import (
    FifoMixin,
    StoppingScheduler,
    make_scheduler,
    monitored_metric,
    replay_results,
)
from tune_hpc.search.searchers.optuna_study import AskTellStudy
from tune_hpc.search.trial_spec import RankedMetric, TrialGroup
from tune_hpc.storage.checksum import load_json
from tune_hpc.storage.trial_file import TrialFileWriter

STEPS = 27
SPACE = Space({"x": tune.uniform(0, 1), "steps": STEPS}, keys={})
QUIET = {"show_progress": False, "runner": "local"}
ON_RAY = {"show_progress": False}


def descent(scheduler: str, searcher: str = "random", num_samples: int = 18) -> Experiment:
    return Experiment(
        f"descent.{scheduler}.{searcher}", SPACE, trainables.descend, metric="loss", mode="min", seeds=(),
        searcher=searcher, num_samples=num_samples, scheduler=scheduler,
    )  # fmt: skip


@pytest.fixture(scope="module")
def studies():
    """Record every Optuna study."""
    made = []

    class Seen(AskTellStudy):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("tune_hpc.search.searchers.optuna_study.AskTellStudy", Seen)
        yield made


@pytest.fixture(scope="module")
def schedulers():
    """Record every scheduler that Ray Tune gets."""
    given = []

    class Seen(tune.TuneConfig):
        def __init__(self, **options):
            given.append(options["scheduler"])
            super().__init__(**options)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(tune, "TuneConfig", Seen)
        yield given


@pytest.fixture(scope="module")
def searches(studies, tmp_path_factory):
    """Run each scheduler once, together with a search without one."""
    parent = tmp_path_factory.mktemp("schedulers")
    experiments = [
        descent("asha_stopping"), descent("none"), descent("median"), descent("asha_stopping", "tpe"),
        descent("hyperband"), descent("hyperband", "tpe"),
    ]  # fmt: skip
    results = run_all(experiments, folders=[parent / one.name for one in experiments], **QUIET)
    return {one.name.removeprefix("descent."): one for one in results}


@pytest.mark.parametrize(
    "name", ["asha_stopping.random", "median.random", "asha_stopping.tpe", "hyperband.random", "hyperband.tpe"]
)
class TestEveryScheduler:
    def test_trials_have_their_status_and_steps(self, searches, name):
        trials = searches[name].trials
        assert searches[name].experiment["state"] == "finished"
        assert len(trials) == 18
        assert set(trials.loc[trials["x"] > 0.67, "status"]) == {"diverged"}
        # The suggestions of tpe depend on the order in which trials end; there may be no bad trial.
        expected = {"finished", "stopped"} if name.endswith("random") else {"finished"}
        assert expected <= set(trials.loc[trials["x"] <= 0.67, "status"]) <= {"finished", "stopped"}
        assert set(trials.loc[trials["status"] == "finished", "steps_run"]) == {STEPS}
        stopped = trials[trials["status"] == "stopped"]
        assert (stopped["steps_run"] < STEPS).all()
        scheduler = searches[name].experiment["scheduler"]
        for row in stopped.to_dict("records"):
            assert row["stop_reason"] == f"stopped by {scheduler} at step {row['steps_run']}"
            assert row["loss"] == pytest.approx(row["x"] + 1 / row["steps_run"])
        assert set(trials.loc[trials["status"] == "diverged", "steps_run"]) == {0}

    def test_best_trial_is_not_stopped(self, searches, name):
        trials = searches[name].trials
        healthy = trials[trials["x"] <= 0.67]
        assert healthy.loc[healthy["x"].idxmin(), "status"] == "finished"
        assert searches[name].best()["x"] == healthy["x"].min()

    def test_history_of_a_stopped_trial_is_complete(self, searches, name):
        results = searches[name]
        for row in results.trials.to_dict("records"):
            history = results.history[results.history["trial_id"] == row["trial_id"]]
            assert list(history["step"]) == list(range(1, row["steps_run"] + 1))
        assert not (results.folder / "trials").exists()


def test_asha_stopping_stops_at_rungs_and_saves_steps(searches):
    trials = searches["asha_stopping.random"].trials
    assert set(trials.loc[trials["status"] == "stopped", "steps_run"]) <= {1, 3, 9}
    # The same configurations without a scheduler.
    whole = searches["none.random"].trials
    pd.testing.assert_series_equal(trials["x"], whole["x"])
    assert trials["steps_run"].sum() < 0.6 * whole["steps_run"].sum()


def test_stopped_trial_is_pruned_in_the_study(searches, studies):
    study = studies[0]
    trials = searches["asha_stopping.tpe"].trials
    expected = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "diverged": TrialState.COMPLETE}
    assert [trial.state for trial in study.trials] == [expected[status] for status in trials["status"]]
    assert [trial.params["x"] for trial in study.trials] == list(trials["x"])
    for trial, row in zip(study.trials, trials.to_dict("records"), strict=True):
        assert trial.constraints == {"diverged": 1.0 if row["status"] == "diverged" else -1.0}
        if row["status"] == "stopped":
            assert trial.value == pytest.approx(row["loss"])
            assert trial.intermediate_values == {row["steps_run"]: trial.value}


@pytest.mark.ray
def test_no_scheduler_names_a_waiting_trial(ray_session, schedulers, tmp_path):
    experiments = [descent(name, num_samples=1) for name in ("none", *STOPPING)]
    run_all(experiments, folders=[tmp_path / one.name for one in experiments], **ON_RAY)

    class Waiting:
        status = Trial.PENDING

    class Search:
        @staticmethod
        def get_trials():
            return [Waiting]

    assert FIFOScheduler().choose_trial_to_run(Search) is Waiting  # Ray Tune's default, which the mixin prevents.
    assert len(schedulers) == 4
    assert [one for one in schedulers if one.choose_trial_to_run(Search) is not None] == []
    assert sum(type(one) is FifoMixin for one in schedulers) == 1


def test_extension_competes_with_the_first_part(tmp_path):
    first = run(descent("asha_stopping", num_samples=9), output_dir=tmp_path / "out", **QUIET)
    # A space of bad values: none is promoted beside the earlier trials.
    file = tmp_path / "out" / "experiment.json"
    described = load_json(file.read_bytes())
    described["space"]["x"] = {"uniform": [0.64, 0.67]}
    file.write_text(json.dumps(described), encoding="utf-8")
    whole = extend(tmp_path / "out", num_samples=4, **QUIET)
    assert len(whole.trials) == 13
    pd.testing.assert_frame_equal(whole.trials.head(9)[first.trials.columns], first.trials, check_dtype=False)
    assert (whole.trials["status"].tail(4) == "stopped").all()
    assert (whole.trials["steps_run"].tail(4) <= 3).all()


def history(losses: dict[str, list[float]]) -> Results:
    rows = [
        {"trial_id": name, "step": step, "loss": loss}
        for name, values in losses.items()
        for step, loss in enumerate(values, start=1)
    ]
    trials = pd.DataFrame({"trial_id": list(losses), "status": "finished"})
    return Results({"name": "past"}, trials, pd.DataFrame(rows))


def trial(name: str):
    """Return a Ray trial with the attributes that schedulers use."""
    return type("Trial", (), {"trial_id": name, "config": {"group": TrialGroup(name, ())}})


@pytest.mark.parametrize(("name", "rung"), [("asha_stopping", 3), ("hyperband", 9), ("median", 2)])
def test_replayed_results_stop_worse_trials(name, rung):
    scheduler = make_scheduler(name, "min", 27, 0)
    seen = RankedMetric("loss", "min")
    replay_results(
        scheduler, history({f"t{n}": [n / 10 + 1 / step for step in range(1, 28)] for n in range(20)}), seen, 27
    )
    new, good = trial("new"), trial("good")
    scheduler.on_trial_add(None, new)
    assert scheduler.on_trial_result(None, new, {"progress": rung, "value": 9.0}) == TrialScheduler.STOP
    scheduler.on_trial_add(None, good)
    assert scheduler.on_trial_result(None, good, {"progress": rung, "value": 0.01}) == TrialScheduler.CONTINUE


@pytest.mark.parametrize("name", ["asha_stopping", "hyperband", "median"])
def test_missing_values_do_not_stop_trials(name):
    scheduler = make_scheduler(name, "min", 27, 0)

    seen = RankedMetric("loss", "min")
    past = {f"t{number}": [math.nan if number % 2 else 1.0] * 3 for number in range(8)}
    replay_results(scheduler, history(past), seen, 27)
    best = trial("best")
    scheduler.on_trial_add(None, best)
    assert scheduler.on_trial_result(None, best, {"progress": 3, "value": 0.5}) == TrialScheduler.CONTINUE


@pytest.mark.parametrize("name", ["asha_stopping", "hyperband", "median"])
def test_trial_without_rivals_continues_while_others_wait(name):
    waiting = type("Search", (), {"get_live_trials": lambda: [type("Trial", (), {"status": Trial.PENDING})]})
    scheduler = make_scheduler(name, "min", 27, 0)
    first = trial("first")
    scheduler.on_trial_add(waiting, first)
    for progress in range(1, 27):
        decision = scheduler.on_trial_result(waiting, first, {"progress": progress, "value": 1.0})
        assert decision == TrialScheduler.CONTINUE


def first_decision(scheduler, name: str) -> int:
    """Return the progress at which a bad trial is stopped."""
    bad = trial(name)
    scheduler.on_trial_add(None, bad)
    for progress in range(1, 28):
        if scheduler.on_trial_result(None, bad, {"progress": progress, "value": 99.0}) == TrialScheduler.STOP:
            return progress
    raise AssertionError("the scheduler did not stop the trial")


def test_hyperband_bracket_depends_on_seed_and_trial_only():
    def decisions(seed):
        scheduler = make_scheduler("hyperband", "min", 27, seed)
        for number in range(200):
            good = trial(f"good{number}")
            scheduler.on_trial_add(None, good)
            for progress in (1, 3, 9):
                scheduler.on_trial_result(None, good, {"progress": progress, "value": 1.0})
        return [first_decision(scheduler, f"t{number:05d}") for number in range(60)]

    state = np.random.get_state()[1].tolist()  # noqa: NPY002
    first = decisions(0)
    assert set(first) == {1, 3, 9}
    assert first.count(1) > first.count(3) > first.count(9)
    assert decisions(0) == first != decisions(1)
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002


def test_trials_are_compared_at_equal_fractions_of_their_steps():
    reports = []
    writer = TrialFileWriter({})
    decision = SchedulerReporter(
        reports.append, "t00000", RankedMetric("loss", "min"), writer, lambda: None, pace=15_000 / 1500
    )
    writer.add(500, {"loss": 0.25})
    decision(500, 0.25)
    assert (reports[0]["step"], reports[0]["progress"], reports[0]["value"]) == (500, 5000, 0.25)
    scheduler = make_scheduler("asha_stopping", "min", 15_000, 0)
    trials = pd.DataFrame({"trial_id": ["long", "short"], "status": "finished", "steps": [15_000, 1500]})
    rows = [("long", 554, 1.0), ("long", 555, 1.0), ("short", 56, 1.0)]
    past = Results({"name": "past"}, trials, pd.DataFrame(rows, columns=["trial_id", "step", "loss"]))
    replay_results(scheduler, past, RankedMetric("loss", "min"), 15_000)
    (bracket,) = scheduler._brackets
    assert {milestone: set(reached) for milestone, reached in bracket._rungs if reached} == {
        555: {"stub.long", "stub.short"}
    }


def test_replay_without_the_budget_has_the_progress_of_the_steps():
    losses = {f"t{number}": [1.0] * 3 for number in range(2)}
    for metric, expected in (("loss", {1: {"stub.t0", "stub.t1"}, 3: {"stub.t0", "stub.t1"}}), ("accuracy", {})):
        scheduler = make_scheduler("asha_stopping", "min", 27, 0)
        replay_results(scheduler, history(losses), RankedMetric(metric, "min"), 27)
        (bracket,) = scheduler._brackets
        assert {milestone: set(reached) for milestone, reached in bracket._rungs if reached} == expected


def test_replayed_trial_has_its_running_best():
    scheduler = make_scheduler("asha_stopping", "max", 27, 0)
    past = history({"t0": [0.2, 0.9, 0.1]})
    replay_results(scheduler, past, RankedMetric("loss", "max", "best"), 27)
    (bracket,) = scheduler._brackets
    assert {milestone: reached for milestone, reached in bracket._rungs if reached} == {
        1: {"stub.t0": 0.2}, 3: {"stub.t0": 0.9},
    }  # fmt: skip


@pytest.mark.parametrize("name", ["asha_stopping", "hyperband", "median"])
@pytest.mark.parametrize("num_reported", [0, 1, 3])
def test_resumed_trial_is_judged_like_an_undisturbed_one(name, num_reported):
    """Its process was killed after ``num_reported`` steps, of which a state had been saved for all but the last."""
    losses = {f"t{number}": [number / 10 + 1 / step for step in range(1, 28)] for number in range(20)}
    values = {"good": [0.01] * 27, "bad": [0.5, 0.4, 9.0] + [9.0] * 24}

    def decisions(scheduler, bad_from=1):
        made = []
        for trial_id, first in (("bad", bad_from), ("good", 1)):
            judged = trial(trial_id)
            scheduler.on_trial_add(None, judged)
            # Results for the progress bar only.
            assert scheduler.on_trial_result(None, judged, {"trials": []}) == TrialScheduler.CONTINUE
            for step in range(first, 28):
                result = {"progress": step, "value": values[trial_id][step - 1]}
                if scheduler.on_trial_result(None, judged, result) == TrialScheduler.STOP:
                    made.append((trial_id, step))
                    break
            scheduler.on_trial_complete(None, judged, result)
        return made, [milestones(bracket) for bracket in getattr(scheduler, "_brackets", ())]

    def milestones(bracket):
        return {milestone: sorted(reached.values()) for milestone, reached in bracket._rungs}

    expected, found = (make_scheduler(name, "min", 27, 0) for _ in range(2))
    metric = RankedMetric("loss", "min")
    replay_results(expected, history(losses), metric, 27)
    past = history(losses | ({"bad": values["bad"][:num_reported]} if num_reported else {}))
    past.trials.loc[past.trials["trial_id"] == "bad", "status"] = "running"
    replay_results(found, past, metric, 27)
    assert decisions(found, max(1, num_reported)) == decisions(expected)
    assert decisions(make_scheduler(name, "min", 27, 0))[0] != decisions(expected)[0]


def test_scheduler_of_trials_that_ray_tune_does_not_run_stops_bad_trials():
    stopping = StoppingScheduler(make_scheduler("asha_stopping", "min", 27, 0))
    for number in range(3):
        group = TrialGroup(f"t{number}", ())
        stopping.add(group)
        assert not stopping.stops(group, {"progress": 1, "value": 0.1})
        stopping.complete(group, {"progress": 27, "value": 0.1})
    bad = TrialGroup("bad", ())
    stopping.add(bad)
    assert stopping.stops(bad, {"progress": 1, "value": 9.0})


def test_first_trials_of_the_median_rule_continue_without_a_controller():
    stopping = StoppingScheduler(make_scheduler("median", "min", 27, 0))
    for number in range(3):
        group = TrialGroup(f"t{number}", ())
        stopping.add(group)
        assert not any(stopping.stops(group, {"progress": step, "value": 1.0}) for step in range(1, 27))
        stopping.complete(group, {"progress": 27, "value": 1.0})


@pytest.mark.parametrize("judge", ["last", "best", "mean_of_last_3"])
def test_judge_of_a_test_metric_is_that_of_the_experiment(judge):
    experiment = Experiment("x", Space({"steps": 27}), metric="test_loss", mode="min", judge=judge)
    assert monitored_metric(experiment) == RankedMetric("valid_loss", "min", judge)


def test_unknown_scheduler_is_rejected():
    with pytest.raises(InvalidExperimentError, match="no class for the scheduler 'bohb'; add it to make_scheduler"):
        make_scheduler("bohb", "min", 27, 0)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 9, 26, 27, 28, 80, 81, 1000, 5000, 15_000])
def test_rungs_are_before_the_end_and_near_evaluations(num_steps):
    scheduler = make_scheduler("hyperband", "min", num_steps, 0)
    evaluations = {round(num_steps * (point + 1) / 27) for point in range(27)}
    rungs = sorted({milestone for bracket in scheduler._brackets for milestone, _ in bracket._rungs})
    assert rungs[-1] < num_steps or num_steps == 1
    if num_steps >= 27:
        assert len(rungs) == 3
        # The first evaluation at or after a rung is at most one step late.
        for rung, part in zip(rungs, (27, 9, 3), strict=True):
            assert rung <= min(one for one in evaluations if one >= rung) <= num_steps / part + 1


def test_test_metrics_are_replaced_by_validation_metrics():
    built_in = Experiment("x", Space({"steps": 27}))
    for metric in ("test_accuracy", "best_test_accuracy", "selected_test_accuracy", "best_valid_accuracy"):
        assert monitored_metric(built_in.replace(metric=metric)).column == "valid_accuracy"
    assert monitored_metric(built_in.replace(metric="test_loss", mode="min")).column == "valid_loss"
    user = Experiment("x", Space({"steps": 27}, keys={}), "a:b", metric="test_loss", mode="min")
    assert monitored_metric(user).column == "test_loss"


def test_best_metric_is_monitored_by_its_running_best():
    best = monitored_metric(Experiment("x", Space({"steps": 27}), metric="best_valid_accuracy"))
    assert best.value(np.array([0.5, 0.4])) == 0.5
    assert (
        monitored_metric(Experiment("x", Space({"steps": 27}), metric="valid_accuracy")).value(np.array([0.5, 0.4]))
        == 0.4
    )


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
class TestShortTrials:
    def run_many(self, folder, num_trials, **more):
        space = Space({"x": tune.choice(list(range(num_trials))), **more}, keys={})
        experiment = Experiment("short", space, trainables.returns_at_once, metric="loss", mode="min", seeds=())
        return run(experiment, output_dir=folder, **ON_RAY)

    def test_short_trials_run_in_sequential_groups(self, tmp_path):
        results = self.run_many(tmp_path / "out", 60)
        assert results.counts() == {"finished": 60}
        assert list(results.trials["loss"]) == list(range(60))
        assert results.experiment["state"] == "finished"
        assert len([one for one in (tmp_path / "out" / "ray").iterdir() if one.is_dir()]) < 20

    def test_dead_process_fails_one_trial_only(self, tmp_path):
        results = self.run_many(tmp_path / "out", 40, deadly=25)
        trials = results.trials.set_index("x")
        assert results.counts() == {"finished": 39, "failed": 1}
        assert trials.loc[25, "status"] == "failed"
        assert trials.loc[25, "stop_reason"] == "process died"
        assert results.experiment["state"] == "finished"
        assert [one.name for one in (tmp_path / "out" / "logs").iterdir()] == [f"{trials.loc[25, 'trial_id']}.log"]
