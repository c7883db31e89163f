"""Benchmark harness: processes measured in turn, a table and a JSON file.

A contender is a function that gets an empty folder, does the work once (usually in a separate process), and returns its
measurements. Contenders take turns (A B C A B C ...), so that a slow phase of the machine affects all of them. Ratios
are taken within a turn.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tune_hpc.analysis.results import Results

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "ray", "optuna", "pandas", "tune-hpc")
#: Files of a clone that influence a measurement, for git.
CODE = ("--", ":!benchmarks/results")

Measurement = dict[str, Any]
Candidate = Callable[[Path], Measurement]


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def describe_machine() -> dict[str, Any]:
    """Return cores, processor, memory in GiB, package versions, commit, time (UTC) and current load.

    The commit ends with ``-dirty`` if the clone has changes outside ``benchmarks/results``.
    """
    cpu_info = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in cpu_info if line.startswith("model name")]
    return {
        "cores": num_cores(),
        "cpu_model": models[0] if models else platform.machine(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "commit": _git("rev-parse", "--short", "HEAD") + ("-dirty" if _git("status", "--porcelain", *CODE) else ""),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average_before": [round(load, 2) for load in os.getloadavg()],
        "busy_cores_before": round(_busy_cores(), 2),
    }


def _git(*arguments: str) -> str:
    """Return the output of git; nothing outside a clone."""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def benchmark_parser(script: str, description: str, names: Sequence[str]) -> argparse.ArgumentParser:
    """Return a parser with the flags of every benchmark, and ``machine``: the machine before the measurement.

    Args:
        script: The script's file, which gives its results their name.
        description: The script's docstring.
        names: The contenders. The others are compared with the first one.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="number of turns (default: 3)")
    parser.add_argument("--only", nargs="+", choices=names, default=list(names), metavar="NAME",
                        help=f"measure only these of: {'; '.join(names)}")  # fmt: skip
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / f"{Path(script).stem}.json",
                        metavar="FILE", help="JSON file of the results (default: in benchmarks/results)")  # fmt: skip
    parser.set_defaults(machine=describe_machine())
    return parser


def run_process(module: str, *arguments: object, folder: Path, counts_cpu: bool = False) -> Measurement:
    """Run a Python module as a separate process in ``folder``.

    Args:
        module: The module's name.
        arguments: Its command line.
        folder: Working folder, and folder of its output.
        counts_cpu: Measure ``cpu_s``, for a module without Ray. Ray's raylet ignores SIGCHLD, and the kernel then
            discards the CPU time of the workers.

    Returns:
        ``process_s``, the duration of the process, ``cpu_s`` if measured, and the entries of the last JSON object that
        it printed.

    Raises:
        RuntimeError: The process failed. The message has the end of its output.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"}
    # Files instead of pipes, because a pipe stays open as long as any process of Ray.
    output, log = folder / "stdout.log", folder / "stderr.log"
    with output.open("w") as to_output, log.open("w") as to_log:
        began, cpu_began = time.perf_counter(), _children_cpu_s()
        code = subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=folder, env=environment, stdout=to_output, stderr=to_log, check=False,
        ).returncode  # fmt: skip
        measured = {"process_s": time.perf_counter() - began}
    if counts_cpu:
        measured["cpu_s"] = _children_cpu_s() - cpu_began
    if code:
        written = (output.read_text() + log.read_text())[-5000:]
        raise RuntimeError(f"{module} {' '.join(map(str, arguments))} ended with {code}:\n{written}")
    objects = [line for line in output.read_text().splitlines() if line.startswith("{")]
    return measured | (json.loads(objects[-1]) if objects else {})


def _children_cpu_s() -> float:
    """Return the CPU seconds of all ended child processes, and of the children for which these waited."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_tune_hpc(*arguments: object, folder: Path) -> tuple[Measurement, list["Results"]]:
    """Run ``tune-hpc run`` as a separate process, without a report.

    Returns:
        ``process_s``, with ``--local`` also ``cpu_s``, and the results of the experiments.

    Raises:
        RuntimeError: The command or one of its trials failed.
    """
    from tune_hpc import load_all

    output_dir = folder / "run"
    command = ("run", *arguments, "--no-report", "--output-dir", output_dir)
    measured = run_process("tune_hpc.cli", *command, folder=folder, counts_cpu="--local" in arguments)
    found = load_all(output_dir)
    for results in found:
        if bad := {"failed", "running"} & results.counts().keys():
            raise RuntimeError(f"{results.name} has bad trials: {', '.join(sorted(bad))}")
    return measured, found


