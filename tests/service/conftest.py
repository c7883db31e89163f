"""A service over a storage in which nothing runs: a stand-in launcher, and the files that drivers would write."""

import json
import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from ray import tune

from search_spaces import exercise1_1stpart, exercise2
from tests.jobs.job_factories import StandInLauncher, beat
from tune_hpc.analysis.frames import trials_frame, write_frames
from tune_hpc.jobs.client import JobClient
from tune_hpc.jobs.job_folder import timestamp
from tune_hpc.search.experiment import Experiment, Space
from tune_hpc.service.app import create_app
from tune_hpc.service.auth import AccessRules, Credentials, TokenBuckets
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.trial_file import summarise

API = "/api/v1"
TOKEN = "a-token-for-tests-only"
RANDOM = Experiment(
    "line.random",
    Space({"model": "line", "learning_rate": tune.loguniform(1e-4, 1e-1), "steps": 100}),
    metric="train_loss",
    mode="min",
    searcher="random",
    num_samples=3,
    title="A line at random rates",
)
REGISTERED = [*exercise1_1stpart.experiments, *exercise2.experiments, RANDOM]


class RecordingLauncher(StandInLauncher):
    """A launcher that starts nothing and records actions; tests set the state of the drivers, and its refusal."""

    refusal = None

    def check(self, timeout_s=15.0):
        if self.refusal:
            raise self.refusal

    def start(self, job, attempt):
        self.started.append((job.id, attempt.number, attempt.action, dict(attempt.options)))
        return {}


@dataclass
class Service:
    """A service, and what happens behind it."""

    storage: Path
    http: TestClient
    launcher: RecordingLauncher
    client: JobClient
    rules: AccessRules

    def get(self, path, **headers):
        return self.http.get(API + path, headers=headers)

    def post(self, path, body=None, **headers):
        return self.http.post(API + path, json=body, headers=headers)

    def start(self, body=None, **headers):
        """Start a search; return its id."""
        response = self.post("/searches", body or {"space": "exercise1_1stpart"}, **headers)
        assert response.status_code in (200, 201), response.text
        return response.json()["id"]

    def state(self, search_id):
        return self.get(f"/searches/{search_id}").json()["state"]

    def drive(self, search_id, ended=None, number=1):
        """Write what a driver writes when it starts, or when it ends with a state."""
        end = {"state": ended, "ended_at": timestamp()} if ended else {}
        beat(self.client.folder(search_id), number, **end)

    def write_results(self, search_id, num_trials=3, num_steps=5, is_running=False):
        """Write what a search writes: frames when it has ended, a file per trial before."""
        job = self.client.folder(search_id)
        plain = job.read()["experiments"][0]
        folder = job.experiment(plain["name"])
        keys = [*plain["space"], "seed"]
        folder.path.mkdir(parents=True, exist_ok=True)
        state = "running" if is_running else "finished"
        folder.write(plain | {"config_keys": keys, "state": state, "num_trials": num_trials})
        rows, histories = [], []
        for number, rate in enumerate(np.geomspace(1e-4, 1e-1, num_trials)):
            history = pd.DataFrame({"step": np.arange(num_steps), "train_loss": np.geomspace(4, rate, num_steps)})
            rows.append(
                {"experiment": plain["name"], "trial_id": f"t{number:05d}", "learning_rate": rate, "seed": 0,
                 "status": "failed" if number == 1 else "finished", **summarise(history)}
            )  # fmt: skip
            histories.append(history.assign(trial_id=rows[-1]["trial_id"]))
        if is_running:
            for row, history in zip(rows, histories, strict=True):
                folder.write_trial(row["trial_id"], row, history.drop(columns="trial_id"))
        else:
            write_frames(folder, trials_frame(rows, keys), pd.concat(histories, ignore_index=True))
        best = {"value": 1e-4, "trial_id": "t00000"}
        progress = {"num_trials": num_trials, "ended": {"finished": num_trials}, "running": 0, "best": best}
        folder.progress.write_text(json.dumps(progress), encoding="utf-8")
        folder.logs.mkdir(exist_ok=True)
        folder.log("t00001").write_text("Traceback\nValueError: <b>odd</b>\n", encoding="utf-8")
        job.output.write_text("one line\n", encoding="utf-8")
        return ExperimentFolder(folder.path)


def serve(storage, launcher=None, token=TOKEN, root_path="", revoked_file=None, sends_token=True, **rules):
    """Return a service of a storage without rate limits; a failure is a response, not an exception of the client."""
    launcher = launcher or RecordingLauncher()
    if isinstance(storage, Path):
        storage.mkdir(mode=0o700, exist_ok=True)
    client = JobClient(storage, launcher)
    revoked_file = revoked_file or client.storage.root / f".revoked-{secrets.token_hex(4)}"
    credentials = Credentials(token, "a-key-for-tests-only", revoked_file) if token else None
    unlimited = {name: TokenBuckets(1e6, 1e6) for name in ("public", "reads", "changes")}
    rules = AccessRules(credentials, frozenset({"localhost", "127.0.0.1", "::1"}), **(unlimited | rules))
    app = create_app(client, rules, REGISTERED, root_path=root_path)
    http = TestClient(app, "http://127.0.0.1", raise_server_exceptions=False, follow_redirects=False)
    if token and sends_token:
        http.headers["Authorization"] = f"Bearer {token}"
    return Service(client.storage.root, http, launcher, client, rules)


@pytest.fixture
def service(tmp_path):
    """A service over an empty storage; its client sends the token."""
    service = serve(tmp_path / "jobs")
    with service.http:
        yield service


@pytest.fixture
def search_id(service):
    """A search with results, whose driver has not started."""
    search_id = service.start()
    service.write_results(search_id)
    return search_id


def problem_of(response):
    """Return the detail of a problem, which is one line in the agreed form."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    problem = response.json()
    assert list(problem) == ["type", "title", "status", "detail", "request_id"]
    assert problem["type"].startswith("urn:tune-hpc:problem:")
    assert problem["status"] == response.status_code
    assert problem["request_id"] == response.headers["x-request-id"]
    assert "\n" not in problem["detail"]
    return problem["detail"]


@contextmanager
def populated_service(storage):
    """Yield a service with a search that has ended, one that runs and one that has not begun, and their ids."""
    storage.mkdir(mode=0o700)
    service = serve(storage)
    with service.http:
        ids = [service.start() for _ in range(3)]
        service.write_results(ids[0])
        service.drive(ids[0], "finished")
        service.write_results(ids[1], is_running=True)
        service.drive(ids[1])
        yield service, ids
