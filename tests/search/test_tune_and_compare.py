"""Comparisons on Ray: the same budget for each arm, winners with fresh seeds."""

from types import SimpleNamespace

import pytest
from ray import tune

from tests.search import trainables
from tune_hpc import Experiment, Space, compare, when
from tune_hpc.errors import FolderError, InvalidExperimentError, TrialError
from tune_hpc.search import tune_and_compare

QUIET = {"show_progress": False, "runner": "local"}


def experiment(**changes) -> Experiment:
    """Return a search in which ``fast`` is the better method, at its best rate."""
    space = Space(
        {
            "method": tune.choice(["fast", "slow"]),
            "rate": when(tune.uniform(0.1, 0.9), method="fast") | tune.uniform(0.001, 0.01),
            "steps": 5,
        },
        keys={},
        roles={"method": "scientific"},
    )
    settings = {
        "space": space, "metric": "loss", "mode": "min", "seeds": (0,), "searcher": "quasi_random", "num_samples": 4
    }  # fmt: skip
    return Experiment("methods", trainable=trainables.method, **(settings | changes))


@pytest.fixture(scope="module")
def outcome(ray_session, tmp_path_factory):
    """Return the folder of a comparison, and its results."""
    folder = tmp_path_factory.mktemp("compare") / "out"
    return folder, compare(experiment(), budget=6, seeds=3, output_dir=folder, **QUIET)


class TestComparison:
    def test_every_arm_has_the_same_number_of_trials(self, outcome):
        _, comparison = outcome
        assert [len(arm.trials) for arm in comparison.arms] == [6, 6]
        fast, slow = (arm.trials for arm in comparison.arms)
        assert set(fast["method"]) == {"fast"}
        assert fast["rate"].between(0.1, 0.9).all()
        assert slow["rate"].between(0.001, 0.01).all()

    def test_winners_have_their_best_configurations_and_fresh_seeds(self, outcome):
        _, comparison = outcome
        trials = comparison.winners.trials
        assert sorted(trials["seed"]) == [1, 1, 2, 2, 3, 3]
        for arm in comparison.arms:
            best = arm.best()
            winners = trials[trials["method"] == best["method"]]
            assert set(winners["rate"]) == {best["rate"]}
            assert len(winners) == 3
        means = trials.groupby("method")["loss"].mean()
        assert means["fast"] < means["slow"]

    def test_second_call_repeats_nothing(self, outcome):
        folder, comparison = outcome
        files = {file: file.stat().st_mtime_ns for file in folder.rglob("trials.parquet")}
        again = compare(experiment(), budget=6, seeds=3, output_dir=folder, **QUIET)
        assert {file: file.stat().st_mtime_ns for file in folder.rglob("trials.parquet")} == files
        assert list(again.winners.trials["loss"]) == list(comparison.winners.trials["loss"])
        with pytest.raises(FolderError, match="another comparison"):
            compare(experiment(), budget=7, seeds=3, output_dir=folder, **QUIET)

    def test_message_names_an_arm_without_a_winner(self, tmp_path):
        broken = experiment().with_values({"broken": "slow"})
        with pytest.raises(TrialError, match=r"no trial of methods\.slow finished"):
            compare(broken, budget=2, seeds=1, output_dir=tmp_path / "out", **QUIET)


@pytest.mark.parametrize(
    ("changes", "numbers", "message"),
    [
        ({"space": Space({"method": "fast"}, keys={})}, {"budget": 3}, "has nothing to compare; give its space roles"),
        ({}, {"budget": 0}, "at least 1; got 0 and 5"),
        ({}, {"budget": 3, "seeds": 0}, "at least 1; got 3 and 0"),
    ],
)
def test_impossible_comparisons_are_rejected(changes, numbers, message, tmp_path):
    searcher = {"searcher": "grid", "num_samples": None} if changes else {}
    with pytest.raises(InvalidExperimentError, match=message):
        compare(experiment(**changes, **searcher), output_dir=tmp_path / "out", **numbers)
    assert not (tmp_path / "out").exists()


def test_interrupted_arm_is_the_last_one_to_be_resumed(tmp_path, monkeypatch):
    arms = [experiment().replace(name=name) for name in "ab"]
    states = {one.name: SimpleNamespace(experiment=one.to_json() | {"state": "interrupted"}) for one in arms}
    resumed = []

    def interrupted(folder, **options):
        resumed.append(folder.name)
        return [states[folder.name]]

    monkeypatch.setattr(tune_and_compare, "ExperimentFolder", lambda folder: SimpleNamespace(holds_experiment=True))
    monkeypatch.setattr(tune_and_compare, "load", lambda folder: states[folder.name])
    monkeypatch.setattr(tune_and_compare, "resume", interrupted)
    with pytest.raises(TrialError, match=r"stopped: interrupted; call it again with this folder to resume it"):
        tune_and_compare._run_or_resume(arms, [tmp_path / one.name for one in arms], {})
    assert resumed == ["a"]
