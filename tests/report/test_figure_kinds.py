from pathlib import Path

import numpy as np
import pytest
from matplotlib.lines import Line2D

from tests.report.figure_checks import SPECIFICATIONS, assert_no_overlap, legend_texts
from tune_hpc.analysis.loading import load
from tune_hpc.errors import UnknownNameError
from tune_hpc.report.plots import figures, series
from tune_hpc.report.plots.heatmap import heat_table, tied_with_best
from tune_hpc.report.plots.parallel_coordinates import parallel_table

HEAT, PUBLISHED, PARALLEL = (SPECIFICATIONS[kind] for kind in ("heatmap", "published", "parallel"))
#: Kinds of figures of a scaling measurement.
SCALING = ("stack", "speedup", "cost", "links", "widths")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def numbers(*metrics, rates=(0.1, 0.01, 0.001)):
    return [
        {"where": {"optimizer": "adam", "learning_rate": rate}, "metric": metric, "value": 0.4}
        for metric in metrics
        for rate in rates
    ]


@pytest.mark.parametrize("kind", figures.KINDS)
def test_parts_do_not_overlap_and_two_runs_give_equal_bytes(kind, grid):
    specification = {**SPECIFICATIONS[kind], "page": None}
    if kind in SCALING:
        results = load(Path(__file__).parents[2] / "docs" / "scaling" / "wide")
        results.experiment["width_curves"] = [
            {"link": link, "workers": workers, "width": width, "efficiency": width**0.1 / workers}
            for link in ("this machine", "NVLink 4") for workers in (2, 4) for width in (0.25, 1.0, 4.0)
        ]  # fmt: skip
    else:
        results = grid(published=numbers("test_loss", "test_accuracy"))
    (sheet,), (again,) = figures.draw(results, specification), figures.draw(results, specification)
    assert_no_overlap(sheet)
    rendered = figures.render(sheet, kind)
    assert rendered == figures.render(again, kind)
    assert b"<svg" in rendered.content


@pytest.mark.parametrize("kind", [kind for kind in figures.KINDS if kind != "importance"])
def test_no_figure_without_data(kind, trial, results_of):
    statuses = ["failed"] if kind == "curve" else ["failed", "diverged"]
    cases = [[], *([trial(f"{n}", status=name, learning_rate=0.1 * n, workers=n) for n in (1, 2)] for name in statuses)]
    for trials in cases:
        assert figures.draw(results_of(*trials, published=numbers("test_loss")), SPECIFICATIONS[kind]) == []
    if kind not in ("curve", "response"):
        assert figures.draw(results_of(trial("0")), SPECIFICATIONS[kind]) == []


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        ("curve", "metrics", ["nothing"]), ("response", "metrics", ["nothing"]), ("heatmap", "metrics", ["nothing"]),
        ("heatmap", "line", "nothing"), ("heatmap", "line", None), ("parallel", "metrics", ["nothing"]),
        ("target", "metrics", ["nothing"]), ("target", "target", -1.0), ("target", "target", None),
        ("ranking", "line", "nothing"),
    ],
)  # fmt: skip
def test_no_figure_of_absent_columns_and_unreached_targets(kind, option, value, grid):
    assert figures.draw(grid(), {**SPECIFICATIONS[kind], option: value}) == []


def test_cell_is_mean_over_seeds_and_best_is_framed(grid):
    results = grid()
    sheet = figures.draw(results, HEAT)[0]
    ax = sheet.axes[0]
    means = results.trials.groupby(["optimizer", "learning_rate"])["test_accuracy"].mean()
    placed = {text.get_position(): text.get_text() for text in ax.texts}
    for column, rate in enumerate((0.001, 0.01, 0.1)):
        for row, optimizer in enumerate(("adam", "momentum")):
            assert placed[column, row + 0.02] == f"{means[optimizer, rate]:.3f}"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0.001", "0.01", "0.1"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["adam", "momentum"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("learning rate", "optimizer")
    # Momentum at 0.1 has the very same losses.
    assert [patch.get_linestyle() == "solid" for patch in ax.patches].count(True) == 1
    assert [patch.get_xy() for patch in ax.patches if patch.get_linestyle() != "solid"] == [(1.52, 0.53)]
    table = heat_table(results, "test_accuracy", "learning_rate", "optimizer", {})
    assert table.loc[table["is_best"], "value"].item() == means.max()
    assert "Framed: the best cell." in sheet.caption
    assert_no_overlap(sheet)


