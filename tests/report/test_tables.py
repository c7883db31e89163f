import numpy as np
import pandas as pd
import pytest

from tune_hpc.analysis.formatting import format_metric, format_number
from tune_hpc.analysis.intervals import Interval, mean_interval
from tune_hpc.analysis.published import AGREES, DIFFERS, INCONCLUSIVE, compare_to_published, verdict
from tune_hpc.errors import UnknownNameError
from tune_hpc.report import findings, tables
from tune_hpc.report.plots.heatmap import heat_table

BEST = {"metric": "test_loss", "value": 0.3, "source": "report", "best_over": "learning_rate"}
PUBLISHED = [
    {**BEST, "where": {"optimizer": "adam", "batch_size": 100}, "best_values": (0.01, 0.005)},
    {**BEST, "where": {"optimizer": "momentum", "batch_size": 100}, "best_values": (0.001,)},
]
EXACT = {
    "where": {"optimizer": "adam", "learning_rate": 0.1},
    "metric": "test_accuracy",
    "value": 0.7,
    "source": "report",
}


def test_published_best_value_is_compared_with_the_best_mean(grid):
    df = compare_to_published(grid(published=PUBLISHED))
    assert list(df["where"]) == ["optimizer adam", "optimizer momentum"]
    assert list(df["measured_best"]) == [0.01, 0.1]
    assert list(df["best_agrees"]) == [True, False]
    assert list(df["published_best"]) == ["0.01, 0.005", "0.001"]
    assert list(df["num_seeds"]) == [2, 2]
    end = 2 * np.exp(-20 / 5)
    assert df["measured"].iloc[0] == pytest.approx(0.305 + end)
    assert df["deviation"].iloc[0] == pytest.approx(0.01 / np.sqrt(2))
    assert df["difference"].iloc[0] == pytest.approx(0.005 + end)


def test_untried_best_values_are_neither_equal_nor_different(grid):
    published = [{**PUBLISHED[0], "best_values": values} for values in ((0.02, 0.05), (0.05, 0.1))]
    made = grid(published=published)
    assert list(compare_to_published(made)["best_agrees"]) == [pd.NA, False]
    assert any("Of 1 published best learning rates, 0 are also ours." in one for one in findings.findings(made))


def test_sampled_values_have_no_pivot(trial, results_of):
    drawn = results_of(
        *(trial(f"{n}", optimizer=name, learning_rate=0.012345678 * (n + 1)) for n, name in enumerate("abcdef"))
    )
    assert tables.pivot(drawn, "optimizer", "learning_rate", "test_loss").empty
    assert heat_table(drawn, "test_loss", "learning_rate", "optimizer", {}).empty
    text = tables.to_markdown(tables.best_trials(drawn))
    assert "0.01235" in text
    assert "0.012345" not in text


def test_published_number_is_compared_with_its_trials(grid):
    made = grid(published=[EXACT])
    row = compare_to_published(made).iloc[0]
    trials = made.trials.query("optimizer == 'adam' and learning_rate == 0.1")
    assert row["measured"] == pytest.approx(trials["test_accuracy"].mean())
    assert row["measured_best"] is None
    assert row["best_agrees"] is pd.NA


