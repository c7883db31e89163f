"""What the service tells of searches and of what came of them, and what it lets ask for."""

import io
import json
import re
import shlex
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.service.conftest import RANDOM, REGISTERED, problem_of, serve
from tune_hpc.cli import main
from tune_hpc.search.space import Space


def test_health_needs_no_token_and_tells_nothing_of_searches(tmp_path):
    service = serve(tmp_path / "jobs")
    del service.http.headers["Authorization"]
    assert service.http.get("/health").json() == {"status": "ok", "version": "unknown"}
    for path in ("/api/v1/searches", "/api/v1/spaces", "/api/v1/searches/x/log", "/view/x"):
        answer = service.http.get(path)
        assert answer.status_code == 401
        assert "a request has the service's token" in problem_of(answer)


def test_spaces_are_plain_json_that_makes_the_same_space(service):
    told = service.http.get("/api/v1/spaces").json()["spaces"]
    assert [one["name"] for one in told] == [one.name for one in REGISTERED]
    for one, experiment in zip(told, REGISTERED, strict=True):
        assert Space.from_json(one["parameters"]) == experiment.space
        assert (one["num_trials"], one["varies"]) == (experiment.num_trials, experiment.space.varying)
    assert service.http.get("/api/v1/spaces/line.random").json() == told[-1]
    assert service.http.get("/api/v1/spaces/none").status_code == 404


def test_a_search_is_a_job_of_the_storage_as_it_was_asked_for(service):
    body = {
        "space": "exercise2.softmax", "quick": True, "set": {"optimizer": {"choice": ["adam", "ftrl"]}, "steps": 50},
        "seeds": 2, "time_budget_s": 60, "max_concurrent": 2,
    }  # fmt: skip
    answer = service.http.post("/api/v1/searches", json=body)
    assert answer.status_code == 201
    told = answer.json()
    assert (told["state"], told["num_trials"]) == ("pending", 16)
    asked = service.client.folder(told["id"]).read()
    assert asked["options"] == {"time_budget_s": 60.0, "max_concurrent": 2}
    (experiment,) = asked["experiments"]
    assert (experiment["quick"], experiment["seeds"]) == (True, [0, 1])
    assert (experiment["space"]["steps"], experiment["space"]["num_evaluations"]) == (50, 10)
    read = service.http.get(answer.headers["location"]).json()
    assert read["parameters"]["exercise2.softmax"] == experiment["space"]
    assert service.launcher.started == [(told["id"], 1, "start", {})]


def test_a_whole_space_is_taken_in_place_of_the_experiment_s(service):
    parameters = service.http.get("/api/v1/spaces/line.random").json()["parameters"]
    parameters["learning_rate"] = {"choice": [0.1, 0.2], "role": "scientific"}
    body = {"space": "line.random", "parameters": parameters, "num_samples": 2, "search_seed": 7}
    search_id = service.start(body)
    (experiment,) = service.client.folder(search_id).read()["experiments"]
    assert experiment["space"] == parameters
    assert experiment["search_seed"] == 7


@pytest.mark.parametrize("experiment", REGISTERED, ids=lambda one: one.name)
def test_every_registered_experiment_can_be_asked_for_with_every_option(service, experiment):
    options = {
        "cpus_per_trial": 1,
        "gpus_per_trial": 0,
        "max_concurrent": 2,
        "fuse": 4,
        "time_budget_s": 5,
        "target": 1,
    }
    search_id = service.start({"space": experiment.name, "quick": True, **options})
    assert service.client.folder(search_id).read()["options"] == options


def test_searches_are_listed_the_latest_first_by_state_name_and_page(service):
    ids = [service.start({"space": name}) for name in ("exercise1_1stpart", "line.random", "exercise1_1stpart")]
    service.drive(ids[0], "finished")
    service.drive(ids[1], "stopped")

    def listed(query=""):
        told = service.http.get(f"/api/v1/searches{query}").json()
        return told["total"], {one["id"] for one in told["searches"]}

    assert listed() == (3, set(ids))
    assert listed("?state=finished&state=stopped") == (2, set(ids[:2]))
    assert listed("?state=finished,stopped") == (2, set(ids[:2]))
    assert listed("?name=line.random") == (1, {ids[1]})
    total, page = listed("?limit=2&offset=1")
    assert (total, len(page)) == (3, 2)
    assert "limit" in problem_of(service.http.get("/api/v1/searches?limit=0"))
    assert "Extra inputs are not permitted" in problem_of(service.http.get("/api/v1/searches?stat=finished"))


