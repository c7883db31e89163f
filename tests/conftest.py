"""Shared fixtures: a Ray session, an object store, MNIST."""

import importlib
import os
import time
import warnings
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

# No deadline: the first import in a test is slow.
settings.register_profile("tune_hpc", settings.get_profile("ci" if os.environ.get("CI") else "default"), deadline=None)
settings.load_profile("tune_hpc")

pytest_plugins = ["tests.results_fixtures"]

ROOT = Path(__file__).parents[1]
#: CPU time at which a test without the marks ``ray`` and ``slow`` fails: three times that of the longest such test. CPU
#: time varies by a factor of two with the other load of a machine.
MAX_CPU_S = 5.0


@cache
def group_of(file):
    """Return the group of a test file whose tests share a Ray session, or ``None``."""
    path = ROOT / file
    if "pytest.mark.ray" not in path.read_text(encoding="utf-8"):
        return None
    return "clusters" if path.parent.name == "jobs" else "ray"


def pytest_xdist_make_scheduler(config, log):
    """Run each group in one process, and all other tests in any process."""
    from xdist.scheduler import LoadScopeScheduling

    # --dist loadgroup has no effect with pytest 9.2, where the id of an item cannot be changed.
    class Grouped(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group_of(nodeid.partition("::")[0]) or nodeid

    return Grouped(config, log)


def pytest_sessionstart(session):
    """Import the large packages before the first test of a process of pytest-xdist, whose CPU time would include it."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        for package in ("matplotlib.figure", "optuna", "ray.tune", "scipy.stats", "torch"):
            importlib.import_module(package)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Fail a test that takes long and is not marked as slow; a single test may import packages."""
    started = time.process_time()
    result = yield
    seconds = time.process_time() - started
    is_exempt = item.get_closest_marker("slow") or item.get_closest_marker("ray")
    if "PYTEST_XDIST_WORKER" in os.environ and not is_exempt and seconds > MAX_CPU_S:
        pytest.fail(f"the test took {seconds:.1f} s of CPU time: make it faster, or mark it as slow", pytrace=False)
    return result


@pytest.fixture(scope="session")
def ray_session():
    """Start a local Ray with two cores, shared by all tests."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from tune_hpc.search.ray_session import minimal_ray_processes, state_api_address

    # Ray Train's cleanup and some tests query the state API for live actors.
    with state_api_address() as options:
        with warnings.catch_warnings(), minimal_ray_processes(with_state=True):
            warnings.simplefilter("ignore")
            ray.init(address="local", num_cpus=2, log_to_driver=False, logging_level="ERROR", **options)
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def store_server():
    """Start a local object store and set the environment for it."""
    from moto.server import ThreadedMotoServer
    from pyarrow.fs import S3FileSystem

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, value)
        S3FileSystem(endpoint_override=f"{host}:{port}", scheme="http", allow_bucket_creation=True).create_dir("tests")
        yield settings
    server.stop()


@pytest.fixture
def bucket(store_server, tmp_path, monkeypatch):
    """URI of an empty folder in a bucket; this machine has no working copies."""
    from tune_hpc.storage import s3

    (tmp_path / "machine").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "machine"))
    s3.working_copies.cache_clear()
    s3.filesystem.cache_clear()
    yield f"s3://tests/{tmp_path.name}"
    s3.working_copies.cache_clear()
    s3.filesystem.cache_clear()


@pytest.fixture(scope="session")
def mnist():
    """Load MNIST."""
    from tune_hpc.learning.data import load_images

    return load_images("mnist")


@pytest.fixture
def write_module(tmp_path, monkeypatch):
    """Return a function that writes a user's module into the working folder, outside the repository."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, source: str) -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text(source, encoding="utf-8")
        return path

    return write
