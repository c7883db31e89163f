"""Reports and checkpoints of a trial, without Ray; stop requests are in test_stopping.py."""

import json
import math

import numpy as np
import pytest
import torch

from tune_hpc.search import reporter
from tune_hpc.search.reporter import (
    REPORT_INTERVAL_S,
    WRITE_INTERVAL_S,
    WRITE_RATIO,
    Diverged,
    LiveReporter,
    Reporter,
    SchedulerReporter,
    Throttle,
    returned_columns,
)
from tune_hpc.search.stopping import StopRequested
from tune_hpc.search.trial_checkpoint import TrialCheckpoint
from tune_hpc.search.trial_spec import RankedMetric
from tune_hpc.storage.trial_file import TrialFileWriter


class Clock:
    now = 50.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(reporter.time, "monotonic", clock.monotonic)
    return clock


@pytest.fixture
def forwarded():
    return []


@pytest.fixture
def report(clock, forwarded):
    return Reporter(TrialFileWriter({}), RankedMetric("test_loss", "min"), lambda value, step: forwarded.append(value))


def test_reported_metrics_are_recorded(report):
    report(1, {"test_loss": 0.5})
    report(np.arange(2, 4), {"train_loss": np.array([0.4, 0.3]), "test_loss": [0.2, 0.1]})
    report(3, {"note": np.float32(7)})
    history = report.writer.history()
    assert history["step"].tolist() == [1, 2, 3]
    assert history["test_loss"].tolist() == [0.5, 0.2, 0.1]
    assert history["train_loss"].tolist()[1:] == [0.4, 0.3]
    assert history["note"].tolist()[2] == 7


def test_torch_numbers_are_accepted(report):
    report(torch.tensor(3), {"test_loss": torch.tensor(0.5), "curve": torch.tensor([0.25])})
    assert report.writer.history().to_dict("records") == [{"step": 3, "test_loss": 0.5, "curve": 0.25}]


