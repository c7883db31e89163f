"""Contents of the HTML report."""

import re
from dataclasses import replace

import pytest

from tests.report.figure_checks import IMPORTANCE
from tune_hpc.analysis.concatenation import concat
from tune_hpc.errors import UnknownNameError
from tune_hpc.report import report

FIGURE = {"kind": "curve", "metrics": ["train_loss"], "title": "Loss", "line": "learning_rate"}
PUBLISHED = {"where": {"optimizer": "adam"}, "metric": "test_loss", "value": 0.3, "source": "report, Exercise 2",
             "best_over": "learning_rate", "best_values": [0.01]}  # fmt: skip
PROVENANCE = {
    "tune_hpc": "0.1.0", "python": "3.11", "commit": "0123abc", "machine": {"host": "node17", "cpus": 2, "gpus": 0},
    "command": "tune-hpc run made.up --set a='<b>'", "wall_s": 83.0,
}  # fmt: skip


def page_of(*results, path):
    return report.write_report(results, path).read_text(encoding="utf-8")


def test_page_is_self_contained(grid, tmp_path):
    page = page_of(grid(figures=[FIGURE], published=[PUBLISHED]), path=tmp_path / "report.html")
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "@import" not in page
    assert "url(" not in page
    assert page.count('<img src="data:image/') == 1


def test_page_has_findings_tables_figures_and_provenance(grid, tmp_path):
    made = grid(figures=[FIGURE], published=[PUBLISHED], provenance=PROVENANCE, title="Made up", state="finished")
    page = page_of(made, path=tmp_path / "report.html")
    assert page.index("12 trials, 12 finished.") < page.index("Published and measured values") < page.index("<img")
    assert "Of 1 published best learning rates, 1 is also ours." in page
    assert "1 min 23 s" in page
    assert "node17, 2 CPUs, 0 GPUs" in page
    assert "tune-hpc run made.up --set a=&#39;&lt;b&gt;&#39;" in page
    assert "<h1>Made up</h1>" in page
    assert "<nav" not in page


def test_quick_runs_are_marked_beside_published_numbers(grid, tmp_path):
    page = page_of(grid(published=[PUBLISHED], figures=[FIGURE], quick=True), path=tmp_path / "report.html")
    assert 'measured <span class="quick">quick</span>' in page
    assert "quick run: not comparable" in page
    assert "quick" not in re.sub(
        "(?s)<style>.*</style>", "", page_of(grid(published=[PUBLISHED], figures=[FIGURE]), path=tmp_path / "b.html")
    )


def test_texts_of_trials_are_escaped(trial, results_of, tmp_path):
    made = results_of(
        trial("00000"), trial("00001", status="failed"), title="<script>alert(2)</script>", description="a < b"
    )
    page = page_of(made, path=tmp_path / "report.html")
    assert "<script" not in page
    assert "RuntimeError: &lt;script&gt;alert(1)&lt;/script&gt; | out of memory" in page


def test_several_experiments_have_contents_and_a_summary(grid, results_of, trial, tmp_path):
    other = results_of(trial("00000", status="diverged"), name="other.one", state="interrupted", figures=[FIGURE])
    page = page_of(
        grid(title="First", figures=[FIGURE]),
        other,
        results_of(name="begun", state="running"),
        path=tmp_path / "all.html",
    )
    assert '<a href="#made-up">First</a>' in page
    assert 'id="other-one"' in page
    assert "1 diverged" in page
    assert "No trial has ended yet." in page
    assert "3 experiments" in page


@pytest.mark.slow
def test_page_of_several_experiments_starts_with_what_agrees_and_what_was_quick(grid, tmp_path):
    full = [grid(published=[PUBLISHED], name=name) for name in ("first", "second")]
    quick = grid(published=[PUBLISHED], name="third", quick=True)
    page = page_of(*full, quick, path=tmp_path / "report.html")
    header = page[page.index("<header>") : page.index("</header>")]
    assert "2 experiments ran at full size: first, second. Of 2 published best learning rates, " in header
    assert "1 experiment is marked as quick: it ran with fewer steps or trials than published" in header


@pytest.mark.parametrize("status", ["diverged", "failed", "running", "finished"])
def test_single_trial_of_any_status_makes_a_page(trial, results_of, tmp_path, status):
    made = results_of(trial("00000", status=status), figures=[FIGURE], published=[PUBLISHED])
    assert "1 trial, 1 " + status in page_of(made, path=tmp_path / "report.html")


def test_running_search_without_trials_makes_a_page(results_of, tmp_path):
    page = page_of(results_of(figures=[FIGURE], published=[PUBLISHED], tables=[]), path=tmp_path / "report.html")
    assert "No trial has ended yet." in page
    assert "No trial has data for a figure." in page


def test_tables_figures_and_page_are_written_into_the_folder(grid, tmp_path):
    made = replace(grid(figures=[FIGURE]), folder=tmp_path / "run")
    page = tmp_path / "run" / "report.html"
    assert report.write_report([made], page) == page
    assert (tmp_path / "run" / "figures" / "loss.svg").is_file()
    assert (tmp_path / "run" / "tables" / "best-configurations.csv").is_file()
    report.write_report([made], tmp_path / "elsewhere.html", in_folders=False)
    assert (tmp_path / "elsewhere.html").read_text() == (tmp_path / "run" / "report.html").read_text()


def test_importance_is_a_table_and_a_figure_unless_it_raises(grid, results_of, trial, tmp_path):
    def importance(results):
        if len(results.trials) == 1:
            raise UnknownNameError("importance takes at least 10 configurations")
        return IMPORTANCE

    path = tmp_path / "report.html"
    page = report.write_report([grid(figures=[FIGURE])], path, importance=importance).read_text(encoding="utf-8")
    assert "<h3>Parameter importance</h3>" in page
    assert ">0.75</td>" in page
    assert page.count('<img src="data:image/') == 2
    page = report.write_report([results_of(trial("0"))], path, importance=importance).read_text(encoding="utf-8")
    assert "Parameter importance" not in page


@pytest.mark.slow
def test_comparison_is_first_and_equal_names_are_distinguished(grid, tmp_path):
    searches = [replace(grid(title="Made up"), folder=tmp_path / name) for name in ("first", "second")]
    ranking = concat(searches).compare("search")
    page = report.write_report(searches, tmp_path / "both.html", in_folders=False, comparison=ranking)
    html = page.read_text(encoding="utf-8")
    assert re.findall('<section id="([^"]+)"', html) == ["comparison", "first", "second"]
    assert re.findall('<li><a href="#([^"]+)">([^<]+)<', html) == [
        ("first", "Made up (first)"), ("second", "Made up (second)"),
    ]  # fmt: skip
    compared = html[html.index("comparison") : html.index('<section id="first"')]
    assert all(sentence in compared for sentence in ranking.sentences())
    assert "tie for the best search" in compared
    assert compared.count("<table>") == 2
    assert compared.count("<img") == 1
    assert not list(tmp_path.glob("*/*"))
