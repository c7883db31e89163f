"""Combinations of searchers and schedulers on a space of which a third diverges."""

from collections import defaultdict

import pytest
from optuna.trial import TrialState
from ray import tune

from tests.search import trainables
from tune_hpc import Experiment, Space, run_all, to_optuna
from tune_hpc.search.options import ADAPTIVE
from tune_hpc.search.searchers.optuna_study import AskTellStudy

STEPS = 27
#: Combinations that no other test has; more are in test_resume_extend.py and test_schedulers.py.
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


@pytest.mark.slow
def test_all_combinations_finish_and_leave_no_trial_running(tmp_path, monkeypatch):
    studies = defaultdict(list)

    class Seen(AskTellStudy):
        def __init__(self, space, sampler, mode, seed):
            super().__init__(space, sampler, mode, seed)
            studies[sampler].append(self)

    monkeypatch.setattr("tune_hpc.search.searchers.optuna_study.AskTellStudy", Seen)
    experiments = [descent(searcher, scheduler) for searcher, scheduler in COMBINATIONS]
    results = run_all(
        experiments, folders=[tmp_path / one.name for one in experiments], show_progress=False, runner="local"
    )
    monkeypatch.undo()
    for result in results:
        assert result.experiment["state"] == "finished", result.name
        assert len(result.trials) == 12, result.name
        healthy = result.trials["x"] <= 0.67
        if result.experiment["scheduler"] == "pbt":
            # A member that does not diverge at once copies another such member.
            assert set(result.trials.loc[healthy, "status"]) == {"finished"}, result.name
            continue
        assert set(result.trials.loc[~healthy, "status"]) == {"diverged"}, result.name
        assert set(result.trials.loc[healthy, "status"]) <= {"finished", "stopped"}, result.name
        assert result.trials.loc[result.trials["loss"].idxmin(), "status"] == "finished", result.name
        assert set(result.trials.loc[result.trials["status"] == "finished", "steps_run"]) == {STEPS}, result.name
        states = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "diverged": TrialState.COMPLETE}
        exported = [trial.state for trial in to_optuna(result).trials]
        assert exported == [states[status] for status in result.trials["status"]], result.name
    for sampler in ADAPTIVE:
        assert len(studies[sampler]) == sum(searcher == sampler for searcher, _ in COMBINATIONS)
        for study in studies[sampler]:
            assert len(study.trials) == 12
            assert {trial.state for trial in study.trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
