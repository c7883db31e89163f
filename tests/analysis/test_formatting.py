"""Numbers and tables as text."""

import pytest

from tune_hpc.analysis.formatting import format_metric, format_number
from tune_hpc.analysis.published import compare_to_published
from tune_hpc.report import tables

EXACT = {
    "where": {"optimizer": "adam", "learning_rate": 0.1}, "metric": "test_accuracy", "value": 0.7, "source": "report",
}  # fmt: skip


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


def test_uninformative_columns_are_omitted_from_markdown(trial, results_of):
    text = tables.to_markdown(compare_to_published(results_of(trial("00000"), published=[EXACT])))
    assert "deviation" not in text
    assert "measured_best" not in text


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
