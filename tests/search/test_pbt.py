"""Populations: who copies whom, what changes, and that they go on as if nothing had happened."""

import json
import os
import signal
import threading
import time
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import tune

from tests.search import trainables
from tests.search.test_conditional import conditional_spaces
from tune_hpc import Experiment, Space, extend, load, resume, run, when
from tune_hpc.errors import FolderError, InvalidExperimentError
from tune_hpc.search.reporter import MonitoredMetric
from tune_hpc.search.schedulers.exploration import FACTORS, changeable, explore
from tune_hpc.search.schedulers.pbt import NUM_GENERATIONS, PopulationBasedTraining
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.trial_file import TrialFileWriter, write_trial

STEPS = 100
SPACE = Space({"rate": tune.loguniform(1e-3, 1), "steps": STEPS}, keys={})
QUIET = {"show_progress": False}


def climbers(num_samples=8, space=SPACE, **changes):
    settings = {"metric": "height", "mode": "max", "seeds": (), "searcher": "random", "num_samples": num_samples}
    return Experiment("climbers", space, trainables.climbs, scheduler="pbt", **(settings | changes))


@pytest.fixture
def home(tmp_path):
    home = ExperimentFolder(tmp_path / "out")
    home.parts.mkdir(parents=True)
    return home


class Simulation:
    """Trains members without Ray: each climbs by its rate, and its state is its height."""

    def __init__(self, home, experiment, before=None):
        self.home, self.experiment = home, experiment
        home.write(experiment.to_json() | {"config_keys": ["rate", "steps"]})
        self.population = PopulationBasedTraining(experiment, home, MonitoredMetric("height", False, "max"), before)
        self.trained = []

    def train(self, sample, status=None):
        name, config, until = sample["trial_id"], sample["config"], sample["until"]
        kept = self.home.checkpoint(name)
        step, heights = json.loads(kept.read_text()) if kept.is_file() else (0, [])
        end = until or config["steps"]
        heights = heights + [sum(heights[-1:]) + config["rate"]] * (end - step)
        kept.write_text(json.dumps([end, heights]))
        record = TrialFileWriter({})
        record.add(np.arange(1, end + 1), {"height": heights})
        status = status or ("running" if until else "finished")
        row = {"experiment": self.experiment.name, "trial_id": name, "status": status, "steps_run": end, **config}
        write_trial(self.home.part(name), row, record.history())
        self.trained.append((name, sample["stage"]))
        self.population.ended(name, status, heights[-1], end)

    def go_on(self, num_slots=1, order=None, most=10_000):
        """Train members, so many at a time, of which those end first that ``order`` says."""
        under_way = []
        while most:
            while len(under_way) < num_slots and (samples := self.population.propose()):
                under_way += samples
            if not under_way:
                return
            self.train(under_way.pop(order.integers(len(under_way)) if order is not None else 0))
            most -= 1

    def lines(self):
        return [json.loads(line) for line in self.home.population.read_text().splitlines()]


