"""Ray clusters with tokens, started by the command of a user."""

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
    """Return different free ports, bound at the same time."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for bound in sockets:
            bound.bind(("127.0.0.1", 0))
        return [bound.getsockname()[1] for bound in sockets]


@dataclass
class Head:
    """Addresses and token of the head of a cluster."""

    address: str  #: of the control service, HOST:PORT
    dashboard: str
    token: str
    environment: dict[str, str]
    pid: int  #: of its main process, which leads the session of all its processes


@contextmanager
def block(command, environment, log=os.devnull):
    """Run the blocking command of a node; end it and its children on exit."""
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


#: Flags that prevent conflicts of ports between several Ray instances of one machine.
PORT_FLAGS = ["--dashboard-agent-listen-port=0", "--dashboard-agent-grpc-port=0", "--metrics-export-port=0"]


@contextmanager
def start_head(folder, num_cpus=2, **variables):
    """Start a cluster of one node that requires a token, with its files in ``folder``."""
    (folder / ".ray").mkdir()
    token = "0123456789abcdef" * 4
    (folder / ".ray" / "auth_token").write_text(token, encoding="utf-8")
    dropped = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {
        "HOME": str(folder), "XDG_STATE_HOME": str(folder / "state"), "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        # The image files of this machine.
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),
    }  # fmt: skip
    environment |= variables
    port, dashboard, client_server = free_ports(3)
    # Paths of sockets have at most 107 characters.
    sessions = Path(f"/tmp/ray-{os.getpid()}-{port}")
    flags = [f"--port={port}", f"--dashboard-port={dashboard}", f"--num-cpus={num_cpus}", f"--temp-dir={sessions}"]
    command = [RAY, "start", "--head", "--block", f"--ray-client-server-port={client_server}", *flags, *PORT_FLAGS]
    with block(command, environment, folder / "ray.log") as process:
        head = Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", token, environment, process.pid)
        began = time.monotonic()
        while not is_up(head):
            assert time.monotonic() - began < 90, (folder / "ray.log").read_text()
            time.sleep(0.2)
        yield head
    shutil.rmtree(sessions, ignore_errors=True)


@pytest.fixture(scope="session")
def head(tmp_path_factory):
    """A cluster of one node with two cores."""
    with start_head(tmp_path_factory.mktemp("head")) as started:
        yield started


def wait_for_nodes(head, number):
    """Wait until this number of nodes of a cluster is alive."""
    headers = {"Authorization": f"Bearer {head.token}"}
    began, alive = time.monotonic(), -1
    while alive != number:
        assert time.monotonic() - began < 60, f"{alive} nodes are alive"
        time.sleep(0.3)
        response = requests.get(f"{head.dashboard}/api/v0/nodes", headers=headers, timeout=10).json()
        alive = sum(node["state"] == "ALIVE" for node in response["data"]["result"]["result"])


def node_command(head, num_cpus=2):
    """Return the command of another node of a cluster."""
    return [RAY, "start", "--block", f"--address={head.address}", f"--num-cpus={num_cpus}", *PORT_FLAGS]


def is_up(head: Head) -> bool:
    headers = {"Authorization": f"Bearer {head.token}"}
    try:
        return requests.get(f"{head.dashboard}/api/version", headers=headers, timeout=5).ok
    except requests.RequestException:
        return False
