"""Drivers as jobs of a Ray cluster, through the cluster's own job service, with its token.

A cluster that wants a token is given the one that Ray would use: of ``RAY_AUTH_TOKEN``, of the file that
``RAY_AUTH_TOKEN_PATH`` names, or of ``~/.ray/auth_token``. Ray's own client would be led elsewhere by ``RAY_ADDRESS``,
and answers a missing token with a page of advice; here it is one line.
"""

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tune_hpc.analysis.object_store import is_remote, pull_tree
from tune_hpc.cluster.job_folder import Attempt, JobFolder
from tune_hpc.cluster.launchers import DriverState, driver_command
from tune_hpc.errors import ClusterError
from tune_hpc.search.tokens import find_token

#: Where the dashboard of a cluster answers unless it is told otherwise.
DASHBOARD_PORT = 8265
#: Seconds within which it must.
TIMEOUT_S = 15.0
#: These would lead Ray's client to another cluster than the one that was asked for.
_MISLEADING = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")

_T = TypeVar("_T")


class RayJobs:
    """Drivers as jobs of a Ray cluster.

    Args:
        address: Of the cluster's dashboard: ``http://HOST:PORT``, or ``HOST`` or ``HOST:PORT``.
        token: The cluster's; by default the one that Ray would use.

    Raises:
        ClusterError: an address that cannot be one.
    """

    def __init__(self, address: str, token: str | None = None) -> None:
        self.address = _as_url(address)
        self.token = token
        self._client: Any = None

    def check(self) -> None:
        """See ``Launcher``."""
        import ray

        version = self._get_version()
        if version != ray.__version__:
            raise ClusterError(
                f"the cluster at {self.address} runs Ray {version} and this machine Ray {ray.__version__}; install the "
                f"same here: pip install ray=={version}"
            )

    def place(self, job: JobFolder) -> Mapping[str, Any]:
        """See ``Launcher``."""
        return {"kind": "ray", "address": self.address}

    def start(self, job: JobFolder, attempt: Attempt) -> None:
        """See ``Launcher``."""
        variables = {"RAY_USAGE_STATS_ENABLED": "0"}
        runtime_env: dict[str, Any] = {"env_vars": variables}
        pull_tree(job.code)
        if job.code.is_dir() and is_remote(job.place):
            runtime_env["working_dir"] = str(job.code)
        elif job.code.is_dir():
            # Not as the job's working_dir: a node may remove that when another one is lost.
            variables["PYTHONPATH"] = f"${{PYTHONPATH}}:{job.code}"
        # The same Python as here where the head has it, for it has the packages; else whatever the cluster calls so.
        there = shlex.join(driver_command("PYTHON", job, attempt)).removeprefix("PYTHON ")
        here = shlex.quote(sys.executable)
        entrypoint = f'p="${{TUNE_HPC_PYTHON:-{here}}}"; [ -x "$p" ] || p=python3; exec "$p" {there}'
        self._ask(
            lambda client: client.submit_job(
                entrypoint=entrypoint,
                submission_id=_name(job, attempt),
                runtime_env=runtime_env,
                metadata={"tune_hpc_job": job.id},
            )
        )

    def state(self, job: JobFolder, attempt: Attempt) -> DriverState:
        """See ``Launcher``."""
        if attempt.place.get("kind") != "ray":
            return DriverState.UNKNOWN
        try:
            status = self._ask(lambda client: client.get_job_status(_name(job, attempt)))
        except ClusterError:
            # Another cluster now answers there, or none does: it lives no more as far as anybody can tell by asking.
            return DriverState.UNKNOWN
        if status.is_terminal():
            return DriverState.GONE
        return DriverState.WAITING if status.name == "PENDING" else DriverState.ALIVE

    def end(self, job: JobFolder, attempt: Attempt) -> None:
        """See ``Launcher``."""
        self._ask(lambda client: client.stop_job(_name(job, attempt)))

    def output(self, job: JobFolder, attempt: Attempt) -> str:
        """See ``Launcher``."""
        try:
            info = self._ask(lambda client: client.get_job_info(_name(job, attempt)))
            return f"{info.message or ''} {self._ask(lambda client: client.get_job_logs(_name(job, attempt)))}"
        except ClusterError:
            return ""

    def _ask(self, question: Callable[[Any], _T]) -> _T:
        """Put a question to the job service.

        Raises:
            ClusterError: it does not answer, or refuses.
        """
        import requests

        try:
            with _not_misled():
                if self._client is None:
                    self._client = self._connect()
                return question(self._client)
        except requests.RequestException as error:
            raise ClusterError(
                f"the cluster at {self.address} does not answer any more: {_first_line(error)}"
            ) from error
        except (RuntimeError, ConnectionError) as error:
            if "No available agent" in str(error):
                raise ClusterError(
                    f"the cluster at {self.address} takes no jobs: the agent of its head does not run; where another "
                    "Ray holds its port, start the head with --dashboard-agent-listen-port=0"
                ) from error
            raise ClusterError(f"the cluster at {self.address} refuses: {_first_line(error)}") from error

    def _connect(self) -> Any:
        from ray.job_submission import JobSubmissionClient

        self._get_version()
        token = self.token or find_token()
        headers = {"Authorization": f"Bearer {token}"} if token else None
        return JobSubmissionClient(self.address, headers=headers)

    def _get_version(self) -> str:
        """Return the version of the cluster's Ray.

        Raises:
            ClusterError: nothing answers there, it is no Ray, or it does not let us in.
        """
        import requests

        token = self.token or find_token()
        try:
            answer = requests.get(
                f"{self.address}/api/version",
                headers={"Authorization": f"Bearer {token}"} if token else {},
                timeout=TIMEOUT_S,
            )
        except requests.RequestException as error:
            if "BadStatusLine" in str(error):
                raise ClusterError(
                    f"what answers at {self.address} is no Ray dashboard; its address is mostly "
                    f"http://HEAD:{DASHBOARD_PORT}"
                ) from error
            raise ClusterError(
                f"no Ray cluster answers at {self.address} ({_cause(error)}); the address is that of its dashboard, "
                f"mostly http://HEAD:{DASHBOARD_PORT}: `ray status` on its head tells whether it is up"
            ) from error
        if answer.status_code in (401, 403):
            if token is None:
                raise ClusterError(
                    f"the cluster at {self.address} wants a token and there is none here; copy ~/.ray/auth_token from "
                    "its head, or set RAY_AUTH_TOKEN"
                )
            raise ClusterError(
                f"the cluster at {self.address} refuses the token that is used here, it is another cluster's; copy "
                "~/.ray/auth_token from its head, or set RAY_AUTH_TOKEN"
            )
        try:
            answer.raise_for_status()
            return str(answer.json()["ray_version"])
        except (requests.RequestException, ValueError, KeyError, TypeError) as error:
            raise ClusterError(
                f"what answers at {self.address} is no Ray dashboard (status {answer.status_code}); check host and port"
            ) from error


def _name(job: JobFolder, attempt: Attempt) -> str:
    """Return what Ray calls an attempt."""
    return f"{job.id}.{attempt.number}"


def _as_url(address: str) -> str:
    text = address if "://" in address else f"http://{address}"
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        url, port = urlsplit(""), None
    if url.scheme not in ("http", "https") or not url.hostname or url.path.strip("/"):
        raise ClusterError(f"a cluster's address is that of its dashboard, like http://head:8265; got {address!r}")
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return f"{url.scheme}://{host}:{port or (443 if url.scheme == 'https' else DASHBOARD_PORT)}"


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _cause(error: Exception) -> str:
    """Return why a connection failed, without the layers around it."""
    text = str(error)
    for known in ("Connection refused", "timed out", "Name or service not known", "No route to host", "unreachable"):
        if known.lower() in text.lower():
            return known.lower()
    return _first_line(error)


@contextmanager
def _not_misled() -> Iterator[None]:
    """Hide what would lead Ray's client elsewhere."""
    before = {name: os.environ.pop(name) for name in _MISLEADING if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