def measure(contenders: Mapping[str, Candidate], repeats: int) -> dict[str, list[Measurement]]:
    """Run all contenders in turn, each time in a new folder.

    Each measurement gets ``busy_cores_before``, the other load of the machine at its start.
    """
    measured: dict[str, list[Measurement]] = {name: [] for name in contenders}
    for turn in range(1, repeats + 1):
        for name, contender in contenders.items():
            busy = _busy_cores()
            began = time.perf_counter()
            with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
                measured[name].append(contender(Path(folder)) | {"busy_cores_before": busy})
            took = f"{time.perf_counter() - began:.1f} s, {busy:.1f} cores busy before"
            print(f"[{turn}/{repeats}] {name}: {took}", file=sys.stderr, flush=True)
    return measured


def _busy_cores() -> float:
    """Return the mean number of busy cores over a third of a second."""

    def idle_and_all() -> tuple[int, int]:
        # user, nice, system, idle, iowait, irq, softirq, steal
        ticks = [int(one) for one in Path("/proc/stat").read_text(encoding="utf-8").split()[1:9]]
        return ticks[3] + ticks[4], sum(ticks)

    idle_before, all_before = idle_and_all()
    time.sleep(1 / 3)
    idle, everything = idle_and_all()
    return (1 - (idle - idle_before) / (everything - all_before)) * (os.cpu_count() or 1)


def summarise(measured: Mapping[str, Sequence[Measurement]], key: str) -> list[dict[str, Any]]:
    """Return one row per contender: median, minimum and maximum of a quantity, and its ratio to the first contender.

    The ratio is the median of the ratios within each turn. If a contender has ``cpu_s``, the rows of ``process_s`` have
    its median.
    """
    first = next(iter(measured))
    has_cpu = key == "process_s" and any("cpu_s" in one for runs in measured.values() for one in runs)
    rows = []
    for name, measurements in measured.items():
        values = [one[key] for one in measurements]
        ratios = [value / one[key] for value, one in zip(values, measured[first], strict=True)]
        row = {
            "contender": name,
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
            f"ratio to {first}": statistics.median(ratios),
        }
        if has_cpu:
            cpu_s = [one["cpu_s"] for one in measurements if "cpu_s" in one]
            row["CPU, s"] = statistics.median(cpu_s) if cpu_s else ""
        rows.append(row)
    return rows


def publish(
    flags: argparse.Namespace,
    title: str,
    measured: Mapping[str, Sequence[Measurement]],
    table: Sequence[Mapping[str, Any]],
    aggregate: str = "median, minimum and maximum",
) -> None:
    """Print the table, and write it with all measurements to ``flags.output``.

    Args:
        flags: The command line, parsed by ``benchmark_parser``.
        title: Quantity and unit of the table.
        measured: All measurements.
        table: Printed rows. The first one names the columns.
        aggregate: Aggregation of the turns, for the title.
    """
    machine = flags.machine
    settings = {name: value for name, value in vars(flags).items() if name not in ("output", "machine")}
    print(f"{title}; {aggregate} of {flags.repeats}.\n")
    print(_markdown(table))
    print("\n" + ", ".join(f"{name} {value}" for name, value in machine.items()))
    content = {"title": title, "machine": machine, "settings": settings, "measured": measured, "table": table}
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    flags.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(rows[0])
    alignments = ["--:" if isinstance(rows[0][name], int | float) else ":--" for name in names]
    lines = [names, alignments, *([_text(row.get(name, "")) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: Any) -> str:
    """Return a number with three significant digits, or as an integer from 100 on."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
