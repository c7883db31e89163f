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
    tally = TrialCounts(num_trials)
    return tally, clock, stream, SearchProgress([tally], {"a": "test_loss", "b": "test_accuracy"}, stream, clock)


@pytest.mark.parametrize(("mode", "best"), [("min", (0.1, "t1")), ("max", (0.9, "t2"))])
def test_the_best_value_is_kept_with_its_trial(mode, best):
    tally = TrialCounts(4)
    for trial_id, value in (("t0", 0.5), ("t1", 0.1), ("t2", 0.9), ("t3", 0.5)):
        tally.record_value("a", trial_id, value, mode)
    assert tally.best == {"a": best}


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_counts_for_nothing(mode, value):
    tally = TrialCounts(4)
    tally.record_value("a", "t0", value, mode)
    assert tally.best == {}
    tally.record_value("a", "t1", 0.5, mode)
    tally.record_value("a", "t2", value, mode)
    assert tally.best == {"a": (0.5, "t1")}


def test_counts_leave_out_what_there_is_none_of():
    tally = TrialCounts(9)
    assert tally.summary() == ""
    tally.running = 2
    tally.ended.update(finished=3, diverged=1, failed=1)
    assert tally.summary() == "2 running, 1 diverged, 1 failed"
    assert tally.num_ended == 5


def test_without_a_terminal_there_is_a_line_a_minute_and_one_at_the_end():
    tally, clock, stream, progress = line_progress()
    with progress:
        for _ in range(int(2.5 * LINE_INTERVAL_S)):
            clock.now += 1
            progress.update()
        assert len(stream.getvalue().splitlines()) == 2
        tally.ended["finished"] = 4
    lines = stream.getvalue().splitlines()
    assert lines == ["0/4 trials, 60 s", "0/4 trials, 120 s", "4/4 trials, 150 s"]


def test_a_line_tells_the_time_left_the_counts_and_the_best():
    tally, clock, stream, progress = line_progress()
    with progress:
        clock.now += LINE_INTERVAL_S
        tally.running = 2
        tally.ended.update(finished=1, diverged=1)
        tally.record_value("a", "t00001", 0.123456, "min")
        progress.update()
        assert stream.getvalue() == (
            "2/4 trials, 60 s, about 60 s left; 2 running, 1 diverged; best test_loss 0.1235 (t00001)\n"
        )


def test_the_best_values_of_several_experiments_are_not_mixed():
    tally, _, stream, progress = line_progress()
    tally.record_value("a", "t0", 0.1, "min")
    tally.record_value("b", "t0", 0.9, "max")
    with progress:
        pass
    assert "best" not in stream.getvalue()


def test_the_last_line_is_written_when_the_search_breaks_off():
    _, clock, stream, progress = line_progress()
    progress.__enter__()
    clock.now += 5
    progress.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert stream.getvalue() == "0/4 trials, 5 s\n"


def test_on_a_terminal_there_is_a_bar(monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("TERM", "xterm")
    tally, stream = TrialCounts(4), Terminal()
    with SearchProgress([tally], {"a": "test_loss"}, stream) as progress:
        tally.ended["finished"] = 3
        tally.running = 1
        tally.record_value("a", "t00002", 0.25, "min")
        progress.update()
    shown = stream.getvalue()
    assert "3/4 trials" in shown
    assert "1 running; best test_loss 0.25 (t00002)" in shown
    assert "left" in shown
    assert "\x1b[" in shown
