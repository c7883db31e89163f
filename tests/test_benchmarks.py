"""Each benchmark at its smallest size, and the harness."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from benchmarks.harness import benchmark_parser, describe_machine, measure, publish, run_process, summarise
from benchmarks.peers.softmax import LEARNING_RATES, OPTIMIZERS
from benchmarks.search_cost import GRID, compare
from benchmarks.softmax_table import check_agreement
from search_spaces import exercise2

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
OPTUNA = "Optuna, a thread a core"


def check_machine(machine):
    """Check that the description has versions, commit, time in UTC, and the load before the measurement."""
    now, momentary = describe_machine(), ("date", "load_average_before", "busy_cores_before")
    assert machine.keys() == now.keys()
    assert {name: machine[name] for name in machine if name not in momentary} == {
        name: now[name] for name in now if name not in momentary
    }
    age = datetime.now(UTC) - datetime.fromisoformat(machine["date"])
    assert timedelta(0) <= age < timedelta(hours=1)
    assert len(machine["load_average_before"]) == 3
    assert 0 <= machine["busy_cores_before"] <= os.cpu_count()


@pytest.mark.parametrize(
    ("script", "flags", "contenders"),
    [
        ("overhead", ["--trials", "2"], ["plain loop", OPTUNA]),
        pytest.param(
            "softmax_table", ["--trials", "2", "--steps", "5"],
            ["tune_hpc", "tune_hpc, local", "hand-written stack", "plain loop"],
            marks=pytest.mark.slow,
        ),
        pytest.param("cnn_step", ["--seconds", "0.2", "--batch-sizes", "4"], ["tune_hpc"], marks=pytest.mark.slow),
        ("recording", ["--points", "20"], ["Optuna, in memory", "Optuna, SQLite"]),
        ("loading", ["--trials", "144", "--optuna-trials", "72"], ["tune_hpc", "Ray Tune, result.json"]),
        pytest.param(
            "service", ["--readers", "5", "--seconds", "1", "--steps", "300"], ["readers with a pause"],
            marks=pytest.mark.slow,
        ),
        pytest.param("exercise1", ["--steps", "20"], ["unfused"], marks=pytest.mark.slow),
        pytest.param(
            "search_cost", ["--steps", "5", "--width", "0.03", "--images", "50", "--seeds", "2"],
            ["grid", "random, a fifth"],
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_benchmark_prints_a_table_and_writes_its_measurements(script, flags, contenders, tmp_path):
    output = tmp_path / "results.json"
    command = [sys.executable, BENCHMARKS / f"{script}.py", "--repeats", "1", "--output", output, *flags]
    done = subprocess.run([*command, "--only", *contenders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    content = json.loads(output.read_text(encoding="utf-8"))
    assert list(content) == ["title", "machine", "settings", "measured", "table"]
    check_machine(content["machine"])
    assert content["settings"]["only"] == contenders
    assert all(len(measurements) == 1 for measurements in content["measured"].values())
    assert {row["contender"] for row in content["table"]} == set(contenders)
    for contender in contenders:
        assert any(name.startswith(contender) for name in content["measured"])
        assert f"| {contender} |" in done.stdout


def test_contenders_take_turns_in_new_empty_folders():
    calls, folders = [], set()

    def contender(name, folder):
        assert list(folder.iterdir()) == []
        (folder / "left").touch()
        calls.append(name)
        folders.add(folder)
        return {"s": len(calls)}

    measured = measure({name: lambda folder, name=name: contender(name, folder) for name in "AB"}, 2)
    assert calls == ["A", "B", "A", "B"]
    assert len(folders) == 4
    assert {name: [run["s"] for run in runs] for name, runs in measured.items()} == {"A": [1, 3], "B": [2, 4]}
    assert all(run["busy_cores_before"] >= 0 for runs in measured.values() for run in runs)


def test_ratios_are_taken_within_a_turn():
    seconds = {"A": [1.0, 10.0, 100.0], "B": [3.0, 20.0, 500.0]}
    rows = summarise({name: [{"s": value} for value in values] for name, values in seconds.items()}, "s")
    assert rows == [
        {"contender": "A", "median": 10.0, "min": 1.0, "max": 100.0, "ratio to A": 1.0},
        {"contender": "B", "median": 20.0, "min": 3.0, "max": 500.0, "ratio to A": 3.0},
    ]


def test_cpu_time_is_beside_the_duration_of_a_process_without_ray(tmp_path):
    measured = run_process("benchmarks.peers.noop", "loop", folder=tmp_path, counts_cpu=True)
    assert 0 < measured["cpu_s"] < 1.1 * os.cpu_count() * measured["process_s"]
    assert "cpu_s" not in run_process("benchmarks.peers.noop", "loop", folder=tmp_path)
    seconds = {"A": [{"process_s": 3.0, "load_s": 1.0}], "B": [{"process_s": 2.0, "load_s": 1.0, "cpu_s": 4.0}]}
    assert [row["CPU, s"] for row in summarise(seconds, "process_s")] == ["", 4.0]
    assert "CPU, s" not in summarise(seconds, "load_s")[1]


def test_table_is_printed_with_three_digits_and_written_with_all(tmp_path, capsys):
    flags = benchmark_parser("overhead.py", "", ["A"]).parse_args(["--output", str(tmp_path / "new" / "results.json")])
    publish(flags, "Seconds", {"A": [{"s": 1.23456}]}, [{"contender": "A", "median": 1.23456, "max": 1234.56}])
    printed = capsys.readouterr().out
    assert "| contender | median | max |\n| :-- | --: | --: |\n| A | 1.23 | 1235 |\n" in printed
    written = json.loads(flags.output.read_text(encoding="utf-8"))
    assert written["table"] == [{"contender": "A", "median": 1.23456, "max": 1234.56}]
    assert written["settings"] == {"repeats": 3, "only": ["A"]}
    check_machine(written["machine"])


def test_every_benchmark_describes_the_machine_before_it_measures():
    sources = {path.stem: path.read_text(encoding="utf-8") for path in BENCHMARKS.glob("*.py")}
    described = {name for name, text in sources.items() if "benchmark_parser(__file__" in text}
    assert described == {name for name, text in sources.items() if "publish(flags" in text}
    assert described == {
        "cnn_step", "exercise1", "fusion", "loading", "overhead", "recording", "search_cost", "service", "slurm_chain",
        "softmax_table", "two_hosts", "two_nodes",
    }  # fmt: skip


def test_failed_process_raises_with_its_output(tmp_path):
    with pytest.raises(RuntimeError, match=r"noop loop --trials many ended with 2:\n(.|\n)*invalid int value: 'many'"):
        run_process("benchmarks.peers.noop", "loop", "--trials", "many", folder=tmp_path)


def test_grid_of_the_peers_is_that_of_the_experiment():
    assert exercise2.OPTIMIZERS == OPTIMIZERS
    assert exercise2.LEARNING_RATES == LEARNING_RATES


@pytest.mark.slow
def test_peers_without_ray_do_not_import_it():
    code = "import sys, benchmarks.peers.softmax; sys.exit('ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS.parent, check=True)


def test_contenders_may_differ_in_one_optimizer_of_nine():
    rates = {f"optimizer{number}": 0.1 for number in range(9)}
    check_agreement({"A": rates, "B": {**rates, "optimizer3": 0.5}})
    with pytest.raises(RuntimeError, match="B found"):
        check_agreement({"A": rates, "B": {**rates, "optimizer3": 0.5, "optimizer4": 0.5}})
    with pytest.raises(RuntimeError, match="B found"):
        check_agreement({"A": rates, "B": {}})


class TestSearchCost:
    def leads(self, *accuracies):
        """Return the row of a contender with these accuracies by seed, against a grid with 0.9 in each turn."""
        grid = [{"trials": 40, "steps": 100, "test_accuracy": [0.9] * 5} for _ in accuracies]
        runs = [{"trials": 8, "steps": 20, "test_accuracy": one} for one in accuracies]
        return compare({GRID: grid, "other": runs})[1]

    def test_stored_table_follows_from_its_measurements(self):
        text = (BENCHMARKS.parent / "docs" / "searching.md").read_text(encoding="utf-8")
        for name in ("search_cost", "search_cost_fashion_mnist"):
            content = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text(encoding="utf-8"))
            assert compare(content["measured"]) == content["table"]
            for row in content["table"][1:]:
                columns = ("test accuracy, %", "less the grid's", "no worse")
                assert " | ".join(row[column] for column in columns) in text

    def test_unit_is_the_search(self):
        # Means of 1 and 3 points: 2 ± 12.706 * sqrt(2) / sqrt(2), whatever the seeds of a search.
        assert self.leads([0.91] * 5, [0.93] * 5)["less the grid's"] == "+2.00 ± 12.71"
        assert self.leads([0.89, 0.93], [0.92, 0.94])["less the grid's"] == "+2.00 ± 12.71"

    def test_no_worse_needs_an_interval_above_the_margin(self):
        assert self.leads([0.9001], [0.9002], [0.8999])["no worse"] == "yes"
        assert self.leads([0.90], [0.91], [0.89])["no worse"] == "inconclusive"
        assert self.leads([0.85], [0.851], [0.849])["no worse"] == "no"

    def test_single_turn_has_no_interval_and_no_verdict(self):
        row = self.leads([0.91, 0.92])
        assert (row["less the grid's"], row["no worse"]) == ("+1.50", "inconclusive")


@pytest.mark.slow
def test_gpu_benchmark_rehearses_on_a_cpu(tmp_path):
    command = [sys.executable, BENCHMARKS / "gpu.py", "--rehearse", "--output-dir", tmp_path / "gpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "gpu").glob("*.json")}
    assert made.keys() == {
        "one_trial", "one_program", "fusion", "fusion_figure", "through_ray", "exercise4", "search_cost",
        "search_cost_figures",
    }  # fmt: skip
    figures = json.loads((tmp_path / "gpu" / "search_cost_figures.json").read_text(encoding="utf-8"))
    assert [row["contender"] for row in figures["table"]] == ["grid", "random, a fifth"]
    for content in made.values():
        check_machine(content["machine"])
    trial = made["one_trial"]["measured"]
    assert set(trial) == {f"{type}, {way}" for type in ("float32", "tf32", "bfloat16") for way in ("recorded", "eager")}
    # On a CPU tf32 is float32, and steps are not recorded.
    assert trial["tf32, eager"]["test_accuracy"] == trial["float32, recorded"]["test_accuracy"]
    assert made["one_program"]["measured"]["float32"]["num_trials"] == 4
    assert len(made["through_ray"]["measured"]) == 4
    assert (tmp_path / "gpu" / "fusion_figure.png").stat().st_size > 10_000


def test_gpu_benchmark_without_a_gpu_measures_nothing(tmp_path):
    command = [sys.executable, BENCHMARKS / "gpu.py", "--output-dir", tmp_path / "gpu"]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=hidden)
    assert (done.returncode, done.stderr) == (
        1, "no GPU found, nothing measured; use --rehearse to test the command on a CPU\n",
    )  # fmt: skip
    assert not (tmp_path / "gpu").exists()