class TestVerdicts:
    def test_agreement_rate_of_equal_distributions_is_nominal(self):
        generator = np.random.default_rng(0)
        for num_seeds in (3, 5, 10):
            verdicts = []
            for _ in range(2000):
                *ours, theirs = generator.normal(0.99, 0.001, num_seeds + 1)
                verdicts.append(verdict(theirs, mean_interval(ours), num_seeds))
            assert verdicts.count(AGREES) / 2000 == pytest.approx(0.95, abs=0.02)
            assert set(verdicts) == {AGREES, DIFFERS}

    def test_distant_run_differs(self):
        generator = np.random.default_rng(1)
        ours = mean_interval(generator.normal(0.99, 0.001, 5))
        assert verdict(0.98, ours, 5, resolution=0.001) == DIFFERS

    def test_resolution_widens_the_interval(self):
        close = mean_interval([0.99118, 0.9912, 0.99122])
        assert verdict(0.991, close, 3) == DIFFERS
        assert verdict(0.991, close, 3, resolution=0.001) == AGREES
        assert verdict(0.992, close, 3, resolution=0.001) == DIFFERS

    def test_identical_seeds_are_inconclusive(self):
        same = mean_interval([0.3055, 0.3055, 0.3055])
        assert verdict(0.32, same, 3, resolution=0.01) == INCONCLUSIVE
        assert verdict(0.31, same, 3, resolution=0.01) == AGREES

    @pytest.mark.parametrize(("published", "expected"), [(0.991, AGREES), (0.989, AGREES), (0.9, INCONCLUSIVE)])
    def test_single_seed_is_compared_by_the_binomial_error(self, published, expected):
        alone = mean_interval([0.9904])
        assert verdict(published, alone, 1, resolution=0.001, num_images=10_000) == expected
        assert verdict(0.95, Interval(0.99, 0.94, 1.04), 2, resolution=0.001, num_images=10_000) == INCONCLUSIVE

    def test_table_has_the_verdicts(self, trial, results_of):
        trials = [trial(f"0000{seed}", loss=1 + seed / 1000, seed=seed) for seed in range(3)]
        published = [
            {**EXACT, "value": 0.793}, {**EXACT, "value": 0.7},
            {**EXACT, "value": 1.5, "metric": "train_s"}, {**EXACT, "metric": "valid_accuracy"},
        ]  # fmt: skip
        df = compare_to_published(results_of(*trials, published=published))
        assert list(df["verdict"].fillna("")) == [AGREES, DIFFERS, "not comparable", ""]
        assert (df["low"] < df["measured"])[:2].all()
        sized = [one | {"size": {"batch_size": 150, "width": 1}} for one in published]
        others = compare_to_published(results_of(*trials, published=sized))
        assert list(others["verdict"].fillna("")) == ["not comparable"] * 3 + [""]
        assert list(others["note"])[:2] == ["measured with batch size 100"] * 2
        quick = compare_to_published(results_of(*trials, published=published, quick=True))
        assert list(quick["verdict"].fillna("")) == ["not comparable"] * 3 + [""]
        sentences = findings.findings(results_of(*trials, published=published))
        assert "Of 2 published numbers, 1 agrees with ours, 1 differs." in sentences


@pytest.mark.parametrize(
    ("where", "note"),
    [
        ({"optimizer": "ftrl"}, "no such trial"),
        ({"model": "cnn"}, "no such trial"),
        ({"optimizer": "adam"}, "trials there also differ in learning_rate"),
    ],
)
def test_missing_measurement_has_a_note(grid, where, note):
    row = compare_to_published(grid(published=[{**EXACT, "where": where}])).iloc[0]
    assert np.isnan(row["measured"])
    assert row["note"] == note


def test_diverged_and_failed_trials_have_missing_values(trial, results_of):
    made = results_of(
        trial("00000", status="diverged"),
        trial("00001", status="failed", learning_rate=0.01),
        published=[EXACT, *PUBLISHED],
    )
    df = compare_to_published(made)
    assert df["measured"].isna().all()
    assert list(df["note"]) == ["diverged", "diverged", "no such trial"]
    assert findings.findings(made) == [
        "2 trials: 1 diverged, 1 failed.",
        "No trial finished with a value of test loss.",
    ]


def test_rate_with_a_diverged_seed_is_not_the_best(trial, results_of):
    made = results_of(
        trial("00000", 0.1, learning_rate=0.5, seed=0),
        trial("00001", 0.1, "diverged", learning_rate=0.5, seed=1),
        trial("00002", 0.4, learning_rate=0.1, seed=0),
        trial("00003", 0.4, learning_rate=0.1, seed=1),
        published=PUBLISHED[:1],
    )
    assert compare_to_published(made)["measured_best"].iloc[0] == 0.1
    best = tables.best_per(made, "optimizer", ["test_loss"])
    assert best["learning_rate"].iloc[0] == 0.1
    assert best["num_diverged"].iloc[0] == 1


