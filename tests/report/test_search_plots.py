"""Figures of a whole search: fewer configurations, time to a target, what is better, which parameters decide."""

import numpy as np
import pandas as pd
import pytest

from tests.report.figure_checks import assert_tidy
from tune_hpc import budget_curve, time_to_target
from tune_hpc.report.plots import figures

BUDGET = {"kind": "budget", "metrics": ["test_loss"], "title": "Fewer"}
TARGET = {"kind": "target", "metrics": ["test_loss"], "title": "Soon", "line": "optimizer", "target": 0.5}
RANKING = {"kind": "ranking", "metrics": ["test_loss"], "title": "Better", "line": "learning_rate"}


@pytest.fixture
def many(trial, results_of):
    """Thirty configurations; the n-th has loss 3 - n / 10."""

    def make(**asked):
        trials = [trial(f"{n:05d}", loss=3 - n / 10, learning_rate=0.001 * (n + 1)) for n in range(30)]
        return results_of(*trials, **asked)

    return make


class TestBudget:
    def test_the_line_and_the_band_are_the_table_s(self, many):
        made = many()
        sheet = figures.draw(made, BUDGET)[0]
        (line,) = sheet.axes[0].get_lines()
        table = budget_curve(made, [int(x) for x in line.get_xdata()])
        assert list(line.get_xdata()) == list(table["num_configurations"])
        assert {1, 2, 5, 10, 20, 30} <= set(line.get_xdata())
        np.testing.assert_allclose(line.get_ydata(), table["mean"])
        (band,) = sheet.axes[0].collections
        assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(table["high"].max())
        assert (sheet.axes[0].get_xlabel(), sheet.axes[0].get_ylabel()) == ("configurations tried", "test loss")
        assert_tidy(sheet)

    def test_a_searcher_that_learns_has_the_order_in_which_it_tried(self, many):
        sheet = figures.draw(many(searcher="tpe"), BUDGET)[0]
        (line,) = sheet.axes[0].get_lines()
        assert list(line.get_ydata()) == sorted(line.get_ydata(), reverse=True)
        assert not sheet.axes[0].collections
        assert "in the order in which the searcher tried them" in sheet.caption

    def test_divergences_are_told(self, trial, results_of):
        trials = [trial(f"{n}", learning_rate=0.1 * n, status="diverged" if n % 2 else "finished") for n in range(1, 9)]
        sheet = figures.draw(results_of(*trials), BUDGET)[0]
        assert "With 1 configuration nothing but divergence in 50% of the orders." in sheet.caption

    def test_it_is_standard_from_twenty_configurations_on_but_of_no_population(self, many, grid):
        kinds = [[one["kind"] for one in figures.default_figures(made)] for made in (many(), grid())]
        assert [own.count("budget") for own in kinds] == [1, 0]
        declared = many(figures=[{"kind": "curve", "metrics": ["test_loss"], "title": "Curves"}])
        assert [one["kind"] for one in figures.default_figures(declared)] == ["curve", "budget"]
        assert "budget" not in [one["kind"] for one in figures.default_figures(many(scheduler="pbt"))]


class TestTarget:
    def test_a_line_rises_where_configurations_reach_it(self, grid):
        made = grid()
        sheet = figures.draw(made, TARGET)[0]
        assert [ax.get_xlabel() for ax in sheet.axes] == [
            "optimizer steps until then", "seconds of training until then",
        ]  # fmt: skip
        table = time_to_target(made, 0.5)
        lines = sheet.axes[0].get_lines()
        for line, optimizer in zip(lines, ("adam", "momentum"), strict=True):
            own = table[table["optimizer"] == optimizer]
            reached = own["reached_step"][np.isfinite(own["reached_step"])]
            assert sorted(set(line.get_xdata())) == sorted(set(reached))
            assert line.get_ydata()[-1] == len(reached) / len(own)
        labels = [text.get_text() for text in sheet.figure.legends[0].get_texts()]
        assert labels == ["adam (2 of 3 missed)", "momentum (2 of 3 missed)"]
        assert "4 of 6 configurations never did." in sheet.caption
        assert_tidy(sheet)

    def test_without_a_line_all_configurations_are_one(self, grid):
        made = grid()
        missed = int(np.isinf(time_to_target(made, 1.5)["reached_step"]).sum())
        assert 0 < missed < 6
        sheet = figures.draw(made, {**TARGET, "line": None, "target": 1.5})[0]
        assert [text.get_text() for text in sheet.figure.legends[0].get_texts()] == [f"{missed} of 6 missed"]
        assert len(sheet.axes[0].get_lines()) == 1
        assert_tidy(sheet)

    def test_nobody_there_or_nothing_to_reach_is_no_figure(self, grid, trial, results_of):
        for figure in ({**TARGET, "target": -1.0}, {**TARGET, "target": None}, {**TARGET, "metrics": ["nothing"]}):
            assert figures.draw(grid(), figure) == []
        for made in (results_of(), results_of(trial("0")), results_of(trial("0", status="failed"))):
            assert figures.draw(made, TARGET) == []


class TestRanking:
    def test_rows_are_in_order_with_their_intervals(self, grid):
        made = grid()
        ranking = made.compare("learning_rate").values.sort_values("mean", kind="stable")
        sheet = figures.draw(made, RANKING)[0]
        ax = sheet.axes[0]
        assert [label.get_text() for label in ax.get_yticklabels()] == [
            f"{rate:g}" for rate in ranking["learning_rate"]
        ]
        assert [line.get_xdata()[0] for line in ax.get_lines()] == list(ranking["mean"])
        assert ax.get_xlabel() == "test loss"
        assert "95 % interval of the mean over seeds" in sheet.caption
        assert_tidy(sheet)

    def test_what_one_seed_cannot_tell_is_grey(self, many):
        sheet = figures.draw(many(), RANKING)[0]
        assert [text.get_text() for text in sheet.figure.legends[0].get_texts()] == ["inconclusive"]
        assert_tidy(sheet)

    def test_nothing_to_compare_is_no_figure(self, trial, results_of, grid):
        for made in (results_of(), results_of(trial("0")), results_of(trial("0", status="failed"))):
            assert figures.draw(made, RANKING) == []
        assert figures.draw(grid(), {**RANKING, "line": "nothing"}) == []


def test_importances_are_bars_with_their_numbers(grid):
    table = pd.DataFrame({"parameter": ["learning_rate[optimizer=adam]", "batch_size"], "importance": [0.75, 0.25]})
    figure = {"kind": "importance", "metrics": ["test_loss"], "title": "Which parameters decide", "table": table}
    sheet = figures.draw(grid(), figure)[0]
    ax = sheet.axes[0]
    assert [bar.get_width() for bar in ax.patches] == [0.75, 0.25]
    assert [text.get_text() for text in ax.texts] == ["75 %", "25 %"]
    assert_tidy(sheet)
    assert figures.draw(grid(), {**figure, "table": table.head(1)}) == []
