"""Promotion-type ASHA: promotions, stops, seeds, and exact continuation after an interruption."""

import json
import math
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from ray import tune

from tests.search import searcher_simulation, trainables
from tests.search.searcher_simulation import SearcherSimulation, new_folder, read_lines
from tune_hpc import Experiment, Space, extend, load, resume, run
from tune_hpc.analysis.stability import NUM_RUNGS
from tune_hpc.errors import FolderError, InvalidExperimentError
from tune_hpc.search.experiment import ENDED
from tune_hpc.search.schedulers.asha import PROMOTED, REACHED, AsyncSuccessiveHalving
from tune_hpc.search.searchers.optuna_searcher import OptunaSearcher

STEPS = 270
RUNGS = [10, 30, 90]
SPACE = Space({"rate": tune.uniform(0, 1), "steps": STEPS}, keys={})
QUIET = {"show_progress": False, "runner": "local"}


def climbers(num_samples=30, space=SPACE, **changes):
    return searcher_simulation.climbers("asha", space, num_samples, **changes)


@pytest.fixture
def folder(tmp_path):
    return new_folder(tmp_path / "out")


class Simulation(SearcherSimulation):
    """Simulation of ASHA, with an Optuna source for ``tpe``."""

    def __init__(self, folder, experiment, before=None, bad=None):
        def make_searcher(experiment, folder, metric):
            source = OptunaSearcher(experiment, folder, before) if experiment.searcher == "tpe" else None
            return AsyncSuccessiveHalving(experiment, folder, metric, source, before)

        super().__init__(folder, experiment, make_searcher, bad)

    @property
    def lines(self):
        return read_lines(self.folder.rungs)


def check_promotions(lines, num_configs, has_finished):
    """Check that each promotion was from the best third, or at the end better than all earlier promotions."""
    reached = [{} for _ in range(NUM_RUNGS)]
    promoted = [{} for _ in range(NUM_RUNGS)]
    for entry, line in enumerate(lines):
        number, rung = line["configuration"], line["rung"]
        assert line["entry"] == entry
        if line["event"] == REACHED:
            assert number not in reached[rung]
            assert rung == 0 or number in reached[rung - 1]
            reached[rung][number] = -math.inf if line["value"] is None else line["value"]
            continue
        assert line["event"] == PROMOTED
        before, value = promoted[rung - 1], reached[rung - 1][number]
        third = len(reached[rung - 1]) // 3
        is_among_best = sum(other > value for other in reached[rung - 1].values()) < third
        if not is_among_best or len(before) >= third:
            assert len(reached[0]) == num_configs
            assert value > max(before.values(), default=-math.inf) or len(has_finished) == 1
        before[number] = value
    for rung in range(NUM_RUNGS):
        if reached[rung] and max(reached[rung].values()) > -math.inf:
            assert max(reached[rung], key=reached[rung].get) in promoted[rung]