def test_quick_run_is_marked_beside_published_numbers(grid):
    made = grid(published=PUBLISHED, quick=True)
    text = tables.to_markdown(compare_to_published(made))
    assert "measured (quick)" in text
    assert "Of 2 published best learning rates, 1 is also ours (quick run: not comparable)." in findings.findings(made)


def test_findings_have_the_numbers(grid):
    sentences = findings.findings(grid(published=PUBLISHED))
    assert sentences[0] == "12 trials, 12 finished."
    assert sentences[1] == "Lowest test loss 0.3416 with optimizer adam, learning rate 0.01 (mean of 2 seeds)."
    assert sentences[2] == "Of 2 published best learning rates, 1 is also ours."
    assert sentences[3] == "Of 2 published numbers, 2 are inconclusive with so few seeds."
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
    assert tables.best_trials(made).empty


def test_csv_has_full_precision_and_markdown_is_rounded(grid, tmp_path):
    made = grid(published=PUBLISHED)
    files = tables.write_tables(made, tmp_path)
    assert tmp_path / "tables" / "best-trials.md" in files
    best = pd.read_csv(tmp_path / "tables" / "best-trials.csv")
    assert best["test_loss"].iloc[0] == made.best()["test_loss"]
    markdown = (tmp_path / "tables" / "best-trials.md").read_text()
    assert "0.3366" in markdown
    assert "0.33663" not in markdown
    assert "Source: report." in (tmp_path / "tables" / "published-and-measured-values.md").read_text()


def test_error_texts_are_escaped_in_markdown(trial, results_of):
    text = tables.to_markdown(tables.trials_with_status(results_of(trial("00000", status="failed")), "failed"))
    assert "&lt;script&gt;alert(1)&lt;/script&gt; \\| out of memory" in text


def test_uninformative_columns_are_omitted_from_markdown(trial, results_of):
    text = tables.to_markdown(compare_to_published(results_of(trial("00000"), published=[EXACT])))
    assert "deviation" not in text
    assert "measured_best" not in text


@pytest.mark.parametrize(
    ("value", "column", "text"),
    [
        (0.99123456, "test_accuracy", "0.9912"), (0.30123, "test_loss", "0.3012"), (5.7123e-11, "loss", "5.712e-11"),
        (float("nan"), "loss", "–"), (float("inf"), "loss", "∞"), (12.345, "train_s", "12.3"),
        (23456.7, "samples_per_s", "23,457"), (3.0, "num_seeds", "3"),
    ],
)  # fmt: skip
def test_metrics_have_significant_digits(value, column, text):
    assert format_metric(value, column) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-4, "1e-04"), (0.05, "0.05"), (150, "150"), (0.00015, "1.5e-04"), (0, "0"), (3274634, "3274634")],
)
def test_configuration_values_are_short(value, text):
    assert format_number(value) == text


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


def test_best_trials_by_another_metric_have_it_first(grid):
    df = tables.best_trials(grid(), 3, "test_accuracy")
    assert list(df.columns[:5]) == ["trial_id", "optimizer", "learning_rate", "seed", "test_accuracy"]
    assert df["test_accuracy"].is_monotonic_decreasing
    assert len(df) == 3
    with pytest.raises(UnknownNameError, match="no column 'accuracy'"):
        tables.best_trials(grid(), 3, "accuracy")


def test_published_numbers_have_equal_decimals(grid):
    published = [
        {
            "where": {"optimizer": "adam", "learning_rate": rate},
            "metric": "test_accuracy",
            "value": value,
            "source": "x",
        }
        for rate, value in ((0.1, 0.99), (0.01, 0.991))
    ]
    text = tables.to_markdown(compare_to_published(grid(published=published)))
    assert "| test accuracy |" in text
    assert "0.990 |" in text
    assert "0.991 |" in text


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
