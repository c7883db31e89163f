"""Ray clusters as a user starts them, each with a token of its own; ended by their own processes' ids."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@dataclass
class Head:
    """The head of a cluster: where it is, and what lets one in."""

    address: str  #: of its control service, HOST:PORT
    dashboard: str
    token: str
    environment: dict[str, str]


@contextmanager
def block(command, environment):
    """Run what blocks as long as a node of a cluster lives; end it, and all that it started."""
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
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


@pytest.fixture(scope="session")
def head(tmp_path_factory):
    """A cluster of one node with two cores, started as a user does, that wants a token."""
    home = tmp_path_factory.mktemp("head")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("0123456789abcdef" * 4, encoding="utf-8")
    dropped = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {
        "HOME": str(home), "XDG_STATE_HOME": str(home / "state"), "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Images are where they are for everybody else.
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),
    }  # fmt: skip
    port, dashboard = free_port(), free_port()
    # Names of sockets have 107 characters at most.
    sessions = Path(f"/tmp/ray-{os.getpid()}")
    own = [f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2", f"--temp-dir={sessions}"]
    command = [RAY, "start", "--head", "--block", "--ray-client-server-port", str(free_port()), *own, *OWN_PORTS]
    with block(command, environment):
        here = Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", "0123456789abcdef" * 4, environment)
        began = time.monotonic()
        while not is_up(here):
            assert time.monotonic() - began < 90, "the head does not come up"
            time.sleep(0.2)
        yield here
    shutil.rmtree(sessions, ignore_errors=True)


def is_up(head: Head) -> bool:
    headers = {"Authorization": f"Bearer {head.token}"}
    try:
        return requests.get(f"{head.dashboard}/api/version", headers=headers, timeout=5).ok
    except requests.RequestException:
        return False
