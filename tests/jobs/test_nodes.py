"""A cluster of two nodes: the loss of one, and a storage that one does not see."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections import Counter

import pandas as pd
import pytest
import ray

import tune_hpc
from tests.jobs.conftest import block, node_command, wait_for_nodes
from tests.jobs.user_trainable import WALK, walk
from tune_hpc import load, run
from tune_hpc.jobs.client import Client
from tune_hpc.jobs.status import JobState
from tune_hpc.search.cluster import _problem
from tune_hpc.storage.filesystem import Storage

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_session")]


@pytest.fixture
def second_node(head):
    """Leader of the process group of a second node with two cores."""
    with block(node_command(head), head.environment) as process:
        wait_for_nodes(head, 2)
        yield process
    wait_for_nodes(head, 1)


@pytest.fixture
def blind_node(head, tmp_path):
    """A second node with another disk at the path of the storage."""
    may_mount = ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none {tmp_path}"]
    if not shutil.which("unshare") or subprocess.run(may_mount, capture_output=True, check=False).returncode:
        pytest.skip("mounts need root")
    command = f"mount -t tmpfs none {tmp_path} && exec {shlex.join(node_command(head))}"
    with block(["unshare", "--mount", "sh", "-c", command], head.environment):
        wait_for_nodes(head, 2)
        yield
    wait_for_nodes(head, 1)


def test_trials_of_a_lost_node_resume_on_another(head, second_node, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "walks_here.py").write_text(WALK, encoding="utf-8")
    client = Client(head.dashboard, head.token, storage=tmp_path / "jobs")
    job = client.submit(walk(tmp_path, num_samples=8), checkpoint_interval_s=0.5)
    while job.status().experiments[0].num_running < 4:
        assert job.status().state.is_active, "".join(job.logs())
        time.sleep(0.2)
    time.sleep(2.0)
    os.killpg(second_node.pid, signal.SIGKILL)
    status = job.wait(180)
    assert status.state is JobState.FINISHED, "".join(job.logs())
    lost = job.results()[0]

    (tmp_path / "hurry").touch()
    undisturbed = run(walk(tmp_path, num_samples=8), output_dir=tmp_path / "undisturbed", show_progress=False)
    columns = ["trial_id", "status", "rate", "steps_run", "loss"]
    pd.testing.assert_frame_equal(lost.trials[columns], undisturbed.trials[columns])
    in_order = [one.history.sort_values(["trial_id", "step"], ignore_index=True) for one in (lost, undisturbed)]
    pd.testing.assert_frame_equal(*in_order)
    starts = Counter((tmp_path / "journal").read_text(encoding="utf-8").split()[:-8])
    assert sorted(starts.values()) == [1] * 6 + [2] * 2
    assert load(job.folder.experiment("walk").path).experiment["provenance"]["machine"]["num_nodes"] == 2


def test_storage_that_a_node_does_not_see_is_rejected(head, blind_node, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "walks_here.py").write_text(WALK, encoding="utf-8")
    client = Client(head.dashboard, head.token, storage=tmp_path / "jobs")
    job = client.submit(walk(tmp_path))
    status = job.wait(90)
    assert status.state is JobState.FAILED
    assert re.fullmatch(
        r"node \S+ does not see \S+; choose a storage that every node sees under this name: a shared file system, or "
        "s3://",
        status.reason,
    )
    assert not (job.folder.experiment("walk").path).exists()
    assert not list(tmp_path.rglob(".probe*"))


def test_node_without_this_release_is_reported(ray_session, tmp_path):
    deadline = time.monotonic() + 30

    def problem(answer):
        return _problem(answer, Storage(tmp_path), "probe", "token", deadline)

    assert problem(ray.put(("0.0.9", ""))) == f"has tune_hpc 0.0.9 and not {tune_hpc.__version__}"
    assert problem(ray.put((tune_hpc.__version__, "does not see it"))) == "does not see it"
    (tmp_path / "probe").write_text("token", encoding="utf-8")
    assert problem(ray.put((tune_hpc.__version__, ""))) == ""

    def lacks_it():
        raise ModuleNotFoundError("No module named 'tune_hpc'")

    message = problem(ray.remote(num_cpus=0)(lacks_it).remote())
    assert message.startswith(f"cannot run tune_hpc {tune_hpc.__version__} (")
    assert "No module named 'tune_hpc'" in message