def test_tied_cells_are_those_of_a_comparison(trial, results_of):
    rng = np.random.default_rng(0)
    rates = [0.1, 0.2, 0.3, 0.4]
    trials = [
        trial(f"{rate}{seed}", loss=0.5 + loss + 0.01 * rng.normal(), learning_rate=rate, batch_size=10, seed=seed)
        for rate, loss in zip(rates, (0, 0.002, 0.1, 0.3), strict=True)
        for seed in range(5)
    ]
    trials.append(trial("lost", loss=0.5, learning_rate=0.4, batch_size=20, status="diverged"))
    results = results_of(*trials)
    table = heat_table(results, "test_loss", "learning_rate", "batch_size", {})
    tied = tied_with_best(results, "test_loss", table)
    ranking = results.compare("learning_rate", where={"batch_size": 10}).values
    ties = set(ranking.loc[ranking["rank"] == 1, "learning_rate"])
    assert set(table.loc[tied | table["is_best"], "x"]) == ties == {0.1, 0.2}
    sheet = figures.draw(results, {**HEAT, "metrics": ["test_loss"], "line": "batch_size"})[0]
    assert "Dashed: cells that tie with it at 95 %" in sheet.caption
    assert "tied with the best" in legend_texts(sheet)
    one_seed = results_of(*trials[::5])
    table = heat_table(one_seed, "test_loss", "learning_rate", "batch_size", {})
    assert not tied_with_best(one_seed, "test_loss", table).any()


def test_close_accuracies_have_four_decimals(trial, results_of):
    results = results_of(*(
        trial(f"{rate}{size}", loss=0.02 + 0.01 * rate, learning_rate=rate, batch_size=size)
        for rate in (0.1, 0.2) for size in (10, 20)
    ))  # fmt: skip
    sheet = figures.draw(results, {**HEAT, "line": "batch_size"})[0]
    assert {len(text) for text in texts(sheet.axes[0])} == {len("0.9955")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "figure",
    [HEAT | {"line": "batch_size"}, PUBLISHED, PARALLEL | {"metrics": ["test_accuracy"]}],
    ids=lambda figure: figure["kind"],
)
def test_page_shows_only_its_trials(figure, trial, results_of):
    trials = [
        trial(f"{name}{rate}{size}", loss=0.3 if name == "adam" else 0.6, optimizer=name, learning_rate=rate,
              batch_size=size)
        for name in ("adam", "momentum") for rate in (0.1, 0.2) for size in (10, 20)
    ]  # fmt: skip
    published = [
        {"where": {"optimizer": name, "learning_rate": rate, "batch_size": 10}, "metric": "test_loss", "value": 0.4}
        for name in ("adam", "momentum") for rate in (0.1, 0.2)
    ]  # fmt: skip
    results = results_of(*trials, published=published)
    sheets = figures.draw(results, {**figure, "page": "optimizer"})
    assert [sheet.title for sheet in sheets] == [f"{figure['title']}: optimizer {one}" for one in ("adam", "momentum")]
    for sheet, optimizer in zip(sheets, ("adam", "momentum"), strict=True):
        alone = results_of(*trials[:4] if optimizer == "adam" else trials[4:],
                           published=[one for one in published if one["where"]["optimizer"] == optimizer])  # fmt: skip
        expected = figures.draw(alone, figure)[0]
        for ax, same in zip(sheet.axes, expected.axes, strict=True):
            assert texts(ax) == texts(same)
            lines, expected_lines = ax.get_lines(), same.get_lines()
            # Names of published rows state the page, too; thus their heights differ.
            get_data = Line2D.get_xdata if figure is PUBLISHED else Line2D.get_ydata
            assert [list(get_data(line)) for line in lines] == [list(get_data(line)) for line in expected_lines]


def test_unknown_kind_is_rejected(grid):
    with pytest.raises(UnknownNameError, match=r"unknown figure kind 'pie' in made\.up; use one of curve, "):
        figures.draw(grid(), {**HEAT, "kind": "pie"})


def test_cell_text_fits_and_contrasts(grid):
    sheet = figures.draw(grid(), {**HEAT, "metrics": ["test_loss", "test_accuracy", "train_s"]})[0]
    assert len(sheet.axes) == 3
    assert_no_overlap(sheet)
    for ax in sheet.axes:
        for text in ax.texts:
            assert text.get_window_extent().width < ax.get_window_extent().width / 3
            assert text.get_color() in ("black", "white")
    assert [ax.get_ylabel() for ax in sheet.figure.axes if ax.get_label() == "colour bar"][2] == "training time (s)"


