"""Population-based training: exploit, explore, and exact continuation after an interruption."""

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

from tests.search import searcher_simulation, trainables
from tests.search.searcher_simulation import SearcherSimulation, new_folder, read_lines
from tests.search.test_conditional import conditional_spaces
from tune_hpc import Experiment, Space, extend, load, resume, run, when
from tune_hpc.errors import FolderError, InvalidExperimentError
from tune_hpc.search.schedulers.pbt import FACTORS, NUM_GENERATIONS, PopulationBasedTraining, explore

STEPS = 100
SPACE = Space({"rate": tune.loguniform(1e-3, 1), "steps": STEPS}, keys={})
QUIET = {"show_progress": False, "runner": "local"}


def climbers(num_samples=8, space=SPACE, **changes):
    return searcher_simulation.climbers("pbt", space, num_samples, **changes)


@pytest.fixture
def folder(tmp_path):
    return new_folder(tmp_path / "out")


class Simulation(SearcherSimulation):
    def __init__(self, folder, experiment, before=None):
        super().__init__(folder, experiment, lambda *args: PopulationBasedTraining(*args, before))

    @property
    def lines(self):
        return read_lines(self.folder.population)

    @property
    def stages(self):
        """Identifier and generation of each run of a member."""
        return list(dict.fromkeys((trial_id, stage) for trial_id, stage, _ in self.trained))


