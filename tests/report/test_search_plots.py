"""Budget curve, time to target, ranking and importance."""

import numpy as np
import pytest

from tests.report.figure_checks import IMPORTANCE, SPECIFICATIONS, assert_no_overlap, legend_texts
from tune_hpc import budget_curve, time_to_target
from tune_hpc.report.plots import figures

BUDGET, TARGET, RANKING = (SPECIFICATIONS[kind] for kind in ("budget", "target", "ranking"))


@pytest.fixture
def many(trial, results_of):
    """Thirty configurations; the n-th has loss 3 - n / 10."""

    def make(**experiment):
        trials = [trial(f"{n:05d}", loss=3 - n / 10, learning_rate=0.001 * (n + 1)) for n in range(30)]
        return results_of(*trials, **experiment)

    return make


class TestBudget:
    def test_line_and_band_are_those_of_the_table(self, many):
        results = many()
        sheet = figures.draw(results, BUDGET)[0]
        (line,) = sheet.axes[0].get_lines()
        table = budget_curve(results, [int(x) for x in line.get_xdata()])
        assert list(line.get_xdata()) == list(table["num_configurations"])
        assert {1, 2, 5, 10, 20, 30} <= set(line.get_xdata())
        np.testing.assert_allclose(line.get_ydata(), table["mean"])
        (band,) = sheet.axes[0].collections
        assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(table["high"].max())
        assert (sheet.axes[0].get_xlabel(), sheet.axes[0].get_ylabel()) == ("configurations tried", "test loss")
        assert_no_overlap(sheet)

    def test_adaptive_searcher_has_its_order(self, many):
        sheet = figures.draw(many(searcher="tpe"), BUDGET)[0]
        (line,) = sheet.axes[0].get_lines()
        assert list(line.get_ydata()) == sorted(line.get_ydata(), reverse=True)
        assert not sheet.axes[0].collections
        assert "in the order in which the searcher tried them" in sheet.caption

    def test_caption_states_divergences(self, trial, results_of):
        trials = [trial(f"{n}", learning_rate=0.1 * n, status="diverged" if n % 2 else "finished") for n in range(1, 9)]
        sheet = figures.draw(results_of(*trials), BUDGET)[0]
        assert "With 1 configuration nothing but divergence in 50% of the orders." in sheet.caption

    def test_budget_curve_is_standard_from_twenty_configurations_without_pbt(self, many, grid):
        kinds = [[one["kind"] for one in figures.default_figures(results)] for results in (many(), grid())]
        assert [names.count("budget") for names in kinds] == [1, 0]
        declared = many(figures=[{"kind": "curve", "metrics": ["test_loss"], "title": "Curves"}])
        assert [one["kind"] for one in figures.default_figures(declared)] == ["curve", "budget"]
        assert "budget" not in [one["kind"] for one in figures.default_figures(many(scheduler="pbt"))]


class TestTarget:
    def test_line_rises_where_configurations_reach_target(self, grid):
        results = grid()
        sheet = figures.draw(results, TARGET)[0]
        assert [ax.get_xlabel() for ax in sheet.axes] == [
            "steps until then", "seconds of training until then",
        ]  # fmt: skip
        table = time_to_target(results, 0.5)
        lines = sheet.axes[0].get_lines()
        for line, optimizer in zip(lines, ("adam", "momentum"), strict=True):
            rows = table[table["optimizer"] == optimizer]
            reached = rows["reached_step"][np.isfinite(rows["reached_step"])]
            assert sorted(set(line.get_xdata())) == sorted(set(reached))
            assert line.get_ydata()[-1] == len(reached) / len(rows)
        assert legend_texts(sheet) == ["adam (2 of 3 missed)", "momentum (2 of 3 missed)"]
        assert "4 of 6 configurations never did." in sheet.caption
        assert_no_overlap(sheet)

    def test_one_line_without_line_parameter(self, grid):
        results = grid()
        missed = int(np.isinf(time_to_target(results, 1.5)["reached_step"]).sum())
        assert 0 < missed < 6
        sheet = figures.draw(results, {**TARGET, "line": None, "target": 1.5})[0]
        assert legend_texts(sheet) == [f"{missed} of 6 missed"]
        assert len(sheet.axes[0].get_lines()) == 1
        assert_no_overlap(sheet)

    def test_value_that_never_reaches_target_has_no_line(self, trial, results_of):
        rates = (0.1, 0.01, 0.001)
        trials = [trial(f"a{rate}", loss=0.3 + rate, optimizer="adam", learning_rate=rate) for rate in rates]
        trials += [trial(f"m{rate}", loss=3.0, optimizer="momentum", learning_rate=rate) for rate in rates]
        sheet = figures.draw(results_of(*trials), TARGET)[0]
        assert legend_texts(sheet) == ["adam (all 3 reached)", "momentum (3 of 3 missed)"]
        assert [len(ax.get_lines()) for ax in sheet.axes] == [1, 1]
        assert_no_overlap(sheet)


class TestRanking:
    def test_rows_are_sorted_with_intervals(self, grid):
        results = grid()
        ranking = results.compare("learning_rate").values.sort_values("mean", kind="stable")
        sheet = figures.draw(results, RANKING)[0]
        ax = sheet.axes[0]
        assert [label.get_text() for label in ax.get_yticklabels()] == [
            f"{rate:g}" for rate in ranking["learning_rate"]
        ]
        assert [line.get_xdata()[0] for line in ax.get_lines()] == list(ranking["mean"])
        assert ax.get_xlabel() == "test loss"
        assert "95 % interval of the mean over seeds" in sheet.caption
        assert_no_overlap(sheet)

    def test_single_seeds_are_inconclusive(self, many):
        sheet = figures.draw(many(), RANKING)[0]
        assert legend_texts(sheet) == ["inconclusive"]
        assert_no_overlap(sheet)


def test_importances_are_bars_with_percentages_and_intervals(grid):
    specification = SPECIFICATIONS["importance"]
    sheet = figures.draw(grid(), specification)[0]
    ax = sheet.axes[0]
    assert [bar.get_width() for bar in ax.patches] == [0.75, 0.25]
    assert [text.get_text() for text in ax.texts] == ["75 %", "25 %"]
    ends = [[point[0] for point in segment] for segment in ax.collections[0].get_segments()]
    assert ends == [[0.5, 0.98], [0.02, 0.5]]
    assert_no_overlap(sheet)
    assert figures.draw(grid(), {**specification, "table": IMPORTANCE.head(1)}) == []
