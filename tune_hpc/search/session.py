"""Connecting to Ray: a cluster that runs, or one of our own for as long as it is needed."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray

from tune_hpc.errors import ClusterError


@contextmanager
def ray_session(address: str | None = None) -> Iterator[None]:
    """Be connected to Ray inside the block.

    A connection that is already there is used and left as it is. Otherwise connect to ``address``, or to the cluster
    that ``RAY_ADDRESS`` names (inside a Ray job it does), or start Ray on this machine with the cores that this process
    may use (an allocation's share, not the whole node), and end it afterwards.

    Args:
        address: ``host:port``, ``auto``, or ``None``.

    Raises:
        ClusterError: nothing answers there, or it refuses us.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own: dict[str, object] = (
        {"address": address}
        if address
        else {"address": "local", "num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False}
    )
    try:
        ray.init(**own, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        remedy = "check the address, and that `ray status` answers there"
        if "auth" in str(error).lower():
            remedy = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the cluster's token"
        raise ClusterError(f"no Ray cluster at {address or 'this machine'}: {reason}; {remedy}") from error
    try:
        yield
    finally:
        ray.shutdown()


def node_resources() -> list[Mapping[str, float]]:
    """Return the resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
