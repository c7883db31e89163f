"""Searchers with schedulers, on a space of which a third diverges; on a real Ray."""

from collections import defaultdict

import pytest
from optuna.trial import TrialState
from ray import tune

from tests.search import trainables
from tune_hpc import Experiment, Space, run_all, to_optuna
from tune_hpc.search.options import ADAPTIVE
from tune_hpc.search.searchers.optuna_study import AskTellStudy

STEPS = 27
#: Those that no other test has: test_going_on.py and test_schedulers.py have more.
COMBINATIONS = (
    ("grid", "asha"), ("quasi_random", "asha"), ("tpe", "asha"), ("gp", "asha"), ("gp", "asha_stopping"),
    ("gp", "hyperband"), ("grid", "median"), ("quasi_random", "pbt"),
)  # fmt: skip
VALUES = [number / 12 for number in range(12)]


def descent(searcher: str, scheduler: str) -> Experiment:
    domain = tune.choice(VALUES) if searcher == "grid" else tune.uniform(0, 1)
    space = Space({"x": domain, "steps": STEPS}, keys={})
    return Experiment(
        f"{searcher}.{scheduler}", space, trainables.slides, metric="loss", mode="min", seeds=(), searcher=searcher,
        scheduler=scheduler, num_samples=None if searcher == "grid" else 12,
    )  # fmt: skip


@pytest.mark.ray
@pytest.mark.slow
def test_all_of_them_finish_and_leave_nothing_running(ray_session, tmp_path, monkeypatch):
    studies = defaultdict(list)

    class Seen(AskTellStudy):
        def __init__(self, space, sampler, mode, seed):
            super().__init__(space, sampler, mode, seed)
            studies[sampler].append(self)

    monkeypatch.setattr("tune_hpc.search.searchers.optuna_study.AskTellStudy", Seen)
    experiments = [descent(searcher, scheduler) for searcher, scheduler in COMBINATIONS]
    results = run_all(experiments, folders=[tmp_path / one.name for one in experiments], show_progress=False)
    for one in results:
        assert one.experiment["state"] == "finished", one.name
        assert len(one.trials) == 12, one.name
        healthy = one.trials["x"] <= 0.67
        if one.experiment["scheduler"] == "pbt":
            # Whoever does not diverge at once copies one that does not.
            assert set(one.trials.loc[healthy, "status"]) == {"finished"}, one.name
            continue
        assert set(one.trials.loc[~healthy, "status"]) == {"diverged"}, one.name
        assert set(one.trials.loc[healthy, "status"]) <= {"finished", "stopped"}, one.name
        assert one.trials.loc[one.trials["loss"].idxmin(), "status"] == "finished", one.name
        assert set(one.trials.loc[one.trials["status"] == "finished", "steps_run"]) == {STEPS}, one.name
        states = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "diverged": TrialState.COMPLETE}
        told = [trial.state for trial in to_optuna(one).trials]
        assert told == [states[status] for status in one.trials["status"]], one.name
    monkeypatch.undo()
    for sampler in ADAPTIVE:
        assert len(studies[sampler]) == sum(searcher == sampler for searcher, _ in COMBINATIONS)
        for study in studies[sampler]:
            assert len(study.trials) == 12
            assert {trial.state for trial in study.trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
