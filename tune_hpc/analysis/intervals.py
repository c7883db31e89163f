"""Confidence intervals for few repeats.

Pure functions on finite numbers, based on Student's t-distribution. Repeats with identical values have no interval:
their spread is unknown, because a seed without effect is no repeat, and accuracies can coincide by chance.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

#: Probability of detecting the minimal detectable difference.
POWER = 0.8
#: Relative tolerance below which values count as equal.
ROUNDING = 1e-6
#: Default margins of non-inferiority: of an accuracy, and of another metric as a fraction of the reference.
ACCURACY_MARGIN, RELATIVE_MARGIN = 0.005, 0.05


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


def check_confidence(confidence: float) -> None:
    """Raise ``ValueError`` unless a confidence level is a fraction."""
    if not isinstance(confidence, int | float) or not 0 < confidence < 1:
        raise ValueError(f"confidence must be a fraction between 0 and 1, like 0.95; got {confidence!r}")


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the mean of repeats with Student's confidence interval; no values raise ``ValueError``."""
    sample = np.asarray(values, dtype=float)
    if sample.size == 0:
        raise ValueError("a mean needs at least one value; got none")
    return student_interval(float(sample.mean()), sample_deviation(sample), sample.size, confidence)


def sample_deviation(values: ArrayLike) -> float:
    """Return the standard deviation of a sample; NaN for a single value."""
    sample = np.asarray(values, dtype=float)
    scale = scale_of(sample)
    return float((sample / scale).std(ddof=1)) * scale if sample.size > 1 else np.nan


def scale_of(values: np.ndarray) -> float:
    """Return a power of two to divide numbers by, so that their squares neither overflow nor vanish; 1 for zeros."""
    largest = float(np.nanmax(np.abs(values), initial=0.0))
    return float(2.0 ** np.floor(np.log2(largest))) if 0 < largest < np.inf else 1.0


def student_interval(mean: float, deviation: float, num_values: int, confidence: float = 0.95) -> Interval:
    """Return Student's interval of a mean from the sample deviation; NaN bounds if the spread is unknown."""
    if num_values < 2 or deviation <= ROUNDING * abs(mean):
        return Interval(mean, np.nan, np.nan)
    return t_interval(mean, deviation / np.sqrt(num_values), num_values - 1, confidence)


def welch_interval(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the difference of two means (first less second) with Welch's interval (Satterthwaite, 1946)."""
    samples = [np.asarray(values, dtype=float) for values in (first, second)]
    difference = float(samples[0].mean() - samples[1].mean())
    if min(sample.size for sample in samples) < 2:
        return Interval(difference, np.nan, np.nan)
    variances = [sample.var(ddof=1) / sample.size for sample in samples]
    total = sum(variances)
    if total <= (ROUNDING * abs(samples[1].mean())) ** 2:
        return Interval(difference, np.nan, np.nan)
    # Shares, because the square of a large variance overflows.
    parts = sum(
        (variance / total) ** 2 / (sample.size - 1) for variance, sample in zip(variances, samples, strict=True)
    )
    return t_interval(difference, float(np.sqrt(total)), 1 / parts, confidence)


def default_margin(metric: str, reference: float) -> float:
    """Return the largest irrelevant difference of a metric: 0.005 of an accuracy, otherwise 5 % of the reference."""
    return ACCURACY_MARGIN if "accuracy" in metric else RELATIVE_MARGIN * abs(reference)


def non_inferiority(lead_low: float, lead_high: float, margin: float) -> bool | None:
    """Test of non-inferiority: whether a lead (negative if worse) is above ``-margin``; ``None``: inconclusive."""
    if lead_low > -margin:
        return True
    return False if lead_high < 0 else None


def t_interval(mean: float, error: float, degrees: float, confidence: float = 0.95) -> Interval:
    """Return the interval of a mean from its standard error with a number of degrees of freedom."""
    from scipy.special import stdtrit  # scipy.stats takes three times as long to import.

    low, high = mean + error * stdtrit(degrees, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean, float(low), float(high))
