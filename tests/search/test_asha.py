"""Successive halving: who goes on from a rung, who ends there, and that it goes on as if nothing had happened."""

import json
import math
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from ray import tune

from tests.search import trainables
from tune_hpc import Experiment, Space, extend, load, resume, run
from tune_hpc.errors import FolderError, InvalidExperimentError
from tune_hpc.search.experiment import ENDED
from tune_hpc.search.reporter import MonitoredMetric
from tune_hpc.search.schedulers.asha import CAME, GOES_ON, NUM_RUNGS, AsyncSuccessiveHalving
from tune_hpc.search.searchers.optuna_searcher import OptunaSearcher
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.trial_file import TrialFileWriter, read_row, update_status, write_trial

STEPS = 270
RUNGS = [10, 30, 90]
SPACE = Space({"rate": tune.uniform(0, 1), "steps": STEPS}, keys={})
QUIET = {"show_progress": False}


def climbers(num_samples=30, space=SPACE, **changes):
    settings = {"metric": "height", "mode": "max", "seeds": (), "searcher": "random", "num_samples": num_samples}
    return Experiment("climbers", space, trainables.climbs, scheduler="asha", **(settings | changes))


def new_home(path):
    home = ExperimentFolder(path)
    home.parts.mkdir(parents=True)
    return home


@pytest.fixture
def home(tmp_path):
    return new_home(tmp_path / "out")


class Race:
    """Trains without Ray: each trial climbs by its rate, and its state is the step that it came to.

    Args:
        home: The experiment folder.
        experiment: What is searched.
        before: What there is of it already.
        bad: Which trials end badly in their first stage, and how.
    """

    def __init__(self, home, experiment, before=None, bad=None):
        self.home, self.experiment, self.bad = home, experiment, bad or {}
        home.write(experiment.to_json() | {"config_keys": ["rate", "steps", "seed"]})
        self.learner = OptunaSearcher(experiment, home, before) if experiment.searcher == "tpe" else None
        self.halving = AsyncSuccessiveHalving(
            experiment, home, MonitoredMetric("height", False, experiment.mode), self.learner, before
        )
        self.halving.record_stopped = self.record_stopped
        self.trained = []

    def record_stopped(self, sample, steps):
        assert read_row(self.home.part(sample["trial_id"]))["steps_run"] == steps
        update_status(self.home.part(sample["trial_id"]), {"status": "stopped"})
        self.home.checkpoint(sample["trial_id"]).unlink()

    def train(self, sample):
        name, config, until = sample["trial_id"], sample["config"], sample["until"]
        kept = self.home.checkpoint(name)
        begin = int(kept.read_text()) if kept.is_file() else 0
        status = self.bad.get(name) or ("running" if until else "finished")
        end = begin if status in ("diverged", "failed") else until or config["steps"]
        self.trained += [(name, step) for step in range(begin, end)]
        record = TrialFileWriter({})
        if end:
            climbed = config["rate"] + config.get("seed", 0) / 100
            record.add(np.arange(1, end + 1), {"height": np.arange(1, end + 1) * climbed})
        row = {"experiment": "climbers", "trial_id": name, "status": status, "steps_run": end, **config}
        history = record.history()
        value = float(history["height"].iloc[-1]) if end else None
        write_trial(self.home.part(name), row | {"height": value}, history)
        if status == "running":
            kept.write_text(str(end))
        else:
            kept.unlink(missing_ok=True)
        self.halving.ended(name, status, value, end)

    def go_on(self, num_slots=1, order=None, most=10_000):
        """Train, so many trials at a time, of which those end first that ``order`` says."""
        under_way = []
        while most:
            while len(under_way) < num_slots and (samples := self.halving.propose()):
                under_way += samples
            if not under_way:
                assert not self.halving.is_waiting
                return self
            self.train(under_way.pop(order.integers(len(under_way)) if order is not None else 0))
            most -= 1
        return self

    def lines(self):
        return [json.loads(line) for line in self.home.rungs.read_text().splitlines()]

    @property
    def trials(self):
        return load(self.home.path).trials


