"""Resources that searches leave in their process: many searches, some of them interrupted at a random moment.

    python -m tests.faults.leaks [--searches 50] [--trials 5000]

Prints processes of the session, threads, open files, Ray's session folders, temporary files and shared memory before
and after; then memory of the driver and time per trial of a long search, by quarter.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import pandas as pd

#: Searches before the first count: imports and pools that stay for the time of the process.
NUM_WARM_UP = 2


def count_resources(folder: Path) -> dict[str, int]:
    """Count what this process and its children have open; ``folder`` has the temporary files."""
    session = os.getsid(0)
    processes = [path for path in Path("/proc").glob("[0-9]*") if _session(path) == session]
    return {
        "processes": len(processes),
        "threads": threading.active_count(),
        "open files": len(os.listdir("/proc/self/fd")),
        "Ray sessions": len(list((folder / "ray").glob("ray/session_2*"))),
        "temporary files": len(os.listdir(folder / "temporary")),
        "shared memory": len(os.listdir("/dev/shm")),
    }


def _session(process: Path) -> int:
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        return -1 if fields[0] in "ZX" else int(fields[3])
    except (OSError, IndexError):
        return -1


def run_searches(number: int, folder: Path, generator: random.Random) -> pd.DataFrame:
    """Run searches on Ray and in this process, one in two interrupted by Ctrl-C; return counts before and after."""
    from tests.faults.target import experiment
    from tune_hpc import run
    from tune_hpc.errors import TuneHpcError

    rows = []
    for index in range(-NUM_WARM_UP, number):
        if index == 0:
            rows.append({"searches": 0, **count_resources(folder)})
        runner = ("ray", "local")[index % 2]
        is_interrupted = index >= 0 and index % 4 > 1
        delay_s = generator.uniform(0.0, 6.0 if runner == "ray" else 1.0)
        timer = threading.Timer(delay_s, signal.raise_signal, [signal.SIGINT])
        if is_interrupted:
            timer.start()
        try:
            run(experiment(folder / "events"), output_dir=folder / f"search{index}", runner=runner, show_progress=False)
        except (KeyboardInterrupt, TuneHpcError) as error:
            print(f"search {index} on {runner}, after {delay_s:.1f} s: {type(error).__name__} {error}", flush=True)
        timer.cancel()
        timer.join() if timer.is_alive() else None
    time.sleep(1.0)
    rows.append({"searches": number, **count_resources(folder)})
    return pd.DataFrame(rows)


def run_long_search(num_trials: int, folder: Path) -> pd.DataFrame:
    """Run a search of many short trials; return memory of the driver and time per trial of each quarter."""
    from tests.faults.target import experiment
    from tune_hpc import run

    samples: list[tuple[float, float]] = []
    is_over = threading.Event()

    def sample() -> None:
        while not is_over.wait(0.5):
            samples.append((time.monotonic(), _resident_mb()))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        search = experiment(folder / "events", pause_s=0.0).replace(num_samples=num_trials)
        results = run(search, output_dir=folder / "long", show_progress=False)
    finally:
        is_over.set()
        thread.join()
    ended = pd.to_datetime(results.trials["ended_at"]).sort_values().map(pd.Timestamp.timestamp).to_numpy()
    offset = time.time() - time.monotonic()
    rows = []
    for quarter in range(4):
        first, last = quarter * num_trials // 4, (quarter + 1) * num_trials // 4 - 1
        times = [mb for at, mb in samples if ended[first] <= at + offset <= ended[last]]
        rows.append({
            "trials": f"{first + 1} to {last + 1}",
            "memory_mb": round(sum(times) / max(1, len(times)), 1),
            "ms_per_trial": round(1000 * (ended[last] - ended[first]) / (last - first), 2),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=50, metavar="N", help="number of searches (default: 50)")
    parser.add_argument("--trials", type=int, default=5000, metavar="N", help="trials of the long one (default: 5000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the moments (default: 0)")
    flags = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent / "injection"))
    with tempfile.TemporaryDirectory(prefix="l-") as name:
        folder = Path(name)
        for part in ("ray", "temporary"):
            (folder / part).mkdir()
        os.environ |= {"RAY_TMPDIR": str(folder / "ray"), "TMPDIR": str(folder / "temporary")}
        tempfile.tempdir = None
        os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent / "injection"), str(Path.cwd())])
        if flags.searches:
            print(run_searches(flags.searches, folder, random.Random(flags.seed)).to_markdown(index=False))
        if flags.trials:
            print(run_long_search(flags.trials, folder).to_markdown(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
