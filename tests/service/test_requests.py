"""Invalid requests and faults: each is a problem in one line, nothing is left behind, and the service continues."""

import asyncio
import errno
import json
import os
import time

import pytest

from tests.jobs.job_factories import StandInLauncher
from tests.service.conftest import API, problem_of, serve
from tune_hpc.errors import ClusterError
from tune_hpc.jobs.status import DriverState
from tune_hpc.service import middleware
from tune_hpc.storage.checksum import load_json

LINE = {"space": "exercise1_1stpart"}


def post(service, body, **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **headers}
    return service.http.post(f"{API}/searches", content=content, headers=headers)


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ({"space": "exercise9"}, "not-found", "no space has the name 'exercise9'; there are exercise1_1stpart, "),
        (b'{"space": ', "invalid-json", "the body is not JSON: an error at character 10"),
        (b"[" * 100_000, "invalid-json", "the body"),
        (b'{"space": "exercise1_1stpart", "num_samples": ' + b"9" * 5000 + b"}", "invalid-json", "body"),
        (b"\xff\xfe", "invalid-json", "body"),
        (b'"\\ud800"', "invalid-request", "body: Input should be a valid dictionary"),
        ({"space": "\ud800"}, "invalid-request", "body.space: Input should be a valid string"),
        (LINE | {"set": {"optimizer": "\ud800"}}, "invalid-experiment", "optimizer: a text must be valid Unicode"),
        ([], "invalid-request", "body: "),
        ({}, "invalid-request", "body.space: Field required"),
        (LINE | {"steps": 5}, "invalid-request", "body.steps: Extra inputs are not permitted"),
        (LINE | {"quick": "yes"}, "invalid-request", "body.quick: Input should be a valid boolean"),
        (LINE | {"num_samples": 1.5}, "invalid-request", "body.num_samples: Input should be a valid integer"),
        (LINE | {"num_samples": 10_001, "searcher": "random"}, "invalid-request", "less than or equal to 10000"),
        (LINE | {"trainable": "os:system"}, "invalid-request", "body.trainable: Extra inputs are not permitted"),
        (LINE | {"command": "true"}, "invalid-request", "body.command: Extra inputs are not permitted"),
        (LINE | {"data_dir": "/etc"}, "invalid-request", "body.data_dir: Extra inputs are not permitted"),
        (LINE | {"set": {"learning_rate": {"uniform": [2, 1]}}}, "invalid-experiment", "must be below the upper one"),
        (LINE | {"set": {"learning_rate": {"eval": ["1"]}}}, "invalid-experiment", "learning_rate: "),
        (LINE | {"set": {"learning_rate": -1}}, "invalid-experiment", "learning_rate must be a number above 0; got -1"),
        (b'{"space": "exercise1_1stpart", "set": {"learning_rate": NaN}}', "invalid-experiment", "must be finite"),
        (LINE | {"set": {"nothing": 1}}, "invalid-experiment", "nothing"),
        (LINE | {"set": {f"p{n}": 1 for n in range(200)}}, "invalid-request", "at most 100 items"),
        (LINE | {"set": {"learning_rate": {"choice": [0.1], "role": "fixed"}}}, "invalid-experiment", "takes no role"),
        (LINE | {"searcher": "tpe"}, "invalid-experiment", "a tpe search needs num_samples"),
        (LINE | {"searcher": "exhaustive"}, "invalid-experiment", "searcher must be one of grid"),
        (LINE | {"metric": "W"}, "invalid-experiment", "metric W needs a mode"),
        (LINE | {"fuse": "often"}, "invalid-request", "body.fuse"),
        (LINE | {"set": {"learning_rate": {"loguniform": [1e-4, 1]}}}, "invalid-experiment", "grid needs finite"),
        (LINE | {"set": {key: {"choice": list(range(1, 1001))} for key in ("steps", "batch_size")}}, "", "most 10000"),
    ],
)
def test_request_that_breaks_a_rule_is_answered_with_the_rule(service, body, kind, words):
    response = post(service, body)
    assert 400 <= response.status_code < 500
    assert words in problem_of(response)
    assert kind in response.json()["type"]
    assert service.launcher.started == []
    assert service.get("/searches").json()["total"] == 0