def test_diverged_and_empty_cells_differ(trial, results_of):
    trials = [
        trial("0", optimizer="adam", learning_rate=0.1), trial("1", optimizer="adam", learning_rate=0.01),
        trial("2", optimizer="momentum", learning_rate=0.1, status="diverged"),
    ]  # fmt: skip
    sheet = figures.draw(results_of(*trials), HEAT)[0]
    assert "Striped: diverged (1 of 4 cells)." in sheet.caption
    assert "Dotted: no trial there gave a value (1 of 4 cells)." in sheet.caption
    assert legend_texts(sheet) == ["best", "diverged", "no value"]
    assert_no_overlap(sheet)


def test_cell_with_diverged_seed_is_starred_and_never_best(trial, results_of):
    trials = [
        trial("0", loss=0.1, optimizer="adam", seed=0), trial("1", optimizer="adam", seed=1, status="diverged"),
        trial("2", loss=0.5, optimizer="momentum", seed=0), trial("3", loss=0.5, optimizer="momentum", seed=1),
    ]  # fmt: skip
    more = results_of(*trials, trial("4", loss=2.0, learning_rate=0.2, seed=0))
    table = heat_table(more, "test_loss", "optimizer", "learning_rate", {})
    assert table.loc[table["is_best"], "x"].item() == "momentum"
    sheet = figures.draw(more, {**HEAT, "metrics": ["test_loss"]})[0]
    assert sum(text.endswith("*") for text in texts(sheet.axes[0])) == 1


def test_cell_is_best_configuration_if_more_parameters_vary(trial, results_of):
    trials = [
        trial(f"{n}", loss=loss, learning_rate=rate, optimizer=optimizer, batch_size=size)
        for n, (loss, rate, optimizer, size) in enumerate(
            [(0.5, 0.1, "adam", 10), (0.3, 0.1, "adam", 20), (0.4, 0.2, "momentum", 10), (0.6, 0.2, "adam", 20)]
        )
    ]
    results = results_of(*trials)
    table = heat_table(results, "test_loss", "learning_rate", "optimizer", {}).set_index(["x", "y"])
    assert table.loc[(0.1, "adam"), "value"] == pytest.approx(0.3, abs=0.1)
    assert table.loc[(0.1, "adam"), "num_configurations"] == 2
    sheet = figures.draw(results, HEAT)[0]
    assert "a cell is the best configuration's" in sheet.caption


def test_exploded_cell_limits_colours(trial, results_of):
    trials = [
        trial(f"{rate}{size}", loss=1e6 if rate == 1.0 else rate, learning_rate=rate, batch_size=size)
        for rate in (0.1, 0.2, 0.5, 1.0) for size in (10, 20)
    ]  # fmt: skip
    sheet = figures.draw(results_of(*trials), {**HEAT, "metrics": ["test_loss"], "line": "batch_size"})[0]
    assert "The colours end at" in sheet.caption
    assert_no_overlap(sheet)


def test_best_of_many_sampled_values_are_drawn(trial, results_of):
    rates = np.geomspace(1e-4, 1, 40)
    trials = [trial(f"{n:03d}", learning_rate=rate, batch_size=10 + n % 2) for n, rate in enumerate(rates)]
    sheet = figures.draw(results_of(*trials), {**HEAT, "line": "batch_size"})[0]
    assert "The best 24 values of learning rate are shown." in sheet.caption
    assert_no_overlap(sheet)


def test_published_number_has_row_with_diamond(grid):
    sheet = figures.draw(grid(published=numbers("test_loss", "test_accuracy")), PUBLISHED)[0]
    assert [ax.get_xlabel() for ax in sheet.axes] == ["test loss", "test accuracy"]
    for ax in sheet.axes:
        diamonds = [line for line in ax.get_lines() if line.get_marker() == "D"]
        assert list(diamonds[0].get_xdata()) == [0.4] * 3
    assert [label.get_text() for label in sheet.axes[0].get_yticklabels()] == [
        "learning rate 0.1", "learning rate 0.01", "learning rate 0.001",
    ]  # fmt: skip
    assert "95 % prediction interval" in sheet.caption
    assert_no_overlap(sheet)


def test_many_published_numbers_are_several_figures_marked_quick(trial, results_of):
    rates = [round(0.01 * n, 2) for n in range(1, 26)]
    trials = [trial(f"{n:03d}", learning_rate=rate) for n, rate in enumerate(rates)]
    results = results_of(*trials, published=numbers("test_loss", rates=rates), quick=True)
    sheets = figures.draw(results, PUBLISHED)
    assert [len(sheet.axes[0].get_yticks()) for sheet in sheets] == [12, 13]
    assert all("quick run: not comparable" in sheet.title for sheet in sheets)
    for sheet in sheets:
        assert_no_overlap(sheet)


