"""The additive model and its simultaneous inference: compared with SciPy, by hand, and simulated with known means."""

import numpy as np
import pytest
from scipy import stats

from tune_hpc import load
from tune_hpc.analysis.intervals import mean_interval
from tune_hpc.analysis.linear_model import all_differences, fit_model, maximum_distribution, pooled_deviations

NAN = np.nan


def studies(means, number, num_seeds=3, deviations=1.0, seed=0):
    """Return simulated tables, studies by seeds by values; a seed adds a common effect to all values."""
    generator = np.random.default_rng(seed)
    errors = generator.normal(0, 1, (number, num_seeds, len(means))) * deviations
    return np.array(means) + errors + generator.normal(0, 2, (number, num_seeds, 1))


def is_worse(found):
    """Return, for each pair, whether the row's value is significantly worse than the column's (higher is better)."""
    return (found.p < 0.05) & (found.difference < 0)


class TestDistribution:
    @pytest.mark.parametrize(("num_values", "degrees"), [(2, 1), (3, 2), (10, 18), (72, 284)])
    def test_all_pairs_are_the_studentized_range_of_scipy(self, num_values, degrees):
        statistics, probabilities = maximum_distribution(num_values, degrees, all_pairs=True)
        for statistic in (0.5, 2.0, 4.0, 8.0):
            expected = stats.studentized_range.cdf(statistic * np.sqrt(2), num_values, degrees)
            assert np.interp(statistic, statistics, probabilities) == pytest.approx(expected, abs=1e-4)

    @pytest.mark.parametrize(("num_values", "degrees"), [(2, 3), (5, 8), (10, 18)])
    def test_comparisons_with_one_value_are_a_multivariate_t_of_scipy(self, num_values, degrees):
        statistics, probabilities = maximum_distribution(num_values, degrees, all_pairs=False)
        correlation = (np.eye(num_values - 1) + 1) / 2
        for statistic in (0.5, 2.0, 4.0):
            expected = stats.multivariate_t(shape=correlation, df=degrees, seed=0).cdf([statistic] * (num_values - 1))
            assert np.interp(statistic, statistics, probabilities) == pytest.approx(expected, abs=1e-3)


