"""A service over a storage in which nothing runs: drivers are stood in for, and what they would leave is written."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from ray import tune

from search_spaces import exercise1_1stpart, exercise2
from tune_hpc.analysis.folder import ExperimentFolder
from tune_hpc.analysis.parts import summarise, write_part
from tune_hpc.analysis.results import trials_frame, write_frames
from tune_hpc.cluster.client import JobClient
from tune_hpc.cluster.job_folder import utc_now
from tune_hpc.cluster.launchers import DriverState
from tune_hpc.search.experiment import Experiment, Space
from tune_hpc.service.app import create_app

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


class StandIn:
    """A launcher that starts nothing; tests say what becomes of the drivers."""

    def __init__(self):
        self.started = []
        self.ended = []
        self.driver = DriverState.ALIVE
        self.refusal = None

    def check(self):
        if self.refusal:
            raise self.refusal

    def place(self, job):
        return {"kind": "stand_in"}

    def start(self, job, attempt):
        self.started.append((job.id, attempt.number, attempt.verb, dict(attempt.options)))

    def state(self, job, attempt):
        return self.driver

    def end(self, job, attempt):
        self.ended.append((job.id, attempt.number))

    def output(self, job, attempt):
        return ""


@dataclass
class Service:
    """A service, and ways to have things happen behind it."""

    storage: Path
    http: TestClient
    launcher: StandIn
    client: JobClient
    strangers: list = field(default_factory=list)

    def begin(self, body=None, **headers):
        """Start a search; return its id."""
        answer = self.http.post("/searches", json=body or {"space": "exercise1_1stpart"}, headers=headers)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()["id"]

    def drive(self, search_id, ended=None, number=1):
        """Have its driver begin, or end with a state."""
        folder = self.client.folder(search_id)
        now = utc_now().isoformat(timespec="seconds")
        told = {"process": {"host": "elsewhere", "pid": 1, "began": "x"}, "began": now, "beat": now}
        folder.write_run(number, told | ({"state": ended, "ended": now} if ended else {}))

    def leave(self, search_id, num_trials=3, num_steps=5, is_running=False):
        """Write what a search leaves: frames when it has ended, a file a trial before."""
        folder = self.client.folder(search_id)
        plain = folder.read()["experiments"][0]
        home = ExperimentFolder(folder.path / plain["name"])
        keys = [*plain["space"], "seed"]
        home.path.mkdir(exist_ok=True)
        state = "running" if is_running else "finished"
        home.write(plain | {"config_keys": keys, "state": state, "num_trials": num_trials})
        rates = np.geomspace(1e-4, 1e-1, num_trials)
        rows, histories = [], []
        for number, rate in enumerate(rates):
            history = pd.DataFrame({"step": np.arange(num_steps), "train_loss": np.geomspace(4, rate, num_steps)})
            status = "failed" if number == 1 else "finished"
            rows.append(
                {"experiment": plain["name"], "trial_id": f"t{number:05d}", "status": status, "learning_rate": rate,
                 "seed": 0, **summarise(history)}
            )  # fmt: skip
            histories.append(history.assign(trial_id=rows[-1]["trial_id"]))
        if is_running:
            for row, history in zip(rows, histories, strict=True):
                write_part(home.part(row["trial_id"]), row, history.drop(columns="trial_id"))
        else:
            write_frames(home, trials_frame(rows, keys), pd.concat(histories, ignore_index=True))
        best = {"value": 1e-4, "trial_id": "t00000"}
        progress = {"num_trials": num_trials, "ended": {"finished": num_trials}, "running": 0, "best": best}
        home.progress.write_text(json.dumps(progress), encoding="utf-8")
        home.logs.mkdir(exist_ok=True)
        home.log("t00001").write_text("Traceback\nValueError: <b>odd</b>\n", encoding="utf-8")
        folder.output.write_text("one line\n", encoding="utf-8")
        return home


def serve(storage, launcher=None, token=TOKEN, **limits):
    """Return a service of a storage; it answers with what it would answer when a request fails."""
    launcher = launcher or StandIn()
    client = JobClient(storage, launcher)
    app = create_app(client, token, REGISTERED, **({"reads_per_s": 1e6, "writes_per_s": 1e6} | limits))
    http = TestClient(app, "http://127.0.0.1", raise_server_exceptions=False, follow_redirects=False)
    if token:
        http.headers["Authorization"] = f"Bearer {token}"
    return Service(storage, http, launcher, client)


@pytest.fixture
def service(tmp_path):
    """A service over an empty storage, asked with its token."""
    one = serve(tmp_path / "jobs")
    with one.http:
        yield one


def error_of(answer):
    """Return the message of a refusal, which is one line of the agreed form."""
    assert answer.headers["content-type"] == "application/json", answer.text
    told = answer.json()
    assert list(told) == ["error"]
    assert set(told["error"]) == {"kind", "message"}
    assert "\n" not in told["error"]["message"]
    return told["error"]["message"]