class TestRungs:
    @pytest.mark.slow
    @settings(max_examples=40)
    @given(
        seed=st.integers(0, 1000), num_slots=st.integers(1, 10), num_samples=st.integers(1, 40),
        num_bad=st.integers(0, 10),
    )  # fmt: skip
    def test_best_third_is_promoted_and_no_step_repeats(self, tmp_path_factory, seed, num_slots, num_samples, num_bad):
        generator = np.random.default_rng(seed)
        bad = {f"t{number:05d}": "diverged" for number in generator.permutation(num_samples)[:num_bad]}
        folder = new_folder(tmp_path_factory.mktemp("asha") / "out")
        search = Simulation(folder, climbers(num_samples, search_seed=seed), bad=bad).run(num_slots, generator)
        trials = search.trials
        assert len(trials) == num_samples
        assert set(trials["status"]) <= set(ENDED)
        assert Counter(trials["status"])["diverged"] == len(bad)
        finished = trials[trials["status"] == "finished"]
        assert len(finished) > 0 or len(bad) == num_samples
        assert (finished["steps_run"] == STEPS).all()
        assert set(trials.loc[trials["status"] == "stopped", "steps_run"]) <= set(RUNGS)
        assert max(Counter(search.trained).values(), default=1) == 1
        assert len(search.trained) == trials["steps_run"].sum() <= num_samples * STEPS / 9 + 3 * STEPS
        assert not list(folder.trials.glob("*.checkpoint"))
        check_promotions(search.lines, num_samples, {int(name[1:]) for name in finished["trial_id"]})

    def test_most_configurations_train_for_few_steps(self, folder):
        trials = Simulation(folder, climbers(81)).run().trials
        counts = Counter(trials["steps_run"])
        assert 53 <= counts[10] <= 54
        assert 3 <= counts[STEPS] <= 5
        assert 81 * STEPS / 9 <= trials["steps_run"].sum() <= 81 * STEPS / 9 + 2 * STEPS
        assert trials.loc[trials["rate"].idxmax(), "status"] == "finished"

    def test_unpromotable_configuration_stops_at_once(self, folder):
        search = Simulation(folder, climbers(9))
        rates = {0: 0.5, 1: 0.6, 2: 0.7, 3: 0.1, 4: 0.65}

        def train_next():
            (trial,) = search.searcher.suggest()
            search.train(replace(trial, config={"rate": rates[int(trial.trial_id[1:])], "steps": STEPS}))
            rows = search.trials.to_dict("records")
            return {row["rate"]: (row["status"], row["steps_run"]) for row in rows}

        assert [train_next() for _ in range(4)][-1] == {
            0.5: ("running", 10), 0.6: ("running", 10), 0.7: ("running", 30),
        }  # fmt: skip
        # At most three of nine are promoted: a configuration behind three others stops.
        assert train_next() == {
            0.5: ("running", 10), 0.6: ("running", 10), 0.7: ("running", 30), 0.1: ("stopped", 10),
        }  # fmt: skip
        assert train_next()[0.5] == ("stopped", 10)

    def test_rungs_frame_has_every_event(self, folder):
        search = Simulation(folder, climbers(9, seeds=(0, 1)), bad={"t00005": "diverged"}).run(2)
        rungs = load(folder.path).rungs()
        assert list(rungs) == ["rung", "trial_id", "step", "value", "is_promoted"]
        assert list(rungs.loc[rungs["rung"] == 1, "trial_id"].sort_values()) == [f"t{2 * one:05d}" for one in range(9)]
        assert rungs.loc[rungs["value"].isna(), "trial_id"].tolist() == ["t00004"]
        assert rungs.loc[rungs["is_promoted"], "rung"].value_counts().to_dict() == Counter(
            line["rung"] for line in search.lines if line["event"] == PROMOTED
        )
        assert set(zip(rungs["rung"], rungs["step"], strict=True)) == {(1, 10), (2, 30), (3, 90)}
        with pytest.raises(FolderError, match="climbers has no generations"):
            load(folder.path).generations()

    def test_one_of_few_configurations_finishes(self, folder):
        search = Simulation(folder, climbers(2)).run()
        assert Counter(search.trials["status"]) == {"finished": 1, "stopped": 1}
        assert search.trials.loc[search.trials["rate"].idxmax(), "status"] == "finished"

    def test_rungs_are_fractions_of_the_steps_of_a_trial(self, folder):
        space = Space({"rate": 0.5, "steps": tune.choice([2700, 270, 27, 3, 1])}, keys={})
        search = Simulation(folder, climbers(None, space, searcher="grid"))
        trials = [trial for _ in range(5) for trial in search.searcher.suggest()]
        assert {trial.config["steps"]: trial.max_step for trial in trials} == {2700: 100, 270: 10, 27: 1, 3: 1, 1: None}
        assert [search.searcher._rung_step({"steps": 5}, rung) for rung in range(4)] == [1, 2, 3, None]
        assert [search.searcher._rung_step({"steps": 2}, rung) for rung in range(4)] == [1, None, None, None]

    def test_mode_min_promotes_low_values(self, folder):
        search = Simulation(folder, climbers(mode="min")).run()
        assert search.trials.loc[search.trials["rate"].idxmin(), "status"] == "finished"