def test_space_that_takes_long_to_evaluate_is_refused_at_once(service):
    """Many combinations of conditions, and long lists of values."""
    names = [f"x{n}" for n in range(12)]
    controls = {name: {"choice": list(range(10))} for name in names}
    many = {"cases": [{"when": {name: [1] for name in names}, "value": 0.5}]}
    long = {"cases": [{"when": {"x0": [1] * 40_000}, "value": 0.5}]}
    start = time.monotonic()
    for value, words in ((many, "at most 10000 combinations"), (long, "at most 1000 values; got 40000")):
        response = post(service, LINE | {"set": {**controls, "learning_rate": value}})
        assert (response.status_code, words in problem_of(response)) == (422, True)
    assert time.monotonic() - start < 2


def test_large_body_is_refused_before_it_is_read(service):
    response = service.http.post(f"{API}/searches", content=b" ", headers={"Content-Length": "104857600"})
    assert (response.status_code, response.headers["connection"]) == (413, "close")
    assert problem_of(response) == "a body has at most 262144 bytes; got 104857600: send less"
    response = service.http.post(f"{API}/searches", content=(b" " * 2**20 for _ in range(100)))
    assert response.status_code == 413


def test_slow_body_is_refused(service, monkeypatch):
    monkeypatch.setattr(middleware, "BODY_TIMEOUT_S", 0.05)
    inner = service.http.app

    async def app(scope, receive, send):
        await inner(scope, lambda: asyncio.sleep(60), send)

    service.http._transport.app = app
    assert post(service, LINE).status_code == 408


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/searches/..%2F..%2Fetc%2Fpasswd",
        "/api/v1/searches/%2e%2e/trials",
        "/api/v1/searches/..%5c..%5cx/log",
        "/api/v1/searches/{id}/trials/..%2F..%2Fjob.json/log",
        "/api/v1/searches/{id}/trials/%2Fetc%2Fpasswd/log",
        "/api/v1/searches/{id}/trials/t00001%00/log",
        "/api/v1/searches/{id}/trials?experiment=../..",
        "/api/v1/searches/{id}/report/../../../service-token",
        "/static/..%2Fapp.py",
        "/static/../app.py",
        "/view/..%2F..%2Fx",
        "/api/v1/searches/service-token",
        "/api/v1/searches/.requests",
    ],
)
def test_no_path_leaves_the_storage(service, search_id, path):
    (service.storage / "service-token").write_text("a secret", encoding="utf-8")
    response = service.http.get(path.replace("{id}", search_id))
    assert response.status_code == 404, response.text
    assert "secret" not in response.text
    assert "root:" not in response.text
    problem_of(response)


@pytest.mark.parametrize("target", ["output", "report", "log", "logs", "trials", "experiment", "parts", "job"])
def test_symbolic_link_in_a_job_is_not_followed(service, tmp_path, target):
    """A user who can write a job folder cannot have the service read other files."""
    search_id = service.start()
    service.write_results(search_id, is_running=target == "parts")
    service.drive(search_id, "finished")
    job = service.client.folder(search_id)
    folder = job.experiment("exercise1_1stpart")
    links = {
        "output": job.output, "report": job.report, "log": folder.log("t00001"), "logs": folder.logs,
        "trials": folder.trials_file, "experiment": folder.path, "parts": folder.trial_file("t00000"), "job": job.path,
    }  # fmt: skip
    link, secret = links[target], tmp_path / "elsewhere"
    if link.exists():
        os.rename(link, secret)
    else:
        secret.write_text("a secret", encoding="utf-8")
    link.symlink_to(secret)
    if secret.is_file():
        secret.write_text("a secret", encoding="utf-8")
    paths = {"output": "/log", "report": "/report", "log": "/trials/t00001/log", "logs": "/trials/t00001/log"}
    for prefix in (f"{API}/searches/{search_id}", f"/view/{search_id}"):
        suffix = paths.get(target, "/trials") if prefix.startswith(API) else ""
        response = service.http.get(prefix + suffix)
        assert "a secret" not in response.text
        assert "ValueError" not in response.text
        if suffix:
            assert (response.status_code, "symbolic link" in problem_of(response)) == (503, True)
    assert service.get("/searches").status_code == 200


