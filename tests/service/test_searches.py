"""Start, list, read, stop, resume, extend and delete searches over the API."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.service.conftest import API, RANDOM, REGISTERED, problem_of, serve
from tune_hpc.jobs.status import DriverState
from tune_hpc.search.space.space import Space

LINE = {"space": "exercise1_1stpart"}


def test_health_needs_no_token_and_other_routes_do(service):
    del service.http.headers["Authorization"]
    assert service.http.get("/health").json() == {"status": "ok", "version": "unknown"}
    for path in ("/api/v1/searches", "/api/v1/spaces", "/api/v1/searches/x/log", "/view/x", "/ready", "/metrics"):
        response = service.http.get(path)
        assert response.status_code == 401
        assert "the token is missing" in problem_of(response)


def test_space_in_a_response_makes_the_same_space(service):
    spaces = service.get("/spaces").json()["spaces"]
    assert [space["name"] for space in spaces] == [experiment.name for experiment in REGISTERED]
    for space, experiment in zip(spaces, REGISTERED, strict=True):
        assert Space.from_json(space["parameters"]) == experiment.space
        assert (space["num_trials"], space["varies"]) == (experiment.num_trials, experiment.space.varying)
    assert service.get("/spaces/line.random").json() == spaces[-1]
    assert service.get("/spaces/none").status_code == 404


def test_search_becomes_a_job_with_the_requested_changes(service):
    body = {
        "space": "exercise2.cnn", "quick": True, "set": {"optimizer": {"choice": ["adam", "ftrl"]}, "steps": 50},
        "seeds": 2, "time_budget_s": 60, "max_concurrent": 2,
    }  # fmt: skip
    response = service.post("/searches", body)
    assert response.status_code == 201
    status = response.json()
    assert (status["state"], status["num_trials"], status["location"]["kind"]) == ("pending", 12, "stand_in")
    request = service.client.folder(status["id"]).read()
    assert request["options"] == {"time_budget_s": 60.0, "max_concurrent": 2}
    (experiment,) = request["experiments"]
    assert (experiment["quick"], experiment["seeds"]) == (True, [0, 1])
    assert (experiment["space"]["steps"], experiment["space"]["num_evaluations"]) == (50, 4)
    detail = service.http.get(response.headers["location"]).json()
    assert detail["parameters"]["exercise2.cnn"] == experiment["space"]
    assert service.launcher.started == [(status["id"], 1, "start", {})]


def test_whole_space_replaces_that_of_the_experiment(service):
    parameters = service.get("/spaces/line.random").json()["parameters"]
    parameters["learning_rate"] = {"choice": [0.1, 0.2], "role": "scientific"}
    search_id = service.start({"space": "line.random", "parameters": parameters, "num_samples": 2, "search_seed": 7})
    (experiment,) = service.client.folder(search_id).read()["experiments"]
    assert (experiment["space"], experiment["search_seed"]) == (parameters, 7)


def test_starting_configurations_of_a_request_keep_their_types(service):
    points = [{"learning_rate": 0.25, "optimizer": "adam"}, {}]
    space = {"learning_rate": {"uniform": [0.1, 1]}, "optimizer": {"choice": ["adam", "ftrl"]}, "steps": 5}
    body = {"space": "line.random", "parameters": space, "num_samples": 2, "points_to_evaluate": points}
    search_id = service.start(body)
    (experiment,) = service.client.folder(search_id).read()["experiments"]
    assert experiment["points_to_evaluate"] == points
    response = service.post("/searches", body | {"points_to_evaluate": [{"learning_rate": 7}]})
    assert response.status_code == 422
    assert "points_to_evaluate: learning_rate=7 is outside the space" in problem_of(response)


@pytest.mark.parametrize("experiment", REGISTERED, ids=lambda experiment: experiment.name)
def test_every_registered_experiment_starts_with_every_option(service, experiment):
    options = {
        "cpus_per_trial": 1, "gpus_per_trial": 0, "max_concurrent": 2, "fuse": 4, "time_budget_s": 5, "target": 1,
        "trial_time_limit_s": 9, "max_failures": 0, "no_reuse": True,
    }  # fmt: skip
    search_id = service.start({"space": experiment.name, "quick": True, **options})
    assert service.client.folder(search_id).read()["options"] == options


def test_searches_are_listed_by_state_and_name(service):
    ids = [service.start({"space": name}) for name in ("exercise1_1stpart", "line.random", "exercise1_1stpart")]
    service.drive(ids[0], "finished")
    service.drive(ids[1], "stopped")

    def listed(query=""):
        page = service.get(f"/searches{query}").json()
        return page["total"], {search["id"] for search in page["searches"]}

    assert listed() == (3, set(ids))
    assert listed("?state=finished&state=stopped") == (2, set(ids[:2]))
    assert listed("?name=line.random") == (1, {ids[1]})
    assert "limit" in problem_of(service.get("/searches?limit=0"))
    assert "no search has the state 'done'" in problem_of(service.get("/searches?state=done"))
    assert "Extra inputs are not permitted" in problem_of(service.get("/searches?stat=finished"))


def test_pages_of_a_growing_list_repeat_and_skip_nothing(service):
    ids = [service.start() for _ in range(5)]
    url, seen = f"{API}/searches?limit=2&state=pending", []
    while url:
        response = service.http.get(url)
        seen += [search["id"] for search in response.json()["searches"]]
        url = response.links.get("next", {}).get("url")
        service.start({"space": "line.random"})
    assert sorted(name for name in seen if "exercise1" in name) == sorted(ids)
    assert len(set(seen)) == len(seen)


def test_repeated_key_starts_one_search(service):
    first = service.post("/searches", LINE, **{"Idempotency-Key": "mine"})
    second = service.post("/searches", LINE, **{"Idempotency-Key": "mine"})
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json()["id"] == second.json()["id"]
    assert second.headers["location"] == f"{API}/searches/{first.json()['id']}"
    other = service.post("/searches", LINE | {"quick": True}, **{"Idempotency-Key": "mine"})
    assert (other.status_code, other.json()["type"]) == (422, "urn:tune-hpc:problem:idempotency-key-reused")
    assert service.start() != first.json()["id"]
    assert len(service.launcher.started) == 2


def test_concurrent_requests_with_one_key_start_one_search(tmp_path):
    services = [serve(tmp_path / "jobs") for _ in range(2)]
    barrier = threading.Barrier(8)

    def start(number):
        barrier.wait()
        return services[number % 2].post("/searches", LINE, **{"Idempotency-Key": "all"})

    with services[0].http, services[1].http, ThreadPoolExecutor(8) as threads:
        responses = list(threads.map(start, range(8)))
    # 409: another request starts the search at this moment.
    assert {response.status_code for response in responses} <= {200, 201, 409}
    assert len({response.json()["id"] for response in responses if response.status_code < 300}) == 1
    assert sum(len(service.launcher.started) for service in services) == 1


@pytest.mark.parametrize(
    ("state", "action", "status", "words"),
    [
        (None, "resume", 409, "is pending; stop it first"),
        (None, "extend", 409, "cannot be extended"),
        ("finished", "resume", 409, "has finished; extend it"),
        ("finished", "extend", 409, "cannot be extended"),
        ("stopped", "resume", 202, ""),
        ("failed", "resume", 202, ""),
        ("finished", "stop", 202, ""),
        (None, "stop", 202, ""),
    ],
)
def test_state_of_a_search_decides_what_is_allowed(service, state, action, status, words):
    search_id = service.start()
    if state:
        service.drive(search_id, state)
    body = {"num_samples": 5} if action == "extend" else None
    response = service.post(f"/searches/{search_id}/{action}", body)
    assert response.status_code == status, response.text
    assert words in (problem_of(response) if words else "")


@pytest.mark.parametrize(("action", "body"), [("resume", {}), ("extend", {"num_samples": 5})])
def test_concurrent_restarts_start_one_driver(service, action, body):
    """Of many requests that saw the same attempt one wins; the others get 409."""
    search_id = service.start({"space": "line.random"})
    service.drive(search_id, "stopped")
    barrier = threading.Barrier(8)

    def restart(_):
        barrier.wait()
        return service.post(f"/searches/{search_id}/{action}", body | {"attempt": 1}).status_code

    with ThreadPoolExecutor(8) as threads:
        statuses = sorted(threads.map(restart, range(8)))
    assert statuses == [202] + [409] * 7
    assert [number for _, number, *_ in service.launcher.started] == [1, 2]


def test_failed_trials_of_a_finished_search_run_again_on_request(service):
    search_id = service.start({"space": "line.random"})
    service.drive(search_id, "finished")
    url = f"/searches/{search_id}/resume"
    assert service.post(url, {}).status_code == 409
    assert service.post(url, {"retry_failed": True}).status_code == 202
    assert service.launcher.started[-1][2:] == ("resume", {"retry_failed": True})
    response = service.post(f"/searches/{search_id}/extend", {"num_samples": 1, "retry_failed": True})
    assert response.status_code == 422


def test_restart_of_an_attempt_that_is_not_the_latest_is_refused(service):
    search_id = service.start({"space": "line.random"})
    service.drive(search_id, "stopped")
    service.post(f"/searches/{search_id}/resume", {"attempt": 1})
    service.drive(search_id, "stopped", number=2)
    response = service.post(f"/searches/{search_id}/resume", {"attempt": 1})
    assert (response.status_code, "first" in problem_of(response)) == (409, True)
    assert service.post(f"/searches/{search_id}/resume", {"attempt": 2}).status_code == 202


@pytest.mark.parametrize(
    ("action", "body", "options"),
    [
        ("resume", {}, {}),
        ("resume", {"retry_failed": True}, {"retry_failed": True}),
        ("extend", {"num_samples": 5, "fuse": "off"}, {"num_samples": 5, "experiment": "line.random", "fuse": "off"}),
    ],
)
def test_repeated_key_restarts_once(service, action, body, options):
    """A client that lost the response may repeat the request."""
    search_id = service.start({"space": "line.random"})
    service.drive(search_id, "stopped")
    responses = [
        service.post(f"/searches/{search_id}/{action}", body, **{"Idempotency-Key": "again"}) for _ in range(3)
    ]
    assert [response.status_code for response in responses] == [202] * 3
    assert service.launcher.started[1:] == [(search_id, 2, action, options)]
    other = service.post(f"/searches/{search_id}/{action}", body | {"fuse": 3}, **{"Idempotency-Key": "again"})
    assert other.json()["type"] == "urn:tune-hpc:problem:idempotency-key-reused"
    assert service.post(f"/searches/{search_id}/stop", {}, **{"Idempotency-Key": "again"}).status_code == 202


def test_search_whose_driver_may_live_is_resumed_with_force_only(service, monkeypatch):
    """A driver without heartbeat, and a launcher that knows nothing of it."""
    search_id = service.start({"space": "line.random"})
    service.drive(search_id)
    service.launcher.driver = DriverState.UNKNOWN
    monkeypatch.setattr("tune_hpc.jobs.job_folder.JobFolder.seconds_since_heartbeat", lambda *_: 1000.0)
    assert service.state(search_id) == "unknown"
    response = service.post(f"/searches/{search_id}/resume")
    assert (response.status_code, "may be running" in problem_of(response)) == (409, True)
    page = service.http.get(f"/view/{search_id}", headers={"Accept": "text/html"}).text
    assert "Resume anyway" in page
    assert service.http.delete(f"{API}/searches/{search_id}").status_code == 409
    assert service.post(f"/searches/{search_id}/resume", {"force": True}).status_code == 202


def test_search_at_rest_is_deleted_and_does_not_return(service):
    search_id, other = service.start(), service.start()
    service.write_results(search_id)
    response = service.http.delete(f"{API}/searches/{search_id}")
    assert (response.status_code, "is pending; stop it first" in problem_of(response)) == (409, True)
    service.drive(search_id, "finished")
    assert len(service.get("/searches").json()["searches"]) == 2
    response = service.http.delete(f"{API}/searches/{search_id}")
    assert (response.status_code, response.content) == (204, b"")
    assert service.http.delete(f"{API}/searches/{search_id}").status_code == 404
    assert service.get(f"/searches/{search_id}/trials").status_code == 404
    assert [search["id"] for search in service.get("/searches").json()["searches"]] == [other]
    assert not (service.storage / search_id).exists()


def test_two_services_share_a_storage(tmp_path):
    first, second = serve(tmp_path / "jobs"), serve(tmp_path / "jobs")
    with first.http, second.http:
        search_id = first.start()
        second.start()
        lists = [{search["id"] for search in one.get("/searches").json()["searches"]} for one in (first, second)]
        assert lists[0] == lists[1]
        assert len(lists[0]) == 2
        assert first.state(search_id) == "pending"
        assert second.post(f"/searches/{search_id}/stop").json()["state"] == "stopped"
        assert first.state(search_id) == "stopped"
        assert first.post(f"/searches/{search_id}/resume").status_code == 202
        response = second.post(f"/searches/{search_id}/resume")
        assert (response.status_code, "is pending; stop it first" in problem_of(response)) == (409, True)


def test_search_of_another_storage_is_unknown(tmp_path, service):
    other = serve(tmp_path / "others")
    search_id = other.start()
    for method, path in (("GET", ""), ("GET", "/trials"), ("POST", "/stop"), ("POST", "/resume"), ("DELETE", "")):
        response = service.http.request(method, f"{API}/searches/{search_id}{path}")
        assert response.status_code == 404
        assert f"this storage has no search '{search_id}'" in problem_of(response)
    assert other.launcher.ended == []


def test_experiment_is_named_if_there_are_several(service):
    job = service.client.submit([REGISTERED[0], RANDOM])
    response = service.get(f"/searches/{job.id}/trials")
    assert response.status_code == 422
    assert problem_of(response).endswith(f"choose one with experiment=: {REGISTERED[0].name}, line.random")
    assert service.get(f"/searches/{job.id}/trials?experiment=line.random").json()["total"] == 0
    assert service.get(f"/searches/{job.id}/trials?experiment=x").status_code == 404
    page = service.http.get(f"/view/{job.id}?experiment=line.random", headers={"Accept": "text/html"}).text
    assert 'name="experiment" value="line.random"' in page