@pytest.mark.parametrize("is_running", [True, False])
def test_trials_and_history_are_the_same_as_json_csv_and_parquet(service, is_running):
    search_id = service.start()
    service.write_results(search_id, is_running=is_running)
    for name, count in (("trials", 3), ("history", 15)):
        base = f"/api/v1/searches/{search_id}/{name}"
        told = service.http.get(base).json()
        assert (told["total"], len(told[name])) == (count, count)
        csv = service.http.get(f"{base}?format=csv")
        parquet = service.http.get(f"{base}?format=parquet")
        frames = [pd.read_csv(io.BytesIO(csv.content)), pd.read_parquet(io.BytesIO(parquet.content))]
        assert csv.headers["content-disposition"] == f'attachment; filename="{search_id}-{name}.csv"'
        for df in frames:
            assert list(df.columns) == told["columns"]
            # To the last bit, as JSON has it.
            assert df["train_loss"].tolist() == [row["train_loss"] for row in told[name]]
        assert parquet.headers["x-total-count"] == str(count)


def test_history_is_of_the_trials_that_are_named(service):
    search_id = service.start()
    service.write_results(search_id)
    told = service.http.get(f"/api/v1/searches/{search_id}/history?trial=t00001,t00002&filter=step=4").json()
    assert [row["trial_id"] for row in told["history"]] == ["t00001", "t00002"]
    answer = service.http.get(f"/api/v1/searches/{search_id}/history?trial=t9")
    assert (answer.status_code, "has no trial 't9' yet" in problem_of(answer)) == (404, True)


def test_a_search_that_has_not_begun_has_no_trials_yet(service):
    search_id = service.start()
    for name in ("trials", "history"):
        told = service.http.get(f"/api/v1/searches/{search_id}/{name}").json()
        assert (told["total"], told[name]) == (0, [])
        assert "trial_id" in told["columns"]
    assert service.http.get(f"/api/v1/searches/{search_id}/curves").json()["curves"] == []
    assert service.http.get(f"/api/v1/searches/{search_id}/response").json()["lines"] == []
    answer = service.http.get(f"/api/v1/searches/{search_id}/report")
    assert (answer.status_code, "has no report yet: it is written when a search ends" in problem_of(answer)) == (
        404,
        True,
    )


def test_of_a_search_that_ended_without_a_report_it_is_told_how_to_have_one(service):
    search_id = service.start()
    service.write_results(search_id)
    service.drive(search_id, "failed")
    folder = service.client.folder(search_id)
    answer = service.http.get(f"/api/v1/searches/{search_id}/report")
    remedy = f"the search ended without one; tune-hpc report {folder.path} writes it"
    assert (answer.status_code, problem_of(answer).endswith(remedy)) == (404, True)
    assert remedy in service.http.get(f"/view/{search_id}").text
    assert main(["report", str(folder.path)]) == 0
    assert service.http.get(f"/api/v1/searches/{search_id}/report").status_code == 200


