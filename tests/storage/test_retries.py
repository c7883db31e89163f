"""Tests of retries of storage calls during a search."""

import errno

import pytest

from tune_hpc.errors import FolderError
from tune_hpc.storage import retries
from tune_hpc.storage.retries import retry_read, retry_write


class FailingStorage:
    """Storage whose calls fail a number of times."""

    def __init__(self, num_failures: int, number: int = errno.EIO) -> None:
        self.num_failures, self.number, self.num_calls = num_failures, number, 0

    def _call(self) -> str:
        self.num_calls += 1
        if self.num_calls <= self.num_failures:
            raise FolderError("no answer") from OSError(self.number, "no answer")
        return "done"

    @retry_read
    def read(self) -> str:
        return self._call()

    @retry_read
    def read_listed(self) -> str:
        return self.read()

    @retry_write
    def write(self) -> str:
        return self._call()


@pytest.fixture(autouse=True)
def short_retries(monkeypatch):
    monkeypatch.setattr(retries, "RETRY_S", 0.1)
    monkeypatch.setattr(retries, "PAUSE_S", 0.01)
    monkeypatch.setattr(retries, "_failing_since", {})


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_short_outage_is_not_noticed_in_a_search(number):
    storage = FailingStorage(3, number)
    with retries.retries():
        assert storage.write() == "done"
    assert storage.num_calls == 4


def test_call_outside_a_search_fails_at_once():
    storage = FailingStorage(3)
    with pytest.raises(FolderError):
        storage.write()
    assert storage.num_calls == 1


def test_missing_file_is_not_retried():
    storage = FailingStorage(3, errno.ENOENT)
    with retries.retries(), pytest.raises(FolderError):
        storage.read()
    assert storage.num_calls == 1


def test_long_outage_fails_later_calls_at_once_until_one_succeeds():
    storage = FailingStorage(10**6)
    with retries.retries():
        with pytest.raises(FolderError):
            storage.write()
        num_calls = storage.num_calls
        assert num_calls > 3
        with pytest.raises(FolderError):
            storage.write()
        assert storage.num_calls == num_calls + 1
        storage.num_failures = 0
        assert storage.write() == "done"
        storage.num_calls, storage.num_failures = 0, 2
        assert storage.write() == "done"


def test_nested_call_is_not_retried_twice_as_long():
    storage = FailingStorage(10**6)
    with retries.retries(), pytest.raises(FolderError):
        storage.read_listed()
    assert storage.num_calls <= 12
