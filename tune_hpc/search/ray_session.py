"""Connecting to Ray: a cluster that runs, or one of our own for as long as it is needed."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, services
from ray._private.node import Node

from tune_hpc.errors import ClusterError

#: What Ray says when its own processes have not answered soon enough.
_NOT_IN_TIME = "timed out during startup"
#: Where the processes of a Ray find what tells its state.
STATE_ADDRESS = "RAY_API_SERVER_ADDRESS"
#: For a Ray of our own: no process is started before there is work for it. Ray Tune's actors ask for an environment of
#: their own, so the processes that Ray would start beforehand, one a core, are of no use to them.
_OWN_SYSTEM = {"prestart_worker_first_driver": False}
#: Nor are those started that a search on one machine has no use for, by the methods of Ray's that start them (it has no
#: other switch): what adds nodes, and what brings the output of trials to the driver; they keep it in files.
_UNUSED = ("start_monitor", "start_log_monitor")
#: And what tells the state, unless it is asked for: everything waits until it has come up, which takes a second.
_TELLS_STATE = "start_api_server"


@contextmanager
def ray_session(address: str | None = None, *, with_state: bool = False) -> Iterator[None]:
    """Be connected to Ray inside the block.

    A connection that is already there is used and left as it is. Otherwise connect to ``address``, or to the cluster
    that ``RAY_ADDRESS`` names (inside a Ray job it does), or start Ray on this machine with the cores that this process
    may use (an allocation's share, not the whole node), and end it afterwards.

    Args:
        address: ``host:port``, ``auto``, or ``None``.
        with_state: Whether a Ray that is started here tells what its actors do: what cleans up after Ray Train asks it.

    Raises:
        ClusterError: nothing answers there, or it refuses us.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        from tune_hpc.search.cluster_address import check_cluster

        check_cluster(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    num_cpus = len(os.sched_getaffinity(0))
    own: dict[str, Any] = {"address": "local", "num_cpus": num_cpus, "_system_config": _OWN_SYSTEM}
    try:
        if address:
            _init({"address": address})
        else:
            with (
                state_api_address() if with_state else _not_telling() as more,
                minimal_ray_processes(with_state=with_state),
            ):
                _protect_token()
                _init(own | more)
            _protect_token()
    except ClusterError:
        raise
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.AuthenticationError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        remedy = "check that `ray status` answers there"
        if isinstance(error, ray.exceptions.AuthenticationError):
            reason, remedy = "it wants a token", "copy ~/.ray/auth_token from its head, or set RAY_AUTH_TOKEN"
        raise ClusterError(f"no Ray cluster at {address or 'this machine'}: {reason}; {remedy}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def minimal_ray_processes(*, with_state: bool = False) -> Iterator[None]:
    """Start a Ray inside the block that listens on loopback only and has no process that one machine does not need.

    Signals to the process group of this process do not reach it.

    Args:
        with_state: Whether it is to tell what its actors do.
    """
    unused = _UNUSED if with_state else (*_UNUSED, _TELLS_STATE)
    # A Ray that knows one of them by another name starts it, and that is all.
    before = {name: getattr(Node, name) for name in unused if hasattr(Node, name)}
    for name in before:
        setattr(Node, name, lambda *_, **__: None)
    # Ray does so on Windows and macOS, unless RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER is set when it is imported. Its option
    # _node_ip_address turns 127.0.0.1 into the address of the network.
    is_cluster, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    # A group of its own for each process: a SIGTERM to ours (of timeout, of a shell) reaches us alone, and trials can
    # save their state. Ray does so for SIGINT, by other means. They end with us all the same.
    popen, services.ConsolePopen = services.ConsolePopen, partial(services.ConsolePopen, process_group=0)
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = is_cluster
        services.ConsolePopen = popen
        for name, method in before.items():
            setattr(Node, name, method)


@contextmanager
def _not_telling() -> Iterator[dict[str, Any]]:
    yield {"include_dashboard": False}


@contextmanager
def state_api_address() -> Iterator[dict[str, Any]]:
    """Yield what to start Ray with, that its processes may ask it which of its actors are alive.

    Left alone they ask any Ray of this machine that answers. Ray Train's cleaner does, and if that Ray does not know a
    training, the cleaner takes it for dead and ends it.
    """
    before = os.environ.get(STATE_ADDRESS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ[STATE_ADDRESS] = f"http://127.0.0.1:{port}"
    try:
        yield {"include_dashboard": True, "dashboard_port": port}
    finally:
        os.environ.pop(STATE_ADDRESS)
        if before is not None:
            os.environ[STATE_ADDRESS] = before


def _init(settings: Mapping[str, Any]) -> None:
    """Connect to Ray, or start it; once more where a busy machine did not let it start in the 30 s that Ray waits.

    Raises:
        ClusterError: it did not start.
        KeyboardInterrupt: SIGTERM came meanwhile.
    """
    handler = signal.getsignal(signal.SIGTERM)
    for is_last in (False, True):
        try:
            ray.init(**settings, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
            if threading.current_thread() is threading.main_thread():
                # Ray's own handler ends the process, and no trial saves its state.
                signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)
            return
        except SystemExit:
            raise KeyboardInterrupt from None
        except Exception as error:
            # Ray has no class of its own for it.
            if _NOT_IN_TIME not in str(error):
                raise
            ray.shutdown()
            if is_last:
                raise ClusterError(
                    "Ray did not start on this machine in 30 s, twice; it is too busy: wait until it is less so"
                ) from error


def _protect_token() -> None:
    """Let only its owner read Ray's token, with which others could run commands in this Ray; Ray writes it 0644."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").expanduser()
    try:
        status = path.stat()
        if status.st_mode & 0o077 and status.st_uid == os.geteuid():
            path.chmod(0o600)
    except OSError:
        return


def node_resources() -> list[Mapping[str, float]]:
    """Return the resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
