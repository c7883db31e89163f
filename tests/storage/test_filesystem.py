"""Storage on a folder and on a bucket, with readers and writers on several machines."""

import pytest

from tune_hpc.errors import FolderError
from tune_hpc.storage import s3
from tune_hpc.storage.experiment_folder import ExperimentFolder, find_experiments
from tune_hpc.storage.filesystem import FileInfo, Storage


@pytest.fixture
def machine(bucket, tmp_path, monkeypatch):
    """Return a function that switches to the working copies of another machine by its name."""

    def switch(name):
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / name))
        s3.working_copies.cache_clear()
        return Storage(bucket)

    return switch


@pytest.mark.parametrize("name", ["runs/a", "/tmp/a", "a b"])
def test_local_root_is_its_path(name):
    storage = Storage(name)
    assert (str(storage.root), storage.uri, storage.is_remote) == (name, name, False)


@pytest.mark.parametrize("root", ["s3://", "s3:///a", "s3://bucket/../other", "gs://bucket/a", "http://host/a"])
def test_malformed_uri_is_rejected(root):
    with pytest.raises(FolderError, match="s3://bucket/folder"):
        Storage(root)


def test_uri_is_the_same_on_all_machines(machine, bucket):
    first, second = machine("machine"), machine("other")
    assert first.root != second.root
    assert second.uri == bucket == Storage(second.root).uri


@pytest.mark.parametrize("is_remote", [False, True])
def test_file_is_written_read_listed_and_deleted(request, tmp_path, is_remote):
    storage = Storage(request.getfixturevalue("bucket") if is_remote else tmp_path / "root")
    assert not storage.exists("a/file")
    assert storage.list_names() == storage.list_files("a") == []
    with pytest.raises(FileNotFoundError):
        storage.read_text("a/file")
    storage.write_atomic("a/file", "text")
    storage.write_atomic("b", b"\x00")
    assert storage.exists("a/file")
    assert not storage.exists("a")
    assert storage.download("a/file")
    assert (storage.read_text("a/file"), storage.read_bytes("b")) == ("text", b"\x00")
    storage.append("a/file", " more")
    assert storage.read_text(storage.local_path("a/file")) == "text more"
    assert storage.list_names() == ["a", "b"]
    found = storage.list_files()
    assert [(info.name, info.size) for info in found] == [("a/file", 9), ("b", 1)]
    assert isinstance(found[0], FileInfo)
    assert storage.create_exclusive("c", "first")
    assert not storage.create_exclusive("c", "second")
    assert storage.read_text("c") == "first"
    for _ in range(2):
        storage.delete("b")
        storage.delete_tree("a")
    assert storage.list_names() == ["c"]


def test_file_of_one_machine_is_read_and_its_deletion_seen_by_another(machine):
    machine("machine").write_atomic("folder/file", "one")
    other = machine("other")
    assert other.read_text("folder/file") == "one"
    other.write_atomic("folder/file", "two")
    first = machine("machine")
    assert first.read_text("folder/file") == "two"
    first.delete("folder/file")
    other = machine("other")
    assert not other.download("folder/file")
    assert other.list_names("folder") == []


def test_new_version_of_the_same_size_replaces_a_working_copy(machine):
    for text in ("a", "b", "c"):
        machine("writer").write_atomic("file", text)
        assert machine("reader").read_text("file") == text


def test_unchanged_file_is_not_downloaded_again(machine):
    machine("machine").write_atomic("file", "text")
    storage = machine("other")
    assert storage.read_text("file") == "text"
    inode = storage.local_path("file").stat().st_ino
    assert storage.read_text("file") == "text"
    storage.download_tree()
    assert storage.local_path("file").stat().st_ino == inode


def test_growing_log_is_not_replaced_by_an_older_version(machine):
    storage = machine("machine")
    log = storage.local_path("output.log")
    log.parent.mkdir(parents=True)
    with log.open("a", encoding="utf-8", buffering=1) as file:
        file.write("one\n")
        storage.upload("output.log")
        file.write("two\n")
        assert storage.read_text("output.log") == "one\ntwo\n"
        storage.upload("output.log")
    assert machine("other").read_text("output.log") == "one\ntwo\n"


def test_tree_is_downloaded_and_deleted(machine):
    for name in ("a/1", "a/2", "b/c/3"):
        machine("machine").write_atomic(name, name)
    storage = machine("other")
    storage.download_tree()
    paths = sorted(path for path in storage.root.rglob("*") if path.is_file())
    assert [path.relative_to(storage.root).as_posix() for path in paths] == ["a/1", "a/2", "b/c/3"]
    storage.delete_tree("a")
    assert machine("machine").list_names() == ["b"]


def test_experiments_of_a_bucket_are_found_and_claimed(machine, bucket):
    folder = ExperimentFolder(f"{bucket}/search")
    folder.claim("made.up")
    folder.write({"name": "made.up"})
    folder.storage.write_atomic(folder.log("t00000"), "text")
    assert folder.uri == f"{bucket}/search"
    storage = machine("other")
    assert [found.read()["name"] for found in find_experiments(bucket)] == ["made.up"]
    with pytest.raises(FolderError, match="already holds the experiment made"):
        ExperimentFolder(f"{bucket}/search").claim("made.up")
    ExperimentFolder(f"{bucket}/search").claim("made.up", overwrite=True)
    assert storage.list_names("search") == []
    with pytest.raises(FolderError, match=f"{bucket}/search is no experiment folder: "):
        find_experiments(f"{bucket}/search")


def test_missing_bucket_is_reported_with_its_uri(bucket):
    with pytest.raises(FolderError, match="s3://no-such-bucket/file cannot be written"):
        Storage("s3://no-such-bucket").write_atomic("file", "text")


def test_unreachable_store_is_reported_with_its_uri(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3.filesystem.cache_clear()
    with pytest.raises(FolderError, match=f"{bucket}/file does not answer .*check the bucket and the credentials"):
        Storage(bucket).download("file")


def test_working_copies_in_the_folder_of_another_user_are_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("os.getuid", lambda: 12345)
    (tmp_path / "tune_hpc-12345").mkdir()
    s3.working_copies.cache_clear()
    with pytest.raises(FolderError, match="belongs to another user; set TMPDIR to a folder that you own"):
        s3.working_copies()
    s3.working_copies.cache_clear()
