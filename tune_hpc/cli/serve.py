"""``tune-hpc serve``: searches over HTTP."""

import argparse
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_hpc import __version__
from tune_hpc.cli.jobs import DEFAULT_STORAGE, STORAGE_VARIABLE, client_at
from tune_hpc.errors import ClusterError, InvalidExperimentError, MissingPackageError
from tune_hpc.storage.access import check_storage
from tune_hpc.storage.filesystem import is_remote, uri

if TYPE_CHECKING:
    from tune_hpc.jobs.client import JobClient
    from tune_hpc.search.experiment import Experiment

DEFAULT_PORT = 8300
NEEDED = ("fastapi", "uvicorn", "starlette", "pydantic", "anyio", "itsdangerous", "prometheus_client")
TOKEN_FILE = "service-token"
#: The names of this machine for a service without a token.
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def add_serve_verb(add: Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]) -> None:
    """Add the command to a parser.

    Args:
        add: Makes the parser of a command from its name, function and help.
    """
    serve = add("serve", _serve, "serve searches over HTTP: an API, and a page to start, watch and control them")
    serve.add_argument(
        "--storage", metavar="DIR", help=f"folder of the jobs (default: ${STORAGE_VARIABLE}, or {DEFAULT_STORAGE})"
    )
    serve.add_argument(
        "--address", metavar="ADDRESS",
        help="dashboard of the Ray cluster that runs searches, http://HEAD:8265 (default: run them on this machine)",
    )  # fmt: skip
    serve.add_argument(
        "--register", action="append", default=[], metavar="NAME",
        help="an experiment that requests may start, package.module:attribute; repeatable",
    )  # fmt: skip
    serve.add_argument(
        "--shared-storage", action="store_true",
        help="accept a storage that other users can write to: they can run code with your rights",
    )  # fmt: skip
    where = serve.add_argument_group("network and access")
    where.add_argument("--host", default="127.0.0.1", metavar="HOST", help="default: 127.0.0.1, this machine only")
    where.add_argument("--port", type=int, default=DEFAULT_PORT, metavar="N", help=f"default: {DEFAULT_PORT}; 0: any")
    where.add_argument(
        "--token-file", metavar="FILE",
        help=f"file of the token, created if missing (default: {TOKEN_FILE} in the storage)",
    )  # fmt: skip
    where.add_argument("--no-token", action="store_true", help="serve all processes of this machine (loopback only)")
    where.add_argument(
        "--behind-proxy", metavar="ADDRESS", help="trust the X-Forwarded headers of a proxy with this IP address"
    )
    where.add_argument(
        "--root-path", default="", metavar="PATH", help="path below which a proxy serves the service, like /tune"
    )
    where.add_argument("--public-metrics", action="store_true", help="serve /metrics and /ready without the token")
    where.add_argument(
        "--reads-per-s",
        type=float,
        default=600,
        metavar="N",
        help="read requests per session and second (default: 600)",
    )
    where.add_argument(
        "--changes-per-s", type=float, default=5, metavar="N",
        help="requests per session and second that change something (default: 5)",
    )  # fmt: skip


def registered(references: list[str]) -> list["Experiment"]:
    """Return the experiments that requests may start: those of ``search_spaces``, and those of ``--register``.

    Raises:
        UnknownNameError: a reference that leads to no experiment.
    """
    from tune_hpc.search.experiment_registry import as_experiments, registered_experiments
    from tune_hpc.search.object_reference import load_reference

    found = registered_experiments()
    for reference in references:
        found += as_experiments(load_reference(reference), reference)
    return found


