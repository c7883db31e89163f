"""Per-image predictions: McNemar's test of two models, and intervals of an accuracy over seeds and images.

A retained state has the array ``predictions``, the predicted class of each test image, and ``labels``, the true ones.
Those of built-in models are written at the evaluation of their step. Any trainable may offer such arrays.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from tune_hpc.analysis.checkpoints import best_checkpoint, best_trials, checkpoint
from tune_hpc.analysis.formatting import format_metric
from tune_hpc.analysis.intervals import Interval, check_confidence, mean_interval, t_interval
from tune_hpc.errors import FolderError
from tune_hpc.learning.checkpoint import load_arrays

if TYPE_CHECKING:
    from tune_hpc.analysis.results import Results

#: Sources of variation of an accuracy.
SEEDS, IMAGES, SEEDS_AND_IMAGES = "seeds", "images", "seeds and images"


@dataclass(frozen=True)
class PredictionComparison:
    """Comparison of two models on the same images.

    Attributes:
        num_images: Number of images.
        num_only_first_correct: Images that only the first model classifies correctly.
        num_only_second_correct: Images that only the second model classifies correctly.
        difference: Accuracy of the first model minus that of the second.
        low: Lower bound of the interval of the difference for other images.
        high: Upper bound.
        p: Two-sided p value of McNemar's exact test of equal accuracies.
        confidence: Confidence level of the interval.
    """

    num_images: int
    num_only_first_correct: int
    num_only_second_correct: int
    difference: float
    low: float
    high: float
    p: float
    confidence: float

    def __str__(self) -> str:
        difference, low, high = (format_metric(one, "accuracy") for one in (self.difference, self.low, self.high))
        return (
            f"Of {self.num_images:,} images, only the first model classifies {self.num_only_first_correct} correctly, "
            f"and only the second {self.num_only_second_correct}; the accuracies differ by {difference} "
            f"({100 * self.confidence:.4g} % interval {low} to {high}, McNemar's p {self.p:.2g})."
        )


def compare_predictions(
    labels: ArrayLike, first: ArrayLike, second: ArrayLike, confidence: float = 0.95
) -> PredictionComparison:
    """Compare two models on the same images with McNemar's exact test (McNemar, 1947).

    The interval is Wald's for paired proportions with Laplace's adjustment (Bonett and Price, 2012). It may exclude 0
    at a p value slightly over 0.05, because the exact test is conservative. Both are about these two trained models:
    other seeds of the same configurations give other models.

    Args:
        labels: True class of each image.
        first: Classes that the first model predicts.
        second: Classes that the second model predicts.
        confidence: Confidence level of the interval.

    Raises:
        ValueError: The arrays have different lengths or no images, or the confidence is no fraction.

    Example:
        >>> import numpy as np
        >>> from tune_hpc import compare_predictions
        >>> labels, first, second = np.zeros((3, 1000), np.uint8)
        >>> first[:2] = 1       # two errors of the first model
        >>> second[2:12] = 1    # ten others of the second one
        >>> print(compare_predictions(labels, first, second))
        Of 1,000 images, only the first model classifies 10 correctly, and only the second 2; the accuracies differ by
        0.0080 (95 % interval 0.0007 to 0.0153, McNemar's p 0.039).
    """
    from scipy.special import bdtr, ndtri  # scipy.stats takes three times as long to import.

    check_confidence(confidence)
    first_correct, second_correct = _correct(labels, [first, second])
    num_images = len(first_correct)
    wins, losses = int((first_correct & ~second_correct).sum()), int((second_correct & ~first_correct).sum())
    win, loss = (wins + 1) / (num_images + 2), (losses + 1) / (num_images + 2)
    half = ndtri((1 + confidence) / 2) * np.sqrt((win + loss - (win - loss) ** 2) / (num_images + 2))
    p = min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5)))
    difference = (wins - losses) / num_images
    return PredictionComparison(
        num_images, wins, losses, difference, float(win - loss - half), float(win - loss + half), p, confidence
    )


def accuracy_interval(labels: ArrayLike, predictions: Sequence[ArrayLike], confidence: float = 0.95) -> pd.DataFrame:
    """Return the accuracy of a configuration with its intervals over seeds, over images, and over both.

    Seeds and images are crossed random effects: the variance of the mean over both is that over seeds plus that over
    images, less that of their interaction, which both include (Cornfield and Tukey, 1956; Owen, 2007). Its degrees of
    freedom are Satterthwaite's (1946). The intervals are too narrow with fewer than about ten misclassified images.

    Args:
        labels: True class of each image.
        predictions: Classes that the model of each seed predicts.
        confidence: Confidence level of the intervals.

    Returns:
        Three rows with ``over``, ``accuracy``, ``low`` and ``high``. ``seeds`` is for other seeds and these images,
        ``images`` for these models and other images, and ``seeds and images`` for other seeds and images. Bounds are
        missing if a spread is unknown: with one seed, identical accuracies, or no error.

    Raises:
        ValueError: There are no predictions or no images, the numbers of images differ, or the confidence is no
            fraction.

    Example:
        >>> import numpy as np
        >>> from tune_hpc import accuracy_interval
        >>> rng = np.random.default_rng(0)
        >>> labels = rng.integers(0, 10, 1000)
        >>> is_difficult = rng.random(1000) < 0.1
        >>> seeds = [np.where(is_difficult & (rng.random(1000) < 0.5), 10, labels) for _ in range(5)]
        >>> accuracy_interval(labels, seeds).round(3)
                       over  accuracy    low   high
        0             seeds     0.944  0.939  0.950
        1            images     0.944  0.933  0.955
        2  seeds and images     0.944  0.933  0.955
    """
    check_confidence(confidence)
    correct = _correct(labels, list(predictions)).astype(float)
    num_seeds, num_images = correct.shape
    by_seed, by_image, mean = correct.mean(1), correct.mean(0), float(correct.mean())
    over_seeds, over_images = mean_interval(by_seed, confidence), mean_interval(by_image, confidence)
    half = np.nan
    if not np.isnan([over_seeds.low, over_images.low]).any():
        seeds, images = by_seed.var(ddof=1) / num_seeds, by_image.var(ddof=1) / num_images
        residuals = correct - by_seed[:, None] - by_image + mean
        interaction = np.square(residuals).mean() / ((num_seeds - 1) * (num_images - 1))
        variance = max(seeds + images - interaction, seeds, images)
        degrees = variance**2 / (seeds**2 / (num_seeds - 1) + images**2 / (num_images - 1))
        over_both = t_interval(mean, float(np.sqrt(variance)), float(degrees), confidence)
        # More degrees of freedom may make it narrower than that over a few seeds.
        half = max(over_both.half, over_seeds.half, over_images.half)
    over_both = Interval(mean, mean - half, mean + half)
    intervals = {SEEDS: over_seeds, IMAGES: over_images, SEEDS_AND_IMAGES: over_both}
    rows = [(over, mean, interval.low, interval.high) for over, interval in intervals.items()]
    return pd.DataFrame(rows, columns=["over", "accuracy", "low", "high"])


def best_accuracy(results: "Results") -> tuple[pd.DataFrame, int, int] | None:
    """Return ``accuracy_interval`` of the best configuration, and its numbers of seeds and images.

    ``None`` if fewer than two of its trials have predictions, or their images differ.
    """
    states = []
    for trial_id in best_trials(results)[0]:
        with contextlib.suppress(FolderError):
            path = checkpoint(results, trial_id)
            states.append((_classes(path, "labels"), _classes(path, "predictions")))
    labels = [trial_labels for trial_labels, _ in states]
    if len(labels) < 2 or not all(np.array_equal(labels[0], other) for other in labels):
        return None
    return accuracy_interval(labels[0], [predicted for _, predicted in states]), len(labels), len(labels[0])


def retained_classes(results: "Results", trial_id: str | None, name: str) -> np.ndarray:
    """Return ``predictions`` or ``labels`` in a retained state; see ``Results.predictions``."""
    return _classes(best_checkpoint(results) if trial_id is None else checkpoint(results, trial_id), name)


def _classes(path: Path, name: str) -> np.ndarray:
    state = load_arrays(path)
    array = state.get(name) if isinstance(state, Mapping) else None
    if not isinstance(array, np.ndarray) or array.ndim != 1:
        raise FolderError(
            f"{path} has no {name}: the state that the trainable offers needs a 1-D NumPy array {name!r}, with the "
            "class of each test image"
        )
    return array


def _correct(labels: ArrayLike, predictions: Sequence[ArrayLike]) -> np.ndarray:
    """Return whether each model classifies each image correctly, (models, images)."""
    expected = np.asarray(labels)
    shapes = {np.shape(predicted) for predicted in predictions}
    if shapes != {expected.shape} or expected.ndim != 1 or not expected.size:
        found = ", ".join(map(str, sorted(shapes))) or "none"
        raise ValueError(
            f"labels and predictions must be 1-D arrays of the same images; got labels of shape {expected.shape} and "
            f"predictions of shape {found}"
        )
    # An array of objects, like a column of texts, gets the type of its values.
    arrays = [np.array(a.tolist()) if a.dtype == object else a for a in map(np.asarray, [labels, *predictions])]
    if len({array.dtype.kind in "US" for array in arrays}) > 1:
        found = ", ".join(str(array.dtype) for array in arrays)
        raise ValueError(f"labels and predictions must all be numbers or all be texts; got {found}")
    return np.array([predicted == arrays[0] for predicted in arrays[1:]])
