"""Ray clusters as a user starts them, each with a token of its own; ended by their own processes' ids."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

RAY = str(Path(sys.executable).with_name("ray"))


def free_ports(number):
    """Return ports at which nothing listens; taken all at once, for else one might be given twice."""
    with ExitStack() as taken:
        sockets = [taken.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@dataclass
class Head:
    """The head of a cluster: where it is, and what lets one in."""

    address: str  #: of its control service, HOST:PORT
    dashboard: str
    token: str
    environment: dict[str, str]


@contextmanager
def block(command, environment, log=os.devnull):
    """Run what blocks as long as a node of a cluster lives; end it, and all that it started."""
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


#: Ports that several Rays on one machine would quarrel about.
OWN_PORTS = ["--dashboard-agent-listen-port=0", "--dashboard-agent-grpc-port=0", "--metrics-export-port=0"]


@contextmanager
def start_head(home, num_cpus=2, **variables):
    """Start a cluster of one node as a user does, that wants a token; ``home`` is a folder for its files."""
    (home / ".ray").mkdir()
    token = "0123456789abcdef" * 4
    (home / ".ray" / "auth_token").write_text(token, encoding="utf-8")
    dropped = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {
        "HOME": str(home), "XDG_STATE_HOME": str(home / "state"), "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Images are where they are for everybody else.
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),
    }  # fmt: skip
    environment |= variables
    port, dashboard, client_server = free_ports(3)
    # Names of sockets have 107 characters at most.
    sessions = Path(f"/tmp/ray-{os.getpid()}-{port}")
    own = [f"--port={port}", f"--dashboard-port={dashboard}", f"--num-cpus={num_cpus}", f"--temp-dir={sessions}"]
    command = [RAY, "start", "--head", "--block", f"--ray-client-server-port={client_server}", *own, *OWN_PORTS]
    with block(command, environment, home / "ray.log"):
        here = Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", token, environment)
        began = time.monotonic()
        while not is_up(here):
            assert time.monotonic() - began < 90, (home / "ray.log").read_text()
            time.sleep(0.2)
        yield here
    shutil.rmtree(sessions, ignore_errors=True)


@pytest.fixture(scope="session")
def head(tmp_path_factory):
    """A cluster of one node with two cores."""
    with start_head(tmp_path_factory.mktemp("head")) as here:
        yield here


def wait_for_nodes(head, number):
    """Wait until so many nodes of a cluster are alive."""
    headers = {"Authorization": f"Bearer {head.token}"}
    began, alive = time.monotonic(), -1
    while alive != number:
        assert time.monotonic() - began < 60, f"{alive} nodes are alive"
        time.sleep(0.3)
        told = requests.get(f"{head.dashboard}/api/v0/nodes", headers=headers, timeout=10).json()
        alive = sum(node["state"] == "ALIVE" for node in told["data"]["result"]["result"])


def node_command(head, num_cpus=2):
    """Return the command of another node of a cluster."""
    return [RAY, "start", "--block", f"--address={head.address}", f"--num-cpus={num_cpus}", *OWN_PORTS]


def is_up(head: Head) -> bool:
    headers = {"Authorization": f"Bearer {head.token}"}
    try:
        return requests.get(f"{head.dashboard}/api/version", headers=headers, timeout=5).ok
    except requests.RequestException:
        return False
