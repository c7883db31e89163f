"""McNemar's test and intervals of accuracies: hand-computed examples, SciPy, and simulated populations."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.analysis.synthetic_results import searched
from tune_hpc import accuracy_interval, compare_predictions
from tune_hpc.analysis.intervals import mean_interval
from tune_hpc.analysis.predictions import best_accuracy
from tune_hpc.analysis.results import Results
from tune_hpc.errors import FolderError
from tune_hpc.learning.checkpoint import save_state
from tune_hpc.storage.experiment_folder import ExperimentFolder


def pair(num_both, num_first, num_second, num_neither):
    """Return labels and the predictions of two models with these numbers of images that both, one or none gets."""
    first = np.repeat([0, 0, 1, 1], (num_both, num_first, num_second, num_neither))
    second = np.repeat([0, 1, 0, 1], (num_both, num_first, num_second, num_neither))
    return np.zeros(len(first), np.uint8), first, second


class TestComparePredictions:
    def test_p_value_of_ten_against_two(self):
        comparison = compare_predictions(*pair(85, 10, 2, 3))
        # 2 (C(12, 0) + C(12, 1) + C(12, 2)) / 2^12
        assert comparison.p == pytest.approx(158 / 4096, abs=1e-12)
        assert (comparison.num_only_first_correct, comparison.num_only_second_correct) == (10, 2)
        assert (comparison.num_images, comparison.difference) == (100, 0.08)

    def test_hyper_responsiveness_of_airways_is_that_of_the_literature(self):
        # Fagerland, Lydersen and Laake (2014), 21 children: 1 and 7 discordant pairs.
        comparison = compare_predictions(*pair(1, 1, 7, 12))
        assert comparison.p == pytest.approx(0.0703, abs=5e-5)
        half = 1.959964 * math.sqrt((2 / 23 + 8 / 23 - (6 / 23) ** 2) / 23)
        assert (comparison.low, comparison.high) == pytest.approx((-6 / 23 - half, -6 / 23 + half), abs=1e-6)
        assert (round(comparison.low, 3), round(comparison.high, 3)) == (-0.508, -0.013)

    @given(st.integers(0, 200), st.integers(0, 200))
    def test_p_value_is_that_of_the_binomial_test(self, num_first, num_second):
        expected = stats.binomtest(num_first, num_first + num_second).pvalue if num_first + num_second else 1
        assert compare_predictions(*pair(9, num_first, num_second, 1)).p == pytest.approx(expected, rel=1e-9)

    def test_sentence_has_counts_difference_interval_and_p_value(self):
        sentence = str(compare_predictions(*pair(1985, 10, 2, 3), confidence=0.9))
        half = 1.644854 * math.sqrt((11 / 2002 + 3 / 2002 - (8 / 2002) ** 2) / 2002)
        low, high = (f"{8 / 2002 + sign * half:.4f}" for sign in (-1, 1))
        assert sentence == (
            "Of 2,000 images, only the first model classifies 10 correctly, and only the second 2; the accuracies "
            f"differ by 0.0040 (90 % interval {low} to {high}, McNemar's p 0.039)."
        )

    def test_equal_predictions_have_no_difference(self):
        comparison = compare_predictions(*pair(1000, 0, 0, 5))
        assert (comparison.difference, comparison.p) == (0, 1)
        assert comparison.low == -comparison.high < 0

    def test_interval_has_nominal_coverage(self):
        generator = np.random.default_rng(0)
        tables = generator.multinomial(2000, [0.97, 0.012, 0.008, 0.01], 400)
        found = [compare_predictions(*pair(*table)) for table in tables]
        assert np.mean([one.low <= 0.004 <= one.high for one in found]) == pytest.approx(0.95, abs=0.03)

    @pytest.mark.parametrize(("first", "second"), [([0, 1], [0]), ([0], [0]), ([[0, 1]], [[0, 1]])])
    def test_other_numbers_of_images_are_rejected(self, first, second):
        with pytest.raises(ValueError, match=r"must be 1-D arrays of the same images; got labels of shape \(2,\)"):
            compare_predictions([0, 1], first, second)

    def test_error_lists_the_shapes(self):
        with pytest.raises(ValueError, match=r"predictions of shape \(1,\), \(2,\)$"):
            compare_predictions([0, 1], [0, 1], [0])
        with pytest.raises(ValueError, match=r"labels of shape \(1, 2\) and predictions of shape \(1, 2\)$"):
            compare_predictions([[0, 1]], [[0, 1]], [[0, 1]])


def simulated(generator, num_seeds, num_images, spread):
    """Return labels and predictions of random seeds and images, whose logits of a correct class are sums."""
    logits = generator.normal(0, spread, (num_seeds, 1)) + generator.normal(3, 2, num_images)
    is_correct = generator.random((num_seeds, num_images)) < 1 / (1 + np.exp(-logits))
    return np.zeros(num_images), 1 - is_correct


class TestAccuracyInterval:
    def test_variances_of_a_small_table(self):
        correct = np.array([[1, 1, 0, 0, 1, 1], [1, 1, 0, 0, 1, 0], [1, 1, 0, 1, 1, 1]])
        table = accuracy_interval(np.ones(6), list(correct)).set_index("over")
        assert table["accuracy"].tolist() == pytest.approx([2 / 3] * 3)
        seeds, images = mean_interval([4 / 6, 3 / 6, 5 / 6]), mean_interval([1, 1, 0, 1 / 3, 1, 2 / 3])
        for over, interval in (("seeds", seeds), ("images", images)):
            assert table.loc[over, ["low", "high"]].tolist() == pytest.approx([interval.low, interval.high])
        # Mean squares of the analysis of variance: seeds 1/6, images 8/15, residuals 1/10; 18 values.
        degrees = (1 / 30) ** 2 / ((1 / 6 / 18) ** 2 / 2 + (8 / 15 / 18) ** 2 / 5)
        half = stats.t.ppf(0.975, degrees) * math.sqrt(1 / 30)
        assert table.loc["seeds and images", ["low", "high"]].tolist() == pytest.approx([2 / 3 - half, 2 / 3 + half])

    def test_confidence_applies_to_all_intervals(self):
        correct = np.array([[1, 1, 0, 0, 1, 1], [1, 1, 0, 0, 1, 0], [1, 1, 0, 1, 1, 1]])
        table = accuracy_interval(np.ones(6), list(correct), confidence=0.5).set_index("over")
        seeds = mean_interval([4 / 6, 3 / 6, 5 / 6], 0.5)
        images = mean_interval([1, 1, 0, 1 / 3, 1, 2 / 3], 0.5)
        degrees = (1 / 30) ** 2 / ((1 / 6 / 18) ** 2 / 2 + (8 / 15 / 18) ** 2 / 5)
        half = stats.t.ppf(0.75, degrees) * math.sqrt(1 / 30)
        expected = [[seeds.low, seeds.high], [images.low, images.high], [2 / 3 - half, 2 / 3 + half]]
        assert table[["low", "high"]].to_numpy() == pytest.approx(np.array(expected))
        assert table.index.tolist() == ["seeds", "images", "seeds and images"]

    def test_interval_over_both_is_never_narrower(self):
        correct = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]])
        widths = accuracy_interval(np.ones(4), list(correct)).eval("high - low")
        assert widths[2] >= widths.max()

    @pytest.mark.parametrize("spread", [0, 0.1, 0.3])
    def test_intervals_have_about_nominal_coverage(self, spread):
        generator = np.random.default_rng(1)
        # The mean of the population, by numerical integration.
        logits = stats.norm(3, math.hypot(2, spread)).ppf((np.arange(100_000) + 0.5) / 100_000)
        mean = np.mean(1 / (1 + np.exp(-logits)))
        tables = [accuracy_interval(*simulated(generator, 5, 1000, spread)) for _ in range(300)]
        low, high = (np.array([table[end] for table in tables]) for end in ("low", "high"))
        seeds, images, both = np.mean((low <= mean) & (mean <= high), axis=0)
        assert both == pytest.approx(0.95, abs=0.03)
        # An interval over a single source ignores the other one.
        assert min(seeds, images) < 0.9

    def test_interval_over_images_dominates_with_similar_seeds(self):
        # As many errors as the winner of Exercise 3 has.
        generator = np.random.default_rng(0)
        difficulty = np.where(np.arange(10_000) < 80, 0.6, 0)
        predictions = [generator.random(10_000) < difficulty for _ in range(5)]
        table = accuracy_interval(np.zeros(10_000), predictions).set_index("over")
        half = (table["high"] - table["low"]) / 2
        assert table["accuracy"].iloc[0] == pytest.approx(0.9952, abs=2e-4)
        assert half["seeds"] < 0.001 < half["images"] < half["seeds and images"] < 0.0014

    def test_bounds_of_an_unknown_spread_are_missing(self):
        labels = np.zeros(100)
        wrong = np.arange(100) < 10
        assert accuracy_interval(labels, [wrong])["low"].isna().tolist() == [True, False, True]
        assert accuracy_interval(labels, [wrong, wrong])["low"].isna().tolist() == [True, False, True]
        assert accuracy_interval(labels, [labels, labels])["low"].isna().all()

    def test_missing_predictions_are_rejected(self):
        with pytest.raises(ValueError, match="predictions of shape none"):
            accuracy_interval([0, 1], [])
        with pytest.raises(ValueError, match=r"predictions of shape \(0,\)"):
            accuracy_interval([], [[]])

    def test_predictions_may_be_a_generator(self):
        predictions = [[0, 1, 0], [0, 0, 0]]
        assert accuracy_interval([0, 1, 0], iter(predictions)).equals(accuracy_interval([0, 1, 0], predictions))

    @pytest.mark.parametrize("confidence", [95, 0, 1, math.nan, "0.9", None])
    def test_confidence_that_is_no_fraction_is_rejected(self, confidence):
        for function in (lambda: accuracy_interval([0, 1], [[0, 1]], confidence),
                         lambda: compare_predictions([0, 1], [0, 1], [0, 0], confidence)):  # fmt: skip
            with pytest.raises(ValueError, match="confidence must be a fraction between 0 and 1"):
                function()


def test_texts_are_compared_with_texts_only():
    found = compare_predictions(["a", "b"], ["a", "a"], ["a", "b"])
    assert (found.num_only_first_correct, found.num_only_second_correct) == (0, 1)
    with pytest.raises(ValueError, match="must all be numbers or all be texts; got <U1, int64, int64"):
        compare_predictions(["0", "1"], [0, 1], [0, 1])
    texts = np.array(["0", "1"], dtype=object)
    with pytest.raises(ValueError, match="must all be numbers or all be texts"):
        accuracy_interval(texts, [[0, 1]])
    assert accuracy_interval(texts, [np.array(["0", "0"])])["accuracy"].tolist() == [0.5] * 3


class TestRetainedStates:
    LABELS = np.array([0, 1, 2, 0], np.uint8)

    def results(self, path, states):
        """Return a search with the retained states of its trials: two seeds of two configurations."""
        folder = ExperimentFolder(path)
        for trial_id, state in states.items():
            file = folder.retained_checkpoint(trial_id, 7)
            file.parent.mkdir(parents=True, exist_ok=True)
            save_state(file, state)
        rows = [{"x": x, "seed": seed, "loss": 1.0 + x + seed / 10} for x in (0, 1) for seed in (0, 1)]
        found = searched({"x": {"choice": [0, 1]}}, rows)
        return Results(found.experiment, found.trials, found.history, path)

    def state(self, *predictions, labels=LABELS):
        return {"predictions": np.array(predictions, np.uint8), "labels": labels}

    def test_predictions_and_labels_are_those_of_the_best_trial_or_of_a_given_one(self, tmp_path):
        states = {"t00000": self.state(0, 1, 2, 2), "t00001": self.state(0, 1, 1, 1)}
        results = self.results(tmp_path, states)
        assert results.predictions().tolist() == [0, 1, 2, 2]
        assert results.predictions("t00001").tolist() == [0, 1, 1, 1]
        assert results.labels().tolist() == results.labels("t00001").tolist() == self.LABELS.tolist()
        with pytest.raises(FolderError, match="no checkpoint of t00002 was retained"):
            results.predictions("t00002")

    def test_state_without_a_vector_of_classes_is_rejected(self, tmp_path):
        states = {"t00000": {"predictions": np.zeros((2, 2)), "labels": [0, 1]}, "t00001": [1, 2]}
        results = self.results(tmp_path, states)
        for trial_id in states:
            for call, name in ((results.predictions, "predictions"), (results.labels, "labels")):
                with pytest.raises(FolderError, match=rf"7\.checkpoint has no {name}: .* 1-D NumPy array '{name}'"):
                    call(trial_id)

    def test_accuracy_of_the_best_configuration_is_over_its_seeds(self, tmp_path):
        states = {"t00000": self.state(0, 1, 2, 2), "t00001": self.state(0, 1, 1, 1), "t00002": self.state(1, 0, 0, 1)}
        table, num_seeds, num_images = best_accuracy(self.results(tmp_path, states))
        assert (num_seeds, num_images) == (2, 4)
        assert table["accuracy"].tolist() == [(0.75 + 0.5) / 2] * 3
        expected = accuracy_interval(self.LABELS, [states[name]["predictions"] for name in ("t00000", "t00001")])
        assert table.equals(expected)

    @pytest.mark.parametrize("labels", [None, [0, 1, 2, 1], [0, 1, 2]])
    def test_accuracy_needs_two_seeds_with_the_same_images(self, tmp_path, labels):
        states = {"t00000": self.state(0, 1, 2, 2)}
        if labels is not None:
            states["t00001"] = self.state(0, 1, 1, 1, labels=np.array(labels, np.uint8))
        assert best_accuracy(self.results(tmp_path, states)) is None
