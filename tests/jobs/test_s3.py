"""A search on two nodes that share only a bucket."""

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pytest

from tests.jobs.conftest import block, node_command, start_head, wait_for_nodes
from tests.jobs.user_trainable import WALK, minimum, walk
from tune_hpc import load
from tune_hpc.jobs.client import Client, LocalClient
from tune_hpc.jobs.status import JobState

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def two_machines(store_server, tmp_path):
    """A cluster of two nodes of one core."""
    (tmp_path / "home").mkdir()
    with ExitStack() as nodes:
        # Paths of sockets in them have at most 107 characters.
        first, second = (nodes.enter_context(tempfile.TemporaryDirectory(dir="/tmp")) for _ in range(2))
        head = nodes.enter_context(start_head(tmp_path / "home", num_cpus=1, TMPDIR=first))
        nodes.enter_context(block(node_command(head, 1), {**head.environment, "TMPDIR": second}))
        wait_for_nodes(head, 2)
        yield head, Path(second)


def test_search_on_nodes_that_share_only_a_bucket_is_stopped_and_resumed(two_machines, bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "walks_here.py").write_text(WALK, encoding="utf-8")
    head, other = two_machines
    client = Client(head.dashboard, head.token, storage=bucket)
    job = client.submit(walk(tmp_path), checkpoint_interval_s=1.0)
    while job.status().experiments[0].num_running < 2:
        assert job.status().state.is_active, "".join(job.logs())
    job.stop()
    assert job.wait(90).state is JobState.STOPPED, "".join(job.logs())
    half = job.results()[0].trials
    assert list(half["status"]) == ["running", "running"]
    assert half["steps_run"].between(1, 399).all()
    # The node without the driver has working copies of the files of its trial only.
    copies = other / f"tune_hpc-{os.getuid()}" / "copies" / "s3"
    assert len(list(copies.rglob("*.parquet"))) == len(list(copies.rglob("trials/*.checkpoint"))) == 1
    assert not list(copies.rglob("experiment.json"))

    (tmp_path / "hurry").touch()
    assert job.resume().wait(120).state is JobState.FINISHED, "".join(job.logs())
    whole = job.results()[0]
    assert list(whole.trials["status"]) == ["finished"] * 4
    for row in whole.trials.itertuples():
        assert row.loss == minimum(row.rate)
    assert whole.history.groupby("trial_id", observed=True).size().to_list() == [400] * 4
    assert "4/4 trials" in "".join(job.logs())

    fetched = tmp_path / "fetched"
    assert job.fetch(fetched) > 20
    pd.testing.assert_frame_equal(load(fetched / "experiments" / "walk").trials, whole.trials)
    assert LocalClient(bucket).job(job.id).status().state is JobState.FINISHED
    assert [one.id for one in LocalClient(bucket).list()] == [job.id]