def test_experiment_name_in_a_job_file_cannot_leave_the_job(service, tmp_path):
    """Names of job.json are checked when they are read."""
    search_id, other = service.start(), service.start()
    file = service.storage / search_id / "job.json"
    request = load_json(file.read_bytes())
    request["experiments"][0]["name"] = "../elsewhere/slow"
    file.write_text(json.dumps(request), encoding="utf-8")
    assert service.get(f"/searches/{search_id}/trials").status_code == 503
    states = {search["id"]: search["state"] for search in service.get("/searches").json()["searches"]}
    assert states == {search_id: "unreadable", other: "pending"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("job.json", "{"), ("job.json", "[]"), ("job.json", '{"id": "x", "experiments": [{"name": "a"}]}'),
        ("attempts/1.json", "[1]"), ("attempts/1.run.json", '{"beat": 7}'),
        ("attempts/1.run.json", '{"ended_at": "x"}'),
        ("experiments/exercise1_1stpart/progress.json", '{"ended": {"finished": "many"}, "best": 3}'),
        ("experiments/exercise1_1stpart/progress.json", '{"best": {"value": "NaN", "trial_id": 7}}'),
        ("experiments/exercise1_1stpart/progress.json", '{"best": {"value": NaN}, "left_s": Infinity}'),
        ("experiments/exercise1_1stpart/experiment.json", '{"name": "exercise1_1stpart"}'),
        ("experiments/exercise1_1stpart/experiment.json", '{"name": "exercise1_1stpart", "config_keys": [[1]]}'),
        ("experiments/exercise1_1stpart/progress.json", "5"), ("job.json", "[" * 100_000),
        ("attempts/1.json", '{"location": "x"}'), ("attempts/\u00b2.json", "{}"),
        ("attempts/1.run.json", '{"process": [1], "started_at": 3}'),
    ],
)  # fmt: skip
def test_malformed_job_hides_no_other(service, name, content):
    """Whatever is wrong with one folder, the list, the page and the metrics have the others."""
    broken, whole = service.start(), service.start()
    service.drive(broken)
    service.write_results(broken, is_running=True)
    (service.storage / broken / name).write_text(content, encoding="utf-8")
    states = {search["id"]: search["state"] for search in service.get("/searches").json()["searches"]}
    assert states[whole] == "pending"
    assert states[broken] in ("unreadable", "running")
    page = service.http.get("/", headers={"Accept": "text/html"})
    assert (page.status_code, whole in page.text) == (200, True)
    assert 'tune_hpc_searches{state="pending"} 1.0' in service.http.get("/metrics").text
    for path in ("", "/trials", "/curves", "/log"):
        response = service.get(f"/searches/{broken}{path}")
        assert response.status_code in (200, 404, 503)
        assert response.status_code == 200 or "\n" not in problem_of(response)


def test_cluster_that_refuses_starts_nothing_and_leaves_nothing(service):
    service.launcher.refusal = ClusterError("the cluster at http://head:8265 refuses the token")
    response = post(service, LINE, **{"Idempotency-Key": "k"})
    assert (response.status_code, problem_of(response)) == (503, str(service.launcher.refusal))
    assert service.get("/searches").json()["total"] == 0
    service.launcher.refusal = None
    assert post(service, LINE, **{"Idempotency-Key": "k"}).status_code == 201


class SilentLauncher(StandInLauncher):
    """A launcher that waits as long as it may, and then knows nothing."""

    def state(self, job, attempt, timeout_s=15.0):
        time.sleep(timeout_s / 4)
        return DriverState.UNKNOWN


