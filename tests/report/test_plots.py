import threading
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from tests.report.figure_checks import SPECIFICATIONS, assert_no_overlap, legend_texts
from tune_hpc.analysis.intervals import mean_interval
from tune_hpc.report.plots import curves, figures, layout, response, series

CURVE, RESPONSE = SPECIFICATIONS["curve"], SPECIFICATIONS["response"]
PUBLISHED = [{"where": {"optimizer": "adam", "learning_rate": 0.1}, "metric": "test_accuracy", "value": 0.7}]


def data_lines(ax):
    return [line for line in ax.get_lines() if len(line.get_xdata())]


def test_figure_per_page_and_panel_per_metric(grid):
    sheets = figures.draw(grid(), CURVE)
    assert [sheet.title for sheet in sheets] == ["Title: optimizer adam", "Title: optimizer momentum"]
    assert [ax.get_ylabel() for ax in sheets[0].axes] == ["training loss", "test accuracy"]
    assert {ax.get_xlabel() for ax in sheets[0].axes} == {"step"}
    assert legend_texts(sheets[0]) == ["0.001", "0.01", "0.1"]


def test_curve_is_mean_over_seeds_with_band(grid):
    results = grid()
    sheet = figures.draw(results, CURVE)[0]
    drawn = data_lines(sheet.axes[0])
    members = results.trials.query("optimizer == 'adam' and learning_rate == 0.001")["trial_id"]
    expected = results.curve("train_loss")[members].mean(axis="columns")
    np.testing.assert_allclose(drawn[0].get_ydata(), expected)
    assert len(sheet.axes[0].collections) == 3
    assert "Band: 95 % interval of the mean (Student's)." in sheet.caption


def test_intervals_are_students_and_need_different_seeds(trial, results_of, grid):
    results = grid()
    members = results.trials.query("optimizer == 'adam' and learning_rate == 0.1")
    table = response.response_table(results, "test_loss", "learning_rate", "optimizer", {})
    row = table.query("line == 'adam' and x == 0.1").iloc[0]
    expected = mean_interval(members["test_loss"])
    np.testing.assert_allclose([row["mean"], row["low"], row["high"]], [expected.mean, expected.low, expected.high])
    assert "Bar: 95 % interval of the mean (Student's)." in figures.draw(results, RESPONSE)[0].caption
    same = results_of(*(trial(f"{n}", learning_rate=rate, seed=n % 2) for n, rate in enumerate((0.1, 0.1, 0.2, 0.2))))
    for specification in ({**RESPONSE, "line": None}, {**CURVE, "page": None}):
        sheet = figures.draw(same, specification)[0]
        assert "95 %" not in sheet.caption
        assert "mean over seeds" in sheet.caption
        assert not sheet.axes[0].collections


def test_wide_band_of_two_seeds_is_cut(trial, results_of):
    results = results_of(trial("0", loss=0.1, seed=0), trial("1", loss=1.0, seed=1))
    sheet = figures.draw(results, {"kind": "curve", "metrics": ["train_loss"], "title": "t"})[0]
    low, high = sheet.axes[0].get_ylim()
    assert high - low < 5
    assert "Bands far wider than the lines' range are cut." in sheet.caption


def test_ten_lines_differ_in_colour_and_marker_and_neighbours_in_dash():
    styles = [layout.line_style(index) for index in range(10)]
    assert len({style["color"] for style in styles}) == 10
    assert len({style["marker"] for style in styles}) == 10
    assert all(a["linestyle"] != b["linestyle"] for a, b in pairwise(styles))


@pytest.mark.parametrize(
    "figure",
    [
        CURVE | {"metrics": ["train_loss"]}, CURVE | {"metrics": ["train_loss", "test_loss", "test_accuracy"]},
        RESPONSE | {"title": "Word " * 20},
    ],
    ids=["one panel", "three panels", "long title"],
)  # fmt: skip
def test_legend_does_not_overlap_other_parts(figure, grid):
    assert_no_overlap(figures.draw(grid(published=PUBLISHED, quick=True), figure)[0])


