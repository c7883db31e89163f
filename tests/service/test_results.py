"""Trials, history, curves, logs and reports over the API; what is cached, and for how long."""

import io
import itertools
import json
import re
import shlex
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.service.conftest import API, problem_of
from tune_hpc import load
from tune_hpc.cli import main
from tune_hpc.learning.checkpoint import save_state
from tune_hpc.service import routes, services


@pytest.mark.parametrize("is_running", [True, False])
def test_rows_are_the_same_as_json_csv_and_parquet(service, is_running):
    search_id = service.start()
    service.write_results(search_id, is_running=is_running)
    for name, count in (("trials", 3), ("history", 15)):
        path = f"/searches/{search_id}/{name}"
        page = service.get(path).json()
        assert (page["total"], len(page[name])) == (count, count)
        csv, parquet = service.get(f"{path}?format=csv"), service.get(f"{path}?format=parquet")
        assert csv.headers["content-disposition"] == f'attachment; filename="{search_id}-{name}.csv"'
        assert csv.headers["x-total-count"] == parquet.headers["x-total-count"] == str(count)
        for df in (pd.read_csv(io.BytesIO(csv.content)), pd.read_parquet(io.BytesIO(parquet.content))):
            assert list(df.columns) == page["columns"]
            assert df["train_loss"].tolist() == [row["train_loss"] for row in page[name]]
        part = service.get(f"{path}?format=parquet", Range="bytes=4-99")
        assert (part.status_code, part.content) == (206, parquet.content[4:100])


def test_pages_of_rows_are_linked(service):
    search_id = service.start()
    service.write_results(search_id, num_trials=5)
    url, ids = f"{API}/searches/{search_id}/trials?limit=2&sort=-trial_id", []
    while url:
        response = service.http.get(url)
        ids += [row["trial_id"] for row in response.json()["trials"]]
        url = response.links.get("next", {}).get("url")
    assert ids == [f"t{number:05d}" for number in (4, 3, 2, 1, 0)]


def test_history_is_limited_to_the_given_trials(service, search_id):
    page = service.get(f"/searches/{search_id}/history?trial=t00001,t00002&filter=step=4").json()
    assert [row["trial_id"] for row in page["history"]] == ["t00001", "t00002"]
    response = service.get(f"/searches/{search_id}/history?trial=t9")
    assert (response.status_code, "has no trial 't9' yet" in problem_of(response)) == (404, True)


def test_search_that_has_not_begun_has_no_rows(service):
    search_id = service.start()
    for name in ("trials", "history"):
        page = service.get(f"/searches/{search_id}/{name}").json()
        assert (page["total"], page[name]) == (0, [])
        assert "trial_id" in page["columns"]
    assert service.get(f"/searches/{search_id}/curves").json()["curves"] == []
    assert service.get(f"/searches/{search_id}/response").json()["lines"] == []
    response = service.get(f"/searches/{search_id}/report")
    assert response.status_code == 404
    assert "has no report yet: it is written when the search ends" in problem_of(response)


def test_checkpoint_of_a_trial_is_a_download(service, search_id):
    (folder,) = (path.parent for path in service.client.folder(search_id).path.rglob("experiment.json"))
    path = f"/searches/{search_id}/checkpoint"
    response = service.get(path)
    assert (response.status_code, "no checkpoint of" in problem_of(response)) == (404, True)
    for trial_id in load(folder).trials["trial_id"]:
        state = folder / "checkpoints" / trial_id / "4.checkpoint"
        state.parent.mkdir(parents=True)
        save_state(state, {"trial": trial_id})
    response = service.get(f"{path}?trial=t00001")
    assert response.headers["content-disposition"] == 'attachment; filename="t00001.4.checkpoint"'
    assert response.content == (folder / "checkpoints" / "t00001" / "4.checkpoint").read_bytes()
    best = load(folder).best_trial()["trial_id"]
    assert service.get(path).content == (folder / "checkpoints" / best / "4.checkpoint").read_bytes()
    assert service.get(f"{path}?trial=../../t00001").status_code == 404
    (folder / "checkpoints" / best / "4.checkpoint").unlink()
    (folder / "checkpoints" / best / "4.checkpoint").symlink_to("/etc/hostname")
    assert service.get(path).status_code >= 400


def test_missing_report_comes_with_the_command_that_writes_it(service, search_id):
    service.drive(search_id, "failed")
    folder = service.client.folder(search_id)
    response = service.get(f"/searches/{search_id}/report")
    remedy = f"the search ended without one; tune-hpc report {folder.path} writes it"
    assert (response.status_code, problem_of(response).endswith(remedy)) == (404, True)
    assert remedy in service.http.get(f"/view/{search_id}").text
    assert main(["report", str(folder.path)]) == 0
    assert service.get(f"/searches/{search_id}/report").status_code == 200


