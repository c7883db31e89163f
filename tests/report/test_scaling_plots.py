"""Figures, tables and findings of a scaling measurement."""

from dataclasses import replace

import pytest

from tests.report.figure_checks import SPECIFICATIONS, assert_no_overlap, legend_texts
from tune_hpc.errors import UnknownNameError
from tune_hpc.report import scaling_tables, tables
from tune_hpc.report.findings import findings
from tune_hpc.report.plots import figures

STACK, SPEEDUP, COST, LINKS, WIDTHS = (
    SPECIFICATIONS[kind] for kind in ("stack", "speedup", "cost", "links", "widths")
)  # fmt: skip
#: Seconds of a step on 1, 2 and 4 workers, in three repeats: means are 1.0, 0.55 and 0.7 without the disturbed one.
DISTURBED_S = 5.0
STEPS = {1: (1.0, 1.1, 0.9), 2: (0.6, 0.5, DISTURBED_S), 4: (0.7, 0.7, 0.7)}
BOTH_OPTIONS = ("none", "larger_steps")


def predicted_rows(link, width, steps):
    return [
        {"link": link, "workers": workers, "mode": "strong", "width": width, "batch_size": 150, "step_s": step_s,
         "compute_s": step_s, "communicate_s": 0.0, "samples_per_s": 150 / step_s, "speedup": 1 / step_s,
         "efficiency": 1 / step_s / workers}
        for workers, step_s in steps.items()
    ]  # fmt: skip


@pytest.fixture
def measured(trial, results_of):
    """Return a maker of three repeats on 1, 2 and 4 workers (four share cores), at each width or with each option."""

    def make(widths=(1.0,), options=("none",), numbers=(1, 2, 4)):
        trials = []
        cases = [(width, option, workers) for width in widths for option in options for workers in numbers]
        for width, option, workers in cases:
            for seed, step_s in enumerate(STEPS[workers]):
                status = "disturbed" if step_s == DISTURBED_S else "finished"
                row, history = trial(f"{len(trials):05d}", workers=workers, seed=seed, width=width, status=status)
                step_s *= 0.5 if option == "larger_steps" and workers > 1 else 1.0
                row |= {
                    "mode": "strong", "option": option, "batch_size": 150, "step_s": step_s, "train_s": 10 * step_s,
                    "worker_s": 10 * step_s * workers, "speedup": 1 / step_s, "efficiency": 1 / step_s / workers,
                    "compute_s": 0.5 / workers, "communicate_s": step_s - 0.5 / workers, "local_steps": 1,
                    "test_accuracy": 0.95 if option == "larger_steps" else 0.98, "oversubscribed": workers == 4,
                    "batches_per_step": 4 if option == "larger_steps" else 1,
                    "flop_per_gradient_byte": 4000.0 if option == "larger_steps" else 1000.0,
                }  # fmt: skip
                trials.append((row, history.iloc[:0]))
        made = results_of(*trials, config_keys=["workers", "width", "seed", "mode", "option"])
        here, nvlink = {1: 1.0, 2: 0.66, 4: 0.63}, {1: 1.0, 2: 0.5, 4: 0.25, 8: 0.2}
        rows = [row for width in widths for row in predicted_rows("this machine", width, here)]
        rows += [row for width in widths for row in predicted_rows("NVLink 4", width, nvlink)]
        made.experiment["predictions"] = rows
        probed = {"link": "this machine", "aim": 0.8, "best_width": 4.0, "narrowest": 0.25, "widest": 4.0}
        made.experiment["widths"] = [
            probed | {"workers": 2, "width": 1.5, "best_efficiency": 0.9},
            probed | {"workers": 4, "width": None, "best_efficiency": 0.4},
        ]
        made.experiment["probes"] = [
            {"probe": "compute", "width": width, "batch_size": 150, "share": share, "seconds": 1 / share + 0.1}
            for width in widths for share in (1, 2, 10)
        ]  # fmt: skip
        return made

    return make


