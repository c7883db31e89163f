"""Data sets: MNIST with its published statistics, and arrays without copies."""

import pickle
import warnings

import numpy as np
import pytest
import torch

from tune_hpc.errors import DataUnavailableError
from tune_hpc.learning import data, download
from tune_hpc.learning.data import ImageData, load_images


@pytest.fixture(scope="module")
def mnist():
    try:
        download.find_or_download("mnist")
    except DataUnavailableError as error:
        pytest.skip(str(error))
    return load_images("mnist")


@pytest.fixture
def small(monkeypatch, tmp_path, small_files):
    """Folder with the files of a data set of seven, three and four images."""
    monkeypatch.setattr(download, "NUM_TRAINING_IMAGES", 7)
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for file_name, content in small_files.items():
        (folder / file_name).write_bytes(content)
    return tmp_path


def splits_of(images):
    for split in ("train", "valid", "test"):
        yield getattr(images, f"{split}_images"), getattr(images, f"{split}_labels")


class TestRealMnist:
    def test_counts_shapes_and_types(self, mnist):
        assert [len(labels) for _, labels in splits_of(mnist)] == [50_000, 10_000, 10_000]
        for images, labels in splits_of(mnist):
            assert images.shape == (len(labels), 1, 28, 28)
            assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)

    def test_classes_are_distributed_as_published(self, mnist):
        histogram = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
        assert mnist.test_labels.bincount().tolist() == histogram

    def test_first_digits_match_the_published_ones(self, mnist):
        assert mnist.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
        assert mnist.test_labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]

    @pytest.mark.slow
    def test_training_pixels_have_the_known_mean_and_deviation(self, mnist):
        pixels = torch.cat([mnist.train_images, mnist.valid_images]).float() / 255
        assert pixels.mean().item() == pytest.approx(0.1307, abs=1e-4)
        assert pixels.std().item() == pytest.approx(0.3081, abs=1e-4)


class TestLoading:
    def test_each_split_has_its_images_in_the_original_order(self, small, small_splits):
        for (images, labels), (pixels, classes) in zip(
            splits_of(load_images("mnist", small)), small_splits, strict=True
        ):
            assert np.array_equal(images.numpy().reshape(-1, 784), pixels * 256)
            assert np.array_equal(labels.numpy(), classes)

    def test_arrays_equal_those_of_the_loaded_data_set(self, small):
        arrays, expected = download.read_arrays("mnist", small), load_images("mnist", small).to_arrays()
        assert list(arrays) == list(expected)
        for name in arrays:
            assert arrays[name].dtype == expected[name].dtype
            assert np.array_equal(arrays[name], expected[name])


class TestSharing:
    def test_arrays_share_their_memory_in_both_directions(self, small):
        images = load_images("mnist", small)
        arrays = images.to_arrays()
        again = ImageData.from_arrays(arrays)
        assert again.name == "mnist"
        for field in data._SPLITS:
            assert arrays[field].ctypes.data == getattr(images, field).data_ptr() == getattr(again, field).data_ptr()

    def test_read_only_arrays_are_accepted_without_copy_or_warning(self, small):
        arrays = load_images("mnist", small).to_arrays()
        for array in arrays.values():
            array.flags.writeable = False
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            images = ImageData.from_arrays(arrays)
        assert images.train_images.data_ptr() == arrays["train_images"].ctypes.data

    def test_arrays_survive_out_of_band_pickling_of_an_object_store(self, small):
        images = load_images("mnist", small)
        buffers = []
        header = pickle.dumps(images.to_arrays(), protocol=5, buffer_callback=buffers.append)
        stored = [bytes(buffer.raw()) for buffer in buffers]
        received = ImageData.from_arrays(pickle.loads(header, buffers=stored))
        assert all(torch.equal(getattr(received, field), getattr(images, field)) for field in data._SPLITS)
        assert len(header) < 2000

    def test_move_to_the_same_device_copies_nothing(self, small):
        images = load_images("mnist", small)
        assert images.to("cpu").train_images.data_ptr() == images.train_images.data_ptr()
        assert images.to("meta").test_labels.device.type == "meta"
