"""Augmentation, compared with the affine transformation of scipy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tune_hpc.learning.batching import NUMBERS_PER_IMAGE, RandomAffine

CPU = torch.device("cpu")


def augment(images, noise, **bounds):
    """Augment images (N, 28, 28) in float64 with noise (N, 4)."""
    config = {"max_shift": 0.0, "max_rotation": 0.0, "max_scaling": 0.0} | bounds
    random_affine = RandomAffine(config, torch.float64, CPU)
    moved = random_affine(torch.as_tensor(images)[None, :, None], torch.as_tensor(noise).float().T[None])
    assert moved.shape == (1, len(images), 1, 28, 28)
    return moved[0, :, 0].numpy()


def scipy_affine(image, right, down, degrees, growth):
    """Rotate clockwise and scale about the centre, then shift."""
    angle = math.radians(degrees)
    # scipy's axes are down and right, and it takes the inverse transformation, too.
    inverse = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) / (1 + growth)
    middle, shift = np.full(2, 13.5), np.array([down, right])
    offset = middle - inverse @ (middle + shift)
    return ndimage.affine_transform(image, inverse, offset, order=1, mode="grid-constant")


@pytest.fixture(scope="module")
def pictures():
    """Eight random images without black edges."""
    return np.random.default_rng(0).random((8, 28, 28))


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(1).random((8, NUMBERS_PER_IMAGE), dtype=np.float32)


class TestRandomAffine:
    @pytest.mark.parametrize(
        "bounds",
        [
            {"max_shift": 3.0},
            {"max_rotation": 20.0},
            {"max_scaling": 0.3},
            {"max_shift": 2.5, "max_rotation": 180.0, "max_scaling": 0.9},
        ],
        ids=lambda bounds: " ".join(bounds),
    )
    def test_augmentation_matches_scipy(self, pictures, noise, bounds):
        right, down = (bounds.get("max_shift", 0) * (2 * noise[:, axis] - 1) for axis in (0, 1))
        degrees = bounds.get("max_rotation", 0) * (2 * noise[:, 2] - 1)
        growth = bounds.get("max_scaling", 0) * (2 * noise[:, 3] - 1)
        expected = [scipy_affine(*one) for one in zip(pictures, right, down, degrees, growth, strict=True)]
        np.testing.assert_allclose(augment(pictures, noise, **bounds), expected, atol=2e-5)

    def test_shift_by_whole_pixels_fills_with_black(self, pictures):
        moved = augment(pictures[:1], [[1.0, 0.0, 0.5, 0.5]], max_shift=3.0)[0]
        np.testing.assert_allclose(moved[:-3, 3:], pictures[0, 3:, :-3], atol=1e-6)
        np.testing.assert_allclose([moved[-3:].max(), moved[:, :3].max()], 0, atol=1e-6)

    def test_rotation_by_90_degrees_matches_numpy(self, pictures):
        turned = augment(pictures[:1], [[0.5, 0.5, 1.0, 0.5]], max_rotation=90.0)[0]
        np.testing.assert_allclose(turned, np.rot90(pictures[0], k=-1), atol=1e-5)

    def test_noise_of_one_half_is_the_identity(self, pictures):
        still = augment(pictures, np.full((8, 4), 0.5), max_shift=3.0, max_rotation=20.0, max_scaling=0.2)
        np.testing.assert_allclose(still, pictures, atol=1e-12)

    @settings(max_examples=50)
    @example([0.0, 0.0, 0.125, 0.125])
    @given(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4))
    def test_centre_and_mass_of_a_spot_follow_the_parameters(self, noise):
        down, right = np.mgrid[:28, :28] - 13.5
        spot = np.exp(-(down**2 + right**2) / (2 * 2.5**2))[None]
        moved = augment(spot, [noise], max_shift=4.0, max_rotation=180.0, max_scaling=0.5)[0]
        assert 0 <= moved.min() <= moved.max() <= 1
        # The noise is float32; a shrunk spot has few samples.
        growth = 0.5 * (2 * np.float32(noise[3]) - 1)
        assert moved.sum() == pytest.approx(spot.sum() * (1 + growth) ** 2, rel=0.03)
        centre = [4.0 * (2 * np.float32(noise[axis]) - 1) + 13.5 for axis in (1, 0)]
        np.testing.assert_allclose(ndimage.center_of_mass(moved), centre, atol=0.1)