@pytest.mark.parametrize("zeros", [slice(10, None), slice(5, 8)])
def test_exact_zeros_lie_on_lower_edge_of_log_axis(trial, results_of, zeros):
    row, history = trial("00000")
    history.loc[history.index[zeros], "train_loss"] = 0.0
    sheet = figures.draw(
        results_of((row, history)), {"kind": "curve", "metrics": ["train_loss"], "title": "t", "log_y": True}
    )[0]
    ax = sheet.axes[0]
    y = data_lines(ax)[0].get_ydata()
    assert ax.get_yscale() == "log"
    assert (y > 0).all()
    assert y.min() == pytest.approx(ax.get_ylim()[0])
    assert "Exact zeros lie on the lower edge." in sheet.caption


def test_negative_values_have_linear_axis(trial, results_of):
    row, history = trial("00000")
    results = results_of((row, history.assign(W=-history["train_loss"])))
    sheet = figures.draw(results, {"kind": "curve", "metrics": ["train_loss", "W"], "title": "t", "log_y": True})[0]
    assert [ax.get_yscale() for ax in sheet.axes] == ["log", "linear"]


def test_curve_ends_at_last_step(grid):
    sheet = figures.draw(grid(), {**CURVE, "last_step": 7})[0]
    assert max(line.get_xdata().max() for line in data_lines(sheet.axes[0])) == 7


def test_exploding_line_is_cut(trial, results_of):
    trials = [trial(f"{n:05d}", learning_rate=rate) for n, rate in enumerate((0.1, 0.01, 0.001))]
    row, history = trial("00003", status="diverged", learning_rate=10.0)
    results = results_of(*trials, (row, history.assign(train_loss=10.0 ** history["step"])))
    sheet = figures.draw(results, {**CURVE, "metrics": ["train_loss"], "page": None})[0]
    bottom, top = sheet.axes[0].get_ylim()
    assert -1 < bottom < top < 10
    assert legend_texts(sheet)[-1] == "10 (diverged)"


@pytest.mark.slow
def test_infinite_and_missing_values_are_not_drawn(trial, results_of):
    row, history = trial("00000")
    history.loc[[3, 4], "train_loss"] = [np.inf, np.nan]
    sheet = figures.draw(results_of((row, history)), {**CURVE, "metrics": ["train_loss"], "page": None})[0]
    assert set(range(21)) - set(data_lines(sheet.axes[0])[0].get_xdata()) == {3, 4}


def test_panel_without_data_is_skipped(trial, results_of):
    sheet = figures.draw(results_of(trial("00000")), {**CURVE, "metrics": ["nothing", "train_loss"]})[0]
    assert [ax.get_ylabel() for ax in sheet.axes] == ["training loss"]


def test_response_has_published_numbers_as_diamonds(grid):
    sheet = figures.draw(grid(published=PUBLISHED), RESPONSE)[0]
    ax = sheet.axes[0]
    diamonds = [line for line in data_lines(ax) if line.get_markerfacecolor() == "none"]
    assert [(list(one.get_xdata()), list(one.get_ydata())) for one in diamonds] == [([0.1], [0.7])]
    assert diamonds[0].get_color() == data_lines(ax)[0].get_color() or diamonds[0].get_markeredgecolor() == "#0072B2"
    assert legend_texts(sheet) == ["adam", "momentum", "published"]
    assert "quick" not in sheet.title
    assert ax.get_xscale() == "log"


def test_quick_response_is_marked_not_comparable(grid):
    sheet = figures.draw(grid(published=PUBLISHED, quick=True), RESPONSE)[0]
    assert sheet.title == "Title (quick run: not comparable)"


def test_single_line_is_labelled_measured_only_beside_published_numbers(trial, results_of):
    trials = [trial(f"{n:05d}", learning_rate=rate) for n, rate in enumerate((0.1, 0.01))]
    alone = {**RESPONSE, "line": None}
    assert legend_texts(figures.draw(results_of(*trials), alone)[0]) == []
    beside = results_of(*trials, published=[{**PUBLISHED[0], "where": {"learning_rate": 0.1}}])
    assert legend_texts(figures.draw(beside, alone)[0]) == ["measured", "published"]


def test_response_over_zero_has_linear_axis(trial, results_of):
    trials = [trial(f"{n:05d}", learning_rate=rate) for n, rate in enumerate((0.0, 0.5))]
    sheet = figures.draw(results_of(*trials), {**RESPONSE, "line": None})[0]
    assert sheet.axes[0].get_xscale() == "linear"


