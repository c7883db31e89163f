"""A job on a Ray cluster of two hosts with a token: rejected access, and the loss of a host.

    python benchmarks/two_hosts.py [--steps 6000]

Each host has a separate network namespace (hosts.py: needs root and ``ip``) and a Ray node with a token. This machine
submits the jobs. The benchmark first tries requests that the cluster must reject. It then runs a search of eight trials
twice: once without interruption, and once with the loss of the second host after each trial has saved a checkpoint.
Every trial must exist once, with numbers equal to the last bit. Prints a table and writes a JSON file.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.harness import Measurement, benchmark_parser, publish
from benchmarks.hosts import connect, namespace, wait

ALONE, LOST = "left alone", "a host is lost"
HEAD, WORKER = "head", "worker"
BIN = Path(sys.executable).parent


def main() -> None:
    """Try rejected requests, run the search twice, and compare the results."""
    parser = benchmark_parser(__file__, __doc__, [ALONE, LOST])
    parser.add_argument("--steps", type=int, default=6000, metavar="N", help="steps of each trial (default: 6000)")
    parser.set_defaults(repeats=1)
    flags = parser.parse_args()
    if os.geteuid() != 0 or not shutil.which("ip"):
        sys.exit("two_hosts: virtual hosts need root and ip; on Debian: apt-get install iproute2")
    with ExitStack() as ending:
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="hosts-", dir="/var/tmp")))
        addresses = connect(ending, [HEAD, WORKER])
        cluster = _Cluster(ending, folder, addresses)
        doors = cluster.try_access()
        search = ["exercise3.baseline", "--set", "learning_rate=1e-4,3e-4,1e-3,3e-3", "--seeds", "2", "--fuse", "off",
                  "--set", "width=0.25", "--set", "batching=shuffled", "--set", f"steps={flags.steps}",
                  "--set", "num_evaluations=20", "--set", "num_evaluation_images=1000"]  # fmt: skip
        measured = {name: [cluster.run(search, is_lost=name == LOST)] for name in flags.only}
    frames = {name: run.pop("frames") for name, (run,) in measured.items()}
    table = []
    for name, (run,) in measured.items():
        first = frames.get(ALONE, frames[name])
        same = all(here.equals(there) for here, there in zip(frames[name], first, strict=True))
        run |= {"same_to_the_bit": same, "doors": doors}
        table.append({"contender": name, **{key: run[key] for key in (
            "state", "trials", "finished", "in_the_middle", "nodes_at_the_end", "same_to_the_bit")}})  # fmt: skip
    for door, message in doors.items():
        print(f"{door}: {message}")
    publish(flags, "A job on two hosts with a token", measured, table)


class _Cluster:
    """Ray on two hosts, with one process group per node."""

    def __init__(self, ending: ExitStack, folder: Path, addresses: dict[str, str]) -> None:
        self.folder = folder
        self.addresses = addresses
        self.token = secrets.token_hex(32)
        self.user_folder = folder / "home"
        (self.user_folder / ".ray").mkdir(parents=True)
        (self.user_folder / ".ray" / "auth_token").write_text(self.token, encoding="utf-8")
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        ending.callback(self.lose_all)
        address = addresses[HEAD]
        self.control, self.dashboard = f"{address}:6379", f"http://{address}:8265"
        self.start(HEAD, "--head", "--port=6379", f"--dashboard-host={address}")
        wait(lambda: self.tune_hpc("jobs").returncode == 0 and self.num_nodes() == 1, 90, f"the head, see {folder}")

    def start(self, host: str, *options: str, user_folder: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a node with two cores on a host."""
        with (self.folder / f"{host}.log").open("ab") as log:
            self.nodes[host] = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{namespace(host)}", str(BIN / "ray"), "start", "--block", "--num-cpus=2",
                 f"--node-ip-address={self.addresses[host]}", f"--temp-dir=/tmp/{namespace(host)}", *options],
                env=self._environment(user_folder or self.user_folder, RAY_AUTH_MODE="token"), stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        return self.nodes[host]

    def join(self, user_folder: Path | None = None) -> subprocess.Popen[bytes]:
        """Start the second node, which joins the cluster."""
        return self.start(WORKER, f"--address={self.control}", user_folder=user_folder)

    def lose(self, host: str) -> None:
        """Kill all processes of a host."""
        node = self.nodes.pop(host)
        try:
            os.killpg(node.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        node.wait()
        shutil.rmtree(f"/tmp/{namespace(host)}", ignore_errors=True)

    def lose_all(self) -> None:
        """Kill the processes of all hosts."""
        for host in list(self.nodes):
            self.lose(host)

    def num_nodes(self) -> int:
        """Return the number of nodes that are alive."""
        import requests

        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            response = requests.get(f"{self.dashboard}/api/v0/nodes", headers=headers, timeout=10).json()
            return sum(node["state"] == "ALIVE" for node in response["data"]["result"]["result"])
        except (requests.RequestException, KeyError, TypeError):
            return 0

    def tune_hpc(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run ``tune-hpc`` as a user of this machine."""
        return subprocess.run(
            [sys.executable, "-m", "tune_hpc.cli", *words], env=self._environment(self.user_folder, **variables),
            cwd=self.folder, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def _environment(self, user_folder: Path, **variables: str) -> dict[str, str]:
        inherited = ("PATH", "LANG", "PYTHONPATH", "XDG_CACHE_HOME")
        environment = {name: os.environ[name] for name in inherited if name in os.environ}
        environment.setdefault("XDG_CACHE_HOME", str(Path.home() / ".cache"))
        root = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
        fixed = {"HOME": str(user_folder), "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"}
        return environment | fixed | variables

    def try_access(self) -> dict[str, str]:
        """Try requests that the cluster must reject, then start the second node; return the messages."""
        empty = self.folder / "empty"
        empty.mkdir()
        rejected = self.join(user_folder=empty)
        rejected.wait(120)
        self.lose(WORKER)
        submit = ("submit", "exercise1_1stpart", "--quick", "--address", self.dashboard)
        messages = {
            "a node without the token": f"exit code {rejected.returncode}",
            "a job without the token": self.tune_hpc(*submit, HOME=str(empty)).stderr.strip(),
            "a job with another token": self.tune_hpc(*submit, RAY_AUTH_TOKEN="another").stderr.strip(),
            "a search without the token": self.tune_hpc(
                "run", "exercise1_1stpart", "--quick", "--address", self.control, HOME=str(empty)
            ).stderr.strip(),
        }
        assert self.num_nodes() == 1
        self.join()
        wait(lambda: self.num_nodes() == 2, 90, "the second host")
        return messages

    def run(self, search: Sequence[str], *, is_lost: bool) -> Measurement:
        """Submit a search, kill a host if ``is_lost``, and return the results."""
        from tune_hpc import load_all
        from tune_hpc.jobs.client import LocalClient

        if WORKER not in self.nodes:
            self.join()
            wait(lambda: self.num_nodes() == 2, 90, "the second host")
        storage = self.folder / "jobs"
        done = self.tune_hpc("submit", *search, "--address", self.dashboard, "--storage", str(storage))
        if done.returncode:
            sys.exit(f"two_hosts: {done.stderr}")
        job = LocalClient(storage).job(done.stdout.strip())
        trials = job.folder.experiment("exercise3.baseline").trials
        in_the_middle = 0
        if is_lost:
            checkpoints = "checkpoints of four trials; with more --steps each trial saves one, after a minute"
            wait(lambda: len(list(trials.glob("*.checkpoint"))) == 4, 300, checkpoints)
            in_the_middle = 2
            self.lose(WORKER)
        status = job.wait(900)
        (results,) = load_all(job.folder.path)
        times = [name for name in results.trials if str(name).endswith(("_s", "_at")) or name in ("host", "device")]
        history = results.history.sort_values(["trial_id", "step"], ignore_index=True)
        return {
            "state": str(status.state),
            "trials": len(results.trials),
            "finished": results.counts().get("finished", 0),
            "in_the_middle": in_the_middle,
            "nodes_at_the_end": self.num_nodes(),
            "frames": [results.trials.drop(columns=times), history.reindex(sorted(history), axis=1)],
        }


if __name__ == "__main__":
    main()
