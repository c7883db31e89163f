"""Batch scripts for Slurm: validation, text, and the reaction to a warning."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs.fake_slurm import FakeSlurm
from tune_hpc.cli import main
from tune_hpc.errors import InvalidExperimentError
from tune_hpc.jobs.sbatch import Allocation, batch_script, seconds_of

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("90", 5400), ("5:30", 330), ("02:00:00", 7200), ("1-12", 129600), ("1-12:30", 131400), ("2-00:00:01", 172801)],
)
def test_time_formats_of_slurm_are_read(time, seconds):
    assert seconds_of(time) == seconds


@pytest.mark.parametrize("time", ["", "0", "00:00:00", "2h", "1:2:3:4", "infinite", "-5", "1-", " 5", "5\n"])
def test_other_times_are_rejected(time):
    with pytest.raises(InvalidExperimentError, match="time must be minutes, HH:MM:SS or D-HH:MM:SS"):
        seconds_of(time)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": 0}, "nodes must be at least 1; got 0"),
        ({"gpus_per_node": -1}, "gpus_per_node must be at least 0; got -1"),
        ({"cpus_per_node": 0}, "cpus_per_node must be at least 1; got 0"),
        ({"max_requeues": -1}, "max_requeues must be at least 0; got -1"),
        ({"warning_s": 30}, "warning_s must be at least 60 and less"),
        ({"time": "2", "warning_s": 120}, r"less than the time limit of 120 s \(2\); got 120"),
        ({"memory": "16 GB"}, "memory must be a number with K, M, G or T"),
        ({"partition": "a b"}, "partition must be one word"),
        ({"account": ""}, "account must be one word"),
        ({"job_name": "a\n#SBATCH -n 99"}, "job_name must be one word"),
        ({"options": ("constraint=a100",)}, "options must be single lines that start with -"),
        ({"options": ("--a\nrm -rf .",)}, "must be single lines"),
        ({"setup": ("a\nb",)}, "one shell line per entry"),
        ({"nodes": 2, "symmetric_run": False}, "starts Ray on one node only, but nodes is 2"),
    ],
)
def test_invalid_allocation_is_rejected(changes, message):
    with pytest.raises(InvalidExperimentError, match=message) as error:
        Allocation(**{"time": "01:00:00"} | changes)
    assert "\n" not in str(error.value)


def lines_of(text: str) -> set[str]:
    return set(text.splitlines())


def test_one_node_is_shared_without_symmetric_run():
    text = batch_script(Allocation("30", cpus_per_node=8), ["true"])
    assert lines_of(text) >= {
        "#SBATCH --nodes=1",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --time=30",
        "unset RAY_ADDRESS",
    }
    for absent in ("symmetric-run", "srun", "--gpus", "--exclusive", "--mem", "--partition", "--account"):
        assert absent not in text


def test_default_is_a_whole_node():
    assert lines_of(batch_script(Allocation("30"), ["true"])) >= {"#SBATCH --exclusive", "#SBATCH --mem=0"}


@pytest.mark.parametrize("changes", [{"nodes": 2}, {"symmetric_run": True}])
def test_symmetric_run_has_whole_nodes_and_an_address(changes):
    text = batch_script(Allocation("30", **changes), ["true"])
    assert "#SBATCH --exclusive" in lines_of(text)
    assert "ray symmetric-run" in text
    assert re.search(r"^export RAY_ADDRESS=", text, flags=re.MULTILINE)


def test_script_has_all_parameters_of_the_allocation():
    allocation = Allocation(
        "1-00:00:00", nodes=3, gpus_per_node=4, cpus_per_node=32, memory="64G", partition="gpu", account="p-1",
        warning_s=300, max_requeues=7, job_name="mine", options=("--constraint=a100",), setup=("module load cuda",),
        environment="/opt/my env",
    )  # fmt: skip
    text = batch_script(allocation, ["true"])
    assert lines_of(text) >= {
        "#SBATCH --nodes=3", "#SBATCH --gpus-per-node=4", "#SBATCH --cpus-per-task=32", "#SBATCH --mem=64G",
        "#SBATCH --partition=gpu", "#SBATCH --account=p-1", "#SBATCH --signal=B:USR1@300", "#SBATCH --job-name=mine",
        "#SBATCH --constraint=a100", "module load cuda", "export PATH='/opt/my env/bin':$PATH",
    }  # fmt: skip
    assert '"${SLURM_GPUS_ON_NODE:-4}"' in text
    assert "-ge 7 ]" in text


def test_options_precede_the_first_command():
    text = batch_script(Allocation("30", options=("--qos=low",), setup=("module load cuda",)), ["true"])
    commands = [number for number, line in enumerate(text.splitlines()) if line and not line.startswith("#")]
    assert text.splitlines().index("#SBATCH --qos=low") < commands[0]


def test_script_without_a_warning_does_not_requeue():
    text = batch_script(Allocation("30", warning_s=None), ["true"])
    assert "--signal" not in text
    assert "scontrol" not in text


@pytest.mark.parametrize(
    ("name", "changes", "command"),
    [
        ("search", {}, "run exercise3.open --num-samples=64 --output-dir=runs/search --resume"),
        # An interrupted measurement restarts, so the script needs no warning before the time limit.
        ("scale", {"warning_s": None}, "scale --workers=1,2,4,8 --output-dir=runs/scaling --resume"),
    ],
    ids=["search", "scale"],
)
def test_scripts_of_the_repository_are_up_to_date(name, changes, command):
    allocation = Allocation("02:00:00", nodes=2, gpus_per_node=4, job_name=name, environment=".venv", **changes)
    text = (ROOT / "scripts" / "slurm" / f"{name}.sbatch").read_text(encoding="utf-8")
    assert text == batch_script(allocation, ["tune-hpc", *command.split()])


@pytest.fixture
def slurm(tmp_path):
    return FakeSlurm(tmp_path)


def command(source: str) -> list[str]:
    return [sys.executable, "-c", source]


#: Handles the warning half a second after the start, and exits as a search does.
SAVES = """
import signal, sys, time
time.sleep(0.5)
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
time.sleep(30)
"""
WAYS = pytest.mark.parametrize("way", [{"cpus_per_node": 1}, {"symmetric_run": True}, {"nodes": 2}])


@WAYS
def test_warned_search_is_requeued(way, slurm):
    script = slurm.start(batch_script(Allocation("30", **way), command(SAVES)))
    slurm.warn(script)
    assert script.wait(20) == 0
    assert slurm.calls[-1] == f"requeue {slurm.job_id}"
    assert slurm.leftovers == []


@WAYS
@pytest.mark.parametrize("code", [0, 2])
def test_search_that_ends_is_not_requeued(way, code, slurm):
    script = slurm.start(batch_script(Allocation("30", **way), command(f"raise SystemExit({code})")))
    assert script.wait(20) == code
    assert not any("requeue" in call for call in slurm.calls)
    assert slurm.leftovers == []


def test_number_of_requeues_is_limited(slurm):
    text = batch_script(Allocation("30", max_requeues=3), command("raise SystemExit(75)"))
    assert slurm.start(text, SLURM_RESTART_COUNT="3").wait(20) == 75
    assert slurm.calls == []


def test_search_that_ignores_the_warning_is_requeued_before_the_time_limit(slurm):
    text = batch_script(Allocation("30", warning_s=60), command("import time; time.sleep(4)"))
    assert "second < 40" in text
    script = slurm.start(text.replace("second < 40", "second < 2"))
    slurm.warn(script)
    assert script.wait(20) == 0
    assert slurm.calls == [f"requeue {slurm.job_id}"]


def test_search_that_ends_during_the_warning_is_finished(slurm):
    script = slurm.start(batch_script(Allocation("30"), command("import time; time.sleep(1)")))
    slurm.warn(script)
    assert script.wait(20) == 0
    assert slurm.calls == []


def test_arguments_reach_the_command_unchanged(slurm):
    words = ["two words", "$HOME", "a'b", 'c"d', "*", "uniform(0, 1)", "back\\slash", ""]
    text = batch_script(Allocation("30", nodes=2), [*command("import sys; print(sys.argv[1:])"), *words])
    assert slurm.start(text).wait(20) == 0
    assert str(words) in (slurm.folder / "log").read_text(encoding="utf-8")


def test_token_of_the_job_is_private(slurm):
    source = """
