"""Progress of a search: counts, lines and the bar."""

import io
import math

import pytest

from tune_hpc.search.progress import LINE_INTERVAL_S, SearchProgress, TrialCounts


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def line_progress(num_trials=4):
    clock, stream = Clock(), io.StringIO()
    counts = TrialCounts(num_trials)
    return counts, clock, stream, SearchProgress([counts], {"a": "test_loss", "b": "test_accuracy"}, stream, clock)


@pytest.mark.parametrize(("mode", "best"), [("min", (0.1, "t1")), ("max", (0.9, "t2"))])
def test_best_value_is_recorded_with_its_trial(mode, best):
    counts = TrialCounts(4)
    for trial_id, value in (("t0", 0.5), ("t1", 0.1), ("t2", 0.9), ("t3", 0.5)):
        counts.record_value("a", trial_id, value, mode)
    assert counts.best == {"a": best}


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_non_finite_values_have_no_effect(mode, value):
    counts = TrialCounts(4)
    counts.record_value("a", "t0", value, mode)
    assert counts.best == {}
    counts.record_value("a", "t1", 0.5, mode)
    counts.record_value("a", "t2", value, mode)
    assert counts.best == {"a": (0.5, "t1")}


def test_summary_omits_zero_counts():
    counts = TrialCounts(9)
    assert counts.summary() == ""
    counts.running = 2
    counts.ended.update(finished=3, diverged=1, failed=1)
    assert counts.summary() == "2 running, 1 diverged, 1 failed"
    assert counts.num_ended == 5


def test_line_is_written_each_minute_and_at_the_end():
    counts, clock, stream, progress = line_progress()
    with progress:
        for _ in range(int(2.5 * LINE_INTERVAL_S)):
            clock.now += 1
            progress.update()
        assert len(stream.getvalue().splitlines()) == 2
        counts.ended["finished"] = 4
    lines = stream.getvalue().splitlines()
    assert lines == ["0/4 trials, 60 s", "0/4 trials, 120 s", "4/4 trials, 150 s"]


def test_line_has_the_time_left_the_counts_and_the_best():
    counts, clock, stream, progress = line_progress()
    with progress:
        clock.now += LINE_INTERVAL_S
        counts.running = 2
        counts.ended.update(finished=1, diverged=1)
        counts.record_value("a", "t00001", 0.123456, "min")
        progress.update()
        assert stream.getvalue() == (
            "2/4 trials, 60 s, about 60 s left; 2 running, 1 diverged; best test_loss 0.1235 (t00001)\n"
        )


def test_best_values_of_several_experiments_are_not_shown():
    counts, _, stream, progress = line_progress()
    counts.record_value("a", "t0", 0.1, "min")
    counts.record_value("b", "t0", 0.9, "max")
    with progress:
        pass
    assert "best" not in stream.getvalue()


def test_last_line_is_written_after_an_interrupt():
    _, clock, stream, progress = line_progress()
    progress.__enter__()
    clock.now += 5
    progress.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert stream.getvalue() == "0/4 trials, 5 s\n"


def test_terminal_shows_a_bar(monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("TERM", "xterm")
    counts, stream = TrialCounts(4), Terminal()
    with SearchProgress([counts], {"a": "test_loss"}, stream) as progress:
        counts.ended["finished"] = 3
        counts.running = 1
        counts.record_value("a", "t00002", 0.25, "min")
        progress.update()
    shown = stream.getvalue()
    assert "3/4 trials" in shown
    assert "1 running; best test_loss 0.25 (t00002)" in shown
    assert "left" in shown
    assert "\x1b[" in shown