def is_loopback(host: str) -> bool:
    """Return whether a host is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _serve(flags: argparse.Namespace) -> int:
    try:
        # The first chart would wait for this import.
        import scipy.special  # noqa: F401
        import uvicorn

        from tune_hpc.service.app import create_app
        from tune_hpc.service.auth import AccessRules, Credentials
        from tune_hpc.service.connection import BoundedH11Protocol
        from tune_hpc.service.rate_limit import RateLimits, TokenBuckets
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in NEEDED:
            raise
        raise MissingPackageError(
            f"tune-hpc serve needs {error.name}, which is not installed: pip install 'tune-hpc[serve]'"
        ) from error
    _check_flags(flags)
    storage = check_storage(
        flags.storage or os.environ.get(STORAGE_VARIABLE) or DEFAULT_STORAGE, shared=flags.shared_storage
    )
    if is_remote(uri(storage)) and not (flags.token_file or flags.no_token):
        raise InvalidExperimentError(
            f"the token must be on this machine, not in {uri(storage)}; name its file with --token-file"
        )
    client = client_at(flags.address, uri(storage), shared_storage=flags.shared_storage)
    token_file = Path(flags.token_file) if flags.token_file else storage / TOKEN_FILE
    limits = RateLimits(
        reads=TokenBuckets(flags.reads_per_s, max(20, 2 * flags.reads_per_s)),
        changes=TokenBuckets(flags.changes_per_s, max(20, 2 * flags.changes_per_s)),
    )
    rules = AccessRules(
        None if flags.no_token else Credentials.load(token_file), frozenset({*LOOPBACK, flags.host.lower()}), limits,
        has_public_metrics=flags.public_metrics, is_behind_proxy=flags.behind_proxy is not None,
    )  # fmt: skip
    app = create_app(
        client, rules, registered(flags.register), root_path=flags.root_path.rstrip("/"), version=__version__
    )
    logging.basicConfig(format=_LOG_FORMAT, level=logging.WARNING, stream=sys.stderr)
    # Messages of commands have no time stamps.
    logging.getLogger("tune_hpc").handlers.clear()
    # One line for each request that is not HTTP would let anyone fill the log.
    logging.getLogger("uvicorn.error").addFilter(lambda record: "Invalid HTTP" not in record.getMessage())
    _allow_many_files()
    config = uvicorn.Config(
        app, host=flags.host, port=flags.port, http=BoundedH11Protocol, ws="none", loop="asyncio", lifespan="off",
        access_log=False, log_config=None, log_level="warning", server_header=False, limit_concurrency=1000,
        timeout_keep_alive=30, timeout_graceful_shutdown=10, h11_max_incomplete_event_size=65536,
        proxy_headers=flags.behind_proxy is not None, forwarded_allow_ips=flags.behind_proxy or "",
    )  # fmt: skip
    server = uvicorn.Server(config)
    socket = _bind(config)
    host, port = socket.getsockname()[:2]
    where = f"{f'[{host}]' if ':' in host else host}:{port}{flags.root_path.rstrip('/')}"
    _print_address(where, uri(storage), None if flags.no_token else token_file)
    warn_of_cluster(client)
    for number in (signal.SIGINT, signal.SIGTERM):
        # uvicorn raises the signal again after the shutdown.
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    server.run(sockets=[socket])
    logging.shutdown()
    sys.stdout.flush()
    # A thread may wait for a storage that does not answer, and Python would wait for the thread.
    os._exit(0)


def _check_flags(flags: argparse.Namespace) -> None:
    """Refuse flags that contradict each other.

    Raises:
        InvalidExperimentError: as said.
    """
    if flags.no_token and not is_loopback(flags.host):
        raise InvalidExperimentError(
            f"a service without a token must listen on this machine only; got --host {flags.host}: omit --no-token"
        )
    if not 0 <= flags.port <= 65535:
        raise InvalidExperimentError(f"--port must be from 0 to 65535; got {flags.port}")
    for name in ("reads_per_s", "changes_per_s"):
        if not 0 < getattr(flags, name) < 1e9:
            flag = name.replace("_", "-")
            raise InvalidExperimentError(f"--{flag} must be above 0; got {getattr(flags, name):g}")
    if flags.root_path and not (flags.root_path.startswith("/") and flags.root_path.isascii()):
        raise InvalidExperimentError(f"--root-path must begin with a slash; got {flags.root_path!r}")
    try:
        ip_address(flags.behind_proxy or "127.0.0.1")
    except ValueError as error:
        raise InvalidExperimentError(f"--behind-proxy must be an IP address; got {flags.behind_proxy!r}") from error


def _allow_many_files() -> None:
    """Raise the limit of open files: each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _bind(config: Any) -> Any:
    """Return a socket that listens at the address of a configuration.

    Raises:
        InvalidExperimentError: the address cannot be used.
    """
    import socket

    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((config.host, config.port), family=family, backlog=2048)
    except OSError as error:
        raise InvalidExperimentError(
            f"the service cannot listen at {config.host} port {config.port}: {error}; use another --host or --port"
        ) from error
    # asyncio does this for sockets with an explicit protocol only; without it each response waits 40 ms for an ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def warn_of_cluster(client: "JobClient") -> None:
    """Print a warning if no search can be started now; existing ones can be read all the same."""
    try:
        client.launcher.check()
    except ClusterError as error:
        print(f"tune-hpc: searches can be read, but not started: {error}", file=sys.stderr, flush=True)


def _print_address(where: str, storage: str, token_file: Path | None) -> None:
    print(f"tune-hpc serves {storage} at http://{where}", flush=True)
    if token_file is None:
        print("no token: all processes of this machine may use it", flush=True)
        return
    print(f"token: in {token_file}", flush=True)
    if sys.stdout.isatty():
        # Browsers do not send what follows the #.
        print(f"page: http://{where}/login#token={token_file.read_text(encoding='ascii').strip()}", flush=True)
