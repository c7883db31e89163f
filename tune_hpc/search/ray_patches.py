"""Patches of Ray 2.5x and 2.6x, for which it has no option. Tests: tests/search/test_ray_session.py, test_runner.py.

Each patch applies inside a block only. A version of Ray without one of the methods that start processes works as
without that patch.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest.mock import patch

from ray._private import ray_constants, services
from ray._private.node import Node
from ray.air._internal import usage

#: Methods that start processes without a use on one machine: the autoscaler, and the monitor that sends the output of
#: trials to the driver, which is in files here.
_UNUSED = ("start_monitor", "start_log_monitor")
#: Method that starts the state API, for whose start of a second Ray waits.
_STATE_API = "start_api_server"


@contextmanager
def minimal_ray_processes(*, with_state: bool = False) -> Iterator[None]:
    """Start a Ray inside the block that listens on loopback only and has no process that one machine does not need.

    Signals to the process group of this process do not reach it.

    Args:
        with_state: Whether to start the state API.
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


@contextmanager
def without_usage_stats() -> Iterator[None]:
    """Disable the count of callbacks for Ray's telemetry, which imports MLflow if it is installed (1 s)."""
    with patch.object(usage, "tag_callbacks", lambda callbacks: False):
        yield
