"""Looks whether a Ray cluster is where it is said to be and lets us in, before Ray itself tries for twenty seconds.

A cluster's head is asked with and without a token whether it lives. A client that is to use a token has to say so
before it connects (``RAY_AUTH_MODE``), and Ray leaves that to its user; here it follows from the answer.
"""

import os

import grpc
import ray
from ray.core.generated.gcs_service_pb2 import CheckAliveReply

from tune_hpc.errors import ClusterError
from tune_hpc.search.ray_token import find_token

#: Seconds within which a cluster's head must answer.
ANSWER_TIMEOUT_S = 10.0
_CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"


def check_cluster(address: str) -> None:
    """Refuse an address at which no cluster lets us in; see to it that its token is used.

    Args:
        address: ``host:port``; anything else is left to Ray.

    Raises:
        ClusterError: nothing answers there, it wants another token, or runs another version of Ray.
    """
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit()) or "/" in host:
        return
    token = find_token()
    told = _ask(address, None)
    if told is None:
        if token is None:
            raise ClusterError(
                f"the cluster at {address} wants a token and there is none here; copy ~/.ray/auth_token from its head, "
                "or set RAY_AUTH_TOKEN"
            )
        told = _ask(address, token)
        if told is None:
            raise ClusterError(
                f"the cluster at {address} refuses the token that is used here, it is another cluster's; copy "
                "~/.ray/auth_token from its head, or set RAY_AUTH_TOKEN"
            )
        os.environ["RAY_AUTH_MODE"] = "token"
    if told.ray_version != ray.__version__:
        raise ClusterError(
            f"the cluster at {address} runs Ray {told.ray_version} and this machine Ray {ray.__version__}; install the "
            f"same here: pip install ray=={told.ray_version}"
        )


def _ask(address: str, token: str | None) -> CheckAliveReply | None:
    """Return what a cluster's head answers; ``None`` where it wants another token.

    Raises:
        ClusterError: nothing answers there, or no Ray.
    """
    metadata = [("authorization", f"Bearer {token}")] if token else None
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(_CHECK_ALIVE, response_deserializer=CheckAliveReply.FromString)
        try:
            told: CheckAliveReply = call(b"", timeout=ANSWER_TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                return None
            raise ClusterError(
                f"no Ray cluster at {address}: {_in_short(error)}; check the address, and that `ray status` answers "
                "there"
            ) from error
    return told


def _in_short(error: grpc.RpcError) -> str:
    """Return why there was no answer, without the layers around it."""
    details = str(error.details())
    for known in ("Connection refused", "DNS resolution failed", "No route to host", "Deadline Exceeded"):
        if known.lower() in details.lower():
            return known
    return "what answers there is no Ray" if "HTTP" in details else details
