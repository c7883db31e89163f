import numpy as np
import pytest

from tests.report.figure_checks import SPECIFICATIONS, assert_no_overlap, legend_texts
from tune_hpc.report import tables
from tune_hpc.report.findings import findings
from tune_hpc.report.plots import figures

STACK, SPEEDUP = SPECIFICATIONS["stack"], SPECIFICATIONS["speedup"]


@pytest.fixture
def measured(trial, results_of):
    """Two repeats on 1, 2 and 4 workers; four share two cores."""

    def make(widths=(1.0,), numbers=(1, 2, 4), **more):
        trials = []
        for number, (width, workers, seed) in enumerate(
            (width, workers, seed) for width in widths for workers in numbers for seed in (0, 1)
        ):
            row, history = trial(f"{number:05d}", workers=workers, seed=seed, width=width)
            row |= {
                "compute_s": 1.0 / workers, "communicate_s": 0.1 * (workers - 1) + 0.02 * seed, "speedup": workers**0.5,
                "efficiency": workers**-0.5 + 0.01 * seed, "oversubscribed": workers == 4,
                "step_s": 1.0 / workers + 0.1 * (workers - 1) + 0.02 * seed, "mode": "strong", "batch_size": 150,
            } | more  # fmt: skip
            trials.append((row, history.iloc[:0]))
        return results_of(*trials, config_keys=["workers", "width", "seed"])

    return make


def test_parts_are_stacked(measured):
    sheet = figures.draw(measured(), STACK)[0]
    bars = sheet.axes[0].patches
    assert [bar.get_height() for bar in bars[:3]] == [1.0, 0.5, 0.25]
    np.testing.assert_allclose([bar.get_y() for bar in bars[3:]], [1.0, 0.5, 0.25])
    np.testing.assert_allclose([bar.get_height() for bar in bars[3:]], [0.01, 0.11, 0.31])
    assert [text.get_text() for text in sheet.axes[0].texts] == ["1.01", "0.61", "0.56"]
    assert legend_texts(sheet) == ["communicate", "compute"]
    assert (sheet.axes[0].get_xlabel(), sheet.axes[0].get_ylabel()) == ("workers", "seconds a step")
    assert "With workers 4 they share cores or GPUs." in sheet.caption
    assert_no_overlap(sheet)


def test_speedup_has_ideal_line(measured):
    sheet = figures.draw(measured(), SPEEDUP)[0]
    speedup, efficiency = sheet.axes
    ideal, measured_line = speedup.get_lines()
    assert list(ideal.get_ydata()) == [1, 2, 4]
    np.testing.assert_allclose(measured_line.get_ydata(), [1, 2**0.5, 2])
    assert list(efficiency.get_lines()[0].get_ydata()) == [1, 1, 1]
    assert [label.get_text() for label in speedup.get_xticklabels()] == ["1", "2", "4"]
    assert speedup.get_ylim()[0] == efficiency.get_ylim()[0] == 0
    assert_no_overlap(sheet)


def test_line_per_width_and_no_stack_of_several_widths(measured):
    results = measured((0.5, 1.0))
    sheet = figures.draw(results, {**SPEEDUP, "line": "width"})[0]
    assert len(sheet.axes[0].get_lines()) == 3
    assert legend_texts(sheet) == ["0.5", "1", "if nothing were lost"]
    assert figures.draw(results, STACK) == []
    assert [sheet.title for sheet in figures.draw(results, {**STACK, "page": "width"})] == [
        "Title: width 0.5", "Title: width 1",
    ]  # fmt: skip


def test_findings_state_speedup_and_suggest_no_wider_search(measured):
    sentences = findings(measured())
    gain = "4 workers reach a speed-up of 2.00, an efficiency of 50%; "
    assert gain + "communication adds 55% of a step." in sentences
    assert not any("boundary of the search space" in one for one in sentences)
    widths = findings(measured((0.5, 1.0)))
    assert [one.partition(" reach ")[0] for one in widths if "communication" in one] == [
        "4 workers at width 0.5", "4 workers at width 1",
    ]  # fmt: skip
    assert not any("communication" in one for one in findings(measured(numbers=(1,))))


def test_scaling_measurement_has_no_budget_or_interactions(measured):
    results = measured((0.25, 0.5, 1.0, 2.0), numbers=(1, 2, 4, 8, 16))
    assert [one["kind"] for one in figures.default_figures(results)] == [
        "speedup", "stack", "cost", "links", "widths",
    ]  # fmt: skip
    assert [title for title, _, _ in tables.report_tables(results)] == ["Best trials", "Trials by status"]


def test_no_figure_without_measurements(trial, results_of):
    for kind in ("stack", "speedup"):
        assert figures.draw(results_of(trial("0")), SPECIFICATIONS[kind]) == []
