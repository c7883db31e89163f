import hashlib
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from tune_hpc.errors import DataUnavailableError
from tune_hpc.learning import data, download, mnist_files
from tune_hpc.learning.data import ImageData, LineData, load_images
from tune_hpc.learning.mnist_files import read_arrays


@pytest.fixture(scope="module")
def mnist():
    try:
        download.find_or_fetch("mnist")
    except DataUnavailableError as error:
        pytest.skip(str(error))
    return load_images("mnist")


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Seven, three and four images in files that count as the originals, and the folder that holds them."""
    rng = np.random.default_rng(0)
    splits = [(rng.integers(0, 256, (n, 784)) / 256, rng.integers(0, 10, n)) for n in (7, 3, 4)]
    files = download._files_from_splits(splits)
    sums = {file_name: hashlib.md5(content).hexdigest() for file_name, content in files.items()}
    monkeypatch.setattr(download, "MD5_SUMS", {"mnist": sums})
    monkeypatch.setattr(mnist_files, "NUM_TRAINING_IMAGES", 7)
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for file_name, content in files.items():
        (folder / file_name).write_bytes(content)
    return splits, tmp_path


def splits_of(images):
    for split in ("train", "valid", "test"):
        yield getattr(images, f"{split}_images"), getattr(images, f"{split}_labels")


class TestRealMnist:
    def test_counts_shapes_and_types(self, mnist):
        assert [len(labels) for _, labels in splits_of(mnist)] == [50_000, 10_000, 10_000]
        for images, labels in splits_of(mnist):
            assert images.shape == (len(labels), 1, 28, 28)
            assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)

    def test_the_classes_are_distributed_as_published(self, mnist):
        histogram = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
        assert mnist.test_labels.bincount().tolist() == histogram

    def test_the_first_digits_are_the_known_ones(self, mnist):
        assert mnist.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
        assert mnist.test_labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]

    def test_the_training_pixels_have_the_known_mean_and_deviation(self, mnist):
        pixels = torch.cat([mnist.train_images, mnist.valid_images]).float() / 255
        assert pixels.mean().item() == pytest.approx(0.1307, abs=1e-4)
        assert pixels.std().item() == pytest.approx(0.3081, abs=1e-4)


class TestLoading:
    def test_each_split_holds_its_images_in_the_original_order(self, small):
        splits, root = small
        for (images, labels), (pixels, classes) in zip(splits_of(load_images("mnist", root)), splits, strict=True):
            assert np.array_equal(images.numpy().reshape(-1, 784), pixels * 256)
            assert np.array_equal(labels.numpy(), classes)

    def test_no_warning_is_given(self, small):
        _, root = small
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_images("mnist", root)

    def test_a_damaged_file_is_named(self, small):
        _, root = small
        (root / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"no images")
        with pytest.raises(DataUnavailableError, match="train-images-idx3-ubyte is damaged"):
            load_images("mnist", root)


class TestArrays:
    def test_they_are_those_of_the_data_set(self, small):
        _, root = small
        arrays, expected = read_arrays("mnist", root), load_images("mnist", root).to_arrays()
        assert list(arrays) == list(expected)
        for name in arrays:
            assert arrays[name].dtype == expected[name].dtype
            assert np.array_equal(arrays[name], expected[name])

    def test_reading_them_needs_no_torch(self):
        code = "import sys, tune_hpc.learning.mnist_files; print({'torch', 'torchvision'} & set(sys.modules))"
        printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert printed.strip() == "set()"


class TestSharing:
    def test_arrays_share_their_memory_both_ways(self, small):
        _, root = small
        images = load_images("mnist", root)
        arrays = images.to_arrays()
        again = ImageData.from_arrays(arrays)
        assert again.name == "mnist"
        for field in data._SPLITS:
            assert arrays[field].ctypes.data == getattr(images, field).data_ptr() == getattr(again, field).data_ptr()

    def test_read_only_arrays_are_taken_without_copy_or_warning(self, small):
        _, root = small
        arrays = load_images("mnist", root).to_arrays()
        for array in arrays.values():
            array.flags.writeable = False
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            images = ImageData.from_arrays(arrays)
        assert images.train_images.data_ptr() == arrays["train_images"].ctypes.data

    def test_arrays_survive_out_of_band_pickling_as_an_object_store_does_it(self, small):
        _, root = small
        images = load_images("mnist", root)
        buffers = []
        header = pickle.dumps(images.to_arrays(), protocol=5, buffer_callback=buffers.append)
        stored = [bytes(buffer.raw()) for buffer in buffers]
        received = ImageData.from_arrays(pickle.loads(header, buffers=stored))
        assert all(torch.equal(getattr(received, field), getattr(images, field)) for field in data._SPLITS)
        assert len(header) < 2000

    def test_on_the_same_device_nothing_is_copied(self, small):
        _, root = small
        images = load_images("mnist", root)
        assert images.to("cpu").train_images.data_ptr() == images.train_images.data_ptr()
        assert images.to("meta").test_labels.device.type == "meta"


class TestLine:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_points_lie_on_1_minus_x(self, dtype):
        line = LineData(dtype)
        assert line.x.tolist() == [1, 2, 3, 4]
        assert torch.equal(line.y, 1 - line.x)
        assert line.x.dtype == line.y.dtype == dtype
        assert line.x is line.x