def check_promotions(lines, num_configs, has_finished):
    """Of those who had come to a rung the best third went on; when all was tried, whoever was better than these."""
    reached = [{} for _ in range(NUM_RUNGS)]
    gone_on = [{} for _ in range(NUM_RUNGS)]
    for place, line in enumerate(lines):
        number, rung = line["configuration"], line["rung"]
        assert line["entry"] == place
        if line["event"] == CAME:
            assert number not in reached[rung]
            assert rung == 0 or number in reached[rung - 1]
            reached[rung][number] = -math.inf if line["value"] is None else line["value"]
            continue
        assert line["event"] == GOES_ON
        before, own = gone_on[rung - 1], reached[rung - 1][number]
        third = len(reached[rung - 1]) // 3
        is_among_best = sum(other > own for other in reached[rung - 1].values()) < third
        if not is_among_best or len(before) >= third:
            assert len(reached[0]) == num_configs
            assert own > max(before.values(), default=-math.inf) or len(has_finished) == 1
        before[number] = own
    for rung in range(NUM_RUNGS):
        if reached[rung] and max(reached[rung].values()) > -math.inf:
            assert max(reached[rung], key=reached[rung].get) in gone_on[rung]


class TestRungs:
    @settings(max_examples=40)
    @given(
        seed=st.integers(0, 1000), num_slots=st.integers(1, 10), num_samples=st.integers(1, 40),
        num_bad=st.integers(0, 10),
    )  # fmt: skip
    def test_the_best_third_goes_on_and_no_step_is_made_twice(
        self, tmp_path_factory, seed, num_slots, num_samples, num_bad
    ):
        generator = np.random.default_rng(seed)
        bad = {f"t{number:05d}": "diverged" for number in generator.permutation(num_samples)[:num_bad]}
        home = new_home(tmp_path_factory.mktemp("race") / "out")
        race = Race(home, climbers(num_samples, search_seed=seed), bad=bad).go_on(num_slots, generator)
        trials = race.trials
        assert len(trials) == num_samples
        assert set(trials["status"]) <= set(ENDED)
        assert Counter(trials["status"])["diverged"] == len(bad)
        finished = trials[trials["status"] == "finished"]
        assert len(finished) > 0 or len(bad) == num_samples
        assert (finished["steps_run"] == STEPS).all()
        assert set(trials.loc[trials["status"] == "stopped", "steps_run"]) <= set(RUNGS)
        assert max(Counter(race.trained).values(), default=1) == 1
        assert len(race.trained) == trials["steps_run"].sum() <= num_samples * STEPS / 9 + 3 * STEPS
        assert not list(home.parts.glob("*.checkpoint"))
        check_promotions(race.lines(), num_samples, {int(name[1:]) for name in finished["trial_id"]})

    def test_all_but_a_few_train_for_a_small_part_of_their_steps(self, home):
        trials = Race(home, climbers(81)).go_on().trials
        counts = Counter(trials["steps_run"])
        assert 53 <= counts[10] <= 54
        assert 3 <= counts[STEPS] <= 5
        assert 81 * STEPS / 9 <= trials["steps_run"].sum() <= 81 * STEPS / 9 + 2 * STEPS
        assert trials.loc[trials["rate"].idxmax(), "status"] == "finished"

    def test_who_cannot_be_among_the_best_third_any_more_ends_at_once(self, home):
        race = Race(home, climbers(9))
        rates = {0: 0.5, 1: 0.6, 2: 0.7, 3: 0.1, 4: 0.65}

        def train_next():
            (sample,) = race.halving.propose()
            rate = rates[int(sample["trial_id"][1:])]
            race.train(sample | {"config": {"rate": rate, "steps": STEPS}})
            rows = race.trials.to_dict("records")
            return {row["rate"]: (row["status"], row["steps_run"]) for row in rows}

        assert [train_next() for _ in range(4)][-1] == {
            0.5: ("running", 10), 0.6: ("running", 10), 0.7: ("running", 30),
        }  # fmt: skip
        # Of nine three go on at most: whoever has three before it ends.
        assert train_next() == {
            0.5: ("running", 10), 0.6: ("running", 10), 0.7: ("running", 30), 0.1: ("stopped", 10),
        }  # fmt: skip
        assert train_next()[0.5] == ("stopped", 10)

    def test_a_frame_tells_of_all_of_it(self, home):
        race = Race(home, climbers(9, seeds=(0, 1)), bad={"t00005": "diverged"}).go_on(2)
        rungs = load(home.path).rungs()
        assert list(rungs) == ["rung", "trial_id", "step", "value", "goes_on"]
        assert list(rungs.loc[rungs["rung"] == 1, "trial_id"].sort_values()) == [f"t{2 * one:05d}" for one in range(9)]
        assert rungs.loc[rungs["value"].isna(), "trial_id"].tolist() == ["t00004"]
        assert rungs.loc[rungs["goes_on"], "rung"].value_counts().to_dict() == Counter(
            line["rung"] for line in race.lines() if line["event"] == GOES_ON
        )
        assert set(zip(rungs["rung"], rungs["step"], strict=True)) == {(1, 10), (2, 30), (3, 90)}
        with pytest.raises(FolderError, match="climbers has no generations"):
            load(home.path).generations()

    def test_a_few_configurations_still_have_one_that_comes_to_its_end(self, home):
        race = Race(home, climbers(2)).go_on()
        assert Counter(race.trials["status"]) == {"finished": 1, "stopped": 1}
        assert race.trials.loc[race.trials["rate"].idxmax(), "status"] == "finished"

    def test_trials_of_fewer_steps_come_to_their_rungs_earlier(self, home):
        space = Space({"rate": 0.5, "steps": tune.choice([2700, 270, 27, 3, 1])}, keys={})
        race = Race(home, climbers(None, space, searcher="grid"))
        until = {}
        for _ in range(5):
            (sample,) = race.halving.propose()
            until[sample["config"]["steps"]] = sample["until"]
        assert until == {2700: 100, 270: 10, 27: 1, 3: 1, 1: None}
        assert [race.halving._until({"steps": 5}, rung) for rung in range(4)] == [1, 2, 3, None]
        assert [race.halving._until({"steps": 2}, rung) for rung in range(4)] == [1, None, None, None]

    def test_the_least_is_best_where_it_should_be(self, home):
        race = Race(home, climbers(mode="min")).go_on()
        assert race.trials.loc[race.trials["rate"].idxmin(), "status"] == "finished"


