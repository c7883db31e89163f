"""A service whose storage is in an object store, and another of it on another machine."""

from tests.service.conftest import serve
from tune_hpc.analysis import object_store


def test_what_one_service_begins_another_machine_s_service_tells(bucket, tmp_path, monkeypatch):
    one = serve(bucket)
    search = one.start()
    one.drive(search)
    one.write_results(search, is_running=True)
    assert one.http.get(f"/api/v1/searches/{search}").json()["state"] == "running"

    (tmp_path / "other").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "other"))
    object_store.copies.cache_clear()
    other = serve(bucket)
    assert [told["id"] for told in other.http.get("/api/v1/searches").json()["searches"]] == [search]
    trials = other.http.get(f"/api/v1/searches/{search}/trials").json()["trials"]
    assert [trial["status"] for trial in trials] == ["finished", "failed", "finished"]
    other.drive(search, ended="stopped")
    assert other.http.get(f"/api/v1/searches/{search}").json()["state"] == "stopped"
    assert other.http.post(f"/api/v1/searches/{search}/resume", json={}).status_code == 202
    assert other.launcher.started == [(search, 2, "resume", {})]
