"""Bad input and faults: each is a clear answer in one line, nothing is lost, and the service stays up."""

import errno
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.service.conftest import StandInLauncher, problem_of, serve
from tune_hpc.cluster.launchers import DriverState
from tune_hpc.errors import ClusterError
from tune_hpc.service import limits, submissions

LINE = {"space": "exercise1_1stpart"}


def post(service, body, **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return service.http.post("/api/v1/searches", content=content, headers={"Content-Type": "application/json", **headers})


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"space": "exercise9"}, 404, "no space is called 'exercise9'; there are exercise1_1stpart, "),
        (b'{"space": ', 400, "the body is no JSON: an error at character 10"),
        (b"[" * 100_000, 400, "the body"),
        (b'{"space": "exercise1_1stpart", "num_samples": ' + b"9" * 5000 + b"}", 400, "body"),
        (b"\xff\xfe", 400, "body"),
        (b'"\\ud800"', 422, "body: Input should be a valid dictionary"),
        ({"space": "\ud800"}, 422, "body.space: Input should be a valid string"),
        (LINE | {"set": {"optimizer": "\ud800"}}, 422, "optimizer must be one of "),
        ([], 422, "body: "),
        ({}, 422, "body.space: Field required"),
        (LINE | {"steps": 5}, 422, "body.steps: Extra inputs are not permitted"),
        (LINE | {"quick": "yes"}, 422, "body.quick: Input should be a valid boolean"),
        (LINE | {"num_samples": 1.5}, 422, "body.num_samples: Input should be a valid integer"),
        (LINE | {"num_samples": 10**9, "searcher": "random"}, 422, "less than or equal to 100000"),
        (LINE | {"trainable": "os:system"}, 422, "body.trainable: Extra inputs are not permitted"),
        (LINE | {"data_dir": "/etc"}, 422, "body.data_dir: Extra inputs are not permitted"),
        (LINE | {"set": {"learning_rate": {"uniform": [2, 1]}}}, 422, "a lower bound below the upper one"),
        (LINE | {"set": {"learning_rate": {"eval": ["1"]}}}, 422, "learning_rate: no domain is called 'eval'"),
        (LINE | {"set": {"learning_rate": -1}}, 422, "learning_rate must be a number above 0; got -1"),
        (b'{"space": "exercise1_1stpart", "set": {"learning_rate": NaN}}', 422, "a number must be finite"),
        (LINE | {"set": {"nothing": 1}}, 422, "nothing"),
        (LINE | {"set": {f"p{n}": 1 for n in range(200)}}, 422, "at most 100 items"),
        (LINE | {"set": {"learning_rate": {"choice": [0.1], "role": "fixed"}}}, 422, "a role is given in parameters"),
        (LINE | {"searcher": "tpe"}, 422, "a tpe search needs num_samples"),
        (LINE | {"searcher": "exhaustive"}, 422, "searcher must be one of grid"),
        (LINE | {"metric": "W"}, 422, "metric W needs a mode"),
        (LINE | {"fuse": "often"}, 422, "body.fuse"),
        (LINE | {"parameters": {"model": "line"}, "set": {"optimizer": {"choice": []}}}, 422, "at least one value"),
        (LINE | {"set": {"learning_rate": {"loguniform": [1e-4, 1]}}}, 422, "a grid needs finite parameters"),
    ],
)  # fmt: skip
def test_a_request_that_breaks_a_rule_is_answered_with_the_rule(service, body, status, words):
    answer = post(service, body)
    assert answer.status_code == status, answer.text
    assert words in problem_of(answer)
    assert service.launcher.started == []
    assert service.http.get("/api/v1/searches").json()["total"] == 0


def test_conditions_whose_combinations_nobody_could_walk_through_are_refused(service):
    names = [f"x{n}" for n in range(12)]
    controls = {name: {"choice": list(range(10))} for name in names}
    value = {"cases": [{"when": {name: [1] for name in names}, "value": 0.5}]}
    began = time.monotonic()
    answer = post(service, LINE | {"set": {**controls, "learning_rate": value}})
    assert time.monotonic() - began < 2
    assert (answer.status_code, "at most 1000 combinations" in problem_of(answer)) == (422, True)


