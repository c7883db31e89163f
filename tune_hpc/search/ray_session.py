"""Connection to Ray: to a running cluster, or to a Ray that is started here for the time of a block.

The patches are for Ray 2.5x and 2.6x, which have no options for them. They apply inside a block only. A version of Ray
without one of the methods that start processes works as without that patch.
"""

import logging
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import ray
from ray._private import ray_constants, services
from ray._private import worker as ray_worker
from ray._private.node import Node

from tune_hpc.errors import ClusterError

#: Seconds within which the head of a cluster must answer.
ANSWER_TIMEOUT_S = 10.0
#: Part of Ray's message if its processes did not start in time.
_TIMEOUT_MESSAGE = "timed out during startup"
#: Methods that start processes without a use on one machine: the autoscaler, and the monitor that sends the output of
#: trials to the driver, which is in files here.
_UNUSED = ("start_monitor", "start_log_monitor")
#: Method that starts the state API, for whose start of a second Ray waits.
_STATE_API = "start_api_server"
#: Private gRPC method of Ray that ``check_cluster`` calls.
_CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"


@contextmanager
def ray_session(address: str | None = None, *, with_state: bool = False, hide_gpus: bool = False) -> Iterator[None]:
    """Connect to Ray for the time of a block.

    An existing connection is used and stays. Otherwise connect to ``address`` or to the cluster that ``RAY_ADDRESS``
    names, as inside a Ray job. Without either, start Ray on this machine with the cores that this process may use, and
    stop it afterwards. Its session folder with logs and sockets is deleted, unless Ray has failed.

    Args:
        address: ``host:port``, ``auto``, or ``None``.
        with_state: Whether a Ray that is started here has the state API, which the cleaner of Ray Train requests.
        hide_gpus: Whether trials without a GPU see none in a Ray that is started here.

    Raises:
        ClusterError: There is no cluster at the address, or it rejects this client.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        check_cluster(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    session = ""
    try:
        with _start_errors(address):
            if address:
                _init({"address": address})
            else:
                with deferred_interrupt():
                    _start(with_state=with_state, hide_gpus=hide_gpus)
                    session = ray_worker.global_worker.node.get_session_dir_path()
        yield
    except ClusterError as error:
        if error.__cause__ is not None:
            session = ""  # Ray has failed, and its logs there have the reason; otherwise a request was rejected.
        raise
    finally:
        ray.shutdown()
        if session:
            # Ray never deletes it; a thousand searches leave a gigabyte.
            shutil.rmtree(session, ignore_errors=True)


@contextmanager
def _start_errors(address: str | None) -> Iterator[None]:
    """Convert the errors of a connection to Ray."""
    try:
        yield
    except ClusterError:
        raise
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.AuthenticationError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        remedy = "check that `ray status` answers there"
        if isinstance(error, ray.exceptions.AuthenticationError):
            reason, remedy = "it requires a token", "copy ~/.ray/auth_token from its head, or set RAY_AUTH_TOKEN"
        raise ClusterError(f"no Ray cluster at {address or 'this machine'}: {reason}; {remedy}") from error


@contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Raise the first Ctrl-C at the end of the block; a second one at once.

    A Ray whose start is interrupted leaves processes that nothing stops before the end of this process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, is_interrupted = signal.getsignal(signal.SIGINT), False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal is_interrupted
        is_interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
    if is_interrupted:
        raise KeyboardInterrupt


def _start(*, with_state: bool, hide_gpus: bool) -> None:
    """Start Ray on this machine with the cores of this process."""
    settings: dict[str, Any] = {
        "address": "local",
        "num_cpus": len(os.sched_getaffinity(0)),
        # Ray Tune's actors have their own runtime environment, so that prestarted processes would remain unused.
        "_system_config": {"prestart_worker_first_driver": False},
        "include_dashboard": False,
    }
    with ExitStack() as stack:
        if with_state:
            settings |= stack.enter_context(state_api_address())
        stack.enter_context(minimal_ray_processes(with_state=with_state))
        if hide_gpus:
            # By default they see all GPUs. Ray's processes inherit the variable.
            stack.enter_context(environment(RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="1"))
        _protect_token()
        _init(settings)
    _protect_token()


@contextmanager
def state_api_address() -> Iterator[dict[str, Any]]:
    """Yield settings for Ray by which its processes find its own state API.

    Without them they connect to any Ray of this machine. The cleaner of Ray Train does, and if that Ray does not know
    a training, the cleaner ends it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with environment(RAY_API_SERVER_ADDRESS=f"http://127.0.0.1:{port}"):
        yield {"include_dashboard": True, "dashboard_port": port}


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables inside the block; some settings of Ray have no other interface."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def minimal_ray_processes(*, with_state: bool = False) -> Iterator[None]:
    """Start a Ray inside the block that listens on loopback only and has no process that one machine does not need.

    Signals to the process group of this process do not reach it. ``with_state`` starts the state API.
    """
    with ExitStack() as patches:
        for name in _UNUSED if with_state else (*_UNUSED, _STATE_API):
            if hasattr(Node, name):
                patches.enter_context(patch.object(Node, name, lambda *_, **__: None))
        # Ray listens on loopback only on Windows and macOS, unless RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER is set on import.
        # Its option _node_ip_address replaces 127.0.0.1 by the address of the network.
        patches.enter_context(patch.object(ray_constants, "ENABLE_RAY_CLUSTER", False))
        # Each process has its own process group, as with SIGINT in Ray: a SIGTERM to our group (from timeout or a
        # shell) reaches only this process, so that trials can save their states. Ray still ends with this process.
        popen = partial(services.ConsolePopen, process_group=0)
        patches.enter_context(patch.object(services, "ConsolePopen", popen))
        yield


