"""Launchers that start the drivers of jobs: on a Ray cluster, as processes of this machine, or in this process."""

import os
import shlex
import subprocess
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, urlsplit

from tune_hpc.errors import ClusterError
from tune_hpc.jobs.job_folder import Attempt, JobFolder
from tune_hpc.jobs.status import DriverState
from tune_hpc.storage.process import is_running, kill_session, process_of, this_process

#: Default limit in seconds on a request to a cluster.
TIMEOUT_S = 15.0
#: The default port of a cluster's dashboard.
DASHBOARD_PORT = 8265
#: Seconds without requests for the state of drivers after a cluster did not answer.
RETRY_DELAY_S = 10.0


class Launcher(ABC):
    """Starts drivers and reports whether they are alive."""

    def check(self, timeout_s: float = TIMEOUT_S) -> None:  # noqa: B027
        """Raise ``ClusterError`` if a start would fail; by default there is nothing to check."""

    @abstractmethod
    def location(self, job: JobFolder) -> Mapping[str, Any]:
        """Return ``kind`` and the address or host at which a new driver can be found."""

    @abstractmethod
    def start(self, job: JobFolder, attempt: Attempt) -> Mapping[str, Any]:
        """Start the driver of an attempt without waiting for it; return its process if known.

        Raises:
            ClusterError: no cluster answers, or it rejects the request.
        """

    @abstractmethod
    def state(self, job: JobFolder, attempt: Attempt, timeout_s: float = TIMEOUT_S) -> DriverState:
        """Return the state of the driver of an attempt."""

    @abstractmethod
    def end(self, job: JobFolder, attempt: Attempt) -> None:
        """Kill the driver of an attempt."""

    def output(self, job: JobFolder, attempt: Attempt, timeout_s: float = TIMEOUT_S) -> str:
        """Return output from before the driver opened the log of the job, usually why it did not start."""
        return ""


def _driver_command(python: str, job: JobFolder, attempt: Attempt) -> list[str]:
    return [python, "-m", "tune_hpc.jobs.driver", job.uri, str(attempt.number)]


