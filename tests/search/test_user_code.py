"""A user's package in other processes: by reference, or by value where its folder is missing."""

import importlib
import sys
import threading

import pytest
from ray import tune

from tune_hpc import Experiment, Space, run
from tune_hpc.errors import InvalidExperimentError, UnknownNameError
from tune_hpc.search.user_code import PortableTrainable, add_code_folders, code_folders, is_installed
from tune_hpc.storage.filesystem import Storage

SEARCH = """
from my_package.helper import loss

def train(config, report):
    report(1, {"loss": loss(config["x"])})

def alone(config, report):
    return "alone"
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Folder of a package of two modules, which is on ``sys.path`` until ``forget`` removes it."""
    folder = tmp_path / "code"
    (folder / "my_package").mkdir(parents=True)
    (folder / "my_package" / "__init__.py").touch()
    (folder / "my_package" / "search.py").write_text(SEARCH, encoding="utf-8")
    (folder / "my_package" / "helper.py").write_text("def loss(x):\n    return 2.0 * x\n", encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    yield folder
    forget(folder)


def forget(folder):
    """Make this process one that has not imported the package and does not find it."""
    sys.path[:] = [entry for entry in sys.path if entry != str(folder)]
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]
    importlib.invalidate_caches()
    add_code_folders.cache_clear()


def portable(name):
    return PortableTrainable.of(getattr(importlib.import_module("my_package.search"), name))


def test_trainable_is_imported_with_the_modules_of_its_package(package):
    trainable = portable("train")
    assert trainable.reference == "my_package.search:train"
    forget(package)
    reports = []
    trainable.load()({"x": 3}, lambda step, metrics: reports.append(metrics))
    assert reports == [{"loss": 6.0}]
    assert sys.modules["my_package.search"].__file__ == str(package / "my_package" / "search.py")


def test_process_without_the_folder_unpickles_the_function(package):
    alone, train = portable("alone"), portable("train")
    forget(package)
    package.rename(package.with_name("elsewhere"))
    assert alone.load()({}, None) == "alone"
    with pytest.raises(ModuleNotFoundError, match="No module named 'my_package'"):
        train.load()


def test_state_that_cannot_be_pickled_needs_no_pickle_of_an_importable_function(package):
    with (package / "my_package" / "search.py").open("a", encoding="utf-8") as file:
        file.write("import threading\nlock = threading.Lock()\ndef locked(config, report):\n    return bool(lock)\n")
    trainable = portable("locked")
    assert trainable.pickled == b""
    forget(package)
    assert trainable.load()({}, None)
    package.rename(package.with_name("elsewhere"))
    forget(package)
    with pytest.raises(UnknownNameError, match="no module 'my_package"):
        trainable.load()


def test_nested_function_is_pickled_and_rejected_if_that_fails():
    number, lock = 3, threading.Lock()
    trainable = PortableTrainable.of(lambda config, report: number)
    assert trainable.reference == ""
    assert trainable.load()({}, None) == 3
    with pytest.raises(InvalidExperimentError, match=r"its variable lock \(_thread.lock\) cannot be pickled"):
        PortableTrainable.of(lambda config, report: lock)


def test_installed_modules_are_not_the_code_of_a_user(package):
    assert is_installed("json.decoder")
    assert is_installed("numpy")
    assert is_installed("tune_hpc.learning.training")
    assert not is_installed("my_package.search")
    assert str(package) in code_folders()
    assert not [folder for folder in code_folders() if "site-packages" in folder or "lib/python" in folder]


@pytest.mark.slow
def test_code_folder_of_a_bucket_is_downloaded(bucket, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    storage = Storage(f"{bucket}/code")
    storage.write_atomic("my_bucket_module.py", "value = 5\n")
    uris = (storage.uri,)
    assert uris == (f"{bucket}/code",)
    (storage.root / "my_bucket_module.py").unlink()
    add_code_folders(uris)
    assert sys.path[0] == str(storage.root)
    assert importlib.import_module("my_bucket_module").value == 5
    assert code_folders()[0] == uris[0]
    monkeypatch.chdir(storage.root)
    assert uris[0] not in code_folders()
    del sys.modules["my_bucket_module"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_package_that_ray_does_not_know_reaches_trials_in_its_latest_version(package, tmp_path):
    space = Space({"x": tune.choice([1, 2])}, keys={})
    for number, factor in enumerate((2.0, 5.0)):
        (package / "my_package" / "helper.py").write_text(f"def loss(x):\n    return {factor} * x\n", encoding="utf-8")
        forget(package)
        sys.path.insert(0, str(package))
        train = importlib.import_module("my_package.search").train
        experiment = Experiment("multi", space, train, metric="loss", mode="min", seeds=())
        results = run(experiment, output_dir=tmp_path / f"out{number}", show_progress=False)
        assert results.counts() == {"finished": 2}, results.failures
        assert sorted(results.trials["loss"]) == [factor, 2 * factor]