def test_a_running_search_is_read_anew_when_there_is_news(service, monkeypatch):
    monkeypatch.setattr("tune_hpc.service.readings.LEAST_S", 0.0)
    monkeypatch.setattr("tune_hpc.service.readings.MOST_SHARE", 1.0)
    search_id = service.start()
    service.write_results(search_id, num_trials=2, is_running=True)
    url = f"/api/v1/searches/{search_id}/trials"
    first = service.http.get(url)
    assert first.json()["total"] == 2
    same = service.http.get(url, headers={"If-None-Match": first.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    service.write_results(search_id, num_trials=4, is_running=True)
    service.http.post(f"/api/v1/searches/{search_id}/stop")  # whatever changes something has everything looked at again
    changed = service.http.get(url, headers={"If-None-Match": first.headers["etag"]})
    assert (changed.status_code, changed.json()["total"]) == (200, 4)


def test_curves_are_few_and_thin_and_the_best_is_last(service):
    search_id = service.start()
    service.write_results(search_id, num_trials=8, num_steps=50)
    told = service.http.get(f"/api/v1/searches/{search_id}/curves?max_curves=3&max_points=4").json()
    assert (told["metric"], told["metrics"], told["num_trials"]) == ("train_loss", ["train_loss"], 8)
    assert told["is_thinned"]
    assert [one["trial_id"] for one in told["curves"]] == ["t00002", "t00001", "t00000"]
    assert [(len(one["steps"]), one["steps"][0], one["steps"][-1]) for one in told["curves"]] == [(4, 0, 49)] * 3
    one = service.http.get(f"/api/v1/searches/{search_id}/curves?filter=trial_id=t00003").json()["curves"]
    assert [curve["trial_id"] for curve in one] == ["t00003"]
    assert "no metric 'x'" in problem_of(service.http.get(f"/api/v1/searches/{search_id}/curves?metric=x"))


@pytest.mark.slow
def test_a_search_of_very_many_trials_is_told_in_parts(service):
    search_id = service.start({"space": "line.random"})
    service.write_results(search_id, num_trials=10_500, num_steps=2)
    began = time.monotonic()
    told = service.http.get(f"/api/v1/searches/{search_id}/curves").json()
    assert (told["num_trials"], len(told["curves"])) == (10_500, 100)
    assert service.http.get(f"/view/{search_id}", headers={"Accept": "text/html"}).text.count('<tr id="trial-') == 50
    assert len(service.http.get(f"/api/v1/searches/{search_id}/trials?limit=10000").json()["trials"]) == 10_000
    assert service.http.get(f"/api/v1/searches/{search_id}/history?format=parquet").headers["x-total-count"] == "21000"
    assert sum(len(line["x"]) for line in service.http.get(f"/api/v1/searches/{search_id}/response").json()["lines"]) == 2000
    assert time.monotonic() - began < 10


def test_a_metric_stands_against_a_parameter(service):
    search_id = service.start()
    service.write_results(search_id, num_trials=4)
    told = service.http.get(f"/api/v1/searches/{search_id}/response").json()
    assert (told["metric"], told["parameter"], told["is_log"], told["group"]) == (
        "train_loss", "learning_rate", True, None,
    )  # fmt: skip
    # One of the four failed.
    assert [len(line["x"]) for line in told["lines"]] == [3]
    assert "no parameter of several numbers 'model'" in problem_of(
        service.http.get(f"/api/v1/searches/{search_id}/response?parameter=model")
    )


def test_logs_and_the_report_are_told_as_they_are(service):
    search_id = service.start()
    service.write_results(search_id)
    assert service.http.get(f"/api/v1/searches/{search_id}/log").text == "one line\n"
    assert service.http.get(f"/api/v1/searches/{search_id}/trials/t00001/log").text.endswith("ValueError: <b>odd</b>\n")
    assert service.http.get(f"/api/v1/searches/{search_id}/trials/t00001/log?bytes=12").text == ""
    assert service.http.get(f"/api/v1/searches/{search_id}/trials/t00000/log").text == ""
    assert service.http.get(f"/api/v1/searches/{search_id}/trials/t00001/log").headers["content-type"].startswith("text/plain")
    service.client.folder(search_id).report.write_text("<html>report</html>", encoding="utf-8")
    page = service.http.get(f"/api/v1/searches/{search_id}/report")
    assert page.text == "<html>report</html>"
    assert "sandbox" in page.headers["content-security-policy"]
    assert "script" not in page.headers["content-security-policy"]


def test_of_several_experiments_one_is_named(service):
    job = service.client.submit([REGISTERED[0], RANDOM])
    answer = service.http.get(f"/api/v1/searches/{job.id}/trials")
    assert (answer.status_code, problem_of(answer)) == (
        422, f"{job.id} has several experiments; name one with experiment=: {REGISTERED[0].name}, line.random",
    )  # fmt: skip
    assert service.http.get(f"/api/v1/searches/{job.id}/trials?experiment=line.random").json()["total"] == 0
    assert service.http.get(f"/api/v1/searches/{job.id}/trials?experiment=x").status_code == 404


def test_what_is_not_finite_is_null(service):
    search_id = service.start()
    home = service.write_results(search_id)
    trials = pd.read_parquet(home.trials_file)
    trials.loc[0, "train_loss"] = float("inf")
    trials.to_parquet(home.trials_file, index=False)
    told = service.http.get(f"/api/v1/searches/{search_id}/trials?sort=trial_id").text
    assert json.loads(told)["trials"][0]["train_loss"] is None
    assert "Infinity" not in told


DOCS = (Path(__file__).parents[2] / "docs" / "service.md").read_text(encoding="utf-8")


def test_the_examples_of_the_documentation_are_answered(service):
    (block,) = [one for one in re.findall(r"```sh\n(.*?)```", DOCS, flags=re.DOTALL) if "curl" in one]
    search_id = service.start({"space": "line.random"})
    home = service.write_results(search_id)
    trials, history = pd.read_parquet(home.trials_file), pd.read_parquet(home.history_file)
    trials.assign(test_accuracy=0.5).to_parquet(home.trials_file, index=False)
    history.assign(test_accuracy=0.5).to_parquet(home.history_file, index=False)
    service.client.folder(search_id).report.write_text("<html></html>", encoding="utf-8")
    service.drive(search_id)
    asked = 0
    for line in block.splitlines():
        if not line.startswith("curl"):
            continue
        words = shlex.split(line, comments=True)
        (url,) = [word for word in words if word.startswith("$URL")]
        body = words[words.index("-d") + 1] if "-d" in words else None
        way = "POST" if body or "POST" in words else "GET"
        headers = {"Content-Type": "application/json"} if body else {}
        answer = service.http.request(
            way, url.removeprefix("$URL").replace("$ID", search_id), content=body, headers=headers
        )  # fmt: skip
        assert answer.is_success, f"{line}: {answer.text}"
        asked += 1
        if "/stop" in url:
            service.drive(search_id, "stopped")
        if "/resume" in url:
            service.drive(search_id, "finished", 2)
    assert asked == block.count("\ncurl")