def test_silent_cluster_delays_each_reader_by_seconds_at_most(tmp_path):
    service = serve(tmp_path / "jobs", SilentLauncher())
    with service.http:
        search_id = service.start()
        start = time.monotonic()
        status = service.get(f"/searches/{search_id}").json()
        assert (status["state"], status["reason"]) == ("pending", "the cluster is unreachable")
        assert service.get("/searches").json()["total"] == 1
        assert service.http.get("/health").status_code == 200
        assert time.monotonic() - start < 10


@pytest.mark.parametrize(("call", "name"), [("mkdir", ".new-"), ("link", "")])
def test_full_disk_is_reported_leaves_nothing_and_stops_no_reader(service, search_id, monkeypatch, call, name):
    real = getattr(os, call)

    def full(path, *arguments, **options):
        if name in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        response = post(service, LINE, **{"Idempotency-Key": "k"})
        assert service.get(f"/searches/{search_id}/trials").json()["total"] == 3
    assert (response.status_code, response.json()["type"]) == (507, "urn:tune-hpc:problem:storage-full")
    assert [search["id"] for search in service.get("/searches").json()["searches"]] == [search_id]
    assert post(service, LINE, **{"Idempotency-Key": "k"}).status_code == 201


def test_unexpected_failure_is_one_line_and_the_log_has_the_cause(service, monkeypatch, caplog):
    def fail(*_):
        raise ZeroDivisionError("a secret detail")

    with monkeypatch.context() as patched:
        patched.setattr("tune_hpc.jobs.client.JobClient.list", fail)
        response = service.get("/searches")
    assert (response.status_code, response.json()["type"]) == (500, "urn:tune-hpc:problem:internal")
    assert problem_of(response) == "the request failed; the log of the service has the cause"
    assert "a secret detail" in caplog.text
    assert response.json()["request_id"] in caplog.text
    assert service.get("/searches").status_code == 200


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/api/v1/searches", "GET, HEAD, OPTIONS, POST"),
        ("/api/v1/searches/x", "DELETE, GET, HEAD, OPTIONS"),
        ("/api/v1/searches/x/stop", "OPTIONS, POST"),
        ("/health", "GET, HEAD, OPTIONS"),
        ("/login", "GET, HEAD, OPTIONS, POST"),
    ],
)
def test_method_that_a_path_lacks_is_refused_with_those_it_has(service, path, allowed):
    response = service.http.put(path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)
    assert "does not support PUT" in problem_of(response)
    response = service.http.options(path)
    assert (response.status_code, response.headers["allow"]) == (204, allowed)


@pytest.mark.parametrize(
    "path", ["/health", "/", "/api/v1/searches", "/api/v1/spaces", "/static/page.js", "/api/v1/openapi.json"]
)
def test_head_is_a_get_without_its_body(service, path):
    get, head = service.http.get(path), service.http.head(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers.get("etag") == get.headers.get("etag")


@pytest.mark.parametrize("path", ["/api/v1/searches", "/api/v1/spaces", "/api/v1/openapi.json", "/static/page.js"])
def test_every_read_has_a_tag_and_all_forms_of_it_are_understood(service, path):
    response = service.http.get(path)
    tag = response.headers["etag"].removeprefix("W/")
    assert "Cookie" in response.headers["vary"]
    for known in (tag, f"W/{tag}", f'"x", W/{tag}, "y"', "*"):
        same = service.http.get(path, headers={"If-None-Match": known})
        assert (same.status_code, same.content) == (304, b""), known
        for name in ("etag", "cache-control", "vary"):
            assert same.headers[name] == response.headers[name]
    for known in ('"x"', tag.strip('"'), ""):
        assert service.http.get(path, headers={"If-None-Match": known}).status_code == 200


def test_large_response_is_compressed(service):
    response = service.get("/spaces", **{"Accept-Encoding": "gzip"})
    assert (response.headers["content-encoding"], "Accept-Encoding" in response.headers["vary"]) == ("gzip", True)