def test_a_hundred_megabytes_are_refused_before_they_are_read(service):
    answer = service.http.post("/api/v1/searches", content=b" ", headers={"Content-Length": "104857600"})
    assert (answer.status_code, problem_of(answer)) == (
        413, "a body has at most 262144 bytes; got 104857600: send less",
    )  # fmt: skip

    def pieces():
        for _ in range(100):
            yield b" " * 2**20

    answer = service.http.post("/api/v1/searches", content=pieces(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


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
def test_no_path_leads_out_of_the_storage(service, path):
    search_id = service.start()
    service.write_results(search_id)
    (service.storage / "service-token").write_text("a secret", encoding="utf-8")
    answer = service.http.get(path.replace("{id}", search_id))
    assert answer.status_code == 404, answer.text
    assert "secret" not in answer.text
    assert "root:" not in answer.text
    problem_of(answer)


def test_an_id_of_another_storage_is_unknown_here(tmp_path, service):
    other = serve(tmp_path / "others")
    search_id = other.start()
    for way, path in (("GET", ""), ("GET", "/trials"), ("POST", "/stop"), ("POST", "/resume")):
        answer = service.http.request(way, f"/api/v1/searches/{search_id}{path}")
        assert answer.status_code == 404
        assert f"this storage has no search '{search_id}'" in problem_of(answer)
    assert other.launcher.ended == []


def test_another_service_s_token_is_refused_and_many_wrong_ones_are_slowed_down(service):
    wrong = {"Authorization": "Bearer another-service-s-token"}
    answer = service.http.get("/api/v1/searches", headers=wrong)
    assert answer.status_code == 401
    assert "it was refused: it is another service's, or has changed" in problem_of(answer)
    assert answer.headers["www-authenticate"].startswith("Bearer")
    statuses = {service.http.get("/api/v1/searches", headers=wrong).status_code for _ in range(30)}
    assert statuses == {401, 429}
    assert service.http.get("/api/v1/searches").status_code == 200


def test_a_cluster_that_refuses_its_token_starts_nothing_and_leaves_nothing(service):
    service.launcher.refusal = ClusterError("the cluster at http://head:8265 refuses the token; copy its own")
    answer = post(service, LINE, **{"Idempotency-Key": "k"})
    assert (answer.status_code, problem_of(answer)) == (502, str(service.launcher.refusal))
    assert service.http.get("/api/v1/searches").json()["total"] == 0
    service.launcher.refusal = None
    assert post(service, LINE, **{"Idempotency-Key": "k"}).status_code == 201


class Silent(StandInLauncher):
    """A cluster that takes its time to say nothing."""

    asked = 0

    def state(self, job, attempt):
        self.asked += 1
        time.sleep(3)
        return DriverState.UNKNOWN


def test_a_cluster_that_does_not_answer_keeps_no_reader_waiting(tmp_path):
    service = serve(tmp_path / "jobs", Silent())
    with service.http:
        search_id = service.start()
        began = time.monotonic()
        told = service.http.get(f"/api/v1/searches/{search_id}").json()
        assert (told["state"], told["reason"]) == ("pending", "where it is to run does not answer")
        assert service.http.get("/api/v1/searches").json()["total"] == 1
        assert service.http.get("/").status_code == 200
        assert time.monotonic() - began < 2
        assert service.launcher.asked <= 2


def test_a_full_disk_is_told_and_nothing_is_left(service, monkeypatch):
    kept = service.start()
    real = os.mkdir

    def full(path, *arguments, **named):
        if "exercise1_1stpart" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *arguments, **named)

    monkeypatch.setattr(os, "mkdir", full)
    answer = post(service, LINE, **{"Idempotency-Key": "k"})
    assert answer.status_code == 507
    assert "No space left on device" in problem_of(answer)
    monkeypatch.undo()
    assert [one["id"] for one in service.http.get("/api/v1/searches").json()["searches"]] == [kept]
    assert post(service, LINE, **{"Idempotency-Key": "k"}).status_code == 201


def test_a_full_disk_stops_no_reader(service, monkeypatch):
    search_id = service.start()
    service.write_results(search_id)
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    answer = post(service, LINE, **{"Idempotency-Key": "k"})
    assert (answer.status_code, "make room" in problem_of(answer)) == (507, True)
    assert service.http.get(f"/api/v1/searches/{search_id}/trials").json()["total"] == 3


def test_two_services_on_one_storage_see_the_same_and_may_both_steer(tmp_path):
    first, second = serve(tmp_path / "jobs"), serve(tmp_path / "jobs")
    with first.http, second.http:
        search_id = first.start()
        second.start()
        lists = [{one["id"] for one in service.http.get("/api/v1/searches").json()["searches"]} for service in (first, second)]
        assert lists[0] == lists[1]
        assert len(lists[0]) == 2
        assert second.http.post(f"/api/v1/searches/{search_id}/stop").json()["state"] == "stopped"
        time.sleep(1.1)
        assert first.http.get(f"/api/v1/searches/{search_id}").json()["state"] == "stopped"
        assert first.http.post(f"/api/v1/searches/{search_id}/resume").status_code == 202
        answer = second.http.post(f"/api/v1/searches/{search_id}/resume")
        assert (answer.status_code, "is pending; stop it first" in problem_of(answer)) == (409, True)


def test_the_same_search_started_twice_is_one_search(service):
    first = post(service, LINE, **{"Idempotency-Key": "mine"})
    again = post(service, LINE, **{"Idempotency-Key": "mine"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    assert again.headers["location"] == f"/api/v1/searches/{first.json()['id']}"
    other = post(service, LINE | {"quick": True}, **{"Idempotency-Key": "mine"})
    assert (other.status_code, "was used for another search" in problem_of(other)) == (409, True)
    assert post(service, LINE).json()["id"] != first.json()["id"]
    assert len(service.launcher.started) == 2


def test_many_who_start_the_same_search_at_once_start_one(tmp_path):
    services = [serve(tmp_path / "jobs") for _ in range(2)]
    barrier = threading.Barrier(8)

    def start(number):
        barrier.wait()
        return post(services[number % 2], LINE, **{"Idempotency-Key": "all"})

    with services[0].http, services[1].http, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(start, range(8)))
    # Another service may be told that it is being started at this moment.
    assert {answer.status_code for answer in answers} <= {200, 201, 409}
    assert len({answer.json()["id"] for answer in answers if answer.status_code < 300}) == 1
    assert sum(len(service.launcher.started) for service in services) == 1


def test_a_key_holds_when_the_service_died_between_two_lines(service, monkeypatch):
    """It had noted the id that the search would have, and started nothing yet."""
    monkeypatch.setattr(service.client.launcher, "check", lambda: (_ for _ in ()).throw(SystemExit))
    parts = submissions.Submissions(service.client)
    claims = service.storage / submissions.FOLDER
    mine = {"id": "exercise1_1stpart-20260101-000000-abcd", "process": {"host": "gone", "pid": 1, "began": "x"}}
    first = post(serve(service.storage), LINE, **{"Idempotency-Key": "k"})
    (file,) = claims.iterdir()
    held = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(held | mine), encoding="utf-8")
    again = post(serve(service.storage), LINE, **{"Idempotency-Key": "k"})
    assert again.status_code == 201
    assert again.json()["id"] == mine["id"] != first.json()["id"]
    assert parts is not None


def test_a_search_whose_file_is_broken_hides_no_other(service):
    broken, whole = service.start(), service.start()
    (service.storage / broken / "job.json").write_text("{", encoding="utf-8")
    told = {one["id"]: one["state"] for one in service.http.get("/api/v1/searches").json()["searches"]}
    assert told == {broken: "unreadable", whole: "pending"}
    answer = service.http.get(f"/api/v1/searches/{broken}")
    assert (answer.status_code, "restore it from a copy" in problem_of(answer)) == (500, True)
    assert service.http.get("/", headers={"Accept": "text/html"}).status_code == 200


def test_what_nobody_thought_of_is_one_line_and_the_service_stays_up(service, monkeypatch, caplog):
    def odd(*_):
        raise ZeroDivisionError("a secret detail")

    with monkeypatch.context() as patched:
        patched.setattr("tune_hpc.service.statuses.Statuses.all", odd)
        answer = service.http.get("/api/v1/searches")
    assert (answer.status_code, problem_of(answer)) == (500, "the service failed at this request; its log says why")
    assert "a secret detail" in caplog.text
    assert service.http.get("/api/v1/searches").status_code == 200


def test_a_method_that_a_path_does_not_serve_is_said_to_be_none(service):
    answer = service.http.put("/api/v1/searches")
    assert answer.status_code == 405
    assert "PUT is not served at '/searches'" in problem_of(answer)


def test_too_many_changes_are_told_to_wait(tmp_path):
    service = serve(tmp_path / "jobs", writes_per_s=1)
    with service.http:
        answers = [service.http.post("/api/v1/searches/none/stop") for _ in range(8)]
        assert [answer.status_code for answer in answers] == [404] * 6 + [429] * 2
        assert int(answers[-1].headers["retry-after"]) >= 1
        assert "1 changes a second" in problem_of(answers[-1])


def test_who_reads_too_often_is_answered_later_and_refused_only_where_that_would_be_long(tmp_path, monkeypatch):
    held = []

    async def sleep(seconds):
        held.append(seconds)

    monkeypatch.setattr(limits.asyncio, "sleep", sleep)
    monkeypatch.setattr(limits.time, "monotonic", lambda: 0.0)
    service = serve(tmp_path / "jobs", reads_per_s=10)
    with service.http:
        answers = [service.http.get("/health") for _ in range(32)]
    assert [answer.status_code for answer in answers] == [200] * 30 + [429] * 2
    assert held == [pytest.approx(number / 10) for number in range(1, 11)]
    assert "10 reads a second" in problem_of(answers[-1])
    assert answers[-1].headers["retry-after"] == "2"


def test_a_rate_recovers_and_remembers_only_so_many(monkeypatch):
    monkeypatch.setattr(limits, "MOST_ADDRESSES", 2)
    rate = limits.Rate(2, 1)
    assert rate.take("a", 0.0) == (0, True)
    assert rate.take("a", 0.1) == (pytest.approx(0.4), False)
    assert rate.take("a", 0.6) == (0, True)
    for who in "bcd":
        rate.take(who, 0.6)
    assert rate.take("a", 0.6) == (0, True)


@given(st.lists(st.floats(0, 2), max_size=60))
def test_a_rate_grants_no_more_than_flows_in_and_each_one_after_the_one_before(pauses):
    rate, now, turns = limits.Rate(5, 3, 1.0), 0.0, []
    for pause in pauses:
        now += pause
        turn = rate.take("a", now)
        assert turn.is_granted == (turn.wait_s <= 1.0)
        if turn.is_granted:
            turns.append(now + turn.wait_s)
    assert turns == sorted(turns)
    for number, moment in enumerate(turns):
        within = [one for one in turns[number:] if one < moment + 2 - 1e-6]
        assert len(within) <= 3 + 5 * 2


@pytest.mark.parametrize(
    ("state", "verb", "status", "words"),
    [
        (None, "resume", 409, "is pending; stop it first"),
        (None, "extend", 409, "is pending; stop it first"),
        ("finished", "resume", 409, "has finished; extend it"),
        ("finished", "extend", 422, "a grid has no more configurations"),
        ("stopped", "resume", 202, ""),
        ("failed", "resume", 202, ""),
        ("finished", "stop", 202, ""),
        (None, "stop", 202, ""),
    ],
)  # fmt: skip
def test_a_search_is_asked_only_for_what_its_state_allows(service, state, verb, status, words):
    search_id = service.start()
    if state:
        service.drive(search_id, state)
    body = {"num_samples": 5} if verb == "extend" else None
    answer = service.http.post(f"/api/v1/searches/{search_id}/{verb}", json=body)
    assert answer.status_code == status, answer.text
    assert words in (problem_of(answer) if words else "")


def test_an_extension_goes_to_the_driver(service):
    search_id = service.start({"space": "line.random"})
    service.drive(search_id, "finished")
    assert service.http.post(f"/api/v1/searches/{search_id}/extend", json={"num_samples": 4, "fuse": "off"}).status_code == 202
    assert service.launcher.started[-1] == (
        search_id, 2, "extend", {"num_samples": 4, "experiment": "line.random", "fuse": "off"},
    )  # fmt: skip


def test_a_trial_s_words_are_never_taken_as_html(service):
    search_id = service.start()
    service.write_results(search_id)
    page = service.http.get(f"/view/{search_id}/trial/t00001").text
    assert "&lt;b&gt;odd&lt;/b&gt;" in page
    assert "<b>odd</b>" not in page
