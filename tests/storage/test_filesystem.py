import pytest

from tune_hpc.errors import FolderError
from tune_hpc.storage import filesystem
from tune_hpc.storage.experiment_folder import ExperimentFolder, find_experiments, write_atomic
from tune_hpc.storage.filesystem import delete, delete_tree, here, list_names, pull, pull_tree, push, uri


@pytest.fixture
def elsewhere(bucket, tmp_path, monkeypatch):
    """Return a function that goes to another machine, or to one where one has been, by its name."""

    def go(name):
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / name))
        filesystem.cache_dir.cache_clear()

    return go


def write(place, text):
    write_atomic(here(place), lambda path: path.write_text(text, encoding="utf-8"))


def read(place):
    return here(place).read_text(encoding="utf-8") if pull(here(place)) else None


@pytest.mark.parametrize("place", ["runs/a", "/tmp/a", "a b"])
def test_a_folder_is_just_a_folder(place, tmp_path):
    assert str(here(place)) == place == uri(here(place))
    file = tmp_path / "file"
    assert not pull(file)
    file.write_text("text", encoding="utf-8")
    push(file)
    assert pull(file)
    delete(file)
    delete(file)
    assert not file.exists()
    assert list_names(tmp_path / "nothing") == []


def test_a_place_has_one_name_on_all_machines(elsewhere, bucket):
    path = here(f"{bucket}/a/b")
    elsewhere("other")
    assert here(f"{bucket}/a/b") != path
    assert uri(here(f"{bucket}/a/b")) == f"{bucket}/a/b"


@pytest.mark.parametrize("place", ["s3://", "s3:///a", "s3://bucket/../other", "gs://bucket/a", "http://host/a"])
def test_what_is_no_place_in_a_store_is_refused(place):
    with pytest.raises(FolderError, match="s3://bucket/folder"):
        here(place)


def test_what_one_machine_writes_another_reads_and_sees_go(elsewhere, bucket):
    file = f"{bucket}/folder/file"
    assert read(file) is None
    write(file, "one")
    elsewhere("other")
    assert read(file) == "one"
    write(file, "two")
    elsewhere("machine")
    assert read(file) == "two"
    delete(here(file))
    elsewhere("other")
    assert read(file) is None
    assert list_names(here(f"{bucket}/folder")) == []


def test_a_file_of_the_same_size_is_known_to_be_another(elsewhere, bucket):
    for text in ("a", "b", "c"):
        elsewhere("writer")
        write(f"{bucket}/file", text)
        elsewhere("reader")
        assert read(f"{bucket}/file") == text


def test_what_has_not_changed_is_not_fetched_again(elsewhere, bucket, monkeypatch):
    write(f"{bucket}/file", "text")
    elsewhere("other")
    assert read(f"{bucket}/file") == "text"
    node = here(f"{bucket}/file").stat().st_ino
    assert read(f"{bucket}/file") == "text"
    pull_tree(here(bucket))
    assert here(f"{bucket}/file").stat().st_ino == node


def test_a_log_that_grows_here_is_not_replaced_by_an_older_copy(elsewhere, bucket):
    log = here(f"{bucket}/output.log")
    log.parent.mkdir(parents=True)
    with log.open("a", encoding="utf-8", buffering=1) as file:
        file.write("one\n")
        push(log)
        file.write("two\n")
        assert pull(log)
        assert log.read_text(encoding="utf-8") == "one\ntwo\n"
        push(log)
    elsewhere("other")
    assert read(f"{bucket}/output.log") == "one\ntwo\n"


def test_a_tree_is_fetched_listed_and_removed(elsewhere, bucket):
    for name in ("a/1", "a/2", "b/c/3"):
        write(f"{bucket}/{name}", name)
    elsewhere("other")
    root = here(bucket)
    assert list_names(root) == ["a", "b"]
    pull_tree(root)
    assert sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()) == [
        "a/1", "a/2", "b/c/3"
    ]  # fmt: skip
    delete_tree(root / "a")
    delete_tree(root / "a")
    elsewhere("machine")
    assert list_names(here(bucket)) == ["b"]


def test_experiments_are_found_and_claimed_in_a_store(elsewhere, bucket):
    home = ExperimentFolder(f"{bucket}/search")
    home.claim("made.up")
    home.write({"name": "made.up"})
    write(f"{bucket}/search/logs/t00000.log", "text")
    assert home.uri == f"{bucket}/search"
    elsewhere("other")
    assert [one.read()["name"] for one in find_experiments(bucket)] == ["made.up"]
    with pytest.raises(FolderError, match="already holds the experiment made"):
        ExperimentFolder(f"{bucket}/search").claim("made.up")
    ExperimentFolder(f"{bucket}/search").claim("made.up", overwrite=True)
    assert list_names(here(f"{bucket}/search")) == []
    with pytest.raises(FolderError, match=f"{bucket}/search is no experiment folder: "):
        find_experiments(f"{bucket}/search")


def test_a_bucket_that_is_not_there_is_told_with_its_place(bucket):
    with pytest.raises(FolderError, match="s3://nobody-s-bucket/file cannot be written"):
        write("s3://nobody-s-bucket/file", "text")


def test_a_store_that_does_not_answer_is_told_with_its_place(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    filesystem._store.cache_clear()
    with pytest.raises(FolderError, match=f"{bucket}/file does not answer .*check the bucket and the credentials"):
        pull(here(f"{bucket}/file"))


def test_copies_in_another_user_s_folder_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("os.getuid", lambda: 12345)
    (tmp_path / "tune_hpc-12345").mkdir()
    filesystem.cache_dir.cache_clear()
    with pytest.raises(FolderError, match="belongs to another user; set TMPDIR to a folder that you own"):
        filesystem.cache_dir()
    filesystem.cache_dir.cache_clear()