class LocalLauncher(Launcher):
    """Drivers as processes of this machine, each with its Ray; they outlive the process that started them."""

    def location(self, job: JobFolder) -> Mapping[str, Any]:
        """See ``Launcher``."""
        return {"kind": "process", "host": this_process()["host"]}

    def start(self, job: JobFolder, attempt: Attempt) -> Mapping[str, Any]:
        """See ``Launcher``."""
        output = job.open_output()
        try:
            # In a new session, a signal to the process group of the service or terminal does not reach the driver.
            child = subprocess.Popen(
                _driver_command(sys.executable, job, attempt),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        except OSError as error:
            raise ClusterError(f"the driver of {job.id} cannot be started: {error}; free some resources") from error
        finally:
            os.close(output)
        process = process_of(child.pid)
        # A child that ended is a zombie until its parent waits for it.
        threading.Thread(target=child.wait, daemon=True).start()
        return process

    def state(self, job: JobFolder, attempt: Attempt, timeout_s: float = TIMEOUT_S) -> DriverState:
        """See ``Launcher``."""
        if attempt.location.get("host") != this_process()["host"]:
            return DriverState.UNKNOWN
        return DriverState.ALIVE if is_running(job.read_process(attempt.number)) else DriverState.GONE

    def end(self, job: JobFolder, attempt: Attempt) -> None:
        """See ``Launcher``."""
        process = job.read_process(attempt.number) or {}
        # This includes a driver that a signal has stopped, and its Ray, which is in the same session.
        if process.get("began") and process == process_of(process["pid"]):
            kill_session(process["pid"])


class InProcessLauncher(Launcher):
    """Drivers in a thread of this process, one after the other; they use its Ray session, or start one."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jobs")
        self._drivers: dict[tuple[str, int], Future[None]] = {}

    def location(self, job: JobFolder) -> Mapping[str, Any]:
        """See ``Launcher``."""
        return {"kind": "in_process", **this_process()}

    def start(self, job: JobFolder, attempt: Attempt) -> Mapping[str, Any]:
        """See ``Launcher``."""
        self._drivers[job.id, attempt.number] = self._thread.submit(_drive, job, attempt)
        return this_process()

    def state(self, job: JobFolder, attempt: Attempt, timeout_s: float = TIMEOUT_S) -> DriverState:
        """See ``Launcher``."""
        driver = self._drivers.get((job.id, attempt.number))
        if driver is None:
            return DriverState.UNKNOWN
        if driver.done():
            return DriverState.GONE
        return DriverState.ALIVE if driver.running() else DriverState.WAITING

    def end(self, job: JobFolder, attempt: Attempt) -> None:
        """See ``Launcher``."""
        """Remove a driver from the queue; a running driver ends when its search has stopped."""
        if driver := self._drivers.get((job.id, attempt.number)):
            driver.cancel()


def _drive(job: JobFolder, attempt: Attempt) -> None:
    from tune_hpc.jobs.driver import drive

    with os.fdopen(job.open_output(), "a", encoding="utf-8", buffering=1) as output:
        try:
            drive(job, attempt.number, output)
        except BaseException:
            traceback.print_exc(file=output)
            raise


class RayJobsLauncher(Launcher):
    """Drivers as jobs of a Ray cluster, started through the REST API of Ray Jobs.

    Requests carry the same token as Ray's: ``RAY_AUTH_TOKEN``, the file that ``RAY_AUTH_TOKEN_PATH`` names, or
    ``~/.ray/auth_token``. Ray's client is not used: it has no timeouts, and ``RAY_ADDRESS`` overrides its address.

    Args:
        address: See ``client.Client``.
        token: See ``client.Client``.
        is_trusted: Whether the user named the address. An address from a job folder gets no request, because requests
            carry the token.
    """

    def __init__(self, address: str, token: str | None = None, *, is_trusted: bool = True) -> None:
        self.address = as_url(address)
        self.token = token
        self.is_trusted = is_trusted
        self._retry_at = 0.0

    def check(self, timeout_s: float = TIMEOUT_S) -> None:
        """See ``Launcher``."""
        import ray

        version = self._request("GET", "/api/version", timeout_s).get("ray_version")
        if version != ray.__version__:
            raise ClusterError(
                f"the cluster at {self.address} runs Ray {version} and this machine Ray {ray.__version__}; install the "
                f"same here: pip install ray=={version}"
            )

    def location(self, job: JobFolder) -> Mapping[str, Any]:
        """See ``Launcher``."""
        return {"kind": "ray", "address": self.address}

    def start(self, job: JobFolder, attempt: Attempt) -> Mapping[str, Any]:
        """See ``Launcher``."""
        # This Python has the packages, if the head has it, too; otherwise the Python of the cluster.
        arguments = shlex.join(_driver_command("PYTHON", job, attempt)).removeprefix("PYTHON ")
        local = shlex.quote(sys.executable)
        body = {
            "entrypoint": f'p="${{TUNE_HPC_PYTHON:-{local}}}"; [ -x "$p" ] || p=python3; exec "$p" {arguments}',
            "submission_id": f"{job.id}.{attempt.number}",
            "runtime_env": {"env_vars": {"RAY_USAGE_STATS_ENABLED": "0"}},
            "metadata": {"tune_hpc_job": job.id},
        }
        self._request("POST", "/api/jobs/", json=body)
        return {}

    def state(self, job: JobFolder, attempt: Attempt, timeout_s: float = TIMEOUT_S) -> DriverState:
        """See ``Launcher``."""
        if attempt.location.get("kind") != "ray" or time.monotonic() < self._retry_at:
            return DriverState.UNKNOWN
        try:
            status = self._request("GET", _path(job, attempt), timeout_s).get("status")
        except ClusterError:
            # No cluster or another cluster answers at this address.
            return DriverState.UNKNOWN
        if status in ("STOPPED", "SUCCEEDED", "FAILED"):
            return DriverState.GONE
        return DriverState.WAITING if status == "PENDING" else DriverState.ALIVE

    def end(self, job: JobFolder, attempt: Attempt) -> None:
        """See ``Launcher``."""
        self._request("POST", f"{_path(job, attempt)}/stop")

    def output(self, job: JobFolder, attempt: Attempt, timeout_s: float = TIMEOUT_S) -> str:
        """See ``Launcher``."""
        try:
            message = self._request("GET", _path(job, attempt), timeout_s).get("message") or ""
            return f"{message} {self._request('GET', f'{_path(job, attempt)}/logs', timeout_s).get('logs') or ''}"
        except ClusterError:
            return ""

    def _request(self, method: str, path: str, timeout_s: float = TIMEOUT_S, **body: Any) -> dict[str, Any]:
        """Send a request to the cluster's dashboard; return the JSON object of its response."""
        if not self.is_trusted:
            raise ClusterError(
                f"the job names the cluster {self.address}, which you have not used before; pass it with --address"
            )
        import requests

        from tune_hpc.search.ray_session import find_token  # imports Ray, which takes a second

        token = self.token or find_token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            # A redirect must not receive the token.
            response = requests.request(
                method, self.address + path, headers=headers, timeout=timeout_s, allow_redirects=False, **body
            )
        except requests.RequestException as error:
            self._retry_at = time.monotonic() + RETRY_DELAY_S
            if "BadStatusLine" in str(error):
                raise self._no_dashboard("no HTTP") from error
            raise ClusterError(
                f"no Ray cluster answers at {self.address} ({_cause(error)}); pass the address of its dashboard, "
                f"usually http://HEAD:{DASHBOARD_PORT}, and check with `ray status` on its head that it runs"
            ) from error
        self._retry_at = 0.0
        if response.status_code in (401, 403):
            problem = "rejects the token of this machine" if token else "requires a token, and this machine has none"
            raise ClusterError(
                f"the cluster at {self.address} {problem}; copy ~/.ray/auth_token from its head, or set RAY_AUTH_TOKEN"
            )
        text = " ".join(response.text.split())
        if "No available agent" in text:
            raise ClusterError(
                f"the cluster at {self.address} accepts no jobs: the agent of its head does not run; if another Ray "
                "uses its port, start the head with --dashboard-agent-listen-port=0"
            )
        if not response.ok and path != "/api/version":
            raise ClusterError(
                f"the cluster at {self.address} rejects the request (status {response.status_code}): {text[-300:]}"
            )
        try:
            response.raise_for_status()
            return dict(response.json())
        except (requests.RequestException, ValueError, TypeError) as error:
            raise self._no_dashboard(f"status {response.status_code}") from error

    def _no_dashboard(self, reason: str) -> ClusterError:
        return ClusterError(
            f"the server at {self.address} is not a Ray dashboard ({reason}); its address is usually "
            f"http://HEAD:{DASHBOARD_PORT}"
        )


def _path(job: JobFolder, attempt: Attempt) -> str:
    return f"/api/jobs/{quote(f'{job.id}.{attempt.number}', safe='')}"


def as_url(address: str) -> str:
    """Return the address of a dashboard as ``SCHEME://HOST:PORT``.

    Raises:
        ClusterError: the address is malformed.
    """
    text = address if "://" in address else f"http://{address}"
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        url, port = urlsplit(""), None
    if url.scheme not in ("http", "https") or not url.hostname or url.path.strip("/"):
        raise ClusterError(f"the address of a cluster is that of its dashboard, like http://head:8265; got {address!r}")
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return f"{url.scheme}://{host}:{port or (443 if url.scheme == 'https' else DASHBOARD_PORT)}"


def _cause(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    for known in ("Connection refused", "timed out", "Name or service not known", "No route to host", "unreachable"):
        if known.lower() in text.lower():
            return known.lower()
    return text.splitlines()[0]