def test_new_results_change_the_response_and_others_do_not(service):
    search_id = service.start()
    service.write_results(search_id, num_trials=2, is_running=True)
    path = f"/searches/{search_id}/trials"
    first = service.get(path)
    assert first.json()["total"] == 2
    same = service.get(path, **{"If-None-Match": first.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    service.write_results(search_id, num_trials=4, is_running=True)
    while (changed := service.get(path, **{"If-None-Match": first.headers["etag"]})).status_code == 304:
        time.sleep(0.1)
    assert (changed.status_code, changed.json()["total"]) == (200, 4)


@pytest.mark.slow
@pytest.mark.parametrize("_", range(20))
def test_client_that_sees_finished_reads_every_row(service, _):
    """Status and rows come from caches of one version, while other readers keep these caches warm."""
    search_id = service.start({"space": "line.random"})
    service.drive(search_id)
    service.write_results(search_id, num_trials=1, is_running=True)
    path, is_over = f"/searches/{search_id}", threading.Event()

    def write():
        for num_trials in (8, 40):
            service.write_results(search_id, num_trials, 2, is_running=True)
        service.write_results(search_id, 2000, 1)
        service.drive(search_id, "finished")

    def read():
        while not is_over.is_set():
            service.get(f"{path}/trials?limit=10000&columns=trial_id")

    with ThreadPoolExecutor(3) as threads:
        readers = [threads.submit(read) for _ in range(2)]
        writer = threads.submit(write)
        while service.state(search_id) != "finished":
            time.sleep(0.01)
        page = service.get(f"{path}/trials?limit=10000&columns=trial_id").json()
        is_over.set()
        [reader.result() for reader in readers]
        writer.result()
    assert (page["total"], len(page["trials"])) == (2000, 2000)


def test_concurrent_readers_cause_one_computation(service, search_id, monkeypatch):
    service.drive(search_id, "finished")
    computed, select = [], routes.select

    def count(*arguments):
        computed.append(1)
        return select(*arguments)

    monkeypatch.setattr(routes, "select", count)
    with ThreadPoolExecutor(20) as threads:
        responses = list(threads.map(lambda _: service.get(f"/searches/{search_id}/trials"), range(60)))
    assert {response.status_code for response in responses} == {200}
    assert len(computed) == 1


def test_cache_is_bounded_by_bytes_whatever_clients_send(service, monkeypatch):
    """Requests that all differ do not fill the memory."""
    monkeypatch.setattr(services, "MAX_RESPONSE_BYTES", 20_000)
    search_id = service.start()
    service.write_results(search_id)
    for number in range(60):
        assert service.get(f"/searches/{search_id}/trials?filter=trial_id!={'x' * 300}{number}").status_code == 200
    responses = service.http.app.state.services.cache
    assert 10_000 < responses._num_bytes <= 20_000
    assert sum(len(entry[2].body) for entry in responses._entries.values()) < 20_000


def test_results_cache_is_bounded_by_bytes(service, monkeypatch):
    monkeypatch.setattr(services, "MAX_RESULT_BYTES", 1)
    readers = services.ResultsCache()
    for _ in range(3):
        search_id = service.start()
        assert len(readers.read(service.write_results(search_id)).trials) == 3
    assert len(readers._entries) == 1


def test_csv_of_a_large_history_is_not_built_in_memory(service):
    """The rows of a file are converted while it is sent."""
    df = pd.DataFrame({"step": np.arange(800_000), "train_loss": 0.5})
    sizes = [len(chunk) for chunk in itertools.islice(routes.csv_chunks(df), 3)]
    assert max(sizes) < 1e6
    search_id = service.start()
    service.write_results(search_id)
    response = service.get(f"/searches/{search_id}/history?format=csv")
    assert "content-length" not in response.headers


def test_downloads_are_limited_in_number(service, search_id, monkeypatch):
    monkeypatch.setattr(routes, "DOWNLOAD_WAIT_S", 0.1)
    started, end = threading.Semaphore(0), threading.Event()

    def wait(df):
        started.release()
        end.wait(20)
        yield b"rows"

    monkeypatch.setattr(routes, "csv_chunks", wait)
    path = f"/searches/{search_id}/trials?format=csv"
    with ThreadPoolExecutor(4) as threads:
        downloads = [threads.submit(service.get, path) for _ in range(routes.MAX_DOWNLOADS)]
        for _ in downloads:
            started.acquire(timeout=20)
        refused = service.get(path)
        end.set()
        assert {download.result().status_code for download in downloads} == {200}
    assert (refused.status_code, int(refused.headers["retry-after"]) >= 1) == (429, True)
    assert service.get(path).status_code == 200


def test_curves_are_thinned_and_the_best_is_last(service):
    search_id = service.start()
    service.write_results(search_id, num_trials=8, num_steps=50)
    chart = service.get(f"/searches/{search_id}/curves?max_curves=3&max_points=4").json()
    assert (chart["metric"], chart["metrics"], chart["num_trials"]) == ("train_loss", ["train_loss"], 8)
    assert chart["is_thinned"]
    assert [curve["trial_id"] for curve in chart["curves"]] == ["t00002", "t00001", "t00000"]
    assert [(len(curve["steps"]), curve["steps"][0], curve["steps"][-1]) for curve in chart["curves"]] == [
        (4, 0, 49)
    ] * 3
    selected = service.get(f"/searches/{search_id}/curves?filter=trial_id=t00003").json()["curves"]
    assert [curve["trial_id"] for curve in selected] == ["t00003"]
    assert "has no metric 'x'" in problem_of(service.get(f"/searches/{search_id}/curves?metric=x"))


@pytest.mark.slow
def test_search_of_ten_thousand_trials_is_served_in_parts(service):
    search_id = service.start({"space": "line.random"})
    service.write_results(search_id, num_trials=10_500, num_steps=2)
    path = f"/searches/{search_id}"
    chart = service.get(f"{path}/curves").json()
    assert (chart["num_trials"], len(chart["curves"])) == (10_500, 100)
    assert service.http.get(f"/view/{search_id}", headers={"Accept": "text/html"}).text.count('<tr id="trial-') == 50
    assert len(service.get(f"{path}/trials?limit=10000").json()["trials"]) == 10_000
    assert service.get(f"{path}/history?format=parquet").headers["x-total-count"] == "21000"
    assert sum(len(line["x"]) for line in service.get(f"{path}/response").json()["lines"]) == 2000


def test_response_curve_has_a_metric_by_parameter(service):
    search_id = service.start()
    service.write_results(search_id, num_trials=4)
    chart = service.get(f"/searches/{search_id}/response").json()
    assert (chart["metric"], chart["parameter"], chart["is_log"]) == ("train_loss", "learning_rate", True)
    # One of the four trials failed.
    assert [len(line["x"]) for line in chart["lines"]] == [3]
    problem = problem_of(service.get(f"/searches/{search_id}/response?parameter=model"))
    assert "no numeric parameter that varies 'model'" in problem


def test_logs_and_report_are_served_as_they_are(service, search_id):
    path = f"/searches/{search_id}"
    assert service.get(f"{path}/log").text == "one line\n"
    log = service.get(f"{path}/trials/t00001/log")
    assert log.text.endswith("ValueError: <b>odd</b>\n")
    assert log.headers["content-type"].startswith("text/plain")
    assert service.get(f"{path}/trials/t00001/log?bytes=12").text == ""
    assert service.get(f"{path}/trials/t00000/log").text == ""
    service.client.folder(search_id).report.write_text("<html>report</html>", encoding="utf-8")
    page = service.get(f"{path}/report")
    assert page.text == "<html>report</html>"
    assert "sandbox" in page.headers["content-security-policy"]
    assert "script" not in page.headers["content-security-policy"]
    same = service.get(f"{path}/report", **{"If-None-Match": page.headers["etag"]})
    policies = [one.headers["content-security-policy"] for one in (page, same)]
    assert (same.status_code, policies[0] == policies[1]) == (304, True)


def test_value_that_is_not_finite_is_null(service):
    search_id = service.start()
    folder = service.write_results(search_id)
    trials = pd.read_parquet(folder.trials_file)
    trials.loc[0, "train_loss"] = float("inf")
    trials.to_parquet(folder.trials_file, index=False)
    text = service.get(f"/searches/{search_id}/trials?sort=trial_id").text
    assert json.loads(text)["trials"][0]["train_loss"] is None
    assert "Infinity" not in text


DOCS = (Path(__file__).parents[2] / "docs" / "service.md").read_text(encoding="utf-8")


def test_examples_of_the_documentation_work(service):
    (block,) = [block for block in re.findall(r"```sh\n(.*?)```", DOCS, flags=re.DOTALL) if "curl" in block]
    search_id = service.start({"space": "line.random"})
    folder = service.write_results(search_id)
    for file in (folder.trials_file, folder.history_file):
        pd.read_parquet(file).assign(test_accuracy=0.5).to_parquet(file, index=False)
    service.client.folder(search_id).report.write_text("<html></html>", encoding="utf-8")
    service.drive(search_id)
    num_requests = 0
    for line in block.splitlines():
        if not line.startswith("curl"):
            continue
        words = shlex.split(line, comments=True)
        (url,) = [word for word in words if word.startswith("$URL")]
        body = words[words.index("-d") + 1] if "-d" in words else None
        method = words[words.index("-X") + 1] if "-X" in words else "POST" if body else "GET"
        headers = {"Content-Type": "application/json"} if body else {}
        path = url.removeprefix("$URL").replace("$ID", search_id)
        response = service.http.request(method, path, content=body, headers=headers)
        assert response.is_success, f"{line}: {response.text}"
        num_requests += 1
        if "/stop" in url:
            service.drive(search_id, "stopped")
        if "/resume" in url:
            service.drive(search_id, "finished", 2)
        if "/extend" in url:
            service.drive(search_id, "finished", 3)
    assert num_requests == block.count("\ncurl")
