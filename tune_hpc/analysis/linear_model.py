"""Additive linear model of a metric: ``value + seed + error``, and simultaneous inference on differences of values.

A seed fixes data order and initial weights, so that it is a block. The values share one residual variance, whose many
degrees of freedom make three seeds informative. Values whose variances are outliers form classes of their own, without
blocks. In simulations, moderated variances (Smyth, 2004) for every value were no better with unequal variances and
three seeds, and ranked worse means above better ones with equal variances.

Sources: Tukey, 1953, and Kramer, 1956, for all pairs; Dunnett, 1955; Hsu, 1981, "Simultaneous confidence intervals for
all distances from the best".
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from tune_hpc.analysis.intervals import POWER, ROUNDING, scale_of

#: Probability of an outlying variance among equal variances; small, because separate variances cost power.
OUTLIER_LEVEL = 1e-4


@dataclass(frozen=True)
class AdditiveModel:
    """Least-squares fit.

    Attributes:
        means: Mean of each value, adjusted for missing seeds; only differences are meaningful.
        weights: Weight of each result in the raw mean of its value, seeds by values.
        seed_covariance: Covariance of the seeds' effects in units of the residual variance; 0 without blocks.
        residuals: Residuals, seeds by values; NaN in missing cells.
        degrees: Residual degrees of freedom; 0 if the variance is unknown (single or identical results).
        has_blocks: Whether seeds are blocks.
    """

    means: np.ndarray
    weights: np.ndarray
    seed_covariance: np.ndarray
    residuals: np.ndarray
    degrees: int
    has_blocks: bool

    @property
    def deviation(self) -> float:
        """Residual standard deviation; NaN if unknown."""
        scale = scale_of(self.residuals)
        squares = np.nansum((self.residuals / scale) ** 2)
        return float(np.sqrt(squares / self.degrees)) * scale if self.degrees else np.nan

    @property
    def squares(self) -> float:
        """Sum of squared residuals."""
        return float(np.nansum(self.residuals**2))

    @property
    def errors(self) -> np.ndarray:
        """Standard errors of the differences of all pairs of values."""
        covariance = self.weights.T @ self.seed_covariance @ self.weights
        covariance += np.diag(self.weights.max(axis=0, initial=0.0))
        variance = np.diag(covariance)
        return np.asarray(self.deviation * np.sqrt(np.maximum(variance[:, None] + variance - 2 * covariance, 0.0)))


def fit_model(samples: ArrayLike, allow_blocks: bool = True) -> AdditiveModel:
    """Fit the model to a table of seeds by values, NaN where a seed has no result; each value has at least one result.

    Seeds are blocks if they connect the values and leave residual degrees of freedom. Otherwise, and if a block leaves
    no residual (equal differences can be a coincidence of accuracies on few images), the results are independent.
    """
    table = np.asarray(samples, dtype=float)
    table = table[~np.isnan(table).all(axis=1)]
    num_seeds, num_values = table.shape
    scale = np.nanmax(np.abs(table), initial=0.0)
    for has_blocks in (True, False) if allow_blocks else (False,):
        degrees = int(np.count_nonzero(~np.isnan(table))) - num_values - (num_seeds - 1) * has_blocks
        fit = _least_squares(table, has_blocks) if not has_blocks or (degrees > 0 and num_values > 1) else None
        if fit is None:
            continue
        is_constant = degrees == 0 or np.sqrt(np.nansum(fit[3] ** 2) / degrees) <= ROUNDING * scale
        if not (has_blocks and is_constant):
            break
    assert fit is not None
    return AdditiveModel(*fit, 0 if is_constant else degrees, has_blocks)


def _least_squares(
    table: np.ndarray, has_blocks: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:  # fmt: skip
    """Return the first fields of a model; ``None`` if the seeds do not connect the values."""
    is_known = ~np.isnan(table)
    weights, num_seeds = is_known / is_known.sum(axis=0), len(table)
    means = np.nansum(table * weights, axis=0)
    covariance, effects = np.zeros((num_seeds, num_seeds)), np.zeros(num_seeds)
    if has_blocks:
        # The normal equations of the seeds, after elimination of the values.
        information = np.diag(is_known.sum(axis=1)) - is_known @ weights.T
        covariance = np.linalg.pinv(information, hermitian=True)
        if round(np.trace(covariance @ information)) < num_seeds - 1:
            return None
        effects = covariance @ np.nansum(table - means, axis=1)
        means = means - effects @ weights
    return means, weights, covariance, table - means - effects[:, None]


@dataclass(frozen=True)
class Differences:
    """Simultaneous inference on all pairs of values, as matrices, and on the distances from the best.

    Attributes:
        model: Fit of all values, or of those without an outlying variance.
        difference: Mean of the row's value less that of the column's.
        half: Half-width of the simultaneous interval (Tukey-Kramer); NaN without a variance.
        p: Adjusted p-value (Tukey-Kramer); without a variance 1 for equal repeats, else NaN.
        min_detectable: Difference that is significant with probability ``POWER``.
        lead_low, lead_high: Interval of the lead of each value over the best of the others, negative if it is worse
            (Hsu; the critical value is that of equally many seeds). A value may be the best if ``lead_high`` is
            positive.
    """

    model: AdditiveModel
    difference: np.ndarray
    half: np.ndarray
    p: np.ndarray
    min_detectable: np.ndarray
    lead_low: np.ndarray
    lead_high: np.ndarray


def all_differences(samples: ArrayLike, lower_is_better: bool, confidence: float = 0.95) -> Differences:
    """Compare all values of a table of seeds by values, NaN where a seed has no result."""
    from scipy.special import stdtrit

    table = np.asarray(samples, dtype=float)
    scale = scale_of(table)
    table = table / scale
    num_values = table.shape[1]
    overall = model = fit_model(table)
    difference = overall.means[:, None] - overall.means
    errors, degrees = overall.errors, np.full(difference.shape, float(overall.degrees))
    classes = _variance_classes(table, overall)
    if len(classes) > 1 and all(fit.degrees for _, fit in classes):
        model = classes[0][1]
        counts, variance, freedom = (~np.isnan(table)).sum(axis=0), np.zeros(num_values), np.zeros(num_values)
        # Pairs of two classes: Welch's test (Satterthwaite, 1946), whose variance includes the effect of the seed.
        for values, _ in classes:
            deviation, freedom[values] = _total_deviation(table[:, values])
            variance[values] = deviation**2 / counts[values]
        errors = np.sqrt(variance[:, None] + variance)
        degrees = np.floor(errors**4 / (variance[:, None] ** 2 / freedom[:, None] + variance**2 / freedom))
        for values, fit in classes:
            cells = np.ix_(values, values)
            errors[cells], degrees[cells] = fit.errors, fit.degrees
            difference[cells] = fit.means[:, None] - fit.means
    is_known = ~np.isnan(table)
    is_equal = np.abs(difference) <= ROUNDING * np.abs(table).max(initial=0.0, where=is_known)
    p, half, min_detectable, margin = (np.full(errors.shape, np.nan) for _ in range(4))
    if (is_known.sum(axis=0) > 1).all():
        p[is_equal & (degrees == 0)] = 1.0
    is_pair = ~np.eye(num_values, dtype=bool)
    for number in np.unique(degrees[is_pair & (degrees > 0)]):
        cells = is_pair & (degrees == number)
        statistics, probabilities = maximum_distribution(num_values, int(number), all_pairs=True)
        critical = np.interp(confidence, probabilities, statistics)
        p[cells] = 1 - np.interp(np.abs(difference[cells]) / errors[cells], statistics, probabilities)
        half[cells] = critical * errors[cells]
        min_detectable[cells] = (critical + stdtrit(number, POWER)) * errors[cells]
        statistics, probabilities = maximum_distribution(num_values, int(number), all_pairs=False)
        margin[cells] = np.interp(confidence, probabilities, statistics) * errors[cells]
    # Hsu's intervals are constrained: they end at 0 unless 0 is inside.
    lead = -difference if lower_is_better else difference
    high = np.maximum(np.min(np.where(is_pair, lead + margin, np.inf), axis=1, initial=np.inf), 0.0)
    is_rival = is_pair & (high > 0)
    low = np.minimum(np.min(np.where(is_rival, lead - margin, np.inf), axis=1, initial=np.inf), 0.0)
    is_unknown = (is_pair & np.isnan(margin)).any(axis=1) | (num_values < 2)
    low[is_unknown], high[is_unknown] = np.nan, np.nan
    model = replace(model, means=model.means * scale, residuals=model.residuals * scale)
    return Differences(model, difference * scale, half * scale, p, min_detectable * scale, low * scale, high * scale)


def pooled_deviations(samples: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return the deviation of one result of each value, pooled over values, and its degrees of freedom.

    The deviation includes the effect of the seed. Values with outlying variances share a class of their own. Without a
    variance the deviation is NaN, and the degrees are 0.

    Args:
        samples: Table of seeds by values, NaN where a seed has no result.
    """
    table = np.asarray(samples, dtype=float)
    deviations, degrees = np.full(table.shape[1], np.nan), np.zeros(table.shape[1])
    for values, fit in _variance_classes(table, fit_model(table, allow_blocks=False)):
        if fit.degrees:
            deviations[values], degrees[values] = _total_deviation(table[:, values])
    return deviations, degrees