def test_predictions_are_compared_with_the_mean_of_the_undisturbed_repeats(measured):
    table = scaling_tables.predicted_against_measured(measured())
    assert list(table["workers"]) == [2, 4]
    assert table["measured_s"].to_list() == pytest.approx([0.55, 0.7])
    assert table["error"].to_list() == pytest.approx([0.2, -0.1])
    # The model describes neither networks with added convolutions nor other gradient exchanges.
    made = measured()
    deep = made.trials.assign(depth=[2] * 3 + [0] * 6)
    assert list(scaling_tables.predicted_against_measured(replace(made, trials=deep))["workers"]) == [2, 4]
    deep = deep.assign(depth=[0] * 6 + [2] * 3)
    assert list(scaling_tables.predicted_against_measured(replace(made, trials=deep))["workers"]) == [2]
    table = scaling_tables.predicted_against_measured(measured(options=BOTH_OPTIONS))
    assert table["measured_s"].to_list() == pytest.approx([0.55, 0.7])


def test_pareto_front_has_no_dominated_configuration(measured):
    table = scaling_tables.cost_pareto_front(measured())
    assert table["worker_s"].to_list() == pytest.approx([10.0, 11.0, 28.0])
    assert table["is_efficient"].to_list() == [True, True, False]
    # Networks of different widths are different work.
    assert scaling_tables.cost_pareto_front(measured((0.5, 1.0)))["is_efficient"].to_list() == [True, True, False] * 2


def test_findings_describe_the_measurement(measured):
    text = "\n".join(findings(measured()))
    for part in (
        "9 trials: 8 finished, 1 disturbed.",
        # The half-width on a log scale is 12.7 * log(1.2) / 2.
        "2 workers reach a speed-up of 1.83 (95 % interval 0.57 to 5.81: cannot be distinguished from 1 at 95 %), an "
        "efficiency of 91%; communication adds 55% of a step.",
        "4 workers reach a speed-up of 1.43 (no interval: too few repeats), an efficiency of 36%; communication",
        "2 workers: 660 ms, measured 550 (+20%); 4 workers: 630 ms, measured 700 (-10%)",
        "A worker takes 18% of the whole batch's time for one of 10 shares of the batch",
        "\n2 workers reach an efficiency of 80% from width 1.5 on (predicted).\n",
        "\n4 workers reach an efficiency of 80% at no width from 0.25 to 4 (predicted); the best is 40%, at width 4.\n",
        "The fastest training, with workers 2, takes 0.52 (95 % interval 0.09 to 3.05: cannot be distinguished from 1 "
        "at 95 %) of the time of the cheapest, with workers 1, and 1.04 times its worker seconds.",
    ):
        assert part in text
    assert "test accuracy" not in text
    assert "boundary of the search space" not in text
    options = findings(measured(options=BOTH_OPTIONS))
    larger_steps = next(sentence for sentence in options if sentence.startswith("Larger steps (workers 4): 0.50 ("))
    assert larger_steps.endswith(" of the time; test accuracy 0.9500 instead of 0.9800.")
    widths = findings(measured((0.5, 1.0)))
    assert [one.partition(" reach ")[0] for one in widths if "communication" in one] == [
        f"{workers} workers at width {width}" for width in ("0.5", "1") for workers in (2, 4)
    ]  # fmt: skip
    assert not any("communication" in one for one in findings(measured(numbers=(1,))))


def test_findings_compare_efficiencies_by_computation_for_each_gradient_byte(measured):
    phrase = "FLOP for each byte of gradients"
    options = [sentence for sentence in findings(measured(options=BOTH_OPTIONS)) if phrase in sentence]
    assert [sentence.partition(" (")[0] for sentence in options] == [
        f"With 4000 instead of 1000 {phrase} the efficiency on {workers} workers changes by a factor of 2.00"
        for workers in (2, 4)
    ]
    # A wider network has the same.
    assert [sentence for sentence in findings(measured((0.5, 1.0))) if phrase in sentence] == [
        f"All cases have 1000 to 1000 {phrase}, so they cannot show whether more complex networks gain more."
    ]
    assert not any(phrase in sentence for sentence in findings(measured()))