class TestGenerations:
    def test_the_worst_quarter_copies_the_best_and_changes_within_the_space(self, home):
        simulation = Simulation(home, climbers())
        simulation.go_on()
        lines = simulation.lines()
        assert [line["generation"] for line in lines] == list(range(1, NUM_GENERATIONS))
        assert Counter(generation for _, generation in simulation.trained) == dict.fromkeys(range(NUM_GENERATIONS), 8)
        configs = {one["trial_id"]: one["config"] for one in map(self.first, range(8))}
        for line in lines:
            members = line["members"]
            ranked = sorted(members, key=lambda name: -members[name]["value"])
            copied = {name: one["copied_from"] for name, one in members.items() if one["copied_from"]}
            assert set(copied) <= set(ranked[-2:])
            assert set(copied.values()) <= set(ranked[:2])
            for name, one in members.items():
                before = configs[copied.get(name, name)]
                if name not in copied:
                    assert one["config"] == before
                elif one["config"]["rate"] / before["rate"] not in map(pytest.approx, FACTORS):
                    assert SPACE.admits(one["config"])  # drawn anew, or at the edge
            configs = {name: one["config"] for name, one in members.items()}
        assert sum(bool(one["copied_from"]) for line in lines for one in line["members"].values()) >= 12

    def test_a_frame_tells_of_all_of_it(self, home):
        Simulation(home, climbers()).go_on()
        generations = load(home.path).generations()
        assert list(generations) == ["generation", "trial_id", "copied_from", "value", "rate", "steps"]
        assert len(generations) == 8 * (NUM_GENERATIONS - 1)
        assert generations.groupby("generation")["copied_from"].count().max() == 2

    def first(self, number):
        (config,) = [config for place, config in enumerate(climbers().configs()) if place == number]
        return {"trial_id": f"t{number:05d}", "config": config}

    def test_a_member_has_the_history_of_the_states_it_descends_from(self, home):
        simulation = Simulation(home, climbers())
        simulation.go_on()
        history = load(home.path).history
        assert set(history.groupby("trial_id", observed=True)["step"].agg(list).map(tuple)) == {tuple(range(1, 101))}
        last = history[history["step"] == STEPS].set_index("trial_id")["height"]
        # Copies of the best are near it in the end; alone, the worst of the first would be far below.
        first = {name: one["value"] for name, one in simulation.lines()[0]["members"].items()}
        assert last.min() > min(first.values()) * NUM_GENERATIONS
        assert last.max() >= max(first.values()) * NUM_GENERATIONS

    @settings(max_examples=15)
    @given(seed=st.integers(0, 1000), num_slots=st.integers(1, 10), num_samples=st.integers(1, 9))
    def test_it_does_not_matter_who_ends_first(self, tmp_path_factory, seed, num_slots, num_samples):
        lines = []
        for order, slots in ((None, 1), (np.random.default_rng(seed), num_slots)):
            home = ExperimentFolder(tmp_path_factory.mktemp("population"))
            home.parts.mkdir()
            simulation = Simulation(home, climbers(num_samples, search_seed=seed))
            simulation.go_on(slots, order)
            lines.append(simulation.lines())
        assert lines[0] == lines[1]
        assert len(lines[0]) == NUM_GENERATIONS - 1

    @pytest.mark.parametrize("most", [0, 3, 8, 13, 16, 41, 79])
    def test_one_that_is_interrupted_goes_on_as_if_nothing_had_been(self, tmp_path, home, most):
        whole = ExperimentFolder(tmp_path / "whole")
        whole.parts.mkdir(parents=True)
        undisturbed = Simulation(whole, climbers())
        undisturbed.go_on()
        first = Simulation(home, climbers())
        first.go_on(2, most=most)
        second = Simulation(home, climbers(), before=load(home.path))
        second.go_on(2)
        assert second.lines() == undisturbed.lines()
        assert Counter(first.trained + second.trained) == Counter(undisturbed.trained)
        pd.testing.assert_frame_equal(load(home.path).trials, load(whole.path).trials)

    def test_a_line_that_was_never_finished_is_decided_anew(self, home):
        first = Simulation(home, climbers())
        first.go_on(most=24)
        first.population.propose()
        lines = first.lines()
        home.population.write_text("".join(f"{json.dumps(one)}\n" for one in lines[:-1]) + '{"generation": 3, "mem')
        second = Simulation(home, climbers(), before=load(home.path))
        second.population.propose()
        assert second.lines() == lines

    def test_a_damaged_file_is_an_error(self, home):
        first = Simulation(home, climbers())
        first.go_on(most=24)
        home.population.write_text(home.population.read_text().replace('"generation": 1', '"generation": 7'))
        with pytest.raises(FolderError, match=r"population.jsonl cannot be read: its numbers are not 1, 2, 3"):
            Simulation(home, climbers(), before=load(home.path))

    @pytest.mark.parametrize("status", ["diverged", "failed"])
    def test_one_that_ends_badly_is_gone_and_nobody_copies_it(self, home, status):
        simulation = Simulation(home, climbers())
        population = simulation.population
        (first,) = population.propose()
        simulation.train(first, status)
        simulation.go_on()
        assert simulation.trained.count(("t00000", 0)) == 1
        assert len(simulation.trained) == 1 + 7 * NUM_GENERATIONS
        for line in simulation.lines():
            assert "t00000" not in line["members"]
            assert "t00000" not in {one["copied_from"] for one in line["members"].values()}
        counts = load(home.path).counts()
        assert counts == {"finished": 7, status: 1}

    def test_when_all_are_gone_it_is_over(self, home):
        simulation = Simulation(home, climbers(3))
        for _ in range(3):
            simulation.train(*simulation.population.propose(), "diverged")
        assert simulation.population.propose() == []
        assert not simulation.population.is_waiting

    def test_each_keeps_its_own_seed(self, home):
        simulation = Simulation(home, climbers(4, seeds=(0, 1)))
        simulation.go_on()
        for line in simulation.lines():
            seeds = [one["config"]["seed"] for _, one in sorted(line["members"].items())]
            assert seeds == [0, 1] * 4

    def test_equals_copy_nobody(self, home):
        simulation = Simulation(
            home, climbers(space=Space({"rate": tune.uniform(0.5, 0.5000001), "steps": 50}, keys={}))
        )
        simulation.population._values = lambda alive: dict.fromkeys(alive, 1.0)
        simulation.go_on()
        assert {one["copied_from"] for line in simulation.lines() for one in line["members"].values()} == {None}


