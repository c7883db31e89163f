"""Adaptive searches, and searches that are resumed and extended, on Ray."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from optuna.trial import TrialState
from ray import tune

from tests.search.trainables import counts, valley
from tune_hpc import Experiment, Space, extend, load, resume, run, run_all
from tune_hpc.errors import ConflictError, FolderError, InvalidExperimentError
from tune_hpc.search.searchers.optuna_study import AskTellStudy
from tune_hpc.storage.experiment_folder import ExperimentFolder

QUIET = {"show_progress": False, "runner": "local"}
ON_RAY = {"show_progress": False}


def experiment(folder: Path, searcher: str, **changes) -> Experiment:
    """Return a search for the bottom of a valley, of which a third diverges."""
    space = Space({"x": tune.uniform(0, 1), **files(folder)}, keys={})
    settings = {"searcher": searcher, "num_samples": 6, "metric": "loss", "mode": "min", "seeds": ()}
    return Experiment(f"valley.{searcher}", space, valley, **(settings | changes))


def files(folder: Path) -> dict[str, str]:
    """Return the paths of the file to which trials append, and of the file that ends their pauses."""
    return {name: str(folder / name) for name in ("journal", "hurry")}


def started(folder: Path) -> Counter:
    """Return the number of starts of each trial, by its ``x``."""
    return Counter(float(line) for line in (folder / "journal").read_text(encoding="utf-8").split())


def workers_of(process: int) -> set[int]:
    """Return the worker processes of the Ray that a process started."""
    titles, parents = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended
            parents[int(path.name)] = int((path / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
            titles[int(path.name)] = (path / "cmdline").read_bytes().decode(errors="replace")

    def is_below(number: int) -> bool:
        return number in parents and (parents[number] == process or is_below(parents[number]))

    return {
        one for one, title in titles.items() if title.startswith("ray::") and "Agent" not in title and is_below(one)
    }


@pytest.fixture
def studies(monkeypatch):
    """Record every Optuna study with its calls."""
    made = []

    class Recorder(AskTellStudy):
        def __init__(self, *args):
            super().__init__(*args)
            self.calls = []
            made.append(self)

        def ask(self):
            number, config = super().ask()
            self.calls.append(("suggest", number))
            return number, config

        def add(self, config, outcome):
            number = super().add(config, outcome)
            self.calls.append(("add", number))
            return number

    monkeypatch.setattr("tune_hpc.search.searchers.optuna_study.AskTellStudy", Recorder)
    return made


@pytest.fixture(scope="module")
def by_searcher(tmp_path_factory):
    """Return one search by each searcher, from one run."""
    parent = tmp_path_factory.mktemp("by_searcher")
    searches = [experiment(parent, name, num_samples=12) for name in ("random", "quasi_random", "tpe", "gp")]
    results = run_all(searches, folders=[parent / one.name for one in searches], **QUIET)
    return {one.experiment["searcher"]: one for one in results}


@pytest.mark.parametrize("searcher", ["random", "quasi_random", "tpe", "gp"])
def test_every_searcher_copes_with_divergences(by_searcher, searcher):
    results = by_searcher[searcher]
    assert results.experiment["state"] == "finished"
    assert len(results.trials) == 12
    assert set(results.trials.loc[results.trials["x"] > 0.7, "status"]) == {"diverged"}
    assert set(results.trials.loc[results.trials["x"] <= 0.7, "status"]) == {"finished"}
    assert 0 < results.counts()["diverged"] < 8


def test_suggestions_are_recorded(by_searcher):
    lines = (by_searcher["tpe"].folder / "proposals.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["config"]["x"] for line in lines] == list(by_searcher["tpe"].trials["x"])
    assert not (by_searcher["random"].folder / "proposals.jsonl").exists()


@pytest.fixture(scope="module")
def on_slots(ray_session, tmp_path_factory):
    """Return the trials of three searches by the number of slots."""
    found = {}
    for slots, cpus in ((1, 1), (4, 0.5)):
        parent = tmp_path_factory.mktemp(f"slots{slots}")
        grid = experiment(parent, "grid", num_samples=None).with_values({"x": tune.choice([0.1, 0.2, 0.3, 0.4])})
        others = [experiment(parent, name, num_samples=7, search_seed=11) for name in ("random", "quasi_random")]
        folders = [parent / name for name in ("grid", "random", "quasi_random")]
        found[slots] = run_all([grid, *others], folders=folders, max_concurrent=slots, cpus_per_trial=cpus, **ON_RAY)
    return {slots: {one.experiment["searcher"]: one.trials for one in results} for slots, results in found.items()}


@pytest.mark.ray
@pytest.mark.parametrize(("searcher", "num_trials"), [("grid", 4), ("random", 7), ("quasi_random", 7)])
def test_configurations_do_not_depend_on_the_number_of_slots(on_slots, searcher, num_trials):
    first, second = (on_slots[slots][searcher][["trial_id", "x"]] for slots in (1, 4))
    assert len(first) == num_trials
    pd.testing.assert_frame_equal(first, second)


@pytest.fixture(scope="module")
def six_of_each(tmp_path_factory):
    """Return the folders of searches with six trials each, from one run."""
    parents = {name: tmp_path_factory.mktemp(name) for name in ("random", "quasi_random", "tpe")}
    searches = [experiment(parent, name) for name, parent in parents.items()]
    run_all(searches, folders=[parent / "out" for parent in parents.values()], **QUIET)
    return parents


@pytest.mark.parametrize("searcher", ["random", "quasi_random", "tpe"])
def test_extension_repeats_no_trial(searcher, six_of_each, studies):
    folder = six_of_each[searcher]
    whole = experiment(folder, searcher)
    first = load(folder / "out")
    second = extend(folder / "out", num_samples=6, **QUIET)
    assert len(first.trials) == 6
    assert len(second.trials) == 12
    assert second.experiment["state"] == "finished"
    assert second.experiment["num_samples"] == 12
    pd.testing.assert_frame_equal(second.trials.head(6)[first.trials.columns], first.trials)
    assert set(started(folder).values()) == {1}
    assert len(started(folder)) == 12
    if searcher == "tpe":
        (study,) = studies
        assert study.calls == [("add", number) for number in range(6)] + [("suggest", n) for n in range(6, 12)]
        suggested = [trial.params["x"] for trial in study.trials]
        assert suggested == list(second.trials["x"])
    else:
        again = [one["x"] for one in whole.replace(num_samples=12).configs()]
        assert list(second.trials["x"]) == again


def test_study_receives_the_mean_over_the_seeds(tmp_path, studies):
    run(experiment(tmp_path, "tpe", num_samples=4, seeds=(0, 1)), output_dir=tmp_path / "out", **QUIET)
    results = load(tmp_path / "out")
    assert len(results.trials) == 8
    assert set(started(tmp_path).values()) == {2}
    means = results.trials.groupby("x", sort=False)["loss"].mean()
    for trial in studies[0].trials:
        if not trial.constraints["diverged"] > 0:
            assert trial.value == pytest.approx(means[trial.params["x"]])
        assert trial.state is TrialState.COMPLETE


def test_warm_start_adds_the_trials_of_another_search(by_searcher, tmp_path, studies):
    begun = experiment(tmp_path, "tpe", num_samples=3)
    # Configurations with another journal or a value outside the range are not added.
    narrow = begun.with_values({"x": tune.uniform(0.2, 0.6), **files(by_searcher["random"].folder.parent)})
    run(narrow, output_dir=tmp_path / "out", warm_start=[by_searcher["random"].folder], **QUIET)
    inside = by_searcher["random"].trials["x"].between(0.2, 0.6)
    added = [number for call, number in studies[0].calls if call == "add"]
    assert len(added) == inside.sum() > 0
    assert len(load(tmp_path / "out").trials) == 3


@pytest.mark.parametrize("scheduler", ["none", "asha"])
def test_resumed_search_has_the_warm_start_of_an_undisturbed_one(tmp_path, scheduler):
    def train(config, report, checkpoint):
        step = (checkpoint.load() or {"step": 0})["step"]
        while step < 27:
            step += 1
            report(step, {"loss": (config["x"] - 0.3) ** 2 + 1 / step})
            checkpoint.save(step, lambda step=step: {"step": step})

    options = {"runner": "local", "show_progress": False}
    space = Space({"x": tune.uniform(0, 1)}, keys={})
    made = Experiment(
        "first", space, train, metric="loss", mode="min", searcher="random", num_samples=30, budget=27, seeds=()
    )
    first = run(made, output_dir=tmp_path / "first", **options)
    second = made.replace(name="second", searcher="tpe", num_samples=8, scheduler=scheduler)
    warm = {"warm_start": [first.folder]}
    whole = run(second, output_dir=tmp_path / "whole", **warm, **options)
    plain = run(second, output_dir=tmp_path / "plain", **options)
    target = {"target": float(whole.trials["loss"].iloc[1])}
    stopped = run(second, output_dir=tmp_path / "stopped", **warm, **target, **options)
    assert 0 < (stopped.trials["status"] != "running").sum() < 8
    shutil.rmtree(first.folder)
    (resumed,) = resume(stopped.folder, trainable=train, **options)
    assert resumed.trials["x"].tolist() == whole.trials["x"].tolist() != plain.trials["x"].tolist()
    assert resumed.trials["loss"].tolist() == whole.trials["loss"].tolist()
    (tmp_path / "stopped" / "warm_start.jsonl").unlink()
    with pytest.raises(FolderError, match=r"warm_start\.jsonl cannot be read"):
        extend(stopped.folder, num_samples=1, trainable=train, **options)


def test_warm_start_of_other_searchers_is_rejected(by_searcher, tmp_path):
    with pytest.raises(InvalidExperimentError, match="only tpe and gp learn"):
        run(
            experiment(tmp_path, "random"), output_dir=tmp_path / "out", warm_start=[by_searcher["tpe"].folder], **QUIET
        )


def test_warm_start_without_the_metric_is_rejected(by_searcher, tmp_path):
    other = experiment(tmp_path, "tpe", metric="accuracy", mode="max")
    with pytest.raises(FolderError, match=r"has no metric accuracy, by which valley\.tpe ranks"):
        run(other, output_dir=tmp_path / "out", warm_start=[by_searcher["random"].folder], **QUIET)


def test_grid_cannot_be_extended(tmp_path):
    whole = experiment(tmp_path, "grid", num_samples=None).with_values({"x": tune.choice([0.1, 0.2])})
    run(whole, output_dir=tmp_path / "out", **QUIET)
    with pytest.raises(InvalidExperimentError, match="a grid has no more configurations"):
        extend(tmp_path / "out", num_samples=3, **QUIET)


def test_finished_search_is_not_changed(by_searcher):
    folder = by_searcher["random"].folder
    before = (folder / "trials.parquet").read_bytes()
    (again,) = resume(folder, **QUIET)
    assert (folder / "trials.parquet").read_bytes() == before
    assert len(again.trials) == 12


class TestInterrupted:
    """Resumption after SIGKILL of a search in its own process."""

    def killed(self, folder: Path, searcher: str, num_samples: int, enough: int) -> None:
        """Run a search, and kill it after a number of trials."""
        self.killed_in(
            folder,
            "from tests.search.test_resume_extend import QUIET, experiment, Path, tune, run\n"
            f"one = experiment(Path({str(folder)!r}), {searcher!r}, num_samples={num_samples})\n"
            f"run(one.with_values({{'pause': 0.15}}), output_dir={str(folder / 'out')!r}, **QUIET)\n",
            enough,
        )

    def killed_in(self, folder: Path, script: str, enough: int) -> None:
        """Run a script, and kill it after a number of trials of its search."""
        root = Path(__file__).parents[2]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        process = subprocess.Popen([sys.executable, "-c", script], cwd=folder, env=environment)
        deadline = time.monotonic() + 120
        while len(list((folder / "out" / "trials").glob("*.parquet"))) < enough and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(ConflictError, match=f"is being run by process {process.pid} of this machine"):
            resume(folder / "out", **QUIET)
        process.send_signal(signal.SIGKILL)
        process.wait()

    @pytest.mark.parametrize("searcher", ["quasi_random", "tpe"])
    def test_killed_search_repeats_no_ended_trial(self, searcher, tmp_path, studies):
        self.killed(tmp_path, searcher, 16, 5)
        half = load(tmp_path / "out")
        assert half.experiment["state"] == "running"
        assert 5 <= len(half.trials) < 16
        (tmp_path / "hurry").touch()
        (whole,) = resume(tmp_path / "out", **QUIET)
        assert whole.experiment["state"] == "finished"
        assert len(whole.trials) == 16
        assert set(whole.counts()) <= {"finished", "diverged"}
        repeated = whole.trials.set_index("trial_id").loc[half.trials["trial_id"], ["status", "x", "loss", "train_s"]]
        pd.testing.assert_frame_equal(repeated, half.trials.set_index("trial_id")[list(repeated)], check_dtype=False)
        began = started(tmp_path)
        assert all(began[x] == 1 for x in half.trials["x"])
        assert set(began) == set(whole.trials["x"])
        if searcher == "tpe":
            added = [number for call, number in studies[0].calls if call == "add"]
            assert len(added) == len(half.trials)
            assert all(trial.state.is_finished() for trial in studies[0].trials)
            assert [trial.params["x"] for trial in studies[0].trials] == list(whole.trials["x"])
        assert len(whole.experiment["provenance"]["continued"]) == 1

    @pytest.mark.slow
    @pytest.mark.parametrize("is_killed", [False, True])
    def test_interrupted_extension_repeats_no_trial(self, is_killed, tmp_path, studies):
        whole = experiment(tmp_path, "tpe", num_samples=20).with_values({"pause": 0.1 if is_killed else 0})
        hurry = tmp_path / "hurry"
        hurry.touch()
        first = run(whole, output_dir=tmp_path / "out", **QUIET)
        assert len(first.trials) == 20
        if is_killed:
            hurry.unlink()
            extending = f"extend({str(tmp_path / 'out')!r}, num_samples=20, **QUIET)\n"
            self.killed_in(tmp_path, f"from tests.search.test_resume_extend import QUIET, extend\n{extending}", 10)
            before = load(tmp_path / "out").trials
            assert 30 <= len(before) < 40
            hurry.touch()
            (second,) = resume(tmp_path / "out", **QUIET)
        else:
            before = first.trials
            second = extend(tmp_path / "out", num_samples=20, **QUIET)
        assert second.experiment["state"] == "finished"
        assert len(second.trials) == 40
        assert set(second.counts()) == {"finished", "diverged"}
        pd.testing.assert_frame_equal(second.trials.head(20)[first.trials.columns], first.trials)
        study = studies[-1]
        assert study.calls[: len(before)] == [("add", number) for number in range(len(before))]
        assert [trial.params["x"] for trial in study.trials] == list(second.trials["x"])
        assert all(trial.state is TrialState.COMPLETE for trial in study.trials)
        losses = second.trials["loss"].where(second.trials["status"] == "finished")
        assert [trial.value for trial, loss in zip(study.trials, losses, strict=True) if loss == loss] == pytest.approx(
            list(losses.dropna())
        )
        began = started(tmp_path)
        assert set(began) == set(second.trials["x"])
        assert {began[x] for x in before["x"]} == {1}
        # Only the trial that was running at the kill started twice.
        assert began.total() <= 40 + is_killed

    @pytest.mark.slow
    def test_fused_group_of_a_killed_search_resumes_to_the_same_bits(self, tmp_path):
        space = {"model": "softmax", "optimizer": tune.choice(["adam", "momentum"]), "learning_rate": 0.01,
                 "steps": 6000, "num_evaluations": 60, "num_evaluation_images": 4000}  # fmt: skip
        fused = Experiment("fused", Space(space), metric="valid_loss", mode="min", seeds=(0, 1))
        whole = run(fused, output_dir=tmp_path / "whole", **QUIET)
        script = (
            "import sys\n"
            "from tests.search.test_resume_extend import QUIET, Path, run\n"
            "from tune_hpc import load\n"
            "from tune_hpc.search.experiment_json import experiment_from_json\n"
            "one = experiment_from_json(load(sys.argv[1]).experiment)\n"
            "run(one, output_dir=sys.argv[2], checkpoint_interval_s=0.0, **QUIET)\n"
        )
        root = Path(__file__).parents[2]
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "whole"), str(tmp_path / "out")],
            cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
        )  # fmt: skip
        deadline = time.monotonic() + 120
        out, parts = ExperimentFolder(tmp_path / "out"), tmp_path / "out" / "trials"
        while not list(parts.glob("b*.checkpoint")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(list(parts.glob("b*.checkpoint"))) == 1
        # No trial has ended; on a busy machine they may have run long enough to write their files.
        assert {out.read_row(trial_id)["status"] for trial_id in out.trial_ids()} <= {"running"}
        (resumed,) = resume(tmp_path / "out", **QUIET)
        assert list(resumed.trials["num_fused"]) == list(whole.trials["num_fused"]) == [4] * 4
        for trial_id in whole.trials["trial_id"]:
            first, second = (
                each.history[each.history["trial_id"] == trial_id].reset_index(drop=True) for each in (whole, resumed)
            )
            pd.testing.assert_frame_equal(first, second, check_exact=True)
        assert not parts.exists()


def test_damaged_suggestions_are_an_error(tmp_path):
    run(experiment(tmp_path, "tpe", num_samples=3), output_dir=tmp_path / "out", **QUIET)
    file = tmp_path / "out" / "proposals.jsonl"
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole + '{"number": 3, "con', encoding="utf-8")
    assert len(extend(tmp_path / "out", num_samples=1, **QUIET).trials) == 4
    assert file.read_text(encoding="utf-8").startswith(whole)
    file.write_text(whole.replace("{", "", 1), encoding="utf-8")
    with pytest.raises(FolderError, match=r"proposals\.jsonl cannot be read"):
        extend(tmp_path / "out", num_samples=1, **QUIET)
    file.unlink()
    with pytest.raises(FolderError, match=r"proposals\.jsonl cannot be read"):
        extend(tmp_path / "out", num_samples=1, **QUIET)


class TestLimits:
    def slow(self, folder: Path, **changes) -> Experiment:
        return experiment(folder, "quasi_random", num_samples=30).with_values({"pause": 0.2, **changes})

    def test_search_resumes_after_its_time_budget(self, tmp_path):
        first = run(self.slow(tmp_path), output_dir=tmp_path / "out", time_budget_s=4, **QUIET)
        assert first.experiment["state"] == "stopped"
        assert first.experiment["ended_by"] == "the time budget of 4 s is spent"
        assert len(first.trials) < 30  # possibly none on a busy machine
        (tmp_path / "hurry").touch()
        (whole,) = resume(tmp_path / "out", **QUIET)
        assert whole.experiment["state"] == "finished"
        assert whole.experiment["ended_by"] is None
        assert len(whole.trials) == 30
        ended = first.trials[first.trials["status"] != "running"]
        began = started(tmp_path)
        assert all(began[x] == 1 for x in ended["x"])

    def test_target_stops_the_search(self, tmp_path):
        results = run(self.slow(tmp_path, pause=0.05), output_dir=tmp_path / "out", target=0.53, **QUIET)
        assert results.experiment["state"] == "stopped"
        assert results.best()["loss"] <= 0.53
        assert results.experiment["ended_by"].endswith("and 0.53 was the target")
        assert len(results.trials) < 30

    def test_resumed_study_repeats_no_suggestion(self, tmp_path, studies):
        space = Space({"x": tune.uniform(0, 1), "steps": 20, "pause": 0.02, **files(tmp_path)}, keys={})
        search = Experiment(
            "counts.tpe", space, counts, metric="loss", mode="min", seeds=(), searcher="tpe", num_samples=8
        )
        first = run(search, output_dir=tmp_path / "out", target=2.0, checkpoint_interval_s=3600, **QUIET)
        assert first.experiment["state"] == "stopped"
        num_ended = first.counts()["finished"]
        (tmp_path / "hurry").touch()
        (whole,) = resume(tmp_path / "out", **QUIET)
        assert whole.counts() == {"finished": 8}
        before, after = (Counter(call for call, _ in study.calls) for study in studies)
        # A suggested trial may not have started when the target was reached.
        assert len(first.trials) <= before["suggest"] < 8
        assert after == {"add": num_ended, "suggest": 8 - before["suggest"]}
        assert [trial.params["x"] for trial in studies[1].trials] == list(whole.trials["x"])
        assert all(trial.state is TrialState.COMPLETE for trial in studies[1].trials)
        steps = Counter((tmp_path / "journal").read_text(encoding="utf-8").splitlines())
        assert set(steps.values()) == {1}
        assert len(steps) == 8 * 20 == len(whole.history)

    @pytest.mark.ray
    @pytest.mark.parametrize(("sent", "code"), [(signal.SIGUSR1, 75), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_signal_determines_the_exit_code_of_a_run_on_ray(self, sent, code, tmp_path):
        # Two trials end, and the later ones run until the stop request.
        (tmp_path / "slow.py").write_text(
            "import time\n"
            "from pathlib import Path\n"
            f"here = Path({str(tmp_path)!r})\n"
            "def train(config, report):\n"
            "    report(1, {'loss': config['x']})\n"
            "    (here / f'begun-{config[\"x\"]}').touch()\n"
            "    end = time.monotonic() + (0 if config['x'] <= 2 else 60)\n"
            "    while time.monotonic() < end and 'stop' not in (here / 'out' / 'trials' / 'control').read_text():\n"
            "        time.sleep(0.05)\n"
            "    report(2, {'loss': config['x'] / 2})\n",
            encoding="utf-8",
        )
        command = ["-m", "tune_hpc.cli", "run", "slow:train", "--set", f"x={','.join(map(str, range(1, 61)))}"]
        command += ["--output-dir", "out", "--no-report"]
        search = subprocess.Popen(
            [sys.executable, *command], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 120
        workers = set()
        # No trial starts after the signal; on a busy machine the second may be late.
        begun = [tmp_path / f"begun-{x}" for x in (1, 2, 3)]
        while not all(one.exists() for one in begun) and time.monotonic() < deadline:
            workers |= workers_of(search.pid)
            time.sleep(0.1)
        workers |= workers_of(search.pid)
        search.send_signal(sent)
        output, logged = search.communicate(timeout=120)
        # The local Ray starts no unused worker.
        assert 1 <= len(workers) <= len(os.sched_getaffinity(0))
        assert search.returncode == code
        half = load(tmp_path / "out")
        assert half.experiment["state"] == "interrupted"
        assert 3 <= half.counts()["finished"] < 60
        assert half.counts().get("running", 0) == 0  # they had time to end
        assert half.best()["x"] == 1
        reason, message = {
            signal.SIGUSR1: ("the batch system's time is nearly over (SIGUSR1)",) * 2,
            signal.SIGTERM: ("terminated (SIGTERM)",) * 2,
            signal.SIGINT: ("interrupted", "stopping"),
        }[sent]
        assert f"slow.train: {reason}; to resume: tune-hpc resume {tmp_path / 'out'}\n" in output
        again = "again " if sent is signal.SIGINT else ""
        expected = f"{message}: running trials save their states within 30 s; press Ctrl-C {again}to stop at once"
        assert [line for line in logged.splitlines() if "Ctrl-C" in line] == [expected]
        assert "Traceback" not in logged


@pytest.mark.parametrize(
    ("criteria", "message"),
    [
        ({"time_budget_s": 0}, "time_budget_s must be above 0; got 0"),
        ({"target": float("nan")}, "target must be a finite number"),
    ],
)
def test_impossible_stop_criteria_are_rejected(criteria, message, tmp_path):
    with pytest.raises(InvalidExperimentError, match=message):
        run(experiment(tmp_path, "random"), output_dir=tmp_path / "out", **criteria, **QUIET)
    assert not (tmp_path / "out").exists()


def test_suggestions_fill_a_fused_group(studies, tmp_path):
    space = Space(
        {
            "model": "softmax", "steps": 5, "batch_size": 10, "num_evaluations": 1, "num_evaluation_images": 50,
            "optimizer": tune.choice(["adam", "gradient_descent"]), "learning_rate": tune.loguniform(1e-4, 1),
        }
    )  # fmt: skip
    search = Experiment("learns", space, metric="valid_loss", mode="min", searcher="tpe", num_samples=11, seeds=(0, 1))
    results = run(search, output_dir=tmp_path / "out", fuse=8, **QUIET)
    assert results.counts() == {"finished": 22}
    # Four configurations with two seeds each, twice; then the last three.
    assert list(results.trials["num_fused"]) == [8] * 16 + [6] * 6
    (study,) = studies
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 11
    assert [number for call, number in study.calls if call == "suggest"] == list(range(11))
