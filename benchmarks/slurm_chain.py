"""A search that outlives its jobs: killed by its time limit, by the loss of its node, on two nodes; with nothing lost.

    python benchmarks/slurm_chain.py [--only NAME ...] [--steps 6000] [--keep DIR]

A real Slurm is started on this machine (slurm_cluster.py says what it needs); the script that is submitted is the one
that ``tune-hpc slurm`` writes. Each contender is one way to disturb the search, and is compared with the same search
left alone: every trial is there once and finished, and each number of each trial is the same to the last bit.
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

    from tune_hpc.analysis.results import Results

LIMIT, LOSS, TWO = "time limit", "node lost", "time limit on two nodes"
FOLDERS = {LIMIT: "time_limit", LOSS: "node_lost", TWO: "two_nodes"}
#: Lines of a job's log: the script's, the search's, and Slurm's.
_TELLING = r"\d\d:\d\d:\d\d |\d+/\d+ trials|exercise|the batch system|slurmstepd|srun:|Command failed|Running command"
#: Columns that tell how long something took, or where: nobody expects these again.
TIMES = ("_s", "host", "device", "num_fused", "attempt")


def main() -> None:
    """Run the search in each way, and compare."""
    parser = benchmark_parser(__file__, __doc__, [LIMIT, LOSS, TWO])
    parser.add_argument("--steps", type=int, default=6000, metavar="N", help="of each trial (default: 6000)")
    parser.add_argument("--time", default="00:03:00", help="of each start (default: 00:03:00)")
    parser.add_argument("--keep", type=Path, metavar="DIR", default=Path("runs/slurm_chain"), help="folders and logs")
    flags = parser.parse_args()
    # Whoever ends this ends the Slurm, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if reason := missing():
        sys.exit(f"slurm_chain: {reason}")
    home = flags.keep.absolute()
    home.mkdir(parents=True, exist_ok=True)
    search = ["exercise3.baseline", "--set", "learning_rate=1e-4,3e-4,1e-3", "--seeds", "2", "--fuse", "off",
              "--set", "width=0.25", "--set", "batching=shuffled", "--set", f"steps={flags.steps}",
              "--set", "num_evaluations=30", "--set", "num_evaluation_images=1000", "--no-report"]  # fmt: skip
    _tune_hpc("run", *search, "--output-dir", "alone", "--resume", cwd=home)
    ways: dict[str, Callable[[], Measurement]] = {
        LIMIT: lambda: _chain(home / FOLDERS[LIMIT], [*search, "--cpus-per-node", "2"], flags.time),
        LOSS: lambda: _chain(home / FOLDERS[LOSS], [*search, "--cpus-per-node", "2"], "01:00:00", is_lost=True),
        TWO: lambda: _chain(home / FOLDERS[TWO], [*search, "--nodes", "2", "--cpus-per-node", "1"], flags.time, 2),
    }
    flags.repeats = 1
    measured = {}
    for name in flags.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        measured[name] = [ways[name]() | _compared(home / "alone", home / FOLDERS[name])]
    table = [{"disturbed by": name, **{key: value for key, value in one.items() if not isinstance(value, list)}}
             for name, (one,) in measured.items()]  # fmt: skip
    # A path is nobody else's business.
    del flags.keep
    publish(flags, "A search of six trials, disturbed on a real Slurm, beside itself left alone", measured, table)
    if any(not one["equal"] for (one,) in measured.values()):
        sys.exit("slurm_chain: a disturbed search differs from the one left alone")


def _chain(folder: Path, arguments: list[str], limit: str, num_nodes: int = 1, *, is_lost: bool = False) -> Measurement:
    """Submit a search and wait for its end, however often it is queued again.

    Args:
        folder: Where it is submitted, and its results go.
        arguments: Of ``tune-hpc slurm``.
        limit: The time of each start.
        num_nodes: How many nodes there are.
        is_lost: Whether the node is to be lost: when a trial has ended and another one has kept a state, as each does
            once a minute, or when half of the trials have ended.

    Returns:
        What Slurm told of the job, and which trials were in their middle at the end of each start.
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
                told = {"ended": _num_ended(folder / "run"), "in_the_middle": _kept(folder / "run")}
                seen.append({"at_s": round(time.monotonic() - began, 1), **now, **told})
                print(f"  {seen[-1]}", file=sys.stderr, flush=True)
            if is_lost and (ended := _num_ended(folder / "run")) and (ended >= 3 or _kept(folder / "run")):
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
    """Return what the script, the search and Slurm said, without what Ray says of itself, and without this place."""
    lines = path.read_text(encoding="utf-8").replace(f"{path.parent}/", "").splitlines()
    return [line for line in lines if re.match(_TELLING, line)]


def _lose(cluster: SlurmCluster, node: str) -> None:
    """Take a node away, and give it back when Slurm has missed it."""
    cluster.lose_node(node)
    while not cluster.command("sinfo", "--noheader", "--Node", "--format=%T").startswith("down"):
        time.sleep(1)
    cluster.start_node(node)


def _num_ended(run: Path) -> int:
    """Return how many trials have ended so far."""
    progress = run / "progress.json"
    return sum(json.loads(progress.read_text(encoding="utf-8"))["ended"].values()) if progress.exists() else 0


def _kept(run: Path) -> list[str]:
    """Return the trials under way that would go on in their middle, and from which step."""
    from tune_hpc.learning.checkpoint import load_state

    found = []
    for path in sorted((run / "trials").glob("*.checkpoint")):
        try:
            found.append(f"{path.stem} step {load_state(path)['step']}")
        except (TuneHpcError, KeyError):
            # It ended while we looked.
            continue
    return found


def _cache() -> list[Path]:
    """Return where the image data are, where that is told."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return [Path(cache)] if cache else []


def _compared(alone: Path, folder: Path) -> Measurement:
    """Hold a disturbed search against the same one left alone."""
    from tune_hpc import load

    one, other = (_numbers(load(each)) for each in (alone, folder / "run"))
    histories = [load(each).history for each in (alone, folder / "run")]
    columns = [name for name in histories[0].columns if not name.endswith(TIMES)]
    ordered = [each[columns].sort_values(["trial_id", "step"], ignore_index=True) for each in histories]
    return {
        "trials": len(other),
        "finished": int((other["status"] == "finished").sum()),
        "equal": bool(one.equals(other) and ordered[0].equals(ordered[1])),
        "columns compared": len(one.columns) + len(columns),
        "rows of history": len(ordered[1]),
    }


def _numbers(results: "Results") -> "pd.DataFrame":
    frame = results.trials.sort_values("trial_id", ignore_index=True)
    return frame[[name for name in frame.columns if not name.endswith(TIMES)]]


def _tune_hpc(*arguments: str, cwd: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "tune_hpc.cli", *arguments], cwd=cwd, env=environment, check=True)


if __name__ == "__main__":
    main()