class TestChanges:
    @given(space=conditional_spaces(), seed=st.integers(0, 100))
    def test_a_changed_configuration_is_one_of_the_space(self, space, seed):
        generator = np.random.default_rng(seed)
        config = space.sample(generator)
        changed = explore(config, space, changeable(space, is_ours=False), generator)
        assert space.admits(changed)

    def test_our_own_trainable_keeps_its_network_and_its_optimizer(self):
        space = Space(
            {
                "model": "cnn",
                "optimizer": tune.choice(["adam", "momentum"]),
                "learning_rate": when(tune.loguniform(1e-4, 1e-2), optimizer="adam") | tune.loguniform(1e-3, 1),
                "momentum": when(tune.uniform(0.5, 0.99), optimizer="momentum"),
                "batch_size": tune.choice([50, 100]), "width": tune.uniform(0.1, 1), "dropout": tune.uniform(0, 0.5),
                "seed": tune.randint(0, 5),
            }
        )  # fmt: skip
        assert changeable(space, is_ours=True) == ["learning_rate", "momentum", "dropout"]
        assert "batch_size" in changeable(space, is_ours=False)
        assert not {"optimizer", "seed"} & {*changeable(space, is_ours=False)}

    def test_a_list_of_numbers_changes_to_a_neighbour_and_words_stay(self):
        space = Space({"size": tune.choice([64, 16, 32]), "word": tune.choice(["a", "b"])}, keys={})

        class Steady:
            def random(self, n):
                return [0.9, 0.0, 0.2]

        changed = explore({"size": 32, "word": "a"}, space, ["size", "word"], Steady())
        assert changed == {"size": 64, "word": "a"}
        assert explore(changed, space, ["size"], Steady()) == changed


class TestRefusals:
    def test_a_searcher_that_learns_beside_it(self):
        with pytest.raises(InvalidExperimentError, match="pbt learns by itself; got searcher=tpe: begin with one of"):
            climbers(searcher="tpe")

    def test_nothing_that_may_change(self):
        space = Space({"batch_size": tune.choice([10, 100]), "steps": 100})
        with pytest.raises(InvalidExperimentError, match="none of these varies in the space of fixed"):
            Experiment("fixed", space, scheduler="pbt")

    def test_a_trainable_that_cannot_pause(self, tmp_path):
        blind = climbers().replace(trainable=trainables.descend)
        with pytest.raises(InvalidExperimentError, match="the function of climbers takes no checkpoint"):
            run(blind, output_dir=tmp_path / "out", **QUIET)
        assert not (tmp_path / "out").exists()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
class TestOnRay:
    def test_a_population_of_networks_with_a_third_that_diverges(self, tmp_path):
        space = Space(
            {
                "model": "softmax", "batch_size": 20, "steps": 40, "num_evaluations": 10, "num_evaluation_images": 200,
                "learning_rate": tune.choice([0.001, 0.01, 0.1, 0.5, 1e6, 1e7]),
            }
        )  # fmt: skip
        grid = Experiment("population", space, metric="valid_accuracy", seeds=(0, 1), scheduler="pbt")
        results = run(grid, output_dir=tmp_path / "one", max_concurrent=1, **QUIET)
        assert results.experiment["state"] == "finished"
        assert len(results.trials) == 12
        assert set(results.trials["status"]) == {"finished", "diverged"}
        finished = results.trials[results.trials["status"] == "finished"]
        assert (finished["steps_run"] == 40).all()
        assert list(finished["seed"]) == [int(one[-1]) % 2 for one in finished["trial_id"]]
        for _, own in results.history[results.history["trial_id"].isin(finished["trial_id"])].groupby(
            "trial_id", observed=True
        ):
            assert own["train_loss"].notna().sum() == 40
        assert not (tmp_path / "one" / "trials").exists()
        # Whatever the number of slots.
        other = run(grid, output_dir=tmp_path / "two", **QUIET)
        assert (tmp_path / "one" / "population.jsonl").read_text() == (
            tmp_path / "two" / "population.jsonl"
        ).read_text()
        same = ["trial_id", "status", "learning_rate", "valid_accuracy", "train_loss"]
        pd.testing.assert_frame_equal(results.trials[same], other.trials[same])

    def test_one_that_is_stopped_goes_on_as_if_nothing_had_been(self, tmp_path):
        whole = run(climbers(), output_dir=tmp_path / "whole", **QUIET)
        assert whole.counts() == {"finished": 8}
        decided = tmp_path / "out" / "population.jsonl"

        def warn_in_the_third_generation():
            while not decided.is_file() or len(decided.read_text().splitlines()) < 2:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGUSR1)

        threading.Thread(target=warn_in_the_third_generation, daemon=True).start()
        stopped = run(climbers(space=SPACE | {"pause": 0.002}), output_dir=tmp_path / "out", **QUIET)
        assert stopped.experiment["state"] == "interrupted"
        assert stopped.counts() == {"running": 8}
        assert 2 <= len(decided.read_text().splitlines()) < NUM_GENERATIONS - 1
        (resumed,) = resume(tmp_path / "out", **QUIET)
        assert resumed.counts() == {"finished": 8}
        pd.testing.assert_frame_equal(
            resumed.trials[["trial_id", "rate", "height", "steps_run"]],
            whole.trials[["trial_id", "rate", "height", "steps_run"]],
        )
        # The parts go when everything is in, and nobody joins later.
        assert not (tmp_path / "out" / "trials").exists()
        with pytest.raises(InvalidExperimentError, match="climbers is a population, which nobody joins"):
            extend(tmp_path / "out", num_samples=4)