class TestFit:
    def test_seeds_are_blocks(self):
        model = fit_model([[1.0, 2.1], [5.0, 6.0], [9.0, 10.2]])
        assert (model.has_blocks, model.degrees) == (True, 2)
        paired = stats.ttest_rel([2.1, 6.0, 10.2], [1.0, 5.0, 9.0])
        found = all_differences([[1.0, 2.1], [5.0, 6.0], [9.0, 10.2]], lower_is_better=True)
        assert found.p[0, 1] == pytest.approx(paired.pvalue, rel=1e-3)
        interval = paired.confidence_interval()
        assert found.half[0, 1] == pytest.approx((interval.high - interval.low) / 2, rel=1e-3)

    def test_missing_cells_are_fitted_by_least_squares(self):
        table = studies([0, 1, 2, 3], 1, num_seeds=5)[0]
        table[[0, 1, 4], [0, 1, 3]] = np.nan
        model = fit_model(table)
        seeds, values = np.nonzero(~np.isnan(table))
        design = np.hstack([np.eye(4)[values], np.eye(5)[seeds][:, 1:]])
        effects, squares, rank, _ = np.linalg.lstsq(design, table[seeds, values], rcond=None)
        assert model.degrees == seeds.size - rank
        assert model.squares == pytest.approx(squares[0])
        assert model.means - model.means[0] == pytest.approx(effects[:4] - effects[0])
        covariance = np.linalg.inv(design.T @ design)
        error = model.deviation * np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
        assert model.errors[0, 1] == pytest.approx(error)

    def test_seeds_that_are_not_shared_are_no_blocks(self):
        table = np.full((7, 3), NAN)
        table[[0, 1, 2], 0], table[[3, 4], 1], table[[5, 6], 2] = [1.0, 1.3, 1.1], [2.0, 2.1], [1.2, 1.4]
        found = all_differences(table, lower_is_better=True)
        assert (found.model.has_blocks, found.model.degrees) == (False, 4)
        expected = stats.tukey_hsd(*(table[~np.isnan(table[:, value]), value] for value in range(3)))
        off_diagonal = ~np.eye(3, dtype=bool)
        assert found.p[off_diagonal] == pytest.approx(expected.pvalue[off_diagonal], abs=1e-4)
        half = (expected.confidence_interval().high - expected.confidence_interval().low) / 2
        assert found.half[off_diagonal] == pytest.approx(half[off_diagonal], rel=1e-3)

    @pytest.mark.parametrize(
        ("table", "p"),
        [
            ([[1.0, 2.0, 3.0]], NAN),  # one seed
            ([[1.0, 1.0]], NAN),
            ([[1.0, 2.0], [1.0, 2.0]], NAN),  # identical repeats
            ([[1.0, 1.0], [1.0, 1.0]], 1.0),
            ([[1.0, NAN], [NAN, 2.0]], NAN),  # seeds of their own
        ],
    )
    def test_unknown_variance_is_inconclusive(self, table, p):
        found = all_differences(table, lower_is_better=True)
        assert found.p[0, 1] == pytest.approx(p, nan_ok=True)
        assert np.isnan([found.half[0, 1], found.min_detectable[0, 1], found.lead_low[0], found.lead_high[0]]).all()

    def test_value_with_one_seed_shares_the_variance_of_the_others(self):
        found = all_differences([[1.0, 5.0, 5.2], [1.1, NAN, 5.1], [0.9, NAN, 5.3]], lower_is_better=True)
        assert found.model.has_blocks
        assert found.p[0, 1] < 0.05 < found.p[1, 2]
        assert found.half[0, 1] > found.half[0, 2]

    def test_equal_differences_of_accuracies_are_no_perfect_pairs(self):
        found = all_differences([[0.97, 0.47], [0.98, 0.48], [0.99, 0.49]], lower_is_better=False)
        assert not found.model.has_blocks
        assert 0 < found.p[0, 1] < 0.05

    def test_outlying_variance_stays_out_of_the_pool(self):
        table = studies([0, -4, -4, -4, -4, -4, -4, 0], 1, num_seeds=5, deviations=[1] * 7 + [30])[0]
        found = all_differences(table, lower_is_better=False)
        assert found.model.deviation < 2
        assert is_worse(found)[1:7, 0].all()
        assert not is_worse(found)[[0, 7], [7, 0]].any()

    def test_constant_value_among_large_seed_effects_is_compared(self):
        table = studies([0, 0, 0, 0], 1, num_seeds=5, deviations=[0.01] * 4)[0]
        table[:, 3] = -50
        found = all_differences(table, lower_is_better=False)
        assert is_worse(found)[3, :3].all()

    def test_noisy_values_share_a_variance(self):
        table = studies([9, 9, 9, 9, 9, 0, 0, 0, 9], 1, 5, deviations=[0.05] * 5 + [1.0] * 3 + [30])[0]
        found = all_differences(table, lower_is_better=False)
        assert found.model.degrees == 16
        assert is_worse(found)[5:8, :5].all()
        assert not is_worse(found)[8].any()

    def test_several_outlying_variances_do_not_mask_each_other(self):
        table = studies([0] * 8, 1, num_seeds=5, deviations=[1, 1, 1, 1, 1, 40, 40, 40])[0]
        assert all_differences(table, lower_is_better=False).model.deviation < 2