class TestGenerations:
    def test_worst_quarter_copies_the_best_within_the_space(self, folder):
        simulation = Simulation(folder, climbers()).run()
        lines = simulation.lines
        assert [line["generation"] for line in lines] == list(range(1, NUM_GENERATIONS))
        assert Counter(stage for _, stage in simulation.stages) == dict.fromkeys(range(NUM_GENERATIONS), 8)
        configs = {f"t{number:05d}": config for number, config in enumerate(climbers().configs())}
        for line in lines:
            members = line["members"]
            ranked = sorted(members, key=lambda name: -members[name]["value"])
            copied = {name: one["copied_from"] for name, one in members.items() if one["copied_from"]}
            assert set(copied) <= set(ranked[-2:])
            assert set(copied.values()) <= set(ranked[:2])
            for name, member in members.items():
                before = configs[copied.get(name, name)]
                if name not in copied:
                    assert member["config"] == before
                elif member["config"]["rate"] / before["rate"] not in map(pytest.approx, FACTORS):
                    assert SPACE.admits(member["config"])  # a new draw, or a value at the bound
            configs = {name: one["config"] for name, one in members.items()}
        assert sum(bool(one["copied_from"]) for line in lines for one in line["members"].values()) >= 12

    def test_generations_frame_has_every_member(self, folder):
        Simulation(folder, climbers()).run()
        generations = load(folder.path).generations()
        assert list(generations) == ["generation", "trial_id", "copied_from", "value", "rate", "steps"]
        assert len(generations) == 8 * (NUM_GENERATIONS - 1)
        assert generations.groupby("generation")["copied_from"].count().max() == 2

    def test_history_of_a_member_is_that_of_its_states(self, folder):
        simulation = Simulation(folder, climbers()).run()
        history = load(folder.path).history
        assert set(history.groupby("trial_id", observed=True)["step"].agg(list).map(tuple)) == {tuple(range(1, 101))}
        last = history[history["step"] == STEPS].set_index("trial_id")["height"]
        # Copies end near the best member; without copies the worst one would end far below.
        first = {name: one["value"] for name, one in simulation.lines[0]["members"].items()}
        assert last.min() > min(first.values()) * NUM_GENERATIONS
        assert last.max() >= max(first.values()) * NUM_GENERATIONS

    @pytest.mark.slow
    @settings(max_examples=15)
    @given(seed=st.integers(0, 1000), num_slots=st.integers(1, 10), num_samples=st.integers(1, 9))
    def test_order_of_arrival_does_not_matter(self, tmp_path_factory, seed, num_slots, num_samples):
        lines = []
        for generator, slots in ((None, 1), (np.random.default_rng(seed), num_slots)):
            folder = new_folder(tmp_path_factory.mktemp("population") / "out")
            lines.append(Simulation(folder, climbers(num_samples, search_seed=seed)).run(slots, generator).lines)
        assert lines[0] == lines[1]
        assert len(lines[0]) == NUM_GENERATIONS - 1

    @pytest.mark.parametrize("max_runs", [0, 3, 8, 13, 16, 41, 79])
    def test_interruption_changes_nothing(self, tmp_path, folder, max_runs):
        undisturbed = Simulation(new_folder(tmp_path / "whole"), climbers()).run()
        first = Simulation(folder, climbers()).run(2, max_runs=max_runs)
        second = Simulation(folder, climbers(), before=load(folder.path)).run(2)
        assert second.lines == undisturbed.lines
        assert Counter(first.trained + second.trained) == Counter(undisturbed.trained)
        pd.testing.assert_frame_equal(load(folder.path).trials, undisturbed.trials)

    def test_partial_line_is_dropped_and_decided_again(self, folder):
        first = Simulation(folder, climbers()).run(max_runs=24)
        first.searcher.suggest()
        lines = first.lines
        folder.population.write_text("".join(f"{json.dumps(one)}\n" for one in lines[:-1]) + '{"generation": 3, "mem')
        second = Simulation(folder, climbers(), before=load(folder.path))
        second.searcher.suggest()
        assert second.lines == lines

    def test_damaged_file_is_an_error(self, folder):
        first = Simulation(folder, climbers()).run(max_runs=24)
        text = "".join(f"{json.dumps(line)}\n" for line in first.lines)
        folder.population.write_text(text.replace('"generation": 1', '"generation": 7'))
        with pytest.raises(FolderError, match=r"population.jsonl cannot be read: its numbers are not 1, 2, 3"):
            Simulation(folder, climbers(), before=load(folder.path))

    @pytest.mark.parametrize("status", ["diverged", "failed"])
    def test_bad_member_leaves_the_population(self, folder, status):
        simulation = Simulation(folder, climbers())
        simulation.train(*simulation.searcher.suggest(), status)
        simulation.run()
        assert "t00000" not in {trial_id for trial_id, _ in simulation.stages}
        assert len(simulation.stages) == 7 * NUM_GENERATIONS
        for line in simulation.lines:
            assert "t00000" not in line["members"]
            assert "t00000" not in {one["copied_from"] for one in line["members"].values()}
        counts = load(folder.path).counts()
        assert counts == {"finished": 7, status: 1}

    def test_search_ends_without_members(self, folder):
        simulation = Simulation(folder, climbers(3))
        for _ in range(3):
            simulation.train(*simulation.searcher.suggest(), "diverged")
        assert simulation.searcher.suggest() == []
        assert not simulation.searcher.has_pending

    def test_members_keep_their_seeds(self, folder):
        simulation = Simulation(folder, climbers(4, seeds=(0, 1))).run()
        for line in simulation.lines:
            seeds = [one["config"]["seed"] for _, one in sorted(line["members"].items())]
            assert seeds == [0, 1] * 4

    @pytest.mark.parametrize(("num_members", "num_copies"), [(1, 0), (2, 1), (3, 1), (7, 1), (8, 2), (12, 3)])
    @pytest.mark.parametrize("mode", ["min", "max"])
    def test_worst_quarter_copies_the_best_quarter(self, folder, num_members, num_copies, mode):
        simulation = Simulation(folder, climbers(num_members, mode=mode)).run(max_runs=num_members)
        simulation.searcher.suggest()
        (line,) = simulation.lines
        members = line["members"]
        ranked = sorted(members, key=lambda name: members[name]["value"], reverse=mode == "max")
        copied = {name: member["copied_from"] for name, member in members.items() if member["copied_from"]}
        assert set(copied) == set(ranked[num_members - num_copies :])
        assert set(copied.values()) <= set(ranked[:num_copies])
        for name, source in copied.items():
            assert folder.checkpoint(name).read_bytes() == folder.checkpoint(source).read_bytes()

    def test_retained_states_of_the_source_are_copied(self, folder):
        simulation = Simulation(folder, climbers(4)).run(max_runs=4)
        for number in range(4):
            for step in (5, 10):
                file = folder.retained_checkpoint(f"t0000{number}", step)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(f"{number} {step}", encoding="utf-8")
        simulation.searcher.suggest()
        ((name, member),) = [
            (name, member) for name, member in simulation.lines[0]["members"].items() if member["copied_from"]
        ]
        for step in (5, 10):
            text = folder.retained_checkpoint(name, step).read_text(encoding="utf-8")
            assert text == f"{member['copied_from'][-1]} {step}"

    def test_member_without_a_state_neither_copies_nor_is_copied(self, folder):
        simulation = Simulation(folder, climbers(4)).run(max_runs=4)
        rates = {f"t0000{number}": config["rate"] for number, config in enumerate(climbers(4).configs())}
        ranked = sorted(rates, key=rates.get)
        folder.checkpoint(ranked[-1]).unlink()
        simulation.searcher.suggest()
        members = simulation.lines[0]["members"]
        assert members[ranked[-1]]["value"] is None
        assert {name: member["copied_from"] for name, member in members.items() if member["copied_from"]} == {
            ranked[0]: ranked[2],
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("steps", "ends"),
        [
            (100, [10, 20, 30, 40, 50, 60, 70, 80, 90, None]),
            (25, [2, 5, 8, 10, 12, 15, 18, 20, 22, None]),
            (10, [1, 2, 3, 4, 5, 6, 7, 8, 9, None]),
            (3, [1, 2, None]),
            (1, [None]),
        ],
    )
    def test_generations_end_after_equal_parts_of_the_steps(self, folder, steps, ends):
        space = Space({"rate": tune.uniform(0.1, 1), "steps": steps}, keys={})
        simulation = Simulation(folder, climbers(1, space))
        trials = []
        while due := simulation.searcher.suggest():
            trials += due
            simulation.train(due[0])
        assert [trial.max_step for trial in trials] == ends
        assert [trial.stage for trial in trials] == list(range(len(ends)))
        assert not simulation.searcher.has_pending

    def test_member_waits_for_the_others_of_its_generation(self, folder):
        simulation = Simulation(folder, climbers(2))
        (first,), (second,) = simulation.searcher.suggest(), simulation.searcher.suggest()
        assert simulation.searcher.suggest() == []
        simulation.train(first)
        assert simulation.searcher.has_pending
        assert simulation.searcher.suggest() == []
        simulation.train(second)
        assert not simulation.searcher.has_pending
        (third,) = simulation.searcher.suggest()
        assert (third.trial_id, third.stage, third.experiment) == (first.trial_id, 1, "climbers")

    def test_equal_members_do_not_copy(self, folder):
        simulation = Simulation(
            folder, climbers(space=Space({"rate": tune.uniform(0.5, 0.5000001), "steps": 50}, keys={}))
        )
        simulation.searcher._values = lambda active: dict.fromkeys(active, 1.0)
        simulation.run()
        assert {one["copied_from"] for line in simulation.lines for one in line["members"].values()} == {None}


