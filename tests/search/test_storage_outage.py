"""A storage that fails for a while does not fail trials, and a resumed search repeats what was not saved."""

import errno

from ray import tune

from tune_hpc import Experiment, Space, resume, run
from tune_hpc.errors import FolderError
from tune_hpc.storage import retries
from tune_hpc.storage.filesystem import Storage

LOCAL = {"runner": "local", "show_progress": False, "checkpoint_interval_s": 0.0}


class Outage:
    """Rejects the writes of some files while it is active."""

    def __init__(self, monkeypatch, suffix):
        self.is_active = False
        monkeypatch.setattr(retries, "RETRY_S", 0.0)
        write = Storage._write_durable

        def fail(storage, path, *arguments):
            if self.is_active and path.name.endswith(suffix):
                error = OSError(errno.EROFS, "Read-only file system")
                raise FolderError(f"{path} cannot be written: {error.strerror}") from error
            return write(storage, path, *arguments)

        monkeypatch.setattr(Storage, "_write_durable", fail)


def train(config, report, checkpoint):
    state = checkpoint.load() or {"step": 0}
    for step in range(state["step"] + 1, 4):
        config["outage"].is_active = config["x"] == 1 and step == 2
        report(step, {"loss": config["x"] / step})
        checkpoint.save(step, lambda step=step: {"step": step})


def searching(trainable):
    return Experiment("outage", Space({"x": tune.choice([0, 1, 2])}), trainable, metric="loss", mode="min", seeds=())


def test_checkpoint_that_cannot_be_written_does_not_fail_the_trial(monkeypatch, tmp_path, capsys):
    outage = Outage(monkeypatch, ".checkpoint")
    results = run(searching(lambda c, report, checkpoint: train({**c, "outage": outage}, report, checkpoint)),
                  output_dir=tmp_path / "out", **LOCAL)  # fmt: skip
    assert results.counts() == {"finished": 3}
    assert "the state after step 2 is not saved" in capsys.readouterr().out


def test_trial_whose_results_cannot_be_written_runs_again_after_a_resume(monkeypatch, tmp_path, capsys):
    outage = Outage(monkeypatch, "t00001.parquet")

    def breaks_at_the_end(config, report):
        report(1, {"loss": config["x"]})
        outage.is_active = config["x"] == 1

    interrupted = run(searching(breaks_at_the_end), output_dir=tmp_path / "out", **LOCAL)
    assert interrupted.experiment["state"] == "interrupted"
    assert interrupted.counts() == {"finished": 2, "running": 1}
    assert "the metrics are not saved" in capsys.readouterr().out
    (results,) = resume(tmp_path / "out", trainable=lambda config, report: report(1, {"loss": config["x"]}), **LOCAL)
    assert results.counts() == {"finished": 3}
    assert list(results.trials["attempt"]) == [1, 2, 1]


def test_checkpoint_that_cannot_be_read_leaves_the_trial_for_a_resume(monkeypatch, tmp_path):
    download, is_active = Storage.download, True

    def fail(storage, name):
        if is_active and str(name).endswith("t00001.checkpoint"):
            raise FolderError("no answer") from OSError(errno.ESTALE, "stale")
        return download(storage, name)

    monkeypatch.setattr(retries, "RETRY_S", 0.0)
    monkeypatch.setattr(Storage, "download", fail)

    def loads(config, report, checkpoint):
        checkpoint.load()
        report(1, {"loss": config["x"]})

    assert run(searching(loads), output_dir=tmp_path / "out", **LOCAL).counts() == {"finished": 2, "running": 1}
    is_active = False
    assert resume(tmp_path / "out", trainable=loads, **LOCAL)[0].counts() == {"finished": 3}


def test_short_outage_of_a_search_is_bridged(monkeypatch, tmp_path):
    write, failures = Storage._write_atomic, [OSError(errno.EIO, "Input/output error")] * 3

    def fail(self, path, *arguments):
        if failures and path.name == "t00001.parquet":
            raise FolderError("no answer") from failures.pop()
        return write(self, path, *arguments)

    monkeypatch.setattr(retries, "PAUSE_S", 0.01)
    monkeypatch.setattr(Storage, "_write_atomic", fail)
    results = run(
        searching(lambda config, report: report(1, {"loss": config["x"]})), output_dir=tmp_path / "o", **LOCAL
    )
    assert not failures
    assert results.counts() == {"finished": 3}
