"""A service whose storage is in an object store, and another one on another machine."""

import pytest

from tests.service.conftest import serve
from tune_hpc.storage import s3


@pytest.mark.slow
def test_search_of_one_machine_is_served_by_another(bucket, tmp_path, monkeypatch):
    first = serve(bucket, revoked_file=tmp_path / "revoked")
    search_id = first.start()
    first.drive(search_id)
    first.write_results(search_id, is_running=True)
    assert first.state(search_id) == "running"

    (tmp_path / "other").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "other"))
    s3.working_copies.cache_clear()
    second = serve(bucket, revoked_file=tmp_path / "revoked")
    assert [search["id"] for search in second.get("/searches").json()["searches"]] == [search_id]
    trials = second.get(f"/searches/{search_id}/trials").json()["trials"]
    assert [trial["status"] for trial in trials] == ["finished", "failed", "finished"]
    second.drive(search_id, ended="stopped")
    assert second.state(search_id) == "stopped"
    assert second.post(f"/searches/{search_id}/resume", {}).status_code == 202
    assert second.launcher.started == [(search_id, 2, "resume", {})]
