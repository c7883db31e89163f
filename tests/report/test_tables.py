"""Tables and findings of synthetic results."""

import numpy as np
import pandas as pd
import pytest

from tune_hpc.analysis.published import compare_to_published
from tune_hpc.cli.show import summary
from tune_hpc.errors import UnknownNameError
from tune_hpc.report import findings, tables
from tune_hpc.report.plots.heatmap import heat_table

BEST = {"metric": "test_loss", "value": 0.3, "source": "report", "best_over": "learning_rate"}
PUBLISHED = [
    {**BEST, "where": {"optimizer": "adam", "batch_size": 100}, "best_values": (0.01, 0.005)},
    {**BEST, "where": {"optimizer": "momentum", "batch_size": 100}, "best_values": (0.001,)},
]
EXACT = {
    "where": {"optimizer": "adam", "learning_rate": 0.1}, "metric": "test_accuracy", "value": 0.7, "source": "report",
}  # fmt: skip


def test_sampled_values_have_no_pivot(trial, results_of):
    drawn = results_of(
        *(trial(f"{n}", optimizer=name, learning_rate=0.012345678 * (n + 1)) for n, name in enumerate("abcdef"))
    )
    assert tables.pivot(drawn, "optimizer", "learning_rate", "test_loss").empty
    assert heat_table(drawn, "test_loss", "learning_rate", "optimizer", {}).empty
    text = tables.to_markdown(tables.best_configurations(drawn))
    assert "0.01235" in text
    assert "0.012345" not in text


def test_quick_run_is_marked_beside_published_numbers(grid):
    made = grid(published=PUBLISHED, quick=True)
    text = tables.to_markdown(compare_to_published(made))
    assert "measured (quick)" in text
    assert "Of 2 published best learning rates, 1 is also ours (quick run: not comparable)." in findings.findings(made)


def test_findings_have_the_numbers(grid):
    sentences = findings.findings(grid(published=PUBLISHED))
    assert sentences[0] == "12 trials, 12 finished."
    best = "Lowest test loss 0.3416 with optimizer adam, learning rate 0.01"
    assert sentences[1] == f"{best} (mean of 2 seeds; 95 % interval 0.2781 to 0.4052)."
    assert sentences[2] == "Of 2 published best learning rates, 1 is also ours."
    assert sentences[3] == "Of 2 published numbers, 2 agree with ours."
    assert sentences[4] == "Mean distance from the published values: 0.04163 on 2 numbers for test loss."


def test_best_per_has_one_row_per_value(grid):
    df = tables.best_per(grid(), "optimizer", ["test_loss", "test_accuracy"])
    assert list(df["optimizer"]) == ["adam", "momentum"]
    assert list(df["learning_rate"]) == [0.01, 0.1]
    assert list(df.columns[2:4]) == ["test_loss", "test_loss_deviation"]


def test_pivot_has_the_means_of_completed_trials(grid):
    made = grid()
    made.trials.loc[made.trials["learning_rate"] == 0.001, "status"] = "diverged"
    df = tables.pivot(made, "optimizer", "learning_rate", "test_loss")
    assert list(df.columns) == ["optimizer", "learning_rate 0.001", "learning_rate 0.01", "learning_rate 0.1"]
    assert df["learning_rate 0.001"].isna().all()
    expected = made.trials.query("optimizer == 'adam' and learning_rate == 0.01")["test_loss"].mean()
    assert df["learning_rate 0.01"].iloc[0] == pytest.approx(expected)
    assert list(tables.pivot(made, "learning_rate", None, "test_loss")["learning_rate"]) == [0.001, 0.01, 0.1]


def test_metrics_at_steps_are_the_last_before_a_step(trial, results_of):
    row, history = trial("00000", num_steps=20)
    made = results_of((row, history[history["step"] % 8 == 0]))
    df = tables.metrics_at_steps(made, [7, 16, 1000], ["train_loss", "W"])
    assert list(df["step"]) == [7, 16, 1000]
    assert list(df["taken_at"]) == [0, 16, 16]
    assert df["train_loss"].iloc[1] == history["train_loss"].iloc[16]
    assert df["W"].isna().all()


def test_metrics_at_steps_are_missing_after_a_divergence(trial, results_of):
    df = tables.metrics_at_steps(results_of(trial("00000", status="diverged", num_steps=5)), [5, 6], ["train_loss"])
    assert list(df["train_loss"].isna()) == [False, True]


def test_tables_without_trials_are_empty(results_of, tmp_path):
    declared = [
        {"kind": "best_per", "title": "a", "metrics": ["test_loss"], "rows": "optimizer"},
        {"kind": "pivot", "title": "a", "metrics": ["test_loss"], "rows": "optimizer", "columns": "learning_rate"},
        {"kind": "at_steps", "title": "a", "metrics": ["W"], "steps": [1]},
    ]
    made = tables.report_tables(results_of(tables=declared, published=[EXACT, *PUBLISHED]))
    assert [slug for _, slug, _ in made][:4] == ["published-and-measured-values", "a", "a-2", "a-3"]
    assert all(df.empty for title, _, df in made if title == "a")
    assert tables.write_tables(results_of(tables=declared), tmp_path)
    assert findings.findings(results_of()) == ["No trial has ended yet."]


def test_tables_without_metrics_are_empty(trial, results_of):
    row, history = trial("00000")
    row = {name: value for name, value in row.items() if not name.endswith(("loss", "accuracy"))}
    made = results_of((row, history.iloc[:0]), metric="test_loss", published=[EXACT], tables=[
        {"kind": "pivot", "title": "a", "metrics": ["test_loss"], "rows": "optimizer", "columns": "batch_size"},
        {"kind": "best_per", "title": "b", "metrics": ["test_loss"], "rows": "nothing"},
    ])  # fmt: skip
    assert len(tables.report_tables(made)) >= 4
    assert tables.best_configurations(made).empty


