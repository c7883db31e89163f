"""Readiness, metrics, request ids and the audit log."""

import logging

from tests.service.conftest import API, TOKEN, problem_of, serve
from tune_hpc.errors import ClusterError

ORIGIN = {"Origin": "http://127.0.0.1"}


def test_ready_looks_at_storage_and_cluster(service):
    assert service.http.get("/ready").json()["status"] == "ok"
    service.launcher.refusal = ClusterError("no Ray cluster answers at http://head:8265")
    response = service.http.get("/ready")
    assert (response.status_code, problem_of(response)) == (503, "no Ray cluster answers at http://head:8265")
    service.launcher.refusal = None
    service.storage.rename(service.storage.with_name("gone"))
    response = service.http.get("/ready")
    assert (response.status_code, response.json()["type"]) == (503, "urn:tune-hpc:problem:storage-unavailable")
    assert service.http.get("/health").status_code == 200


def test_metrics_count_searches_trials_and_requests(service):
    ids = [service.start() for _ in range(2)]
    service.write_results(ids[0])
    service.drive(ids[0], "finished")
    service.get(f"/searches/{ids[0]}")
    service.get("/none")
    text = service.http.get("/metrics").text
    for line in (
        'tune_hpc_searches{state="finished"} 1.0', 'tune_hpc_searches{state="pending"} 1.0',
        'tune_hpc_searches{state="lost"} 0.0', 'tune_hpc_trials_ended{status="finished"} 3.0',
        '_count{method="POST",route="/api/v1/searches",status="201"} 2.0',
        '_count{method="GET",route="/api/v1/searches/{search_id}",status="200"} 1.0',
        '_count{method="GET",route="other",status="404"} 1.0',
    ):  # fmt: skip
        assert line in text
    assert ids[0] not in text


def test_methods_that_clients_make_up_are_one_label_of_the_metrics(service):
    for number in range(20):
        service.http.request(f"X{number}", "/health")
    text = service.http.get("/metrics").text
    assert 'method="X' not in text
    assert '_count{method="other",' in text


def test_metrics_are_public_on_request(tmp_path):
    """By default they are not: ``test_health_needs_no_token_and_other_routes_do``."""
    service = serve(tmp_path / "jobs", has_public_metrics=True, sends_token=False)
    assert [service.http.get(path).status_code for path in ("/metrics", "/ready")] == [200] * 2


def test_request_id_is_taken_over_or_made(service):
    assert service.http.get("/health", headers={"X-Request-ID": "trace-1.a"}).headers["x-request-id"] == "trace-1.a"
    for sent in ("", "a b", "x" * 65, "<script>"):
        request_id = service.http.get("/health", headers={"X-Request-ID": sent}).headers["x-request-id"]
        assert (len(request_id), request_id != sent) == (16, True)


def test_changes_and_logins_are_audited(service, caplog):
    caplog.set_level(logging.INFO, "tune_hpc.audit")
    search_id = service.start({"space": "line.random"}, **{"X-Request-ID": "abc"})
    service.post(f"/searches/{search_id}/stop")
    service.post(f"/searches/{search_id}/resume")
    service.post(f"/searches/{search_id}/extend", {"num_samples": 2})
    service.post(f"/searches/{search_id}/stop")
    service.http.delete(f"{API}/searches/{search_id}")
    service.get("/searches")
    service.get("/searches", Authorization="Bearer wrong-token-of-some-length")
    service.http.post("/login", data={"token": "wrong"}, headers=ORIGIN)
    del service.http.headers["Authorization"]
    service.http.post("/login", data={"token": TOKEN}, headers=ORIGIN)
    service.http.post("/logout", headers=ORIGIN)
    lines = [record.getMessage() for record in caplog.records if record.name == "tune_hpc.audit"]
    actions = [line.split()[0].removeprefix("action=") for line in lines]
    assert actions == [
        "start", "stop", "resume", "extend", "stop", "delete", "failed-login", "failed-login", "login", "logout",
    ]  # fmt: skip
    assert lines[0] == (f"action=start search='{search_id}' status=201 user=token client='testclient' request_id=abc")
    assert ("status=409" in lines[3], "user=none" in lines[6], "user=session:" in lines[8]) == (True, True, True)
    assert TOKEN not in caplog.text


def test_audit_line_cannot_be_forged(service, caplog):
    caplog.set_level(logging.INFO, "tune_hpc.audit")
    service.http.post(f"{API}/searches/x%0Aaction=delete search=y/stop")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "tune_hpc.audit"]
    assert "\n" not in line
    assert line.startswith("action=stop search='x\\naction=delete search=y' status=404")


def test_refused_guesses_do_not_fill_the_audit_log(service, caplog):
    caplog.set_level(logging.INFO, "tune_hpc.audit")
    for _ in range(100):
        service.get("/searches", Authorization="Bearer wrong-token-of-some-length")
    assert len(caplog.records) < 40