def _init(settings: Mapping[str, Any]) -> None:
    """Connect to Ray or start it; retry once if Ray did not start within its 30 s on a busy machine."""
    handler = signal.getsignal(signal.SIGTERM)
    for is_last in (False, True):
        try:
            ray.init(**settings, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
            if threading.current_thread() is threading.main_thread():
                # Ray's handler ends the process, and no trial saves its state.
                signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)
            return
        except SystemExit:
            raise KeyboardInterrupt from None
        except Exception as error:
            # Ray has no class for this error.
            if _TIMEOUT_MESSAGE not in str(error):
                raise
            ray.shutdown()
            if is_last:
                raise ClusterError(
                    "Ray did not start on this machine in 30 s, twice; the machine is too busy: try again later"
                ) from error


def _token_path() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").expanduser()


def _protect_token() -> None:
    """Make Ray's token readable for its owner only: others could run commands in this Ray. Ray writes it as 0644."""
    with suppress(OSError):
        status = _token_path().stat()
        if status.st_mode & 0o077 and status.st_uid == os.geteuid():
            _token_path().chmod(0o600)


def find_token() -> str | None:
    """Return the token that Ray would use; ``None`` if there is none.

    Raises:
        ClusterError: ``RAY_AUTH_TOKEN_PATH`` names a file that cannot be read.
    """
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    try:
        return _token_path().read_text(encoding="utf-8").strip() or None
    except OSError as error:
        path = os.environ.get("RAY_AUTH_TOKEN_PATH")
        if not path:
            return None
        raise ClusterError(
            f"RAY_AUTH_TOKEN_PATH names {path}, which cannot be read ({error.strerror}); correct it, or unset it"
        ) from error


def check_cluster(address: str) -> None:
    """Check within seconds that a Ray cluster answers and accepts this client; ``ray.init`` takes 20 s for this.

    The head is called without and with a token. ``RAY_AUTH_MODE`` is set if the cluster requires one: Ray leaves this
    to the user. This function uses Ray's private gRPC interface.

    Args:
        address: ``host:port``; other addresses are not checked.

    Raises:
        ClusterError: Nothing answers there, the cluster has another token, or another version of Ray.
    """
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit()) or "/" in host:
        return
    token = find_token()
    version = _ray_version(address, None)
    if version is None:
        if token is None:
            raise ClusterError(
                f"the cluster at {address} requires a token, and this machine has none; copy ~/.ray/auth_token from "
                "its head, or set RAY_AUTH_TOKEN"
            )
        version = _ray_version(address, token)
        if version is None:
            raise ClusterError(
                f"the cluster at {address} rejects the token of this machine; copy ~/.ray/auth_token from its head, "
                "or set RAY_AUTH_TOKEN"
            )
        os.environ["RAY_AUTH_MODE"] = "token"
    if version != ray.__version__:
        raise ClusterError(
            f"the cluster at {address} runs Ray {version} and this machine Ray {ray.__version__}; install the same "
            f"version here: pip install ray=={version}"
        )


def _ray_version(address: str, token: str | None) -> str | None:
    """Return the version of a cluster's head; ``None`` if it rejects the token."""
    import grpc
    from ray.core.generated.gcs_service_pb2 import CheckAliveReply

    metadata = [("authorization", f"Bearer {token}")] if token else None
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(_CHECK_ALIVE, response_deserializer=CheckAliveReply.FromString)
        try:
            return str(call(b"", timeout=ANSWER_TIMEOUT_S, metadata=metadata).ray_version)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                return None
            raise ClusterError(
                f"no Ray cluster at {address}: {_reason(str(error.details()))}; check the address, and that "
                "`ray status` answers there"
            ) from error


def _reason(details: str) -> str:
    """Return the cause of a gRPC error without its layers."""
    for known in ("Connection refused", "DNS resolution failed", "No route to host", "Deadline Exceeded"):
        if known.lower() in details.lower():
            return known
    return "the server there is not a Ray head node" if "HTTP" in details else details
