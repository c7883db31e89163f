"""Programs as trainables: arguments, environment, metrics, errors, and the end of their processes."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray import tune

from tune_hpc import Command, Experiment, InProcessClient, Space, extend, load, resume, run
from tune_hpc.errors import FolderError, InvalidExperimentError, TrialError
from tune_hpc.search import command as command_module
from tune_hpc.search.experiment_json import check_same_search, experiment_from_json
from tune_hpc.search.stopping import StopRequested
from tune_hpc.search.trial import Trial, TrialDevices
from tune_hpc.storage.experiment_folder import ExperimentFolder

ROOT = Path(__file__).parents[2]
LOCAL = {"runner": "local", "show_progress": False}


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Return a function that writes a program and returns the command that runs it, with further words."""
    monkeypatch.chdir(tmp_path)

    def write(source: str, words: str = "", pattern: str = "") -> Command:
        (tmp_path / "train.py").write_text(f"import json, os, signal, subprocess, sys, time\n{source}\n")
        return Command(f"{sys.executable} -S train.py {words}", pattern)

    return write


def search(command, x=(1, 2), **fields):
    space = Space({"x": tune.choice(list(x)), "steps": 27}, keys={})
    return Experiment("search", space, command, **{"metric": "loss", "mode": "min", "seeds": ()} | fields)


def call(command, config=None, **arguments):
    """Call a command and return its reports."""
    reports = []
    command(config or {"x": 1}, lambda step, metrics: reports.append((step, metrics)), **arguments)
    return reports


