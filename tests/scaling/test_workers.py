"""The rule for disturbed repeats."""

from tune_hpc.scaling.workers import mark_disturbed


def measured(case, *seconds, alone_s=1.0):
    return [
        {"case": case, "repeat": repeat, "step_s": step_s, "alone_s": alone_s} for repeat, step_s in enumerate(seconds)
    ]


def test_repeat_is_disturbed_beyond_1_5_times_the_shortest_step_of_its_case():
    rows = [*measured(0, 1.0, 1.5, 1.6), *measured(1, 40.0, 30.0, 20.0)]
    assert mark_disturbed(rows) == 2
    assert [row["disturbed"] for row in rows] == [False, False, True, True, False, False]


def test_speedup_of_a_disturbed_single_worker_is_disturbed():
    rows = measured(0, 1.0, 1.0, 1.0)
    rows[1]["alone_s"] = 2.0
    assert mark_disturbed(rows) == 1
    assert [row["disturbed"] for row in rows] == [False, True, False]


def test_single_repeat_is_not_disturbed():
    assert mark_disturbed(measured(0, 1.0)) == 0