def user_experiment(space):
    return Experiment("user", space, trainables.climbs, seeds=(), searcher="random", num_samples=1)


class TestExplore:
    @given(space=conditional_spaces(), seed=st.integers(0, 100))
    def test_changed_configuration_is_a_member_of_the_space(self, space, seed):
        generator = np.random.default_rng(seed)
        config = space.sample(generator)
        changed = explore(config, space, user_experiment(space).changeable_parameters, generator)
        assert space.admits(changed)

    def test_built_in_trainable_keeps_its_network_and_optimizer(self):
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
        built_in = Experiment("built_in", space, seeds=(), searcher="random", num_samples=1)
        assert built_in.changeable_parameters == ["learning_rate", "momentum", "dropout"]
        changeable = user_experiment(space).changeable_parameters
        assert "batch_size" in changeable
        assert not {"optimizer", "seed"} & {*changeable}

    def test_number_of_a_list_becomes_its_neighbour_and_words_stay(self):
        space = Space({"size": tune.choice([64, 16, 32]), "word": tune.choice(["a", "b"])}, keys={})

        up, down = FixedNumbers(0.9, 0.0, 0.2), FixedNumbers(0.9, 0.0, 0.8)
        changed = explore({"size": 32, "word": "a"}, space, ["size", "word"], up)
        assert changed == {"size": 64, "word": "a"}
        assert explore(changed, space, ["size"], up) == changed
        assert explore(changed, space, ["size"], down) == {"size": 32, "word": "a"}
        assert explore({"size": 16, "word": "a"}, space, ["size"], down)["size"] == 16
        flags = Space({"flag": tune.choice([False, True, 2])}, keys={})
        assert explore({"flag": True}, flags, ["flag"], up) == {"flag": True}

    @pytest.mark.parametrize(
        ("numbers", "rate"),
        [
            ((0.25, 0.5, 0.49), 0.12), ((0.25, 0.5, 0.5), 0.08), ((0.9, 0.5, 0.0), 0.12),
            # A new draw: the median of a logarithmic range.
            ((0.24, 0.5, 0.0), 1e-2), ((0.0, 0.25, 0.9), 1e-3),
        ],
    )  # fmt: skip
    def test_number_of_a_range_changes_by_a_fifth_or_is_drawn(self, numbers, rate):
        space = Space({"rate": tune.loguniform(1e-4, 1), "steps": 5}, keys={})
        changed = explore({"rate": 0.1, "steps": 5}, space, ["rate", "steps"], FixedNumbers(*numbers))
        assert changed == {"rate": pytest.approx(rate), "steps": 5}

    def test_change_ends_at_the_bound(self):
        space = Space({"rate": tune.uniform(0, 1), "size": tune.randint(1, 5)}, keys={})
        changed = explore({"rate": 0.9, "size": 4}, space, ["rate", "size"], FixedNumbers(0.9, 0.0, 0.0))
        assert changed == {"rate": 1.0, "size": 4}

    def test_absent_parameter_stays_absent_and_other_parameters_unchanged(self):
        space = Space({"a": tune.choice([1, 2]), "b": when(tune.uniform(0, 1), a=1), "c": tune.uniform(0, 1)}, keys={})
        config = {"a": 2, "c": 0.5}
        assert explore(config, space, ["b", "c"], FixedNumbers(0.9, 0.0, 0.0)) == {"a": 2, "c": 0.6}
        assert config == {"a": 2, "c": 0.5}