import os, pathlib, stat
token = pathlib.Path(os.environ["RAY_AUTH_TOKEN_PATH"])
print(os.environ["RAY_AUTH_MODE"], len(token.read_text()), oct(stat.S_IMODE(token.parent.stat().st_mode)))
"""
    assert slurm.start(batch_script(Allocation("30"), command(source))).wait(20) == 0
    assert "token 64 0o700" in (slurm.folder / "log").read_text(encoding="utf-8")


def test_ray_has_the_cores_and_gpus_of_the_allocation(slurm):
    text = batch_script(Allocation("30", nodes=2, gpus_per_node=2), ["true"])
    assert slurm.start(text, SLURM_GPUS_ON_NODE="2").wait(20) == 0
    call = slurm.calls[0]
    assert call.startswith("symmetric-run --address ")
    assert f"--min-nodes 2 --num-cpus=2 --num-gpus=2 --temp-dir=/tmp/r{slurm.job_id} " in call
    assert call.endswith("-- bash -c driver")


class TestCommand:
    FLAGS = ("--time", "02:00:00", "--nodes", "2", "--gpus-per-node", "4")

    def test_flags_of_the_run_are_in_the_script(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        flags = ["--quick", "--seeds", "3", "--set", "learning_rate=loguniform(1e-4, 1)", "--num-samples", "5",
                 "--time-budget", "30m", "--export", "optuna"]  # fmt: skip
        assert main(["slurm", "exercise2.softmax", *flags, *self.FLAGS]) == 0
        text = " ".join(capsys.readouterr().out.replace("\\\n", " ").split())
        assert (
            "tune-hpc run exercise2.softmax '--set=learning_rate=loguniform(1e-4, 1)' --quick --seeds=3 "
            "--num-samples=5 --export=optuna --time-budget=1800.0 --output-dir=runs/exercise2.softmax --resume"
        ) in text
        assert f"export PATH={sys.prefix}/bin:$PATH" in text
        assert list(tmp_path.iterdir()) == []

    def test_script_is_written_to_a_file(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert main(["slurm", "exercise1_1stpart", "--time", "10", "-o", "job.sbatch", "--sbatch=--qos=low"]) == 0
        assert "#SBATCH --qos=low" in (tmp_path / "job.sbatch").read_text(encoding="utf-8")
        assert "submit with: sbatch job.sbatch" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["exercise9"], "no experiment is called 'exercise9'"),
            (["exercise2.softmax", "--set", "optimizer=adamm"], "adamm"),
            (["exercise2.softmax", "--address", "here:1"], "--address names a cluster"),
            (["exercise2.softmax", "--overwrite"], "--overwrite would remove"),
            (["exercise2.softmax", "--cpus-per-trial", "-1"], "cpus_per_trial"),
            (["exercise2.softmax", "--nodes", "0"], "nodes must be at least 1"),
            (["exercise2.softmax", "--output-dir", "ftp://here/runs"], "a storage is a folder or s3://"),
        ],
    )
    def test_invalid_run_is_rejected(self, arguments, message, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert main(["slurm", "--time", "02:00:00", *arguments]) == 2
        printed = capsys.readouterr()
        assert message in printed.err
        assert printed.err.count("\n") == 1
        assert printed.out == ""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("sbatch"), reason="needs root and Slurm")
def test_search_survives_requeues_on_a_real_slurm(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "slurm_chain.py", "--only", "node lost", "--steps", "600",
         "--keep", tmp_path / "chain", "--output", tmp_path / "result.json"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (lost,) = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["measured"]["node lost"]
    assert lost["starts"] == 2
    assert lost["finished"] == 6