def test_sampled_values_have_round_ticks_and_unjoined_points(trial, results_of):
    drawn = ((1.45004e-4, 10), (1.8896e-3, 35), (0.110046, 70))
    trials = [trial(f"{n:05d}", learning_rate=rate, batch_size=size) for n, (rate, size) in enumerate(drawn)]
    sheet = figures.draw(results_of(*trials), {**RESPONSE, "line": None, "log_x": True})[0]
    ax = sheet.axes[0]
    low, high = ax.get_xlim()
    shown = [tick for tick in ax.get_xticks() if low <= tick <= high]
    assert shown == pytest.approx([1e-3, 1e-2, 1e-1])
    assert [ax.xaxis.get_major_formatter()(tick, 0) for tick in shown] == ["0.001", "0.01", "0.1"]
    assert {line.get_linestyle() for line in ax.get_lines()} == {"None"}


def test_categorical_axis_has_names_and_unjoined_points(grid):
    sheet = figures.draw(grid(), {**RESPONSE, "parameter": "optimizer", "line": "learning_rate"})[0]
    ax = sheet.axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["adam", "momentum"]
    assert {line.get_linestyle() for line in ax.get_lines()} == {"None"}


def test_experiment_without_declared_figures_has_standard_figures(grid):
    titles = [one["title"] for one in figures.default_figures(grid())]
    assert titles == ["Learning curves", "Test loss against optimizer", "Test loss against learning rate",
                      "Test loss by optimizer and learning rate"]  # fmt: skip
    assert len(figures.render_all(grid())) == 4


def test_best_ten_of_many_lines_are_drawn(trial, results_of):
    trials = [trial(f"{n:05d}", loss=n / 10, learning_rate=0.01 * (n + 1)) for n in range(14)]
    results = results_of(*trials)
    for line in ("learning_rate", None):
        sheet = figures.draw(results, {**CURVE, "line": line, "page": None})[0]
        assert len(data_lines(sheet.axes[0])) == 10
    assert series.best_values(results, "learning_rate") == pytest.approx([0.01 * (n + 1) for n in range(10)])


def test_downsampling_keeps_ends_and_extremes():
    values = np.sin(np.arange(30_000) / 7) * np.exp(-np.arange(30_000) / 9000)
    values[12_345] = 5
    indices = curves.downsample(values)
    assert len(indices) <= 2 * curves.NUM_BUCKETS + 2
    assert {0, 12_345, 29_999} <= set(indices)
    assert list(indices) == sorted(set(indices))
    assert values[indices].min() == values.min()


def test_dollar_signs_in_labels_start_no_formula(trial, results_of):
    results = results_of(trial("00000", optimizer="a$b$"), trial("00001", optimizer="_x"))
    experiment = {**results.experiment, "figures": [{**CURVE, "line": "optimizer", "page": None}]}
    drawing = figures.render_all(type(results)(experiment, results.trials, results.history))
    assert len(drawing) == 1


def test_files_have_captions_and_equal_bytes_in_two_runs(grid, tmp_path):
    results = grid(figures=[{**CURVE, "metrics": ["train_loss"], "page": None}])
    files = figures.write(results, tmp_path)
    assert [path.name for path, _ in files] == ["title.svg"]
    assert files[0][1].startswith("Title. ")
    svg = files[0][0].read_bytes()
    figures.write(results, tmp_path)
    assert files[0][0].read_bytes() == svg


def test_threads_draw_equal_figures(trial, results_of):
    results = results_of(trial("00000"), figures=[{**CURVE, "metrics": ["train_loss"]}])
    drawn: list[bytes] = []
    threads = [threading.Thread(target=lambda: drawn.append(figures.render_all(results)[0].content)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drawn) == 3
    assert len(set(drawn)) == 1


def test_long_curve_makes_small_file(trial, results_of):
    row, history = trial("00000", num_steps=30_000)
    results = results_of(
        (row, history), figures=[{"kind": "curve", "metrics": ["train_loss"], "title": "t", "log_y": True}]
    )
    assert len(figures.render_all(results)[0].content) < 60_000
    assert isinstance(history, pd.DataFrame)


def test_figure_with_too_many_points_is_pixels(grid, monkeypatch, tmp_path):
    monkeypatch.setattr(figures, "MAX_SVG_BYTES", 1000)
    ((path, _),) = figures.write(grid(figures=[{**CURVE, "metrics": ["train_loss"], "page": None}]), tmp_path)
    assert path.name == "title.png"
    assert path.read_bytes().startswith(b"\x89PNG")