class FixedNumbers:
    """Generator of the same random numbers for every parameter."""

    def __init__(self, *numbers):
        self.numbers = numbers

    def random(self, size):
        assert size == len(self.numbers)
        return list(self.numbers)


class TestRejections:
    def test_adaptive_searcher(self):
        with pytest.raises(InvalidExperimentError, match="pbt has its own search; got searcher=tpe: use one of"):
            climbers(searcher="tpe")

    def test_space_without_changeable_parameters(self):
        space = Space({"batch_size": tune.choice([10, 100]), "steps": 100})
        with pytest.raises(InvalidExperimentError, match="none of these varies in the space of fixed"):
            Experiment("fixed", space, scheduler="pbt")

    def test_trainable_without_checkpoint(self, tmp_path):
        blind = climbers().replace(trainable=trainables.descend)
        with pytest.raises(InvalidExperimentError, match="the function of climbers has no parameter checkpoint"):
            run(blind, output_dir=tmp_path / "out", **QUIET)
        assert not (tmp_path / "out").exists()


class TestSearch:
    @pytest.mark.slow
    @pytest.mark.parametrize("steps", [1, 5, 9])
    def test_best_configuration_of_few_steps_has_trained(self, tmp_path, steps):
        def distance(config, report, checkpoint):
            for step in range((checkpoint.load() or 0) + 1, steps + 1):
                report(step, {"loss": (config["x"] - 3) ** 2})
                checkpoint.save(step, lambda step=step: step)

        space = Space({"x": tune.uniform(0, 10), "steps": steps})
        for search_seed in range(4):
            experiment = Experiment(
                "few", space, distance, "loss", "min", num_samples=6, scheduler="pbt", search_seed=search_seed, seeds=()
            )
            results = run(experiment, output_dir=tmp_path / str(search_seed), **QUIET)
            expected = (results.trials["x"] - 3) ** 2
            assert results.trials["loss"].tolist() == pytest.approx(expected.tolist())

    @pytest.mark.slow
    def test_population_with_diverging_third(self, tmp_path):
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
        history = results.history[results.history["trial_id"].isin(finished["trial_id"])]
        assert set(history.groupby("trial_id", observed=True)["train_loss"].count()) == {40}
        assert not (tmp_path / "one" / "trials").exists()
        # The number of slots does not matter.
        other = run(grid, output_dir=tmp_path / "two", **QUIET)
        assert (tmp_path / "one" / "population.jsonl").read_text() == (
            tmp_path / "two" / "population.jsonl"
        ).read_text()
        same = ["trial_id", "status", "learning_rate", "valid_accuracy", "train_loss"]
        pd.testing.assert_frame_equal(results.trials[same], other.trials[same])

    @pytest.mark.slow
    def test_interrupted_search_resumes_unchanged(self, tmp_path):
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
        # The trial files are deleted at the end; a population cannot be extended.
        assert not (tmp_path / "out" / "trials").exists()
        with pytest.raises(InvalidExperimentError, match="climbers uses PBT, which cannot be extended"):
            extend(tmp_path / "out", num_samples=4)
