"""Derived tables and figures of a scaling measurement."""

from dataclasses import replace

import pytest

from tests.report.figure_checks import assert_no_overlap
from tune_hpc.errors import UnknownNameError
from tune_hpc.report.findings import findings
from tune_hpc.report.plots import figures
from tune_hpc.report.tables import (
    cost_pareto_front,
    min_efficient_width,
    predicted_against_measured,
    predictions,
    report_tables,
)

LINKS = {"kind": "links", "metrics": ["speedup"], "title": "Predicted", "parameter": "workers"}
COST = {"kind": "cost", "metrics": ["train_s"], "title": "Cost", "parameter": "workers"}
WIDTHS = {"kind": "widths", "metrics": ["efficiency"], "title": "Widths"}
SPEEDUP = {"kind": "speedup", "metrics": ["speedup", "efficiency"], "title": "Speed-up", "parameter": "workers"}
#: Seconds of a step on 1, 2 and 4 workers, in three repeats: medians are 1.0, 0.6 and 0.7.
STEPS = {1: (1.0, 1.1, 0.9), 2: (0.6, 0.5, 5.0), 4: (0.7, 0.7, 0.7)}


def predicted_rows(link, width, steps):
    return [
        {"link": link, "workers": workers, "mode": "strong", "width": width, "batch_size": 150, "step_s": step_s,
         "compute_s": step_s, "communicate_s": 0.0, "samples_per_s": 150 / step_s, "speedup": 1 / step_s,
         "efficiency": 1 / step_s / workers}
        for workers, step_s in steps.items()
    ]  # fmt: skip


@pytest.fixture
def measured(trial, results_of):
    """Return a maker of three repeats on 1, 2 and 4 workers, at each width or with each option."""

    def make(widths=(1.0,), options=("none",)):
        trials = []
        for width in widths:
            for option in options:
                for workers, steps in STEPS.items():
                    for seed, step_s in enumerate(steps):
                        row, history = trial(f"{len(trials):05d}", workers=workers, seed=seed, width=width)
                        step_s *= 0.5 if option == "larger_steps" and workers > 1 else 1.0
                        row |= {
                            "mode": "strong", "option": option, "batch_size": 150, "step_s": step_s,
                            "train_s": 10 * step_s, "worker_s": 10 * step_s * workers, "speedup": 1 / step_s,
                            "efficiency": 1 / step_s / workers, "compute_s": step_s, "communicate_s": 0.0,
                            "test_accuracy": 0.95 if option == "larger_steps" else 0.98, "local_steps": 1,
                            "batches_per_step": 4 if option == "larger_steps" else 1,
                        }  # fmt: skip
                        trials.append((row, history.iloc[:0]))
        made = results_of(*trials, config_keys=["workers", "width", "seed", "mode", "option"])
        rows = [row for width in widths for row in predicted_rows("this machine", width, {1: 1.0, 2: 0.66, 4: 0.63})]
        rows += [
            row for width in widths for row in predicted_rows("NVLink 4", width, {1: 1.0, 2: 0.5, 4: 0.25, 8: 0.2})
        ]
        made.experiment["predictions"] = rows
        made.experiment["widths"] = [
            {"link": "this machine", "workers": 2, "aim": 0.8, "width": 1.5, "best_efficiency": 0.9,
             "best_width": 4.0, "narrowest": 0.25, "widest": 4.0},
            {"link": "this machine", "workers": 4, "aim": 0.8, "width": None, "best_efficiency": 0.4,
             "best_width": 4.0, "narrowest": 0.25, "widest": 4.0},
        ]  # fmt: skip
        made.experiment["probes"] = [
            {"probe": "compute", "width": width, "batch_size": 150, "share": share, "seconds": 1 / share + 0.1}
            for width in widths for share in (1, 2, 10)
        ]  # fmt: skip
        return made

    return make


def test_predictions_are_compared_with_the_median_of_the_repeats(measured):
    table = predicted_against_measured(measured())
    assert list(table["workers"]) == [2, 4]
    assert table["measured_s"].to_list() == [0.6, 0.7]
    assert table["error"].to_list() == pytest.approx([0.1, -0.1])


def test_other_gradient_exchanges_are_not_compared_with_the_model(measured):
    table = predicted_against_measured(measured(options=("larger_steps", "none")))
    assert table["measured_s"].to_list() == [0.6, 0.7]


def test_pareto_front_has_no_dominated_configuration(measured):
    table = cost_pareto_front(measured())
    assert table["worker_s"].to_list() == pytest.approx([10.0, 2 * 61 / 3, 28.0])
    # A slow repeat makes two workers slower and more expensive than four.
    assert table["is_efficient"].to_list() == [True, False, True]
    # Networks of different widths are different work.
    assert cost_pareto_front(measured((0.5, 1.0)))["is_efficient"].to_list() == [True, False, True] * 2