def test_published_numbers_without_measurements_are_counted(trial, results_of):
    assert figures.draw(results_of(trial("0"), published=numbers("nothing")), PUBLISHED) == []
    published = numbers("test_loss", "train_loss", rates=(0.1, 7))
    (sheet,) = figures.draw(results_of(trial("0"), published=published), PUBLISHED)
    assert "Without a measurement: 2." in sheet.caption
    assert_no_overlap(sheet)


@pytest.fixture
def sampled(trial, results_of):
    """Return a maker of sampled configurations, half of them without momentum; the last is the best."""

    def make(num_trials=30):
        rng = np.random.default_rng(0)
        trials = [
            trial(f"{n:05d}", loss=2 - n / num_trials, learning_rate=float(10 ** rng.uniform(-4, -1)),
                  optimizer=["adam", "nesterov"][n % 2], batch_size=int(rng.choice([10, 20, 50])),
                  momentum=float(rng.uniform(0.8, 1)) if n % 2 else np.nan)
            for n in range(num_trials)
        ]  # fmt: skip
        return results_of(*trials, config_keys=["optimizer", "momentum", "learning_rate", "batch_size", "seed"])

    return make


def test_configuration_is_line_with_gaps_and_best_is_thick(sampled):
    results = sampled()
    table, scales, num_configurations = parallel_table(results, "test_loss", {})
    assert num_configurations == 30
    assert [scale.name for scale in scales] == ["optimizer", "momentum", "learning_rate", "batch_size", "test_loss"]
    assert [scale.is_log for scale in scales] == [False, False, True, False, False]
    assert table["test_loss"].iloc[-1] == results.trials["test_loss"].min()
    sheet = figures.draw(results, PARALLEL)[0]
    lines = sheet.axes[0].get_lines()[:30]
    assert lines[-1].get_linewidth() == max(line.get_linewidth() for line in lines)
    assert sum(np.isnan(line.get_ydata()).any() for line in lines) == 15
    assert "has a gap" in sheet.caption
    assert [label.get_text().replace("\n", " ") for label in sheet.axes[0].get_xticklabels()] == [
        "optimizer", "momentum", "learning rate", "batch size", "test loss",
    ]  # fmt: skip
    sheet.figure.canvas.draw()
    bar = next(ax for ax in sheet.figure.axes if ax.get_label() == "colour bar")
    parts = [bar.get_tightbbox(), *(label.get_window_extent() for label in sheet.axes[0].get_xticklabels())]
    for number, part in enumerate(parts):
        assert 0 <= part.x0 < part.x1 <= sheet.figure.bbox.width
        assert part.y1 <= sheet.figure.bbox.height
        assert not any(part.overlaps(other) for other in parts[number + 1 :])


def test_best_and_sample_of_many_configurations_are_drawn(sampled):
    results = sampled(400)
    table, _, num_configurations = parallel_table(results, "test_loss", {})
    assert (len(table), num_configurations) == (300, 400)
    assert table["test_loss"].min() == results.trials["test_loss"].min()
    assert "300 of 400 configurations" in figures.draw(results, PARALLEL)[0].caption


def test_no_parallel_coordinates_without_two_configurations(trial, results_of):
    lost = [trial(f"{n}", status="diverged", learning_rate=0.1 * n) for n in range(1, 4)]
    for trials in ([trial("0"), trial("1", seed=1)], [*lost, trial("9", learning_rate=5.0)]):
        assert figures.draw(results_of(*trials), PARALLEL) == []


def test_three_parameters_and_incomplete_grids_have_parallel_coordinates(sampled, trial, results_of):
    assert [one["kind"] for one in figures.default_figures(sampled())][-2:] == ["parallel", "budget"]
    corners = [("adam", 0.1), ("adam", 0.2), ("momentum", 0.1)]
    some = results_of(*(trial(f"{n}", optimizer=name, learning_rate=rate) for n, (name, rate) in enumerate(corners)))
    assert [one["kind"] for one in figures.default_figures(some)] == ["curve", "response", "response", "parallel"]
    assert figures.render_all(sampled(6))


def test_geometric_values_are_recognised():
    assert series.is_geometric([1e-4, 1e-3, 1e-2, 1e-1])
    assert not series.is_geometric(list(np.linspace(0.01, 3, 40)))
    assert not series.is_geometric([50, 100, 150, 250])
    assert not series.is_geometric(["a", "b"])
    assert not series.is_geometric([])
