"""Published numbers compared with synthetic results."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tune_hpc.analysis.linear_model import pooled_deviations
from tune_hpc.analysis.published import (
    AGREES,
    DIFFERS,
    INCONCLUSIVE,
    _add_verdicts,
    _holm,
    compare_to_published,
    joint_test,
    neighbour_deviations,
)
from tune_hpc.report import findings, tables

BEST = {"metric": "test_loss", "value": 0.3, "source": "report", "best_over": "learning_rate"}
PUBLISHED = [
    {**BEST, "where": {"optimizer": "adam", "batch_size": 100}, "best_values": (0.01, 0.005)},
    {**BEST, "where": {"optimizer": "momentum", "batch_size": 100}, "best_values": (0.001,)},
]
EXACT = {
    "where": {"optimizer": "adam", "learning_rate": 0.1}, "metric": "test_accuracy", "value": 0.7, "source": "report",
}  # fmt: skip


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


def test_best_values_of_an_absent_parameter_are_unknown(grid):
    published = [{**PUBLISHED[0], "where": {"optimizer": "adam", "learning_rate": 0.01}, "best_over": "decay"}]
    (row,) = compare_to_published(grid(published=published)).to_dict("records")
    assert row["measured_best"] is None
    assert pd.isna(row["best_agrees"])
    assert not np.isnan(row["measured"])


def test_untried_best_values_are_neither_equal_nor_different(grid):
    published = [{**PUBLISHED[0], "best_values": values} for values in ((0.02, 0.05), (0.05, 0.1))]
    made = grid(published=published)
    assert list(compare_to_published(made)["best_agrees"]) == [pd.NA, False]
    assert any("Of 1 published best learning rates, 0 are also ours." in one for one in findings.findings(made))


def test_published_number_is_compared_with_its_trials(grid):
    made = grid(published=[EXACT])
    row = compare_to_published(made).iloc[0]
    trials = made.trials.query("optimizer == 'adam' and learning_rate == 0.1")
    assert row["measured"] == pytest.approx(trials["test_accuracy"].mean())
    assert row["measured_best"] is None
    assert row["best_agrees"] is pd.NA


RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
#: Cells of a table: (learning rate, values by seed).
Cells = list[tuple[float, list[float]]]


@pytest.fixture
def table(trial, results_of):
    """Make results whose published numbers belong to cells with one trial per seed."""

    def make(cells: Cells, published, resolution=0.0, config=None):
        trials = []
        for rate, values in cells:
            for seed, value in enumerate(values):
                row, history = trial(f"{len(trials):05d}", loss=1.0, learning_rate=rate, seed=seed)
                row |= {"test_accuracy": value, "test_loss": 1 + rate + value} | (config or {})
                trials.append((row, history))
        numbers = [
            {"where": {"learning_rate": rate}, "metric": "test_accuracy", "value": value, "resolution": resolution}
            for (rate, _), value in zip(cells, published, strict=True)
        ]
        made = results_of(*trials, published=numbers)
        made.experiment["config_keys"] = [*made.experiment["config_keys"], *(config or {})]
        return made

    return make


class TestVerdicts:
    @pytest.mark.parametrize(
        ("num_cells", "num_seeds", "seed_effect"), [(1, 3, 0.0), (4, 3, 0.0), (8, 2, 0.0), (8, 3, 1.0), (8, 5, 3.0)]
    )
    def test_agreement_rate_of_equal_distributions_is_nominal(self, num_cells, num_seeds, seed_effect):
        generator, parts = np.random.default_rng(0), []
        for _ in range(400):
            # The seeds have an effect on all cells; the published runs have seeds of their own.
            ours = generator.normal(0.0, 1.0, (num_seeds, num_cells))
            ours += seed_effect * generator.normal(0.0, 1.0, (num_seeds, 1))
            theirs = generator.normal(0.0, np.hypot(1.0, seed_effect), num_cells)
            parts.append(np.stack([theirs, ours.mean(axis=0), *pooled_deviations(ours)]))
        columns = ["published", "measured", "deviation", "degrees"]
        df = pd.DataFrame(np.concatenate(parts, axis=1).T, columns=columns).assign(
            metric="loss", num_seeds=num_seeds, resolution=0.0, is_comparable=True, is_random=True, num_diverged=0,
            best_over=None, verdict=None, note="", difference=lambda rows: rows["measured"] - rows["published"],
        )  # fmt: skip
        _add_verdicts(df)
        assert (df["verdict"] == AGREES).mean() == pytest.approx(0.95, abs=0.025)

    def test_zone_is_the_prediction_interval_of_one_more_run(self, table):
        values = [0.9901, 0.9912, 0.9923]
        df = compare_to_published(table([(0.1, values)], [0.9912], resolution=0.001))
        half = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) * np.sqrt(1 + 1 / 3) + 0.0005
        assert df.loc[0, ["zone_low", "zone_high"]].tolist() == pytest.approx([0.9912 - half, 0.9912 + half])
        for published, expected in ((0.9912 + half - 1e-6, AGREES), (0.9912 - half - 1e-6, DIFFERS)):
            assert compare_to_published(table([(0.1, values)], [published], 0.001)).loc[0, "verdict"] == expected

    def test_deviation_is_pooled_over_the_cells(self, table):
        # The seeds have no common effect: the residual variance has (3 - 1) (3 - 1) degrees of freedom.
        offsets = [(0.0, 0.001, 0.002), (0.001, 0.002, 0.0), (0.002, 0.0, 0.001)]
        cells = [(rate, [rate + one for one in offset]) for rate, offset in zip(RATES, offsets, strict=False)]
        df = compare_to_published(table(cells, [0.101, 0.201, 0.306]))
        assert df["deviation"].tolist() == pytest.approx([0.001] * 3)
        assert df["degrees"].tolist() == pytest.approx([4] * 3)
        assert df["verdict"].tolist() == [AGREES] * 2 + [DIFFERS]
        assert df.loc[2, "p_holm"] == pytest.approx(3 * 2 * stats.t.sf(0.005 / 0.001 / np.sqrt(4 / 3), 4))

    def test_seeds_that_shift_all_cells_have_few_degrees_of_freedom(self, table):
        cells = [(rate, [rate, rate + 0.001, rate + 0.002]) for rate in RATES]
        df = compare_to_published(table(cells, RATES))
        assert df["degrees"].tolist() == pytest.approx([2] * 6)

    def test_single_seed_differs_by_the_changes_between_neighbouring_differences(self, table):
        rates = np.arange(1, 11) / 10
        differences = np.array([1, -1, 1, -1, 1, -1, 1, -1, 1, -1]) / 1000
        cells = [(rate, [0.9 + rate**2 / 20]) for rate in rates]
        published = 0.9 + rates**2 / 20 + differences
        df = compare_to_published(table(cells, published))
        # A response that both have has no effect: each pseudo-residual is 2 / sqrt(1.5) thousandths. It has the whole
        # variance of the published run, and half of that of our run.
        deviation = 0.002 / np.sqrt(1.5) / np.sqrt(1.5)
        assert df["deviation"].tolist() == pytest.approx([deviation] * 10)
        assert set(df["verdict"]) == {AGREES}
        # Neither a single outlier nor an offset of the whole table is lost in the deviation.
        published[4] += 0.02
        df = compare_to_published(table(cells, published))
        assert df.loc[4, ["deviation", "verdict"]].tolist() == pytest.approx([deviation, DIFFERS])
        published[4] -= 0.02
        assert set(compare_to_published(table(cells, published + 0.02))["verdict"]) == {DIFFERS}

    def test_neighbour_deviations_are_unbiased(self):
        values = np.random.default_rng(1).normal(0, 2, (400, 12)) + np.linspace(0, 30, 12)
        cells = pd.DataFrame({"rate": np.tile(np.arange(6), 2), "batch": np.repeat([50, 100], 6)})
        estimates = [neighbour_deviations(cells, pd.Series(row - np.repeat([0, 99], 6))) for row in values]
        assert np.mean([deviations**2 for deviations, _ in estimates], axis=0) == pytest.approx(4, rel=0.15)
        # Seven overlapping pseudo-residuals without the first cell: covariances of -2/3 and 1/6.
        assert estimates[0][1][0] == pytest.approx(49 / (7 + 10 * (2 / 3) ** 2 + 6 * (1 / 6) ** 2))

    @pytest.mark.slow
    def test_single_seeds_have_nominal_error_rates_and_power(self, table):
        generator = np.random.default_rng(1)
        rates, num_different, num_found, num_tables = np.arange(1, 13) / 10, 0, 0, 100
        for _ in range(num_tables):
            # Our cells share a seed, whose effect is as large as the residual.
            ours, theirs = generator.normal(0.9, 0.001, (2, 12)) + rates / 100
            ours += generator.normal(0, 0.001)
            theirs += generator.normal(0, 0.001, 12)
            cells = [(rate, [value]) for rate, value in zip(rates, ours, strict=True)]
            num_different += (compare_to_published(table(cells, theirs))["verdict"] == DIFFERS).sum()
            theirs[0] += 0.02
            num_found += compare_to_published(table(cells, theirs))["verdict"][0] == DIFFERS
        assert num_different / num_tables / 12 == pytest.approx(0.05, abs=0.025)
        assert num_found / num_tables >= 0.9

    def test_single_run_without_neighbours_is_inconclusive(self, table):
        df = compare_to_published(table([(0.1, [0.9904]), (0.2, [0.9914])], [0.99, 0.995], resolution=0.001))
        assert df["verdict"].tolist() == [AGREES, INCONCLUSIVE]
        assert df["zone_low"].isna().all()

    def test_identical_seeds_have_no_deviation(self, table):
        df = compare_to_published(table([(0.1, [0.5] * 3), (0.2, [0.5] * 3)], [0.504, 0.52], resolution=0.01))
        assert df["verdict"].tolist() == [AGREES, INCONCLUSIVE]

    def test_deterministic_run_is_judged_by_the_printed_digits(self, table):
        fixed = {"model": "softmax", "initial_weights": "tutorial", "batching": "sequential"}
        df = compare_to_published(table([(0.1, [0.9049]), (0.2, [0.9051])], [0.9, 0.9], 0.01, fixed))
        assert df["verdict"].tolist() == [AGREES, DIFFERS]
        assert df["zone_high"].tolist() == pytest.approx([0.9099, 0.9101])
        assert joint_test(table([(0.1, [0.9049])], [0.9], 0.01, fixed)).empty

    def test_table_has_the_verdicts(self, trial, results_of):
        trials = [trial(f"0000{seed}", loss=1 + seed / 1000, seed=seed) for seed in range(3)]
        published = [
            {**EXACT, "value": 0.793}, {**EXACT, "value": 0.7},
            {**EXACT, "value": 1.5, "metric": "train_s"}, {**EXACT, "metric": "valid_accuracy"},
        ]  # fmt: skip
        df = compare_to_published(results_of(*trials, published=published))
        assert list(df["verdict"].fillna("")) == [AGREES, DIFFERS, "not comparable", ""]
        assert (df["low"] < df["measured"])[:2].all()
        same = [one | {"size": {"batch_size": 100, "width": 1}} for one in published]
        pd.testing.assert_frame_equal(compare_to_published(results_of(*trials, published=same)), df)
        sized = [one | {"size": {"batch_size": 150, "width": 1}} for one in published]
        others = compare_to_published(results_of(*trials, published=sized))
        assert list(others["verdict"].fillna("")) == ["not comparable"] * 3 + [""]
        assert list(others["note"])[:2] == ["measured with batch size 100"] * 2
        quick = compare_to_published(results_of(*trials, published=published, quick=True))
        assert list(quick["verdict"].fillna("")) == ["not comparable"] * 3 + [""]
        sentences = findings.findings(results_of(*trials, published=published))
        assert "Of 2 published numbers, 1 agrees with ours, 1 differs." in sentences


def test_same_computation_counts_once(table):
    made = table([(0.1, [0.9, 0.91, 0.92]), (0.2, [0.9, 0.91, 0.92])], [0.95, 0.8])
    made.trials["test_loss"] = made.trials["test_accuracy"]
    df = compare_to_published(made)
    assert df["duplicate_of"].fillna("").tolist() == ["", "learning rate 0.1"]
    assert df["p_holm"].isna().tolist() == [False, True]
    made.trials["test_loss"] += made.trials["learning_rate"]
    assert compare_to_published(made)["duplicate_of"].isna().all()


def test_computation_that_repeats_counts_once_in_the_deviation(table):
    cells = [(0.1, [0.9, 0.91, 0.92]), (0.2, [0.9, 0.91, 0.92]), (0.3, [0.9, 0.94, 0.95])]
    made = table(cells, [0.95, 0.8, 0.93])
    made.trials["test_loss"] = made.trials["test_accuracy"]
    df = compare_to_published(made)
    expected = np.sqrt((np.var([0.9, 0.91, 0.92], ddof=1) + np.var([0.9, 0.94, 0.95], ddof=1)) / 2)
    assert df["deviation"].tolist() == pytest.approx([expected] * 3)
    assert len(set(df["degrees"])) == 1


def test_only_seeds_with_the_metric_count(table):
    made = table([(0.1, [0.5, 0.6, 0.7, 0.8])], [0.6])
    made.trials.loc[2:, "test_accuracy"] = np.nan
    row = compare_to_published(made).iloc[0]
    assert row[["measured", "num_seeds", "degrees"]].tolist() == pytest.approx([0.55, 2, 1])


def test_configuration_with_a_diverged_seed_is_inconclusive(table):
    made = table([(0.1, [0.5, 0.51, 0.52])], [0.51])
    made.trials.loc[2, "status"] = "diverged"
    row = compare_to_published(made).iloc[0]
    assert (row["verdict"], row["note"]) == (INCONCLUSIVE, "1 of 3 seeds diverged")


def test_tiny_numbers_are_compared_relative_to_their_size(table):
    fixed = {"model": "line"}
    df = compare_to_published(table([(0.1, [4e-12]), (0.2, [5e-11])], [9e-10, 5e-11], config=fixed))
    assert df["verdict"].tolist() == [DIFFERS, AGREES]
    assert df[["p_holm", "deviation", "low"]].isna().all(axis=None)


def test_row_of_a_number_has_all_of_its_comparison(table):
    values = [0.9901, 0.9912, 0.9923]
    made = table([(0.1, values)], [0.985], resolution=0.001)
    made.experiment["published"][0]["source"] = "table 1"
    (row,) = compare_to_published(made).to_dict("records")
    deviation = np.std(values, ddof=1)
    half = stats.t.ppf(0.975, 2) * deviation / np.sqrt(3)
    expected = {
        "where": "learning rate 0.1", "metric": "test_accuracy", "published": 0.985, "measured": 0.9912,
        "low": 0.9912 - half, "high": 0.9912 + half, "deviation": deviation, "degrees": 2, "num_seeds": 3,
        "num_diverged": 0, "difference": 0.0062, "verdict": DIFFERS, "duplicate_of": None, "note": "", "quick": False,
        "source": "table 1", "configuration": 0, "best_over": None, "measured_best": None, "published_best": None,
        "p_holm": 2 * stats.t.sf((0.0062 - 0.0005) / (deviation * np.sqrt(4 / 3)), 2),
    }  # fmt: skip
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    assert row["best_agrees"] is None


def test_row_of_a_best_value_has_its_condition_without_the_parameter(grid):
    df = compare_to_published(grid(published=PUBLISHED))
    assert df["best_over"].tolist() == ["learning_rate"] * 2
    assert df["best_of"].tolist() == ["optimizer adam", "optimizer momentum"]
    # The configurations are those of the best rates.
    assert df["configuration"].tolist() == [1, 3]
    without = [{**number, "where": number["where"] | {"learning_rate": 0.1}} for number in PUBLISHED[:1]]
    assert compare_to_published(grid(published=without))["best_of"].tolist() == ["optimizer adam, batch size 100"]


def test_zone_of_an_accuracy_is_within_0_and_1(table):
    df = compare_to_published(table([(0.1, [0.9, 1.0, 0.95])], [0.9]))
    assert df.loc[0, "zone_high"] == 1
    assert 0 < df.loc[0, "zone_low"] < 0.9
    low = compare_to_published(table([(0.1, [0.0, 0.1, 0.05])], [0.1]))
    assert low.loc[0, "zone_low"] == 0


def test_results_without_published_numbers_have_an_empty_table(grid):
    made = grid()
    assert compare_to_published(made).empty
    assert joint_test(made).empty


def test_holm_correction_is_monotonic_and_ignores_missing_values():
    p = pd.Series([0.01, 0.04, np.nan, 0.03, 0.5], index=list("abcde"))
    # Sorted: 4 * 0.01, 3 * 0.03, max(2 * 0.04, 3 * 0.03), 0.5.
    assert _holm(p).to_dict() == pytest.approx({"a": 0.04, "b": 0.09, "c": np.nan, "d": 0.09, "e": 0.5}, nan_ok=True)
    assert _holm(pd.Series([0.4, 0.6])).tolist() == pytest.approx([0.8, 0.8])
    assert _holm(pd.Series([0.6, 0.7])).tolist() == [1, 1]


class TestNeighbours:
    def test_deviation_of_a_cell_is_that_of_the_pseudo_residuals_of_the_others(self):
        cells = pd.DataFrame({"rate": [4, 1, 3, 2, 5, 6, 7], "kind": ["a"] * 7})
        values = pd.Series([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
        deviations, degrees = neighbour_deviations(cells, values)
        # Along the rate the values are 0, 0, 0, 1, 0, 0, 0, and the pseudo-residuals of 2 to 6 are multiples of
        # (0, 1, -2, 1, 0) / 2 / sqrt(1.5).
        parts = np.array([0, 0.5, -1, 0.5, 0]) / np.sqrt(1.5)
        assert deviations[1] == pytest.approx(np.sqrt(np.mean(parts[1:] ** 2)))
        assert deviations[6] == pytest.approx(np.sqrt(np.mean(parts[:-1] ** 2)))
        assert np.isnan(deviations[0])
        assert degrees[0] == 0
        # Four overlapping pseudo-residuals: neighbours have the covariance -2/3, and next neighbours 1/6.
        assert degrees[1] == pytest.approx(16 / (4 + 6 * (2 / 3) ** 2 + 4 * (1 / 6) ** 2))

    def test_fewer_than_three_cells_in_a_line_have_no_deviation(self):
        cells = pd.DataFrame({"rate": [1, 2, 1, 2], "batch": [50, 50, 100, 100]})
        deviations, degrees = neighbour_deviations(cells, pd.Series([1.0, 2.0, 3.0, 5.0]))
        assert np.isnan(deviations).all()
        assert degrees.tolist() == [0] * 4


class TestJointTest:
    def test_mean_difference_has_the_prediction_interval_of_one_more_run(self, table):
        seeds, cell = np.array([0.002, 0.0, -0.001]), np.array([-0.001, 0.0, 0.001])
        cells = [(rate, (0.9 + seeds + np.roll(cell, shift)).tolist()) for shift, rate in enumerate(RATES[:3])]
        published = [0.91, 0.899, 0.903]
        made = table(cells, published)
        means = np.mean([values for _, values in cells], axis=0)
        error = means.std(ddof=1) * np.sqrt(4 / 3)
        difference = np.mean(published) - means.mean()
        (row,) = joint_test(made).to_dict("records")
        expected = {
            "metric": "test_accuracy", "num_numbers": 3, "num_seeds": 3, "num_above": 2, "mean_difference": difference,
            "half": stats.t.ppf(0.975, 2) * error, "p": 2 * stats.t.sf(abs(difference) / error, 2),
        }  # fmt: skip
        assert row == pytest.approx(expected)
        assert joint_test(made, compare_to_published(made)).to_dict("records") == [pytest.approx(expected)]
        (single,) = joint_test(table(cells[:2], published[:2])).to_dict("records")
        assert single["num_numbers"] == 2
        assert joint_test(table(cells[:1], published[:1])).empty

    def test_systematic_difference_is_found_although_each_number_agrees(self, table):
        # The means of the seeds over the cells vary less than the cells.
        seeds, cell = np.array([0.9002, 0.9, 0.8998]), np.array([-0.001, 0.0, 0.001])
        cells = [(rate, (seeds + np.roll(cell, shift)).tolist()) for shift, rate in enumerate(RATES)]
        made = table(cells, [0.9015] * 6)
        assert set(compare_to_published(made)["verdict"]) == {AGREES}
        row = joint_test(made).iloc[0]
        assert (row["num_numbers"], row["num_seeds"], row["num_above"]) == (6, 3, 6)
        assert row["p"] < 0.05
        assert row["mean_difference"] - row["half"] > 0
        assert any("Published test accuracy is on average 0.00" in text for text in findings.findings(made))

    @pytest.mark.slow
    @pytest.mark.parametrize("seed_effect", [0.0, 3.0])
    def test_false_alarm_rate_with_shared_seeds_is_nominal(self, table, seed_effect):
        generator = np.random.default_rng(2)
        num_found, num_tables = 0, 60
        for _ in range(num_tables):
            runs = 0.9 + 0.001 * generator.normal(0, 1, (5, 6)) + 0.001 * seed_effect * generator.normal(0, 1, (5, 1))
            made = table([(rate, runs[:4, cell].tolist()) for cell, rate in enumerate(RATES)], runs[4])
            num_found += joint_test(made).loc[0, "p"] < 0.05
        assert num_found / num_tables <= 0.1

    def test_single_seed_has_a_mean_difference_only(self, table):
        row = joint_test(table([(rate, [0.9 + rate / 100]) for rate in RATES], [0.91] * 6)).iloc[0]
        assert row["num_seeds"] == 1
        assert np.isnan([row["half"], row["p"]]).all()


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