class TestDifferences:
    #: Four seeds of three values: 4, 6 and 9 on average; the residual variance is 1 with six degrees of freedom.
    TABLE = np.array([4.0, 6.0, 9.0]) + np.array([[1, 0, -1], [-1, 1, 0], [0, -1, 1], [0, 0, 0]]) + [[0], [3], [5], [9]]

    def critical(self, *, all_pairs, confidence=0.95):
        statistics, probabilities = maximum_distribution(3, 6, all_pairs)
        return np.interp(confidence, probabilities, statistics)

    @pytest.mark.parametrize("confidence", [0.8, 0.95])
    def test_intervals_and_p_values_are_those_of_tukey(self, confidence):
        found = all_differences(self.TABLE, False, confidence)
        assert (found.model.has_blocks, found.model.degrees) == (True, 6)
        assert found.model.deviation == pytest.approx(1)
        error = np.sqrt(2 / 4)
        assert found.difference == pytest.approx(np.subtract.outer([4, 6, 9], [4, 6, 9]))
        assert found.difference[0, 1] == pytest.approx(-2)
        off_diagonal = ~np.eye(3, dtype=bool)
        critical = stats.studentized_range.ppf(confidence, 3, 6) / np.sqrt(2)
        assert found.half[off_diagonal] == pytest.approx(np.full(6, critical * error), rel=1e-3)
        p = stats.studentized_range.sf(np.abs(found.difference[off_diagonal]) / error * np.sqrt(2), 3, 6)
        assert found.p[off_diagonal] == pytest.approx(p, abs=1e-4)
        # Student's quantile of 0.8 with six degrees of freedom is 0.9057.
        assert found.min_detectable[off_diagonal] == pytest.approx(np.full(6, (critical + 0.9057) * error), rel=1e-3)
        assert np.isnan(np.diag(found.half)).all()

    @pytest.mark.parametrize("lower_is_better", [False, True])
    def test_leads_are_those_of_hsu(self, lower_is_better):
        margin = self.critical(all_pairs=False) * np.sqrt(2 / 4)
        found = all_differences(self.TABLE, lower_is_better)
        if lower_is_better:
            expected = [(0, 2 + margin), (-2 - margin, 0), (-5 - margin, 0)]
        else:
            expected = [(-5 - margin, 0), (-3 - margin, 0), (0, 3 + margin)]
        assert list(zip(found.lead_low, found.lead_high, strict=True)) == [
            pytest.approx(interval, rel=1e-6) for interval in expected
        ]

    def test_values_of_different_variances_are_compared_by_welch(self):
        quiet = np.array([[0, 0.1, -0.1, 0.2], [0.1, -0.1, 0.2, 0], [-0.1, 0.2, 0, 0.1], [0.2, 0, 0.1, -0.1]])
        noisy = np.array([-40.0, 10, 30, 60])
        table = np.column_stack([quiet, noisy])
        found = all_differences(table, False)
        pooled = fit_model(quiet)
        assert found.model.deviation == pytest.approx(pooled.deviation)
        assert found.difference[4, 0] == pytest.approx(noisy.mean() - quiet[:, 0].mean())
        # The variance of the quiet values includes that of the seeds, which the noisy one does not share.
        variances = quiet.var(axis=0, ddof=1).mean() / 4, noisy.var(ddof=1) / 4
        error = np.sqrt(sum(variances))
        degrees = int(error**4 / (variances[0] ** 2 / pooled_deviations(quiet)[1][0] + variances[1] ** 2 / 3))
        assert degrees == 3
        critical = stats.studentized_range.ppf(0.95, 5, degrees) / np.sqrt(2)
        assert found.half[4, :4] == pytest.approx(np.full(4, critical * error), rel=2e-3)
        within = stats.studentized_range.ppf(0.95, 5, pooled.degrees) / np.sqrt(2) * pooled.deviation * np.sqrt(2 / 4)
        assert found.half[0, 1:4] == pytest.approx(np.full(3, within), rel=1e-3)

    def test_values_of_different_variances_have_the_nominal_error_rate(self):
        generator, num_different, num_tables = np.random.default_rng(0), 0, 200
        for _ in range(num_tables):
            seeds = generator.normal(size=(5, 1))
            table = np.hstack([seeds + 0.01 * generator.normal(size=(5, 6)), 0.3 * generator.normal(size=(5, 1))])
            num_different += (all_differences(table, lower_is_better=True).p[6, :6] < 0.05).any()
        assert num_different / num_tables <= 0.06

    def test_value_without_repeats_has_no_lead_beside_values_of_unknown_variance(self):
        found = all_differences([[1.0, 2.0]], False)
        assert np.isnan([found.lead_low, found.lead_high]).all()
        single = all_differences([[1.0], [2.0]], False)
        assert np.isnan([single.lead_low, single.lead_high]).all()
        assert single.difference.tolist() == [[0.0]]


