"""A cluster of two hosts with a token, and a job on it: who is let in, and what the loss of a host costs.

    python benchmarks/two_hosts.py [--steps 6000]

Two hosts in network namespaces of their own (hosts.py: needs root and ``ip``), ``ray start`` with a token on each, and
this machine as the one that submits. What should be refused is tried; then a search of eight trials runs whose second
host vanishes when each trial has kept a state, and the same search left alone. Every trial is to be there once, and
each number of each trial the same to the last bit. Prints a table and writes a JSON.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.harness import Measurement, benchmark_parser, publish
from benchmarks.hosts import connect, namespace

ALONE, LOST = "left alone", "a host is lost"
HEAD, WORKER = "head", "worker"
BIN = Path(sys.executable).parent


def main() -> None:
    """Try the doors, run the search twice, and compare."""
    parser = benchmark_parser(__file__, __doc__, [ALONE, LOST])
    parser.add_argument("--steps", type=int, default=6000, metavar="N", help="of each trial (default: 6000)")
    parser.set_defaults(repeats=1)
    flags = parser.parse_args()
    if os.geteuid() != 0 or not shutil.which("ip"):
        sys.exit("two_hosts: hosts of one's own need root and ip; on Debian: apt-get install iproute2")
    with ExitStack() as ending:
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="hosts-", dir="/var/tmp")))
        addresses = connect(ending, [HEAD, WORKER])
        cluster = _Cluster(ending, folder, addresses)
        doors = cluster.try_doors()
        search = ["exercise3.baseline", "--set", "learning_rate=1e-4,3e-4,1e-3,3e-3", "--seeds", "2", "--fuse", "off",
                  "--set", "width=0.25", "--set", "batching=shuffled", "--set", f"steps={flags.steps}",
                  "--set", "num_evaluations=20", "--set", "num_evaluation_images=1000"]  # fmt: skip
        measured = {name: [cluster.run(search, is_lost=name == LOST)] for name in flags.only}
    frames = {name: own[0].pop("frames") for name, own in measured.items()}
    table = []
    for name, own in measured.items():
        first = frames.get(ALONE, frames[name])
        same = all(here.equals(there) for here, there in zip(frames[name], first, strict=True))
        own[0] |= {"same_to_the_bit": same, "doors": doors}
        table.append({"contender": name, **{key: own[0][key] for key in (
            "state", "trials", "finished", "in_the_middle", "nodes_at_the_end", "same_to_the_bit")}})  # fmt: skip
    for door, said in doors.items():
        print(f"{door}: {said}")
    publish(flags, "A job on two hosts with a token", measured, table)


class _Cluster:
    """Ray on two hosts, each node in a process group of its own."""

    def __init__(self, ending: ExitStack, folder: Path, addresses: dict[str, str]) -> None:
        self.folder = folder
        self.addresses = addresses
        self.token = secrets.token_hex(32)
        self.home = folder / "home"
        (self.home / ".ray").mkdir(parents=True)
        (self.home / ".ray" / "auth_token").write_text(self.token, encoding="utf-8")
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        ending.callback(self.lose_all)
        address = addresses[HEAD]
        self.control, self.dashboard = f"{address}:6379", f"http://{address}:8265"
        self.start(HEAD, "--head", "--port=6379", f"--dashboard-host={address}")
        _wait(lambda: self.tune_hpc("jobs").returncode == 0 and self.num_nodes() == 1, 90, f"the head, see {folder}")

    def start(self, host: str, *options: str, home: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a node of two cores on a host."""
        with (self.folder / f"{host}.log").open("ab") as log:
            self.nodes[host] = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{namespace(host)}", str(BIN / "ray"), "start", "--block", "--num-cpus=2",
                 f"--node-ip-address={self.addresses[host]}", f"--temp-dir=/tmp/{namespace(host)}", *options],
                env=self._environment(home or self.home, RAY_AUTH_MODE="token"), stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        return self.nodes[host]

    def join(self, home: Path | None = None) -> subprocess.Popen[bytes]:
        """Have the second host join."""
        return self.start(WORKER, f"--address={self.control}", home=home)

    def lose(self, host: str) -> None:
        """Let a host vanish with all its processes."""
        node = self.nodes.pop(host)
        try:
            os.killpg(node.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        node.wait()
        shutil.rmtree(f"/tmp/{namespace(host)}", ignore_errors=True)

    def lose_all(self) -> None:
        """Let all hosts vanish."""
        for host in list(self.nodes):
            self.lose(host)

    def num_nodes(self) -> int:
        """Return how many nodes are alive."""
        import requests

        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            told = requests.get(f"{self.dashboard}/api/v0/nodes", headers=headers, timeout=10).json()
            return sum(node["state"] == "ALIVE" for node in told["data"]["result"]["result"])
        except (requests.RequestException, KeyError, TypeError):
            return 0

    def tune_hpc(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run one of our own commands as a user of this machine does."""
        return subprocess.run(
            [sys.executable, "-m", "tune_hpc.cli", *words], env=self._environment(self.home, **variables),
            cwd=self.folder, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def _environment(self, home: Path, **variables: str) -> dict[str, str]:
        kept = ("PATH", "LANG", "PYTHONPATH", "XDG_CACHE_HOME")
        own = {name: os.environ[name] for name in kept if name in os.environ}
        own.setdefault("XDG_CACHE_HOME", str(Path.home() / ".cache"))
        root = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, [root, own.get("PYTHONPATH")]))
        return own | {"HOME": str(home), "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"} | variables

    def try_doors(self) -> dict[str, str]:
        """Try what should be refused, then have the second host join; return what was said."""
        nobody = self.folder / "nobody"
        nobody.mkdir()
        refused = self.join(home=nobody)
        refused.wait(120)
        self.lose(WORKER)
        submit = ("submit", "exercise1_1stpart", "--quick", "--address", self.dashboard)
        said = {
            "a node without the token": f"exit code {refused.returncode}",
            "a job without the token": self.tune_hpc(*submit, HOME=str(nobody)).stderr.strip(),
            "a job with another token": self.tune_hpc(*submit, RAY_AUTH_TOKEN="another").stderr.strip(),
            "a search without the token": self.tune_hpc(
                "run", "exercise1_1stpart", "--quick", "--address", self.control, HOME=str(nobody)
            ).stderr.strip(),
        }
        assert self.num_nodes() == 1
        self.join()
        _wait(lambda: self.num_nodes() == 2, 90, "the second host")
        return said

    def run(self, search: Sequence[str], *, is_lost: bool) -> Measurement:
        """Submit a search, disturb it or not, and return what came of it."""
        from tune_hpc import load_all
        from tune_hpc.jobs.client import LocalClient

        if WORKER not in self.nodes:
            self.join()
            _wait(lambda: self.num_nodes() == 2, 90, "the second host")
        storage = self.folder / "jobs"
        done = self.tune_hpc("submit", *search, "--address", self.dashboard, "--storage", str(storage))
        if done.returncode:
            sys.exit(f"two_hosts: {done.stderr}")
        job = LocalClient(storage).job(done.stdout.strip())
        trials = job.folder.experiment("exercise3.baseline").parts
        in_the_middle = 0
        if is_lost:
            kept = "states of four trials; with more --steps each keeps one, after a minute"
            _wait(lambda: len(list(trials.glob("*.checkpoint"))) == 4, 300, kept)
            in_the_middle = 2
            self.lose(WORKER)
        status = job.wait(900)
        (results,) = load_all(job.folder.path)
        times = [name for name in results.trials if str(name).endswith("_s") or name in ("host", "device")]
        history = results.history.sort_values(["trial_id", "step"], ignore_index=True)
        return {
            "state": str(status.state),
            "trials": len(results.trials),
            "finished": results.counts().get("finished", 0),
            "in_the_middle": in_the_middle,
            "nodes_at_the_end": self.num_nodes(),
            "frames": [results.trials.drop(columns=times), history.reindex(sorted(history), axis=1)],
        }


def _wait(is_there: Callable[[], bool], timeout_s: float, what: str) -> None:
    until = time.monotonic() + timeout_s
    while not is_there():
        if time.monotonic() > until:
            sys.exit(f"two_hosts: waited {timeout_s:g} s for {what}")
        time.sleep(0.5)


if __name__ == "__main__":
    main()