def test_csv_has_full_precision_and_markdown_is_rounded(grid, tmp_path):
    made = grid(published=PUBLISHED)
    files = tables.write_tables(made, tmp_path)
    assert tmp_path / "tables" / "best-configurations.md" in files
    best = pd.read_csv(tmp_path / "tables" / "best-configurations.csv")
    assert best["test_loss"].iloc[0] == made.best()["test_loss"]
    markdown = (tmp_path / "tables" / "best-configurations.md").read_text()
    assert "0.3416" in markdown
    assert "0.34163" not in markdown
    assert "Source: report." in (tmp_path / "tables" / "published-and-measured-values.md").read_text()


def test_error_texts_are_escaped_in_markdown(trial, results_of):
    text = tables.to_markdown(tables.trials_with_status(results_of(trial("00000", status="failed")), "failed"))
    assert "&lt;script&gt;alert(1)&lt;/script&gt; \\| out of memory" in text


def test_hundred_thousand_trials_are_aggregated(results_of):
    rng = np.random.default_rng(0)
    n = 100_000
    made = results_of()
    trials = pd.DataFrame(
        {
            "trial_id": [f"{i:06d}" for i in range(n)], "status": "finished", "optimizer": rng.choice(list("abc"), n),
            "learning_rate": rng.choice(10.0 ** -np.arange(1, 6), n), "batch_size": rng.integers(1, 500, n),
            "seed": rng.integers(0, 5, n), "test_loss": rng.random(n),
        }
    )  # fmt: skip
    big = type(made)(made.experiment, trials, made.history)
    assert len(tables.aggregate_seeds(big, ["test_loss"])) == len(
        trials.drop_duplicates(["optimizer", "learning_rate", "batch_size"])
    )


def test_best_configurations_by_another_metric_have_it_first(grid):
    df = tables.best_configurations(grid(), 3, "test_accuracy")
    assert list(df.columns[:5]) == ["trial_id", "optimizer", "learning_rate", "test_accuracy", "train_loss"]
    assert df["test_accuracy"].is_monotonic_decreasing
    assert len(df) == 3
    with pytest.raises(UnknownNameError, match="no numeric column 'accuracy'"):
        tables.best_configurations(grid(), 3, "accuracy")


def test_distance_of_quick_runs_and_durations_is_omitted(grid):
    where = {"optimizer": "adam", "learning_rate": 0.1}
    published = [{"where": where, "metric": "test_loss", "value": 0.3, "source": "x"}]
    seconds = [published[0] | {"metric": "train_s", "value": 19.254}]
    assert any("Mean distance" in one for one in findings.findings(grid(published=published)))
    assert not any("Mean distance" in one for one in findings.findings(grid(published=published, quick=True)))
    assert not any("Mean distance" in one for one in findings.findings(grid(published=seconds)))


def test_trials_table_has_every_trial_and_the_requested_columns(trial, results_of):
    results = results_of(trial("t0", optimizer="adam"), trial("t1", optimizer="ftrl", status="failed"))
    df = tables.trials_table(results, ["train_s", "no_such_column"])
    assert list(df) == ["optimizer", "train_s"]
    assert " 1.235 |" in tables.to_markdown(tables.trials_table(results_of(trial("t0", speedup=1.23456)), ["speedup"]))
    assert list(df["optimizer"]) == ["adam", "ftrl"]


def test_search_space_table_has_the_domains_and_the_values_of_the_trials(trial, results_of):
    space = {
        "optimizer": {"choice": ["adam", "sgd"]}, "learning_rate": {"loguniform": [1e-4, 1.0]}, "steps": 5,
        "momentum": {"cases": [{"when": {"optimizer": ["sgd"]}, "value": {"uniform": [0, 1]}}]},
    }  # fmt: skip
    rows = [trial(f"t{n}", optimizer=("adam", "sgd")[n % 2], learning_rate=0.01 * n, momentum=n / 2) for n in (1, 2)]
    keys = ["optimizer", "learning_rate", "momentum"]
    df = tables.search_space_table(results_of(*rows, space=space, config_keys=keys))
    assert df.to_numpy().tolist() == [
        ["optimizer", "choice", 2, "sgd, adam"],
        ["learning_rate", "loguniform(1e-04, 1)", 2, "0.01, 0.02"],
        ["momentum", "conditional", 2, "0.5, 1"],
    ]


@pytest.mark.parametrize(("values", "is_warned"), [((0.1, 0.1, 0.3, 0.3), True), ((0.1, 0.2, 0.3, 0.3), False)])
def test_seeds_without_effect_are_a_finding(trial, results_of, values, is_warned):
    rows = [trial(f"t{n}", value, seed=n % 2, learning_rate=n // 2 + 0.1) for n, value in enumerate(values)]
    sentences = findings.findings(results_of(*rows, config_keys=["learning_rate", "seed"]))
    assert any("the seed seems to have no effect" in sentence for sentence in sentences) is is_warned


@pytest.mark.parametrize(("is_extrapolated", "note"), [(True, " (extrapolated)"), (False, "")])
def test_extrapolated_training_time_is_marked(trial, results_of, is_extrapolated, note):
    rows = [trial(f"t{n}", learning_rate=n, train_s=n + 1.0, extrapolated=is_extrapolated) for n in range(2)]
    results = results_of(*rows, metric="train_s", config_keys=["learning_rate"])
    assert findings.findings(results)[1] == f"Lowest training time 1 s{note} with learning rate 0."
    assert summary(results).endswith(f"best train_s 1{note} at learning_rate=0")
    assert repr(results).endswith(f"best train_s 1{note} with learning_rate=0")