class TestSeeds:
    def test_a_configuration_is_judged_by_its_mean_and_goes_on_with_all_of_its_seeds(self, home):
        race = Race(home, climbers(12, seeds=(0, 30, 60))).go_on(4)
        trials = race.trials
        assert len(trials) == 36
        assert set(trials.groupby("rate")["steps_run"].agg(np.ptp)) == {0}
        assert trials.loc[trials["rate"].idxmax(), "status"] == "finished"
        rates = trials.groupby(trials["trial_id"].str[1:].astype(int) // 3)["rate"].first()
        for line in race.lines():
            if line["event"] == CAME:
                assert line["value"] == pytest.approx(line["steps"] * (rates[line["configuration"]] + 0.3))

    @pytest.mark.parametrize("status", ["diverged", "failed"])
    def test_where_one_of_them_ends_badly_the_others_end_at_the_rung(self, home, status):
        race = Race(home, climbers(6, seeds=(0, 1)), bad={"t00002": status}).go_on(3)
        trials = race.trials.set_index("trial_id")
        assert trials.loc["t00002", "status"] == status
        assert (trials.loc["t00003", "status"], trials.loc["t00003", "steps_run"]) == ("stopped", 10)
        (line,) = [line for line in race.lines() if line["configuration"] == 1]
        assert line["value"] is None


class TestGoingOn:
    @pytest.mark.parametrize("searcher", ["random", "tpe"])
    @pytest.mark.parametrize("most", [0, 1, 5, 17, 23, 40, 41])
    def test_one_that_is_interrupted_goes_on_as_if_nothing_had_been(self, tmp_path, home, most, searcher):
        experiment = climbers(12, seeds=(0, 1), searcher=searcher)
        bad = {"t00006": "diverged"}
        first = Race(home, experiment, bad=bad).go_on(most=most)
        second = Race(home, experiment, before=load(home.path), bad=bad).go_on()
        assert max(Counter(first.trained + second.trained).values()) == 1
        trials = second.trials
        assert len(trials) == 24
        assert set(trials["status"]) <= set(ENDED)
        finishers = {int(name[1:]) // 2 for name in trials.loc[trials["status"] == "finished", "trial_id"]}
        check_promotions(second.lines(), 12, finishers)
        if searcher == "random":
            whole = Race(new_home(tmp_path / "whole"), experiment, bad=bad).go_on()
            assert second.lines() == whole.lines()
            pd.testing.assert_frame_equal(trials, whole.trials)

    def test_a_configuration_is_told_once_whatever_it_came_to(self, home):
        experiment = climbers(24, searcher="tpe", seeds=(0, 1))
        bad = {"t00004": "diverged", "t00011": "failed"}
        race = Race(home, experiment, bad=bad).go_on(most=30)
        again = Race(home, experiment, before=load(home.path), bad=bad).go_on(3)
        trials = again.trials
        for number, trial in enumerate(again.learner.study.trials):
            own = trials[trials["trial_id"].isin([f"t{2 * number:05d}", f"t{2 * number + 1:05d}"])]
            assert trial.params["rate"] == own["rate"].iloc[0]
            if number == 2:
                assert trial.constraints == {"diverged": 1.0}
            elif number == 5:
                assert trial.state is TrialState.FAIL
            else:
                is_finished = set(own["status"]) == {"finished"}
                assert trial.state is (TrialState.COMPLETE if is_finished else TrialState.PRUNED)
                assert trial.value == pytest.approx(own["height"].mean())
                assert is_finished or trial.last_step == own["steps_run"].iloc[0]
        assert len(again.learner.study.trials) == 24
        assert race.learner.study.study is not again.learner.study.study

    def test_a_search_that_is_longer_than_before_is_held_against_its_first_part(self, home):
        Race(home, climbers(9)).go_on()
        best = load(home.path).trials["rate"].nlargest(3).min()
        longer = Race(home, climbers(18), before=load(home.path)).go_on()
        assert len(longer.trials) == 18
        later = longer.trials.tail(9)
        assert (later.loc[later["steps_run"] > 10, "rate"] > best).all()

    def test_an_unfinished_line_is_cut_off_and_a_damaged_file_is_an_error(self, home):
        race = Race(home, climbers(6)).go_on(most=7)
        lines = race.lines()
        home.rungs.write_text(home.rungs.read_text() + '{"entry": 9, "ev')
        again = Race(home, climbers(6), before=load(home.path))
        assert again.lines() == lines
        again.go_on()
        home.rungs.write_text(home.rungs.read_text().replace('"entry": 1', '"entry": 7'))
        with pytest.raises(FolderError, match=r"rungs.jsonl cannot be read: its numbers are not 0, 1, 2"):
            Race(home, climbers(6), before=load(home.path))
        home.rungs.unlink()
        with pytest.raises(FolderError, match=r"rungs.jsonl cannot be read: .* No such file"):
            Race(home, climbers(6), before=load(home.path))


def test_a_trainable_that_cannot_pause_is_refused(tmp_path):
    blind = climbers().replace(trainable=trainables.descend)
    with pytest.raises(InvalidExperimentError, match="climbers takes no checkpoint; asha_stopping does without"):
        run(blind, output_dir=tmp_path / "out", **QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
class TestOnRay:
    def test_networks_of_which_a_third_diverges(self, tmp_path):
        space = Space(
            {
                "model": "softmax", "batch_size": 20, "steps": 54, "num_evaluations": 27, "num_evaluation_images": 200,
                "learning_rate": tune.choice([0.001, 0.01, 0.03, 0.1, 0.3, 0.5, 1e6, 1e7, 1e8]),
            }
        )  # fmt: skip
        grid = Experiment("networks", space, metric="best_valid_accuracy", seeds=(0, 1), scheduler="asha")
        results = run(grid, output_dir=tmp_path / "out", **QUIET)
        assert results.experiment["state"] == "finished"
        trials = results.trials
        assert len(trials) == 18
        # A softmax diverges when its loss has stayed high for a while; it pauses before.
        assert set(trials["status"]) <= {"finished", "diverged", "stopped"}
        assert {2, 54} <= set(trials["steps_run"])
        assert trials.loc[trials["learning_rate"] >= 1e6, "steps_run"].max() <= 18
        assert set(trials.loc[trials["status"] == "stopped", "steps_run"]) <= {2, 6, 18}
        assert set(trials.groupby("learning_rate")["steps_run"].agg(np.ptp)) == {0}
        for row in trials.to_dict("records"):
            own = results.history[results.history["trial_id"] == row["trial_id"]]
            assert own["train_loss"].notna().sum() == row["steps_run"]
            if row["status"] == "stopped":
                assert row["stop_reason"] == f"stopped by asha at step {row['steps_run']}"
        assert not (tmp_path / "out" / "trials").exists()
        # What paused is what would have been.
        alone = results.trials[results.trials["status"] == "finished"].iloc[0]
        one = grid.replace(name="alone", scheduler="none", seeds=(int(alone["seed"]),))
        whole = run(
            one.with_values({"learning_rate": float(alone["learning_rate"])}), output_dir=tmp_path / "alone", **QUIET
        )
        pd.testing.assert_frame_equal(
            whole.history.drop(columns="trial_id"),
            results.history[results.history["trial_id"] == alone["trial_id"]]
            .drop(columns="trial_id")
            .reset_index(drop=True),
        )

    @pytest.mark.parametrize("searcher", ["random", "tpe"])
    def test_one_that_is_stopped_goes_on_and_is_extended(self, tmp_path, searcher):
        space = SPACE | {"pause": 0.002}
        folder = tmp_path / "out"

        def warn():
            rungs = Path(folder / "rungs.jsonl")
            while not rungs.is_file() or len(rungs.read_text().splitlines()) < 9:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGUSR1)

        threading.Thread(target=warn, daemon=True).start()
        stopped = run(climbers(12, space, searcher=searcher, seeds=(0, 1)), output_dir=folder, **QUIET)
        assert stopped.experiment["state"] == "interrupted"
        assert stopped.counts()["running"] >= 1
        (resumed,) = resume(folder, **QUIET)
        assert resumed.experiment["state"] == "finished"
        assert len(resumed.trials) == 24
        assert set(resumed.counts()) == {"finished", "stopped"}
        assert not (folder / "trials").exists()
        extended = extend(folder, num_samples=6, **QUIET)
        assert len(extended.trials) == 36
        assert set(extended.counts()) == {"finished", "stopped"}
        pd.testing.assert_frame_equal(extended.trials.head(24)[resumed.trials.columns], resumed.trials)
        for _, own in extended.history.groupby("trial_id", observed=True):
            assert list(own["step"]) == list(range(1, len(own) + 1))
            assert fmean(np.diff(own["height"])) == pytest.approx(own["height"].iloc[0])