@pytest.mark.parametrize("name", ["test_loss", "train_loss", "my_own_loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_loss_ends_the_trial(report, name, value):
    with pytest.raises(Diverged, match=f"non-finite {name} at step 7"):
        report(7, {"W": 1.0, name: value})


def test_metrics_before_a_divergence_are_recorded(report):
    report(0, {"train_loss": 1.0})
    with pytest.raises(Diverged, match="non-finite train_loss at step 3"):
        report([1, 2, 3, 4], {"train_loss": [0.9, 0.8, math.nan, 0.7], "W": [1, 2, 3, 4]})
    history = report.writer.history()
    assert history["step"].tolist() == [0, 1, 2]
    assert history["train_loss"].tolist() == [1.0, 0.9, 0.8]
    assert history["W"].tolist()[1:] == [1, 2]


def test_other_metrics_may_be_non_finite(report):
    report(1, {"W": math.inf, "gradient_norm": math.nan, "test_loss": 1.0})
    assert report.writer.history()["W"].tolist() == [math.inf]


def test_metric_that_ranks_trials_must_be_finite(clock):
    with pytest.raises(Diverged, match="non-finite score at step 1"):
        Reporter(TrialFileWriter({}), RankedMetric("score", "max"), print)(1, {"score": math.nan})


@pytest.mark.parametrize("value", [[1.0, 2.0], [], "high", [[1.0, 2.0]]])
def test_message_names_a_metric_that_does_not_match_its_steps(report, value):
    with pytest.raises(ValueError, match=r"report takes one number for each step; test_loss has .* for 1$"):
        report(3, {"test_loss": value})


def test_empty_arrays_have_no_effect(report, clock, forwarded):
    clock.now += 10 * REPORT_INTERVAL_S
    report([], {"test_loss": []})
    report(np.arange(0), {"test_loss": np.empty(0)})
    assert forwarded == []
    assert len(report.writer.history()) == 0


def test_last_value_of_the_metric_is_forwarded_as_a_float(report, forwarded):
    report(1, {"train_loss": 0.5})
    assert forwarded == []
    report(np.arange(5), {"test_loss": np.linspace(1, 0.2, 5)})
    assert forwarded == [pytest.approx(0.2)]
    assert json.dumps(forwarded)


def test_best_value_so_far_is_forwarded(clock, forwarded):
    report = Reporter(
        TrialFileWriter({}), RankedMetric("valid_accuracy", "max", "best"), lambda value, step: forwarded.append(value)
    )
    for step, accuracy in enumerate((0.5, 0.9, 0.7)):
        report(step, {"train_loss": 1.0})
        report(step, {"valid_accuracy": accuracy, "test_accuracy": 1.0})
    assert forwarded == [0.5, 0.9, 0.9]


def test_latest_values_are_reported_at_most_once_a_second(clock):
    results = []
    live = LiveReporter(results.append)
    notes = [live.for_trial(name) for name in ("a", "b")]
    for step in range(100):
        clock.now += REPORT_INTERVAL_S / 10
        notes[step % 2](float(step), step)
    assert len(results) in (9, 10)
    for result in results:
        (first, second) = sorted(result["trials"], key=lambda line: line["trial_id"])
        assert (first["trial_id"], second["trial_id"]) == ("a", "b")
        assert abs(first["value"] - second["value"]) == 1.0
        assert (first["steps"], second["steps"]) == (first["value"], second["value"])
    rows = [
        {"trial_id": "a", "status": "finished", "loss": 0.5, "steps_run": 100},
        {"trial_id": "b", "status": "failed", "steps_run": 7},
    ]
    live.report_end(rows, "loss", {"took_s": 0.5})
    assert results[-1] == {
        "trials": [
            {"trial_id": "a", "status": "finished", "value": 0.5, "steps": 100},
            {"trial_id": "b", "status": "failed", "value": None, "steps": 7},
        ],
        "last": True,
        "took_s": 0.5,
    }


class TestSchedulerReporter:
    def reporter(self, results, forwarded, judge, written):
        metric, writer = RankedMetric("valid_accuracy", "max", judge), TrialFileWriter({})
        decision = SchedulerReporter(results.append, "t00000", metric, writer, lambda: written.append(1))
        return Reporter(writer, RankedMetric("test_loss", "min"), lambda value, step: forwarded.append(value), decision)

    @pytest.mark.parametrize(("judge", "shown"), [("best", [0.5, 0.5, 0.7]), ("last", [0.5, 0.4, 0.7])])
    def test_every_result_has_the_monitored_metric(self, forwarded, clock, judge, shown):
        results, written = [], []
        report = self.reporter(results, forwarded, judge, written)
        for step, accuracy in ((10, 0.5), (20, 0.4), (30, 0.7)):
            clock.now += 2 * REPORT_INTERVAL_S
            report(np.arange(step - 9, step + 1), {"train_loss": np.ones(10)})
            report(step, {"valid_accuracy": accuracy, "test_loss": 0.1})
        assert [(one["step"], one["value"]) for one in results] == list(zip((10, 20, 30), shown, strict=True))
        assert forwarded == []
        assert len(written) == 3

    def test_file_is_written_before_the_scheduler_decides(self, forwarded):
        order = []
        metric, writer = RankedMetric("loss", "min"), TrialFileWriter({})
        decision = SchedulerReporter(
            lambda result: order.append("reported"), "t00000", metric, writer, lambda: order.append("written")
        )
        Reporter(writer, metric, lambda value, step: forwarded.append(value), decision)(1, {"loss": 0.5})
        assert order == ["written", "reported"]


class TestThrottle:
    def test_fast_call_is_made_every_few_seconds(self, clock):
        done = []
        limited = Throttle(lambda: done.append(clock.now))
        for _ in range(10 * int(WRITE_INTERVAL_S)):
            clock.now += 0.5
            limited()
        assert np.diff(done).tolist() == [WRITE_INTERVAL_S] * 4

    def test_slow_call_takes_a_hundredth_of_the_time(self, clock):
        done = []

        def slow():
            clock.now += 2.0
            done.append(clock.now)

        limited = Throttle(slow)
        while clock.now < 1050:
            clock.now += 0.5
            limited()
        assert np.diff(done).tolist() == [WRITE_RATIO * 2.0 + 2.0] * (len(done) - 1)
        assert len(done) == 5

    def test_reporter_writes_after_each_report(self, clock, forwarded):
        lengths = []
        writer = TrialFileWriter({})
        report = Reporter(
            writer,
            RankedMetric("loss", "min"),
            lambda value, step: forwarded.append(value),
            write=lambda: lengths.append(len(writer.history())),
        )
        report(np.arange(4), {"loss": np.ones(4)})
        report(9, {"other": 1.0})
        assert lengths == [4, 5]


def test_checkpoint_is_saved_once_per_interval(tmp_path, clock):
    made = []
    checkpoint = TrialCheckpoint(tmp_path / "t.checkpoint", [TrialFileWriter({})], interval_s=60)

    def state():
        made.append(clock.now)
        return {"weights": torch.ones(2)}

    assert checkpoint.load() is None
    for step in range(10):
        clock.now += 20
        checkpoint.save(step, state)
    assert len(made) == 3
    assert [file.name for file in tmp_path.iterdir()] == ["t.checkpoint"]


def test_checkpoint_restores_state_and_metrics(tmp_path, clock):
    writer = TrialFileWriter({})
    writer.add(np.arange(3), {"train_loss": np.array([3.0, 2.0, 1.0])})
    writer.add(3, {"test_loss": 0.5})
    clock.now += 1
    TrialCheckpoint(tmp_path / "t.checkpoint", [writer], interval_s=0).save(3, lambda: {"step": 3, "w": torch.ones(2)})

    again = TrialFileWriter({})
    again.add(99, {"train_loss": 9.0})
    state = TrialCheckpoint(tmp_path / "t.checkpoint", [again], interval_s=0).load()
    assert state["step"] == 3
    assert torch.equal(state["w"], torch.ones(2))
    assert again.history().equals(writer.history())


@pytest.mark.parametrize("step", [3.0, np.float64(3), np.array(3), torch.tensor(3)])
def test_step_of_a_state_is_a_whole_number(tmp_path, step):
    path = tmp_path / "t00000.checkpoint"
    TrialCheckpoint(path, [TrialFileWriter({})], 0.0).save(step, lambda: {"step": 3})
    with pytest.raises(StopRequested):
        TrialCheckpoint(path, [TrialFileWriter({})], 0.0, max_step=3).load()


@pytest.mark.parametrize("step", ["3", -1, 1.5, "../../x", True, [1, 2], None])
def test_state_at_another_step_is_rejected(tmp_path, step):
    checkpoint = TrialCheckpoint(tmp_path / "t00000.checkpoint", [TrialFileWriter({})], 0.0)
    for offer in (checkpoint.save, checkpoint.keep):
        with pytest.raises(ValueError, match="step"):
            offer(step, lambda: {})
    assert list(tmp_path.iterdir()) == []


def test_state_of_the_step_at_which_a_trial_stops_ends_it_at_once(tmp_path):
    def checkpoint(max_step, may_pause=True):
        writer = TrialFileWriter({})
        path = tmp_path / "t00000.checkpoint"
        return TrialCheckpoint(path, [writer], 0.0, max_step=max_step, may_pause=lambda: may_pause), writer

    first, writer = checkpoint(3)
    writer.add(3, {"loss": 0.5})
    with pytest.raises(StopRequested):
        first.save(3, lambda: {"step": 3})
    # Its process was killed before the scheduler knew of the pause.
    second, writer = checkpoint(3)
    with pytest.raises(StopRequested):
        second.load()
    assert second.has_stopped
    assert writer.history()["loss"].tolist() == [0.5]
    for promoted in (checkpoint(4), checkpoint(None), checkpoint(3, may_pause=False)):
        assert promoted[0].load() == {"step": 3}
        assert not promoted[0].has_stopped


@pytest.mark.parametrize("value", ["0.5", b"0.5", None, ["0.5"]])
def test_text_and_none_are_no_metrics(report, value):
    with pytest.raises(ValueError, match="report takes one number for each step"):
        report(1, {"loss": value})
    with pytest.raises(ValueError, match="report takes one number for each step"):
        returned_columns({"loss": value}, "loss", {})


def test_returned_integers_of_more_than_64_bits_are_floats():
    assert returned_columns({"my_loss": 10**19, "acc": 2**63, "hash": 2**63}, "acc", {}) == {
        "my_loss": 1e19, "acc": 2.0**63, "hash": 2**63,
    }  # fmt: skip
    with pytest.raises(Diverged, match="non-finite loss, which the trainable returned"):
        returned_columns({"loss": 10**400}, "loss", {})
