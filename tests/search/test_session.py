"""Connecting to Ray: what is refused before Ray is asked."""

import re
import socket
import subprocess
import sys

import pytest

from tune_hpc.errors import ClusterError
from tune_hpc.search.session import ray_session


@pytest.fixture
def free_port(monkeypatch):
    """Return a port of this machine at which nothing listens, in a process that is not connected to Ray."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_an_address_at_which_nothing_listens_is_refused_at_once(free_port):
    with pytest.raises(ClusterError, match=f"no Ray cluster at 127.0.0.1:{free_port}: .*check the address"):
        ray_session(f"127.0.0.1:{free_port}").__enter__()


def test_the_address_of_the_environment_counts_where_none_is_given(free_port, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port}")
    with pytest.raises(ClusterError, match=str(free_port)):
        ray_session().__enter__()


def test_an_impossible_port_is_refused(free_port):
    with pytest.raises(ClusterError, match=r"no Ray cluster at 127\.0\.0\.1:99999999"):
        ray_session("127.0.0.1:99999999").__enter__()


@pytest.mark.parametrize("num_late", [1, 2])
def test_a_ray_that_a_busy_machine_does_not_let_start_in_time_is_started_once_more(num_late, monkeypatch):
    tried, ended = [], []

    def start(**settings):
        tried.append(settings["address"])
        if len(tried) <= num_late:
            raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", start)
    monkeypatch.setattr("ray.shutdown", lambda: ended.append(True))
    if num_late == 1:
        with ray_session():
            assert tried == ["local", "local"]
    else:
        with pytest.raises(ClusterError, match=r"^Ray did not start on this machine in 30 s, twice; it is too busy"):
            ray_session().__enter__()
    assert len(ended) == 2


@pytest.mark.slow
def test_a_ray_of_this_machine_has_no_process_that_a_search_does_not_need():
    """What a Ray of another release starts beside them shows here."""
    source = """
import os, pathlib, ray
from tune_hpc.search.session import ray_session

with ray_session():
    home = ray._private.worker.global_worker.node.get_session_dir_path()
    for process in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes().replace(bytes(1), b" ").decode()
        except OSError:
            continue
        if home in command or "ray::" in command and os.getppid() != int(process.parent.name):
            print(command[:300])
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert "gcs_server" in done.stdout
    assert re.findall(r"dashboard/dashboard\.py|log_monitor\.py|monitor\.py|default_worker", done.stdout) == []
