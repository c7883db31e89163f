"""Stop of a search after failed trials."""

import re

import pytest
from ray import tune

from tests.search.trainables import dies
from tune_hpc import Experiment, Space, cli, resume, run
from tune_hpc.search.stopping import StopCriteria

LOCAL = {"runner": "local", "show_progress": False}


def fails_below(config, report):
    """Raise for small values."""
    if config["x"] < config["limit"]:
        raise RuntimeError(f"{config['x']} is too small")
    report(1, {"loss": config["x"]})


def search(trainable=fails_below, limit=9, num_trials=8) -> Experiment:
    space = Space({"x": tune.choice(list(range(num_trials))), "limit": limit}, keys={})
    return Experiment("search", space, trainable, metric="loss", mode="min", seeds=())


@pytest.mark.parametrize(
    ("limit", "max_failures", "counts"),
    [
        (9, None, {"failed": 3}), (2, None, {"failed": 2, "finished": 6}), (9, 0, {"failed": 8}),
        (9, 5, {"failed": 5}), (4, 5, {"failed": 4, "finished": 4}),
    ],
)  # fmt: skip
def test_search_stops_at_the_limit(tmp_path, limit, max_failures, counts):
    results = run(search(limit=limit), output_dir=tmp_path / "out", max_failures=max_failures, **LOCAL)
    assert results.counts() == counts
    is_complete = sum(counts.values()) == 8
    assert results.experiment["state"] == ("finished" if is_complete else "stopped")
    assert results.experiment["has_failed"] == (not is_complete)


def test_only_failures_of_this_run_count(tmp_path):
    out = tmp_path / "out"
    assert run(search(), output_dir=out, max_failures=2, **LOCAL).counts() == {"failed": 2}
    (resumed,) = resume(out, max_failures=2, **LOCAL)
    assert resumed.counts() == {"failed": 4}
    assert resumed.experiment["ended_by"] == "2 of 2 trials failed, and the limit was 2"


def test_reason_is_printed_and_the_exit_code_is_1(write_module, capsys):
    write_module("broken", "def train(config, report):\n    import no_such_module\n")
    arguments = ["run", "broken:train", "--set", "x=1,2,3,4,5", "--local", "--no-report", "--output-dir", "out"]
    assert cli.main(arguments) == cli.FAILURE
    out = capsys.readouterr().out
    assert "broken.train: 3 failed\n" in out
    assert re.search(
        r"^broken.train: the first trials all failed; correct the cause, or allow failures with --max-failures 0; "
        r"to resume: tune-hpc resume .*out$", out, re.MULTILINE,
    )  # fmt: skip
    assert cli.main(["resume", "out", "--max-failures", "0", "--local", "--no-report"]) == cli.FAILURE
    assert "broken.train: 5 failed\n" in capsys.readouterr().out


def test_first_trials_are_judged_together():
    criteria = StopCriteria()
    for num_failed, num_ended in ((0, 0), (1, 1), (2, 2), (2, 3), (9, 10)):
        criteria.record_failures(num_failed, num_ended)
    assert not criteria.is_met()
    criteria.record_failures(12, 12)
    assert criteria.is_met()
    assert criteria.is_user_request


@pytest.mark.ray
def test_processes_that_die_count(ray_session, tmp_path):
    space = Space({"x": tune.choice([2, 1, 3, 4, 5, 6]), "steps": 1}, keys={})
    experiment = Experiment("search", space, dies, metric="loss", mode="min", seeds=())
    results = run(experiment, output_dir=tmp_path / "out", max_failures=1, max_concurrent=1, show_progress=False)
    assert results.experiment["ended_by"] == "1 of 1 trials failed, and the limit was 1"
    assert results.experiment["state"] == "stopped"
