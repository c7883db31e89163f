"""What a few repeats tell: intervals, differences, how small a difference they could show.

Pure functions on numbers. Values that are not finite are an error of the caller: a frame's missing values are left out
before. Nothing here assumes more than Student did (values of one kind vary alike around their mean), but where it says
bootstrap. Values that do not differ at all are no repeats: a seed that changes nothing says nothing of what chance
does, and two accuracies on ten thousand images may be equal by chance. So they have no interval.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

#: Fewer values than this say nothing of their own distribution: a bootstrap of five covers 83 % for a nominal 95 %.
MIN_BOOTSTRAP_VALUES = 20
NUM_RESAMPLES = 4000
#: A difference is one that the repeats can tell if they would have shown it in this part of all cases.
POWER = 0.8
#: Numbers that differ by no more than this part of them are one number, rounded in different ways.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Interval:
    """An estimate and what it may be.

    Attributes:
        mean: The estimate.
        low: The lower end; NaN where the values tell nothing of it: there is one, or all are the same.
        high: The upper end.
    """

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2

    def prediction_interval(self, num_values: int) -> "Interval":
        """Return where one more value would lie, if this is the mean's interval from so many.

        One more value differs from the mean of n by the root of n + 1 times as much as that from the truth.
        """
        half = self.half * np.sqrt(num_values + 1)
        return Interval(self.mean, self.mean - half, self.mean + half)


@dataclass(frozen=True)
class Difference:
    """How two sets of repeats differ.

    Attributes:
        interval: The first one's mean less the second one's.
        p: How often chance alone would make such a difference, or a larger one; NaN where nobody can tell.
        min_detectable: The smallest difference that such repeats would show, four times in five.
        num_pairs: How many pairs it stands on; 0: they were not paired.
    """

    interval: Interval
    p: float
    min_detectable: float
    num_pairs: int


def mean_interval(values: ArrayLike, confidence: float = 0.95, method: str = "student", seed: int = 0) -> Interval:
    """Return a mean with its interval.

    Args:
        values: The repeats.
        confidence: How often such intervals hold the truth.
        method: ``student``; or ``bootstrap`` (percentiles of resampled means), from 20 values on.
        seed: Fixes the resampling.

    Raises:
        ValueError: no values, an unknown method, or too few values for a bootstrap.
    """
    own = np.asarray(values, dtype=float)
    if own.size == 0:
        raise ValueError("no mean of no values; at least one is needed")
    mean = float(own.mean())
    if method == "bootstrap":
        if own.size < MIN_BOOTSTRAP_VALUES:
            raise ValueError(
                f"a bootstrap needs at least {MIN_BOOTSTRAP_VALUES} values; got {own.size}: use method='student'"
            )
        drawn = np.random.default_rng(seed).integers(own.size, size=(NUM_RESAMPLES, own.size))
        tail = 50 * (1 - confidence)
        low, high = np.percentile(own[drawn].mean(axis=1), [tail, 100 - tail])
        return Interval(mean, float(low), float(high))
    if method != "student":
        raise ValueError(f"method must be student or bootstrap; got {method!r}")
    return student_interval(mean, float(own.std(ddof=1)) if own.size > 1 else np.nan, own.size, confidence)


def student_interval(mean: float, deviation: float, num_values: int, confidence: float = 0.95) -> Interval:
    """Return the interval of a mean from the sample's deviation; NaN at its ends where that tells nothing."""
    if num_values < 2 or deviation <= ROUNDING * abs(mean):
        return Interval(mean, np.nan, np.nan)
    half = _quantile(confidence, num_values - 1) * deviation / np.sqrt(num_values)
    return Interval(mean, mean - half, mean + half)


def paired_difference(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> Difference:
    """Return how two sets of repeats differ that share what varies: the same seeds, in the same order.

    Raises:
        ValueError: no values, or not as many of both.
    """
    one, other = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if one.shape != other.shape:
        raise ValueError(f"pairs need as many values of both; got {one.size} and {other.size}")
    mean = mean_interval(one - other).mean
    error = float((one - other).std(ddof=1)) / np.sqrt(one.size) if one.size > 1 else 0.0
    return _told(mean, error, one.size - 1, _scale(one, other), confidence, one.size)


def welch_difference(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> Difference:
    """Return how two sets of repeats differ that have nothing in common (Welch).

    Raises:
        ValueError: no values.
    """
    one, other = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    mean, scale = mean_interval(one).mean - mean_interval(other).mean, _scale(one, other)
    if min(one.size, other.size) == 1:
        return _told(mean, 0.0, 0, scale, confidence, 0)
    parts = np.array([own.var(ddof=1) / own.size for own in (one, other)])
    degrees = parts.sum() ** 2 / (parts**2 / [one.size - 1, other.size - 1]).sum() if parts.any() else 0
    return _told(mean, float(np.sqrt(parts.sum())), float(degrees), scale, confidence, 0)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Return p-values corrected for how many there are (Holm 1979): each may then be read by itself.

    One that is missing counts for nothing and stays missing.
    """
    p = np.asarray(p_values, dtype=float)
    corrected = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    grown = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1))
    corrected[order] = np.minimum(grown, 1.0)
    return corrected


def accuracy_error(accuracy: float, num_images: int) -> float:
    """Return the standard error of an accuracy that so many images alone bring along (binomial)."""
    return float(np.sqrt(max(accuracy * (1 - accuracy), 0.0) / num_images))


def _scale(one: np.ndarray, other: np.ndarray) -> float:
    return float(max(np.abs(one).max(), np.abs(other).max()))


def _told(mean: float, error: float, degrees: float, scale: float, confidence: float, num_pairs: int) -> Difference:
    """Return what a mean difference and its standard error tell; nothing, where there is no error to go by."""
    from scipy.special import stdtr

    if error <= ROUNDING * scale:
        is_same = num_pairs != 1 and degrees > 0 and abs(mean) <= ROUNDING * scale
        return Difference(Interval(mean, np.nan, np.nan), 1.0 if is_same else np.nan, np.nan, num_pairs)
    half = _quantile(confidence, degrees) * error
    p = float(2 * stdtr(degrees, -abs(mean) / error))
    return Difference(Interval(mean, mean - half, mean + half), p, _smallest(error, degrees, confidence), num_pairs)


def _quantile(confidence: float, degrees: float) -> float:
    # What scipy.stats would ask, which takes a second to import.
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + confidence) / 2))


def _smallest(error: float, degrees: float, confidence: float) -> float:
    from scipy.special import stdtrit

    return float((_quantile(confidence, degrees) + stdtrit(degrees, POWER)) * error)