class TestPooledDeviations:
    def test_degrees_are_those_of_satterthwaite(self):
        # Variances over seeds: 1 and 1; means of the seeds 3, 4.5 and 4.5 with variance 0.75; residual 1 - 0.75.
        deviations, degrees = pooled_deviations([[1.0, 5.0], [2.0, 7.0], [3.0, 6.0]])
        assert deviations == pytest.approx([1, 1])
        assert degrees == pytest.approx([2 / (0.75**2 + 0.25**2)] * 2)
        # Three values: the residual variance has two degrees of freedom for each seed.
        deviations, degrees = pooled_deviations([[1.0, 5.0, 0.0], [2.0, 7.0, 0.0], [3.0, 6.0, 3.0]])
        variance, over_seeds = (1 + 1 + 3) / 3, np.var([6 / 3, 9 / 3, 12 / 3], ddof=1)
        assert deviations == pytest.approx([np.sqrt(variance)] * 3)
        parts = over_seeds**2 + (variance - over_seeds) ** 2 / 2
        assert degrees == pytest.approx([2 * variance**2 / parts] * 3)

    def test_missing_cell_leaves_the_effect_of_the_seeds(self):
        deviations, degrees = pooled_deviations([[1.0, 5.0], [2.0, 7.0], [3.0, NAN]])
        variance = (2 + 2) / 3
        assert deviations == pytest.approx([np.sqrt(variance)] * 2)
        # The differences between the values are 4 and 5: a residual variance of 0.25, half of it in a seed's mean.
        residual = 0.25 / 2
        parts = (variance - residual) ** 2 + residual**2
        assert degrees == pytest.approx([2 * variance**2 / parts] * 2)
        table = np.random.default_rng(0).normal(size=(5, 1)) + 0.1 * np.random.default_rng(1).normal(size=(5, 30))
        complete = pooled_deviations(table)[1][0]
        table[0, 0] = NAN
        assert pooled_deviations(table)[1][0] == pytest.approx(complete, rel=0.02)

    def test_seeds_of_their_own_are_independent(self):
        deviations, degrees = pooled_deviations([[1.0, NAN], [3.0, NAN], [NAN, 5.0], [NAN, 8.0]])
        assert deviations == pytest.approx([np.sqrt((2 + 4.5) / 2)] * 2)
        assert degrees.tolist() == [2, 2]

    def test_single_value_has_its_deviation(self):
        deviations, degrees = pooled_deviations([[1.0], [2.0], [6.0]])
        assert deviations == pytest.approx([np.std([1, 2, 6], ddof=1)])
        assert degrees.tolist() == [2]

    @pytest.mark.parametrize("table", [[[1.0, 2.0]], [[1.0, 2.0], [1.0, 2.0]]])
    def test_single_and_identical_results_have_no_deviation(self, table):
        deviations, degrees = pooled_deviations(table)
        assert np.isnan(deviations).all()
        assert degrees.tolist() == [0, 0]

    @pytest.mark.parametrize(("factor", "is_outlying"), [(0.97, False), (1.03, True)])
    def test_variance_is_outlying_by_an_f_test(self, factor, is_outlying):
        # Three values with variance 1 have 12 degrees of freedom; the level for the table is 1e-4.
        pattern = np.array([-2.0, -1.0, 0.0, 1.0, 2.0]) / np.sqrt(2.5)
        variance = factor * stats.f.isf(1e-4 / 4, 4, 12)
        table = np.column_stack([pattern, pattern[[1, 2, 3, 4, 0]], pattern[::-1], pattern * np.sqrt(variance)])
        deviations, _ = pooled_deviations(table)
        pooled = 1.0 if is_outlying else np.sqrt((3 + variance) / 4)
        assert deviations == pytest.approx([pooled] * 3 + [np.sqrt(variance) if is_outlying else pooled])

    def test_outlying_variances_have_a_class_of_their_own(self):
        table = studies([0] * 8, 1, num_seeds=5, deviations=[1, 1, 1, 1, 1, 40, 40, 40])[0]
        deviations, _ = pooled_deviations(table)
        quiet, noisy = table[:, :5], table[:, 5:]
        assert deviations[:5] == pytest.approx([np.sqrt(quiet.var(axis=0, ddof=1).mean())] * 5)
        assert deviations[5:] == pytest.approx([np.sqrt(noisy.var(axis=0, ddof=1).mean())] * 3)


@pytest.mark.parametrize(
    ("folder", "parameter", "metric", "tied", "degrees", "half"),
    [
        (
            "tests/data/reduced/exercise3.dropout",
            "dropout",
            "best_test_accuracy",
            [0, 0.1, 0.2, 0.3, 0.4, 0.5],
            18,
            0.0031,
        ),
        (
            "tests/data/reduced/exercise3.learning_rate",
            "learning_rate",
            "best_test_accuracy",
            [9e-4, 10e-4],
            16,
            0.0032,
        ),
        (
            "tests/data/reduced/exercise2.cnn",
            "optimizer",
            "test_accuracy",
            ["adagrad", "adam", "nesterov", "proximal_adagrad", "rmsprop"],
            16,
            0.0132,
        ),
        (
            "docs/results/exercise2.softmax.shuffled",
            "optimizer",
            "test_accuracy",
            ["adam", "nesterov", "rmsprop"],
            32,
            0.0041,
        ),
    ],
)
def test_published_searches_have_the_ties_of_a_hand_computation(folder, parameter, metric, tied, degrees, half):
    comparison = load(folder).compare(parameter, metric)
    is_best = comparison.values["rank"] == 1
    assert sorted(comparison.values.loc[is_best, parameter]) == tied
    assert comparison.model.degrees == degrees
    pair = comparison.pairs.iloc[0]
    assert (pair["high"] - pair["low"]) / 2 == pytest.approx(half, abs=5e-5)