def test_findings_describe_the_measurement(measured):
    text = "\n".join(findings(measured()))
    for part in (
        "2 workers: 660 ms, measured 600 (+10%); 4 workers: 630 ms, measured 700 (-10%)",
        "A worker takes 18% of the whole batch's time for one of 10 shares of the batch",
        "\n2 workers reach an efficiency of 80% from width 1.5 on (predicted).\n",
        "\n4 workers reach an efficiency of 80% at no width from 0.25 to 4 (predicted); the best is 40%, at width 4.\n",
        "with workers 4, takes 0.70 of the time of the cheapest, with workers 1, and 2.80 times",
    ):
        assert part in text
    assert "test accuracy" not in text
    options = findings(measured(options=("none", "larger_steps")))
    assert "Larger steps (workers 4): 0.50 of the time; test accuracy 0.9500 instead of 0.9800." in options


def test_speedup_figure_marks_predictions_with_crosses(measured):
    sheet = figures.draw(measured(), SPEEDUP)[0]
    crosses = [line for line in sheet.axes[0].get_lines() if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses] == [[2, 4]]
    assert list(crosses[0].get_ydata()) == pytest.approx([1 / 0.66, 1 / 0.63])
    assert "predicted" in [text.get_text() for text in sheet.figure.legends[0].get_texts()]
    assert "none of which is a step of several workers" in sheet.caption
    assert_no_overlap(sheet)
    widths = figures.draw(measured((0.5, 1.0)), {**SPEEDUP, "line": "width"})[0]
    assert len([line for line in widths.axes[0].get_lines() if line.get_marker() == "x"]) == 2
    # The model does not predict options.
    options = figures.draw(measured(options=("none", "larger_steps")), {**SPEEDUP, "line": "option"})[0]
    assert "predicted" not in [text.get_text() for text in options.figure.legends[0].get_texts()]


def test_links_figure_has_one_line_per_link(measured):
    sheet = figures.draw(measured(), LINKS)[0]
    ideal, line, stars = sheet.axes[0].get_lines()
    assert list(ideal.get_ydata()) == [1, 2, 4, 8]
    assert list(line.get_ydata()) == pytest.approx([1, 2, 4, 5])
    assert list(stars.get_xdata()) == [1, 2, 4]
    assert "Predicted, not measured, but for the stars" in sheet.caption
    assert_no_overlap(sheet)
    assert figures.draw(measured((0.5, 1.0)), LINKS) == []
    assert len(figures.draw(measured((0.5, 1.0)), {**LINKS, "page": "width"})) == 2
    assert figures.draw(measured(options=("none", "larger_steps")), {**LINKS, "page": "option"}) == []


def test_widths_figure_has_one_panel_per_number_of_workers(measured):
    made = measured()
    made.experiment["width_curves"] = [
        {"link": link, "workers": workers, "width": width, "efficiency": width**0.1 / workers}
        for link in ("this machine", "NVLink 4") for workers in (2, 4) for width in (0.25, 1.0, 4.0)
    ]  # fmt: skip
    (sheet,) = figures.draw(made, WIDTHS)
    assert [text.get_text() for ax in sheet.axes for text in ax.texts] == ["2 workers", "4 workers"]
    first, _, stars, aim = sheet.axes[0].get_lines()
    assert list(first.get_xdata()) == [0.25, 1, 4]
    assert list(stars.get_xdata()) == [1]
    assert set(aim.get_ydata()) == {0.8}
    assert_no_overlap(sheet)
    assert figures.draw(measured(), WIDTHS) == []


def test_cost_figure_has_one_ray_per_number_of_workers(measured):
    sheet = figures.draw(measured(options=("none", "larger_steps")), {**COST, "line": "option"})[0]
    rays = [line for line in sheet.axes[0].get_lines() if line.get_xdata()[0] == 0]
    assert len(rays) == 3
    assert [text.get_text() for text in sheet.axes[0].texts] == ["1", "2", "4"]
    assert_no_overlap(sheet)


def test_report_has_the_scaling_tables(measured):
    titles = [title for title, *_ in report_tables(measured())]
    assert "Predicted and measured step times" in titles
    assert "Training time and cost" in titles
    assert "Minimum network width for efficient scaling" in titles


def test_missing_predictions_are_one_line_errors(measured):
    made = measured()
    made.experiment["predictions"] = made.experiment["widths"] = []
    with pytest.raises(UnknownNameError, match="has no predictions; make them with tune-hpc scale"):
        predictions(made)
    with pytest.raises(UnknownNameError, match="has no probes of several network widths"):
        min_efficient_width(made)
    with pytest.raises(UnknownNameError, match="has no column worker_s"):
        cost_pareto_front(replace(made, trials=made.trials.drop(columns="worker_s")))
    assert figures.draw(made, LINKS) == []