def processes_of(session):
    """Return the processes of a session that are no zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[3] == str(session) and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def wait_for(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class TestArguments:
    def test_values_are_separate_arguments_and_no_shell_runs(self):
        command = Command("prog --name={name} '{flag} {{x}}' {number} ; $HOME")
        config = {"name": "a b; rm", "flag": True, "number": 1e-05, "unused": 3}
        assert command.arguments(config) == ["prog", "--name=a b; rm", "true {x}", "1e-05", ";", "$HOME"]
        assert command.parameters == ["name", "flag", "number"]

    def test_parameter_may_have_dots(self):
        assert Command("prog {model.lr}").arguments({"model.lr": [1, 2]}) == ["prog", "[1, 2]"]

    @pytest.mark.parametrize(
        ("template", "name"),
        [("python src/train.py {x}", "train"), ("./run.sh", "run"), ("/bin/prog {x}", "prog"), ("a+b", "a-b"),
         ("python -m package.train", "package")],
    )  # fmt: skip
    def test_name_is_that_of_the_script(self, template, name):
        assert Command(template).name == name

    def test_seed_is_a_parameter_if_there_are_seeds(self):
        assert search(Command("x {seed}"), seeds=(0,)).num_trials == 2
        with pytest.raises(InvalidExperimentError, match="the command has no parameter 'seed'; the space has x, steps"):
            search(Command("x {seed}"))

    def test_conditional_parameter_with_a_last_case_is_always_there(self):
        from tune_hpc import when

        space = Space({"x": tune.choice([1, 2]), "y": when(3, x=1) | 4}, keys={})
        assert Experiment("search", space, Command("x {y}")).num_trials == 2


class TestMetrics:
    def test_json_lines_are_metrics_with_steps(self, script, capsys):
        lines = [
            "start", '{"step": 3, "loss": 1, "name": "a", "flag": true, "epoch": 1}', '{"epoch": 5, "loss": 0.5}',
            '{"iteration": 7, "loss": NaN}', '{"loss": 0.25, "epoch": 0.5}', "{'loss': 1}", "[1]", '{"step": 9}',
            '{"loss": 1e999, "x": 3, "status": 1}',
        ]  # fmt: skip
        reports = call(script(f"print({chr(10).join(lines)!r}, end='')"))
        assert str(reports) == str([
            (3, {"loss": 1.0, "epoch": 1.0}), (5, {"loss": 0.5}), (7, {"loss": float("nan")}),
            (8, {"loss": 0.25, "epoch": 0.5}), (9, {"loss": float("inf")}),
        ])  # fmt: skip
        assert capsys.readouterr().out.splitlines() == lines

    def test_groups_of_a_pattern_are_metrics(self, script):
        source = "print('epoch 2/9 loss=0.5 acc=91%'); print('epoch 3/9 loss=-'); print({'loss': 1}); print('epoch 4')"
        command = script(source, pattern=r"epoch (?P<step>\d+)(/9 loss=(?P<loss>\S+)( acc=(?P<acc>\d+)%)?)?")
        assert call(command) == [(2, {"loss": 0.5, "acc": 91.0})]

    def test_fractional_epochs_are_counted(self, script):
        source = "for i in range(1, 5): print(json.dumps({'epoch': i / 2, 'loss': 1 / i}))"
        assert [step for step, _ in call(script(source))] == [1, 2, 3, 4]
        later = "for epoch in (1, 1.5, 2): print(json.dumps({'epoch': epoch, 'loss': 1}))"
        assert [step for step, _ in call(script(later))] == [1, 2, 3]

    @pytest.mark.parametrize(
        ("last", "pattern", "text"), [("null", "", "null"), ("2,000.0", r'"loss": (?P<loss>[^}]+)', "'2,000.0'")]
    )
    def test_last_value_that_is_no_number_is_an_error(self, script, last, pattern, text):
        lines = ['{"epoch": 1, "loss": 0.5}', f'{{"epoch": 2, "loss": {last}}}', '{"epoch": 3, "loss": 0.25}']
        assert call(script(f"print({chr(10).join(lines)!r})", pattern=pattern), metric="loss")[-1][1] == {"loss": 0.25}
        message = f"the last loss that the command printed is {text}, which is no number"
        for printed in (lines[:2], lines[1:2]):
            with pytest.raises(TrialError, match=message):
                call(script(f"print({chr(10).join(printed)!r})", pattern=pattern), metric="loss")

    def test_metrics_arrive_while_the_program_runs(self, script):
        command = script("print('{\"loss\": 1}'); time.sleep(60)")
        with pytest.raises(ZeroDivisionError):
            command({}, lambda step, metrics: 1 / 0)

    @pytest.mark.parametrize("pattern", ["", "(?P<loss>no such line)"])
    def test_output_without_metrics_is_an_error(self, script, pattern):
        with pytest.raises(TrialError, match=r"no line of the output .*; print one, like"):
            call(script("print('done')", pattern=pattern))

    def test_missing_metric_is_an_error_that_names_the_others(self, script):
        command = script("print('{\"val_loss\": 1}')")
        with pytest.raises(TrialError, match="printed no loss, which ranks the trials; its metrics are val_loss"):
            call(command, metric="loss")
        assert call(command, metric="train_s") == call(command, metric="val_loss") == [(1, {"val_loss": 1.0})]


class TestProcess:
    def test_environment_has_the_configuration(self, script, monkeypatch, tmp_path):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
        command = script(
            "config = json.loads(os.environ['TUNE_HPC_CONFIG'])\n"
            "print(json.dumps({name: float(os.environ[name]) for name in ('TUNE_HPC_SEED', 'CUDA_VISIBLE_DEVICES')} |"
            " {'y': config['x'] + 1, 'trial': int(os.environ['TUNE_HPC_TRIAL_ID'][1:]), 'n': len(sys.argv)}))\n"
            "open(os.environ['TUNE_HPC_TRIAL_FOLDER'] + '/model', 'w').close()"
        )
        trial = Trial("t00007", 5, TrialDevices(1, 0), ExperimentFolder(tmp_path / "out"))
        expected = {"TUNE_HPC_SEED": 5, "CUDA_VISIBLE_DEVICES": 3, "y": 3, "trial": 7, "n": 1}
        assert call(command, {"x": 2, "seed": 5}, trial=trial) == [(1, expected)]
        assert (tmp_path / "out" / "artifacts" / "t00007" / "model").exists()

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("print('first\\nlast  \\n', file=sys.stderr); sys.exit(3)", "the command ended with code 3: last"),
            ("sys.exit(1)", "the command ended with code 1: no error output"),
            (
                "os.kill(os.getpid(), signal.SIGSEGV)",
                "the command ended with code -11 (Segmentation fault): no error output",
            ),
            ("os.kill(os.getpid(), signal.SIGKILL)", "the command ended with code -9 (Killed): no error output"),
            ("os.kill(os.getpid(), signal.SIGHUP)", "the command ended with code -1 (Hangup): no error output"),
            ("raise ValueError('bad')", "the command ended with code 1: ValueError: bad"),
        ],
    )
    def test_exit_code_is_an_error(self, script, source, message):
        with pytest.raises(TrialError) as error:
            call(script(source))
        assert str(error.value) == message

    def test_missing_program_is_an_error(self, tmp_path):
        with pytest.raises(TrialError, match="code 1: no-such-program: No such file or directory"):
            call(Command("no-such-program"))

    @pytest.mark.parametrize("ignores", [False, True])
    def test_stopped_program_and_its_children_end(self, script, tmp_path, monkeypatch, ignores):
        monkeypatch.setattr(command_module, "GRACE_S", 0.2 if ignores else 60)
        ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)" if ignores else ""
        source = (
            f"{ignore}\nsubprocess.Popen(['sleep', '60'])\nprint(json.dumps(dict(pid=os.getsid(0))))\ntime.sleep(60)"
        )
        pids = []

        def report(step, metrics):
            pids.append(int(metrics["pid"]))
            assert len(processes_of(pids[0])) == 3
            raise StopRequested

        with pytest.raises(StopRequested):
            script(source)({}, report)
        assert processes_of(pids[0]) == []

    def test_stop_request_ends_a_silent_program(self, script):
        class Request:
            is_made = False

        request = Request()

        def report(step, metrics):
            request.is_made = True

        with pytest.raises(StopRequested):
            script("print('{\"loss\": 1}'); time.sleep(60)")({}, report, stop_request=request)

    def test_process_in_the_background_does_not_delay_the_end(self, script):
        source = "child = subprocess.Popen(['sleep', '60'])\nprint(json.dumps(dict(pid=os.getsid(0))))"
        ((_, metrics),) = call(script(source))
        assert processes_of(int(metrics["pid"])) == []

    def test_program_and_its_children_end_with_a_killed_trial_process(self, script, tmp_path):
        script("subprocess.Popen(['sleep', '60']); print(json.dumps(dict(pid=os.getsid(0)))); time.sleep(60)")
        program = (
            "import sys; from tune_hpc import Command\n"
            f"Command({sys.executable!r} + ' -S train.py')(dict(), lambda step, metrics: print(metrics, flush=True))"
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        trial = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment)
        pid = int(json.loads(trial.stdout.readline().replace(b"'", b'"'))["pid"])
        assert len(processes_of(pid)) == 3
        trial.kill()
        trial.wait()
        trial.stdout.close()
        wait_for(lambda: processes_of(pid) == [])


class TestSearch:
    SOURCE = "for step in range(1, 28): print(json.dumps({'step': step, 'loss': float(sys.argv[1]) / step}))"

    def test_failed_trial_has_its_error_and_others_continue(self, script, tmp_path):
        command = script(f"{self.SOURCE}\nsys.exit('no twos') if sys.argv[1] == '2' else 0", "{x}")
        results = run(search(command, x=(1, 2, 3)), output_dir=tmp_path / "out", **LOCAL)
        assert results.trials["status"].tolist() == ["finished", "failed", "finished"]
        assert results.trials["error"][1] == "the command ended with code 1: no twos"
        assert results.best()["loss"] == pytest.approx(1 / 27)
        assert len(results.history) == 3 * 27

    @pytest.mark.parametrize("scheduler", ["asha_stopping", "median"])
    def test_scheduler_stops_trials(self, script, tmp_path, scheduler):
        experiment = search(script(f"{self.SOURCE}\nprint('end')", "{x}"), x=range(1, 9), scheduler=scheduler)
        results = run(experiment, output_dir=tmp_path / "out", **LOCAL)
        assert set(results.counts()) == {"finished", "stopped"}

    def test_search_is_resumed_and_extended_from_its_folder_alone(self, script, tmp_path, monkeypatch):
        command = script(f"{self.SOURCE}\nopen('calls', 'a').write(sys.argv[1])", "{x}")
        experiment = search(command, x=range(1, 9), searcher="random", num_samples=2)
        stream = io.StringIO()
        run(experiment, output_dir="out", target=100, runner="local", stream=stream)
        assert len(Path("calls").read_text()) == 1
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        (results,) = resume(tmp_path / "out", **LOCAL)
        assert results.counts() == {"finished": 2}
        assert extend(tmp_path / "out", num_samples=1, **LOCAL).counts() == {"finished": 3}
        assert len((tmp_path / "calls").read_text()) == 3
        assert experiment_from_json(load(tmp_path / "out").experiment).trainable == command

    def test_interrupted_trial_starts_again(self, script, tmp_path):
        source = "print('{\"loss\": 1}')\nif not os.path.exists('marker'): open('marker', 'w'); time.sleep(60)"
        results = run(search(script(source), x=(1,)), output_dir="out", time_budget_s=0.5, **LOCAL)
        assert (results.counts(), results.experiment["state"]) == ({"running": 1}, "stopped")
        (results,) = resume("out", **LOCAL)
        assert results.counts() == {"finished": 1}

    def test_missing_folder_is_rejected(self, tmp_path):
        experiment = search(Command("x", folder=str(tmp_path / "no")))
        with pytest.raises(InvalidExperimentError, match=r"the folder of the command, .*/no, does not exist on this"):
            run(experiment, output_dir=tmp_path / "out", **LOCAL)

    def test_other_command_is_another_search(self, script, tmp_path):
        command = script(self.SOURCE, "{x}")
        run(search(command), output_dir="out", **LOCAL)
        check_same_search(search(Command(command.template, folder="/")), load("out").experiment, "out")
        with pytest.raises(FolderError, match="out has another search: trainable is "):
            check_same_search(search(Command(f"{command.template} more")), load("out").experiment, "out")

    @pytest.mark.parametrize("with_code", [False, True])
    def test_job_runs_in_the_launch_folder_or_in_its_code(self, script, tmp_path, with_code):
        command = script(f"{self.SOURCE}\nopen('here', 'w')", "{x}")
        job = InProcessClient(tmp_path / "jobs").submit(search(command), code=tmp_path if with_code else None, **LOCAL)
        assert str(job.wait(60).state) == "finished"
        folder = job.folder.path / "code" if with_code else tmp_path
        assert (folder / "here").exists()
        assert (tmp_path / "here").exists() != with_code


@pytest.mark.ray
def test_command_runs_and_stops_on_ray(ray_session, script, tmp_path):
    source = (
        "print(json.dumps({'step': 1, 'loss': float(sys.argv[1]), 'pid': os.getsid(0)}), flush=True)\n"
        "[(time.sleep(0.05), print(json.dumps({'step': step, 'loss': float(sys.argv[1])}))) for step in range(2, 28)]"
    )
    experiment = search(script(source, "{x}"), x=range(1, 7), scheduler="asha_stopping")
    results = run(experiment, output_dir=tmp_path / "out", show_progress=False)
    assert set(results.counts()) == {"finished", "stopped"}
    assert all(processes_of(int(pid)) == [] for pid in results.trials["pid"])
    assert '"loss": 1.0' in (tmp_path / "out" / "logs" / "t00000.log").read_text()


@pytest.mark.slow
def test_interrupt_ends_the_whole_search(script, tmp_path):
    script("print(json.dumps(dict(loss=1, pid=os.getsid(0)))); time.sleep(60)")
    words = f"{sys.executable} train.py {{x}}"
    arguments = ["run", "--command", words, "--set", "x=1,2", "--local", "--output-dir", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen(
        [sys.executable, "-m", "tune_hpc.cli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=environment,
    )  # fmt: skip
    pid = json.loads(driver.stdout.readline())["pid"]
    driver.send_signal(signal.SIGINT)
    assert driver.wait(20) == 130
    driver.stdout.close()
    assert processes_of(pid) == []
    assert load("out").counts() == {"running": 1}