class TestEnds:
    def test_trial_that_stops_by_itself_is_not_promoted(self, folder):
        search = Simulation(folder, climbers(3))
        (first,) = search.searcher.suggest()
        search.train(first, "stopped")
        assert not search.searcher.has_pending
        search.run()
        trials = search.trials.set_index("trial_id")
        assert trials.loc["t00000", "status"] == "stopped"
        assert [line["configuration"] for line in search.lines].count(0) == 1
        assert trials.loc[["t00001", "t00002"], "status"].tolist().count("finished") <= 1

    def test_seed_that_has_ended_is_not_trained_again(self, folder):
        # One trial of three configurations ends at its first rung, as at its time limit.
        search = Simulation(folder, climbers(3, seeds=(0, 1)))
        rates = {number: config["rate"] for number, config in enumerate(climbers(3).configs())}
        best = max(rates, key=rates.get)
        ended = f"t{2 * best:05d}"
        for trial in (trial for _ in range(3) for trial in search.searcher.suggest()):
            search.train(trial, "stopped" if trial.trial_id == ended else None)
        promoted = search.searcher.suggest()
        assert [trial.trial_id for trial in promoted] == [f"t{2 * best + 1:05d}"]
        assert [(trial.max_step, trial.stage) for trial in promoted] == [(RUNGS[1], 1)]
        search.train(promoted[0])
        assert search.lines[-1]["value"] is not None

    def test_without_a_third_the_best_is_promoted_when_nothing_else_is_left(self, folder):
        search = Simulation(folder, climbers(2))
        for trial in (search.searcher.suggest()[0], search.searcher.suggest()[0]):
            assert trial.max_step == RUNGS[0]
            search.train(trial)
        (promoted,) = search.searcher.suggest()
        rates = [config["rate"] for config in climbers(2).configs()]
        assert promoted.trial_id == f"t{int(np.argmax(rates)):05d}"
        # It is the only one that trains: the search waits for it.
        assert search.searcher.suggest() == []
        assert search.searcher.has_pending

    def test_event_has_its_number_configuration_rung_value_and_step(self, folder):
        search = Simulation(folder, climbers(3)).run(max_runs=4)
        rates = [config["rate"] for config in climbers(3).configs()]
        best = int(np.argmax(rates))
        events = [
            {"entry": number, "event": REACHED, "configuration": number, "rung": 0, "value": 10 * rate, "steps": 10}
            for number, rate in enumerate(rates)
        ]
        events += [
            {"entry": 3, "event": PROMOTED, "configuration": best, "rung": 1},
            {"entry": 4, "event": REACHED, "configuration": best, "rung": 1, "value": 30 * rates[best], "steps": 30},
        ]
        assert [{**line, "value": pytest.approx(line["value"])} if "value" in line else line for line in events] == [
            line for line in search.lines
        ]  # fmt: skip


