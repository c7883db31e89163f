"""Searches interrupted by Slurm: a time limit, a lost node, and a time limit on two nodes.

    python benchmarks/slurm_chain.py [--only NAME ...] [--steps 6000] [--keep DIR]

The benchmark starts a real Slurm on this machine (requirements: slurm_cluster.py) and submits the script that
``tune-hpc slurm`` writes. Each contender interrupts the search in one way. Its results are compared with those of the
same search without interruption: every trial exists once and is finished, and all numbers are equal to the last bit.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.harness import ROOT, Measurement, benchmark_parser, publish
from benchmarks.slurm_cluster import SlurmCluster, missing, slurm_cluster
from tune_hpc.errors import TuneHpcError

if TYPE_CHECKING:
    import pandas as pd

LIMIT, LOSS, TWO = "time limit", "node lost", "time limit on two nodes"
FOLDERS = {LIMIT: "time_limit", LOSS: "node_lost", TWO: "two_nodes"}
#: Log lines of the script, the search and Slurm.
_LOG_LINE = r"\d\d:\d\d:\d\d |\d+/\d+ trials|exercise|the batch system|slurmstepd|srun:|Command failed|Running command"
#: Endings of columns that differ between runs: durations and locations.
TIMES = ("_s", "_at", "host", "device", "num_fused", "attempt")


def main() -> None:
    """Run the search with each interruption and compare the results."""
    parser = benchmark_parser(__file__, __doc__, [LIMIT, LOSS, TWO])
    parser.add_argument("--steps", type=int, default=6000, metavar="N", help="steps of each trial (default: 6000)")
    parser.add_argument("--time", default="00:03:00", help="time limit of each start (default: 00:03:00)")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", default=Path("runs/slurm_chain"), help="folder for results and logs"
    )
    flags = parser.parse_args()
    # On SIGTERM, stop the Slurm, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if reason := missing():
        sys.exit(f"slurm_chain: {reason}")
    folder = flags.keep.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    search = ["exercise3.baseline", "--set", "learning_rate=1e-4,3e-4,1e-3", "--seeds", "2", "--fuse", "off",
              "--set", "width=0.25", "--set", "batching=shuffled", "--set", f"steps={flags.steps}",
              "--set", "num_evaluations=30", "--set", "num_evaluation_images=1000", "--no-report"]  # fmt: skip
    _tune_hpc("run", *search, "--output-dir", "alone", "--resume", cwd=folder)
    ways: dict[str, Callable[[], Measurement]] = {
        LIMIT: lambda: _chain(folder / FOLDERS[LIMIT], [*search, "--cpus-per-node", "2"], flags.time),
        LOSS: lambda: _chain(folder / FOLDERS[LOSS], [*search, "--cpus-per-node", "2"], "01:00:00", is_lost=True),
        TWO: lambda: _chain(folder / FOLDERS[TWO], [*search, "--nodes", "2", "--cpus-per-node", "1"], flags.time, 2),
    }
    flags.repeats = 1
    measured = {}
    for name in flags.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        measured[name] = [ways[name]() | _compare(folder / "alone", folder / FOLDERS[name])]
    table = [{"disturbed by": name, **{key: value for key, value in one.items() if not isinstance(value, list)}}
             for name, (one,) in measured.items()]  # fmt: skip
    # Published settings contain no path of this machine.
    del flags.keep
    publish(flags, "A search of six trials, disturbed on a real Slurm, beside itself left alone", measured, table)
    if any(not one["equal"] for (one,) in measured.values()):
        sys.exit("slurm_chain: a disturbed search differs from the one left alone")


def _chain(folder: Path, arguments: list[str], limit: str, num_nodes: int = 1, *, is_lost: bool = False) -> Measurement:
    """Submit a search and wait until it has finished, through all its requeues.

    Args:
        folder: Working folder of the job, and folder of its results.
        arguments: Arguments of ``tune-hpc slurm``.
        limit: Time limit of each start.
        num_nodes: Number of nodes.
        is_lost: Kill the node when a trial has ended and another one has saved a checkpoint (once a minute), or when
            half of the trials have ended.

    Returns:
        States of the job in Slurm, and the trials with a checkpoint at the end of each start.
    """
    folder.mkdir()
    _tune_hpc("slurm", *arguments, "--time", limit, "--warning", "60", "--output-dir", "run", "--job-name", "chain",
              "-o", "search.sbatch", cwd=folder)  # fmt: skip
    nodes = tuple(f"n{number}" for number in range(1, num_nodes + 1))
    with slurm_cluster(nodes, shared=[folder, *_cache()]) as cluster:
        began = time.monotonic()
        job_id = cluster.command("sbatch", "--parsable", "search.sbatch", cwd=folder)
        seen: list[dict[str, Any]] = []
        while not seen or seen[-1]["state"] not in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL"):
            time.sleep(0.5)
            job = cluster.job(job_id)
            now = {"state": job["JobState"], "restarts": int(job["Restarts"]), "reason": job["Reason"]}
            if not seen or any(seen[-1][key] != value for key, value in now.items()):
                trials = {"ended": _num_ended(folder / "run"), "in_the_middle": _checkpoints(folder / "run")}
                seen.append({"at_s": round(time.monotonic() - began, 1), **now, **trials})
                print(f"  {seen[-1]}", file=sys.stderr, flush=True)
            if is_lost and (ended := _num_ended(folder / "run")) and (ended >= 3 or _checkpoints(folder / "run")):
                _lose(cluster, nodes[0])
                is_lost = False
    return {
        "starts": seen[-1]["restarts"] + 1,
        "state": seen[-1]["state"],
        "in_all_s": seen[-1]["at_s"],
        "seen": seen,
        "log": _log(folder / f"chain-{job_id}.log"),
    }


def _log(path: Path) -> list[str]:
    """Return the log lines of the script, the search and Slurm, without those of Ray and without paths."""
    lines = path.read_text(encoding="utf-8").replace(f"{path.parent}/", "").splitlines()
    return [line for line in lines if re.match(_LOG_LINE, line)]


def _lose(cluster: SlurmCluster, node: str) -> None:
    """Kill a node, and start it again when Slurm has marked it as down."""
    cluster.lose_node(node)
    while not cluster.command("sinfo", "--noheader", "--Node", "--format=%T").startswith("down"):
        time.sleep(1)
    cluster.start_node(node)


def _num_ended(run: Path) -> int:
    """Return the number of trials that have ended."""
    progress = run / "progress.json"
    return sum(json.loads(progress.read_text(encoding="utf-8"))["ended"].values()) if progress.exists() else 0


def _checkpoints(run: Path) -> list[str]:
    """Return the running trials with a checkpoint, and its step."""
    from tune_hpc.learning.checkpoint import load_state

    found = []
    for path in sorted((run / "trials").glob("*.checkpoint")):
        try:
            found.append(f"{path.stem} step {load_state(path)['step']}")
        except (TuneHpcError, KeyError):
            # The trial has ended meanwhile.
            continue
    return found


def _cache() -> list[Path]:
    """Return the folder of the image data, if the environment names it."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return [Path(cache)] if cache else []


def _compare(alone: Path, folder: Path) -> Measurement:
    """Compare an interrupted search with the same one without interruption."""
    from tune_hpc import load

    expected, found = load(alone), load(folder / "run")
    trials, history = _comparable(found.trials, ["trial_id"]), _comparable(found.history, ["trial_id", "step"])
    return {
        "trials": len(trials),
        "finished": int((trials["status"] == "finished").sum()),
        "equal": _comparable(expected.trials, ["trial_id"]).equals(trials)
        and _comparable(expected.history, ["trial_id", "step"]).equals(history),
        "columns compared": len(trials.columns) + len(history.columns),
        "rows of history": len(history),
    }


def _comparable(df: "pd.DataFrame", order: list[str]) -> "pd.DataFrame":
    """Return the sorted rows without durations and locations."""
    return df.sort_values(order, ignore_index=True)[[name for name in df if not str(name).endswith(TIMES)]]


def _tune_hpc(*arguments: str, cwd: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "tune_hpc.cli", *arguments], cwd=cwd, env=environment, check=True)


if __name__ == "__main__":
    main()