def _total_deviation(table: np.ndarray) -> tuple[float, float]:
    """Return the deviation of one result, with the effect of its seed, and its degrees of freedom.

    A seed that all values share is one sample of its effect. The degrees of freedom are therefore Satterthwaite's
    (1946) for the variance over seeds and the residual variance.
    """
    table = table[~np.isnan(table).all(axis=1)]
    total, blocked = fit_model(table, allow_blocks=False), _least_squares(table, has_blocks=True)
    num_seeds, num_values = table.shape
    residual_degrees = total.degrees - (num_seeds - 1)
    if not total.degrees or blocked is None or residual_degrees <= 0:
        return total.deviation, total.degrees
    scale = total.deviation
    residual = float(np.nansum((blocked[3] / scale) ** 2)) / residual_degrees * (num_values - 1) / num_values
    over_seeds = max(1 - residual, 0.0)
    parts = over_seeds**2 + residual**2 / (num_values - 1)
    return total.deviation, min(total.degrees, (over_seeds + residual) ** 2 * (num_seeds - 1) / parts)


def _variance_classes(table: np.ndarray, model: AdditiveModel) -> list[tuple[np.ndarray, AdditiveModel]]:
    """Return the values of each class of equal variances, and their fit; outlying variances follow the others."""
    classes, values = [], np.arange(table.shape[1])
    while values.size:
        outliers = _outliers(table[:, values], model)
        if outliers.any():
            model = fit_model(table[:, values[~outliers]], model.has_blocks)
        classes.append((values[~outliers], model))
        values = values[outliers]
        model = fit_model(table[:, values], allow_blocks=False) if values.size else model
    return classes