class TestSeeds:
    def test_score_is_the_mean_over_seeds_and_all_seeds_are_promoted(self, folder):
        search = Simulation(folder, climbers(12, seeds=(0, 30, 60))).run(4)
        trials = search.trials
        assert len(trials) == 36
        assert set(trials.groupby("rate")["steps_run"].agg(np.ptp)) == {0}
        assert trials.loc[trials["rate"].idxmax(), "status"] == "finished"
        rates = trials.groupby(trials["trial_id"].str[1:].astype(int) // 3)["rate"].first()
        for line in search.lines:
            if line["event"] == REACHED:
                assert line["value"] == pytest.approx(line["steps"] * (rates[line["configuration"]] + 0.3))

    @pytest.mark.parametrize("status", ["diverged", "failed"])
    def test_bad_seed_stops_the_other_seeds_at_the_rung(self, folder, status):
        search = Simulation(folder, climbers(6, seeds=(0, 1)), bad={"t00002": status}).run(3)
        trials = search.trials.set_index("trial_id")
        assert trials.loc["t00002", "status"] == status
        assert (trials.loc["t00003", "status"], trials.loc["t00003", "steps_run"]) == ("stopped", 10)
        (line,) = [line for line in search.lines if line["configuration"] == 1]
        assert line["value"] is None


class TestResume:
    @pytest.mark.parametrize("searcher", ["random", "tpe"])
    @pytest.mark.parametrize("max_runs", [0, 1, 5, 17, 23, 40, 41])
    def test_interruption_changes_nothing(self, tmp_path, folder, max_runs, searcher):
        experiment = climbers(12, seeds=(0, 1), searcher=searcher)
        bad = {"t00006": "diverged"}
        first = Simulation(folder, experiment, bad=bad).run(max_runs=max_runs)
        second = Simulation(folder, experiment, before=load(folder.path), bad=bad).run()
        assert max(Counter(first.trained + second.trained).values()) == 1
        trials = second.trials
        assert len(trials) == 24
        assert set(trials["status"]) <= set(ENDED)
        finishers = {int(name[1:]) // 2 for name in trials.loc[trials["status"] == "finished", "trial_id"]}
        check_promotions(second.lines, 12, finishers)
        if searcher == "random":
            whole = Simulation(new_folder(tmp_path / "whole"), experiment, bad=bad).run()
            assert second.lines == whole.lines
            pd.testing.assert_frame_equal(trials, whole.trials)

    def test_events_of_older_folders_are_read(self, folder):
        first = Simulation(folder, climbers(12)).run(max_runs=9)
        text = "".join(f"{json.dumps(line)}\n" for line in first.lines)
        folder.rungs.write_text(text.replace(f'"{REACHED}"', '"came"').replace(f'"{PROMOTED}"', '"goes' + ' on"'))
        second = Simulation(folder, climbers(12), before=load(folder.path))
        assert second.searcher._reached == first.searcher._reached
        assert second.searcher._promoted == first.searcher._promoted
        assert len(load(folder.path).rungs()) == 9

    def test_study_has_each_configuration_once(self, folder):
        experiment = climbers(24, searcher="tpe", seeds=(0, 1))
        bad = {"t00004": "diverged", "t00011": "failed"}
        search = Simulation(folder, experiment, bad=bad).run(max_runs=30)
        again = Simulation(folder, experiment, before=load(folder.path), bad=bad).run(3)
        trials = again.trials
        for number, trial in enumerate(again.searcher.source.study.trials):
            rows = trials[trials["trial_id"].isin([f"t{2 * number:05d}", f"t{2 * number + 1:05d}"])]
            assert trial.params["rate"] == rows["rate"].iloc[0]
            if number == 2:
                assert trial.constraints == {"diverged": 1.0}
            elif number == 5:
                assert trial.state is TrialState.FAIL
            else:
                is_finished = set(rows["status"]) == {"finished"}
                assert trial.state is (TrialState.COMPLETE if is_finished else TrialState.PRUNED)
                assert trial.value == pytest.approx(rows["height"].mean())
                assert is_finished or trial.last_step == rows["steps_run"].iloc[0]
        assert len(again.searcher.source.study.trials) == 24
        assert search.searcher.source.study.study is not again.searcher.source.study.study

    def test_extension_competes_with_the_first_part(self, folder):
        Simulation(folder, climbers(9)).run()
        best = load(folder.path).trials["rate"].nlargest(3).min()
        longer = Simulation(folder, climbers(18), before=load(folder.path)).run()
        assert len(longer.trials) == 18
        later = longer.trials.tail(9)
        assert (later.loc[later["steps_run"] > 10, "rate"] > best).all()

    def test_partial_line_is_dropped_and_damaged_file_is_an_error(self, folder):
        search = Simulation(folder, climbers(6)).run(max_runs=7)
        lines = search.lines
        folder.rungs.write_text(folder.rungs.read_text() + '{"entry": 9, "ev')
        again = Simulation(folder, climbers(6), before=load(folder.path))
        assert again.lines == lines
        again.run()
        text = "".join(f"{json.dumps(line)}\n" for line in again.lines)
        folder.rungs.write_text(text.replace('"entry": 1', '"entry": 7'))
        with pytest.raises(FolderError, match=r"rungs.jsonl cannot be read: its numbers are not 0, 1, 2"):
            Simulation(folder, climbers(6), before=load(folder.path))
        folder.rungs.unlink()
        with pytest.raises(FolderError, match=r"rungs.jsonl cannot be read: .* No such file"):
            Simulation(folder, climbers(6), before=load(folder.path))


def test_trainable_without_checkpoint_is_rejected(tmp_path):
    blind = climbers().replace(trainable=trainables.descend)
    with pytest.raises(
        InvalidExperimentError, match="climbers has no parameter checkpoint: add it, or use asha_stopping"
    ):
        run(blind, output_dir=tmp_path / "out", **QUIET)
    assert not (tmp_path / "out").exists()


class TestSearch:
    def test_grid_with_diverging_third(self, tmp_path):
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
            rows = results.history[results.history["trial_id"] == row["trial_id"]]
            assert rows["train_loss"].notna().sum() == row["steps_run"]
            if row["status"] == "stopped":
                assert row["stop_reason"] == f"stopped by asha at step {row['steps_run']}"
        assert not (tmp_path / "out" / "trials").exists()
        # Pauses do not change a trial.
        alone = results.trials[results.trials["status"] == "finished"].iloc[0]
        single = grid.replace(name="alone", scheduler="none", seeds=(int(alone["seed"]),))
        whole = run(
            single.with_values({"learning_rate": float(alone["learning_rate"])}), output_dir=tmp_path / "alone", **QUIET
        )
        pd.testing.assert_frame_equal(
            whole.history.drop(columns="trial_id"),
            results.history[results.history["trial_id"] == alone["trial_id"]]
            .drop(columns="trial_id")
            .reset_index(drop=True),
        )

    @pytest.mark.parametrize("searcher", ["random", "tpe"])
    def test_interrupted_search_resumes_and_extends(self, tmp_path, searcher):
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
        for _, history in extended.history.groupby("trial_id", observed=True):
            assert list(history["step"]) == list(range(1, len(history) + 1))
            assert fmean(np.diff(history["height"])) == pytest.approx(history["height"].iloc[0])