def test_parts_are_stacked(measured):
    sheet = figures.draw(measured(), STACK)[0]
    bars = sheet.axes[0].patches
    assert [bar.get_height() for bar in bars[:3]] == pytest.approx([0.5, 0.25, 0.125])
    assert [bar.get_y() for bar in bars[3:]] == pytest.approx([0.5, 0.25, 0.125])
    assert [bar.get_height() for bar in bars[3:]] == pytest.approx([0.5, 0.3, 0.575])
    assert [text.get_text() for text in sheet.axes[0].texts] == ["1", "0.55", "0.7"]
    assert legend_texts(sheet) == ["communicate", "compute"]
    assert (sheet.axes[0].get_xlabel(), sheet.axes[0].get_ylabel()) == ("workers", "seconds a step")
    assert "With workers 4 they share cores or GPUs." in sheet.caption
    assert_no_overlap(sheet)
    widths = measured((0.5, 1.0))
    assert figures.draw(widths, STACK) == []
    assert [sheet.title for sheet in figures.draw(widths, {**STACK, "page": "width"})] == [
        "Title: width 0.5", "Title: width 1",
    ]  # fmt: skip


def test_speedup_has_ideal_line_and_predictions_as_crosses(measured):
    sheet = figures.draw(measured(), SPEEDUP)[0]
    speedup, efficiency = sheet.axes
    ideal, measured_line, crosses = speedup.get_lines()
    assert list(ideal.get_ydata()) == [1, 2, 4]
    assert list(measured_line.get_ydata())[1:] == pytest.approx([1 / 0.3**0.5, 1 / 0.7])
    assert crosses.get_marker() == "x"
    assert list(crosses.get_xdata()) == [2, 4]
    assert list(crosses.get_ydata()) == pytest.approx([1 / 0.66, 1 / 0.63])
    assert list(efficiency.get_lines()[0].get_ydata()) == [1, 1, 1]
    assert [label.get_text() for label in speedup.get_xticklabels()] == ["1", "2", "4"]
    assert speedup.get_ylim()[0] == efficiency.get_ylim()[0] == 0
    assert legend_texts(sheet) == ["measured", "predicted", "if nothing were lost"]
    assert "none of which is a step of several workers" in sheet.caption
    assert_no_overlap(sheet)
    widths = figures.draw(measured((0.5, 1.0)), {**SPEEDUP, "line": "width"})[0]
    assert len(widths.axes[0].get_lines()) == 5
    assert legend_texts(widths) == ["0.5", "1", "predicted", "if nothing were lost"]
    # The model does not predict options.
    options = figures.draw(measured(options=BOTH_OPTIONS), {**SPEEDUP, "line": "option"})[0]
    assert legend_texts(options) == ["none", "larger steps", "if nothing were lost"]


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
    assert figures.draw(measured(options=BOTH_OPTIONS), {**LINKS, "page": "option"}) == []


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
    sheet = figures.draw(measured(options=BOTH_OPTIONS), {**COST, "line": "option"})[0]
    rays = [line for line in sheet.axes[0].get_lines() if line.get_xdata()[0] == 0]
    assert len(rays) == 3
    assert [text.get_text() for text in sheet.axes[0].texts] == ["1", "2", "4"]
    assert_no_overlap(sheet)


def test_report_has_scaling_tables_and_figures_instead_of_budget_and_interactions(measured):
    results = measured((0.25, 0.5, 1.0, 2.0), BOTH_OPTIONS)
    assert [one["kind"] for one in figures.default_figures(results)] == [
        "speedup", "stack", "cost", "links", "widths",
    ]  # fmt: skip
    assert [title for title, _, _ in tables.report_tables(results)] == [
        "Speed-up and efficiency", "Serial fraction", "Predicted and measured step times",
        "Minimum network width for efficient scaling", "Training time and cost", "Disturbed trials",
        "Trials by status",
    ]  # fmt: skip


def test_missing_predictions_are_one_line_errors(measured):
    made = measured()
    made.experiment["predictions"] = made.experiment["widths"] = []
    with pytest.raises(UnknownNameError, match="has no predictions; make them with tune-hpc scale"):
        scaling_tables.predictions(made)
    with pytest.raises(UnknownNameError, match="has no probes of several network widths"):
        scaling_tables.min_efficient_width(made)
    with pytest.raises(UnknownNameError, match="has no column worker_s"):
        scaling_tables.cost_pareto_front(replace(made, trials=made.trials.drop(columns="worker_s")))
    assert figures.draw(made, LINKS) == []