class TestSimulations:
    @pytest.mark.parametrize("num_seeds", [3, 5])
    def test_mean_intervals_have_nominal_coverage(self, num_seeds):
        samples = np.random.default_rng(0).normal(0, 1, (3000, num_seeds))
        intervals = [mean_interval(sample) for sample in samples]
        assert 0.93 <= np.mean([interval.low <= 0 <= interval.high for interval in intervals]) <= 0.97

    @pytest.mark.slow
    @pytest.mark.parametrize(("num_values", "num_seeds"), [(2, 5), (3, 3), (10, 3)])
    def test_simultaneous_intervals_have_nominal_coverage(self, num_values, num_seeds):
        truth = np.arange(num_values) / 3.0
        covered = [
            (np.abs(found.difference - (truth[:, None] - truth)) <= found.half)[np.triu_indices(num_values, 1)].all()
            for found in (all_differences(table, False) for table in studies(truth, 1500, num_seeds))
        ]
        assert 0.93 <= np.mean(covered) <= 0.97

    @pytest.mark.slow
    def test_intervals_of_the_lead_contain_it(self):
        """Hsu's intervals: at least nominal, with any number of equal values."""
        for truth in ([1.0] + [0.0] * 9, [3.0, 2.5, 0, 0, 0, 0]):
            means = np.array(truth)
            lead = np.array([mean - np.delete(means, value).max() for value, mean in enumerate(means)])
            covered = [
                ((found.lead_low - 1e-9 <= lead) & (lead <= found.lead_high + 1e-9)).all()
                for found in (all_differences(table, False) for table in studies(truth, 600))
            ]
            assert np.mean(covered) >= 0.93

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("num_values", "share_missing", "number"), [(3, 0.0, 10_000), (10, 0.0, 4000), (10, 0.2, 1000)]
    )
    def test_familywise_error_is_nominal(self, num_values, share_missing, number):
        generator = np.random.default_rng(1)
        tables = studies([0.0] * num_values, number, 5 if share_missing else 3)
        if share_missing:
            tables[generator.uniform(size=tables.shape) < share_missing] = np.nan
            tables[:, 0] = np.nan_to_num(tables[:, 0])
        errors = [is_worse(all_differences(table, False)).any() for table in tables]
        assert np.mean(errors) <= 0.06

    @pytest.mark.parametrize(("lead", "power"), [(4, 0.8), (8, 0.99)])
    def test_three_seeds_of_ten_values_find_a_lead(self, lead, power):
        found = [is_worse(all_differences(table, False))[1:, 0] for table in studies([lead] + [0] * 9, 400)]
        assert np.mean(found) >= power

    @pytest.mark.slow
    def test_no_worse_mean_ranks_above_a_better_one(self):
        for table in studies(np.linspace(0, 8, 10), 1500):
            rank = 1 + is_worse(all_differences(table, False)).sum(axis=1)
            assert (np.diff(rank[np.argsort(-table.mean(axis=0))]) >= 0).all()

    @pytest.mark.slow
    def test_minimal_detectable_difference_is_found_in_four_of_five_studies(self):
        detectable = np.mean([all_differences(table, False).min_detectable[0, 1] for table in studies([0] * 5, 300)])
        found = [is_worse(all_differences(table, False))[1, 0] for table in studies([detectable] + [0] * 4, 600)]
        assert np.mean(found) == pytest.approx(0.8, abs=0.06)

    @pytest.mark.slow
    def test_one_very_noisy_value_costs_neither_power_nor_false_alarms(self):
        deviations = np.array([1.0] * 9 + [20.0])
        errors = [is_worse(all_differences(t, False)).any() for t in studies([0] * 10, 500, 5, deviations)]
        found = [is_worse(all_differences(t, False))[1:9, 0] for t in studies([5] + [0] * 9, 500, 5, deviations)]
        assert np.mean(errors) <= 0.07
        assert np.mean(found) >= 0.95
