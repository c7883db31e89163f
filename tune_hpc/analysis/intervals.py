"""Confidence intervals, prediction intervals and differences of means for few repeats.

Pure functions on finite numbers, based on Student's t-distribution. Repeats with identical values have no interval:
their spread is unknown, because a seed without effect is no repeat, and accuracies can coincide by chance.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

#: Probability of detecting a difference of ``Difference.min_detectable``.
POWER = 0.8
#: Relative tolerance below which values count as equal.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Interval:
    """A mean with the bounds of its interval, NaN for a single value or identical values."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2

    def prediction_interval(self, num_values: int) -> "Interval":
        """Return the prediction interval of one more value, given the mean's interval from ``num_values`` values."""
        half = self.half * np.sqrt(num_values + 1)
        return Interval(self.mean, self.mean - half, self.mean + half)


@dataclass(frozen=True)
class Difference:
    """Difference between the means of two samples.

    Attributes:
        interval: Mean of the first sample less that of the second.
        p: Two-sided p-value; NaN if undefined.
        min_detectable: Smallest difference that such samples detect with probability ``POWER``.
        num_pairs: Number of pairs; 0 for an unpaired comparison.
    """

    interval: Interval
    p: float
    min_detectable: float
    num_pairs: int


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the mean of repeats with Student's confidence interval; no values raise ``ValueError``."""
    sample = np.asarray(values, dtype=float)
    if sample.size == 0:
        raise ValueError("a mean needs at least one value; got none")
    deviation = float(sample.std(ddof=1)) if sample.size > 1 else np.nan
    return student_interval(float(sample.mean()), deviation, sample.size, confidence)


def student_interval(mean: float, deviation: float, num_values: int, confidence: float = 0.95) -> Interval:
    """Return Student's interval of a mean from the sample deviation; NaN bounds if the spread is unknown."""
    if num_values < 2 or deviation <= ROUNDING * abs(mean):
        return Interval(mean, np.nan, np.nan)
    return _t_interval(mean, deviation / np.sqrt(num_values), num_values - 1, confidence)


def paired_difference(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> Difference:
    """Return the mean difference of paired samples, such as runs with the same seeds in the same order (paired t-test).

    Samples without values or of different sizes raise ``ValueError``.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape != b.shape:
        raise ValueError(f"pairs need as many values of both; got {a.size} and {b.size}")
    mean = mean_interval(a - b).mean
    error = float((a - b).std(ddof=1)) / np.sqrt(a.size) if a.size > 1 else 0.0
    return _t_test(mean, error, a.size - 1, _scale(a, b), confidence, a.size)


def welch_difference(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> Difference:
    """Return the difference of the means of independent samples (Welch's t-test); no values raise ``ValueError``."""
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    mean, scale = mean_interval(a).mean - mean_interval(b).mean, _scale(a, b)
    if min(a.size, b.size) == 1:
        return _t_test(mean, 0.0, 0, scale, confidence, 0)
    variances = np.array([sample.var(ddof=1) / sample.size for sample in (a, b)])
    degrees = variances.sum() ** 2 / (variances**2 / [a.size - 1, b.size - 1]).sum() if variances.any() else 0
    return _t_test(mean, float(np.sqrt(variances.sum())), float(degrees), scale, confidence, 0)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Return p-values with Holm's correction for multiple comparisons (Holm, 1979); NaN is ignored and stays NaN."""
    p = np.asarray(p_values, dtype=float)
    corrected = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return corrected


def accuracy_error(accuracy: float, num_images: int) -> float:
    """Return the binomial standard error of an accuracy measured on ``num_images`` images."""
    return float(np.sqrt(max(accuracy * (1 - accuracy), 0.0) / num_images))


def _scale(a: np.ndarray, b: np.ndarray) -> float:
    return float(max(np.abs(a).max(), np.abs(b).max()))


def _t_interval(mean: float, error: float, degrees: float, confidence: float) -> Interval:
    from scipy.special import stdtrit  # scipy.stats takes three times as long to import.

    low, high = mean + error * stdtrit(degrees, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean, float(low), float(high))


def _t_test(mean: float, error: float, degrees: float, scale: float, confidence: float, num_pairs: int) -> Difference:
    """Test a mean difference against its standard error; p is 1 for equal samples and NaN without a spread."""
    from scipy.special import stdtr, stdtrit

    if error <= ROUNDING * scale:
        is_equal = num_pairs != 1 and degrees > 0 and abs(mean) <= ROUNDING * scale
        return Difference(Interval(mean, np.nan, np.nan), 1.0 if is_equal else np.nan, np.nan, num_pairs)
    p = float(2 * stdtr(degrees, -abs(mean) / error))
    min_detectable = float(error * stdtrit(degrees, [(1 + confidence) / 2, POWER]).sum())
    return Difference(_t_interval(mean, error, degrees, confidence), p, min_detectable, num_pairs)