def _outliers(table: np.ndarray, model: AdditiveModel) -> np.ndarray:
    """Return which values have an outlying variance, at most half of them.

    The values with the largest residuals leave the model one by one. Each is tested against the model of the remaining
    ones (F test). The last significant one and all before it are outliers (Rosner, 1983), so that none masks another.
    """
    from scipy.special import fdtrc

    num_values = table.shape[1]
    outliers, is_inlier = np.zeros(num_values, dtype=bool), np.ones(num_values, dtype=bool)
    for _ in range(num_values // 2):
        if not model.degrees:
            break
        is_inlier[np.flatnonzero(is_inlier)[np.argmax(np.nanmean(model.residuals**2, axis=0))]] = False
        rest = fit_model(table[:, is_inlier], model.has_blocks)
        num_tested = model.degrees - rest.degrees
        if not rest.degrees or rest.has_blocks != model.has_blocks:
            break
        ratio = (model.squares - rest.squares) / max(num_tested, 1) / rest.deviation**2
        if num_tested and fdtrc(num_tested, rest.degrees, ratio) < OUTLIER_LEVEL / num_values:
            outliers = ~is_inlier
        model = rest
    return outliers


@lru_cache(maxsize=64)
def maximum_distribution(num_values: int, degrees: int, all_pairs: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return t statistics and the probability that the largest of several correlated ones is at most so large.

    That of all pairs is the studentized range over the root of 2 (Tukey); that of the comparisons with one value is
    one-sided Dunnett. ``scipy.stats.studentized_range`` needs 6 ms for a probability, which takes a minute for 100
    values, and SciPy has no quantiles of Dunnett's distribution. The tests compare the table with SciPy.
    """
    from scipy.special import gammaincinv, ndtr

    # The trapezoidal rule converges exponentially for these integrands.
    z = np.linspace(-8, 8, 161)
    density = np.exp(-(z**2) / 2)
    shift = np.linspace(0, 20, 2500)
    powers = (ndtr(z + shift[:, None]) - (ndtr(z) if all_pairs else 0.0)) ** (num_values - 1)
    known = powers @ density * (num_values if all_pairs else 1) / density.sum()
    ends = np.log(2 / degrees * gammaincinv(degrees / 2, [1e-13, 1 - 1e-13])) / 2
    log_deviation = np.linspace(ends[0], ends[1], 300)
    weights = np.exp(degrees * (log_deviation - np.exp(2 * log_deviation) / 2 + 0.5))
    statistics = np.concatenate([[0.0], np.geomspace(1e-3, 1e4, 3000)])
    probabilities = np.interp(np.sqrt(2) * np.outer(statistics, np.exp(log_deviation)), shift, known)
    return statistics, np.clip(probabilities @ weights / weights.sum(), 0.0, 1.0)
