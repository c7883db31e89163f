"""Command ``tune-hpc serve``: the HTTP service of a storage."""

import argparse
import logging
import os
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from tune_hpc import __version__
from tune_hpc.cli.jobs import add_storage_flags, storage_of
from tune_hpc.cli.options import AddCommand
from tune_hpc.errors import ClusterError, InvalidExperimentError, MissingPackageError
from tune_hpc.storage.filesystem import Storage
from tune_hpc.storage.shared_folder import check_private

if TYPE_CHECKING:
    from tune_hpc.jobs.client import JobClient

DEFAULT_PORT = 8300
_PACKAGES = ("fastapi", "uvicorn", "starlette", "pydantic", "anyio", "itsdangerous", "prometheus_client")
TOKEN_FILE = "service-token"
#: The names of this machine for a service without a token.
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def add_serve_command(add: AddCommand) -> None:
    """Add the command."""
    serve = add("serve", _serve, "serve searches over HTTP: an API, and a page to start, watch and control them")
    add_storage_flags(serve, writes=True)
    serve.add_argument(
        "--address", metavar="ADDRESS",
        help="dashboard of the Ray cluster that runs searches, http://HEAD:8265 (default: this machine)",
    )  # fmt: skip
    serve.add_argument(
        "--register", action="append", default=[], metavar="NAME",
        help="an experiment that requests may start, package.module:attribute; repeatable",
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
    for name, default, kind in (("reads", 600, "read requests"), ("changes", 5, "requests that change something")):
        where.add_argument(
            f"--{name}-per-s", type=float, default=default, metavar="N",
            help=f"{kind} per session and second (default: {default})",
        )  # fmt: skip


def is_loopback(host: str) -> bool:
    """Return whether a host is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _serve(flags: argparse.Namespace) -> int:
    from tune_hpc.jobs.client import client_at
    from tune_hpc.search.experiment_registry import as_experiments, registered_experiments
    from tune_hpc.search.object_reference import load_reference

    try:
        from tune_hpc.service.app import create_app
        from tune_hpc.service.auth import AccessRules, Credentials, TokenBuckets
        from tune_hpc.service.connection import listen, run_server
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _PACKAGES:
            raise
        raise MissingPackageError(
            f"tune-hpc serve needs {error.name}, which is not installed: install tune_hpc with its extra [serve]"
        ) from error
    _check_flags(flags)
    storage = Storage(storage_of(flags)).absolute()
    check_private(storage, shared=flags.shared_storage)
    if storage.is_remote and not (flags.token_file or flags.no_token):
        raise InvalidExperimentError(
            f"the token must be on this machine, not in {storage.uri}; name its file with --token-file"
        )
    client = client_at(flags.address, storage.uri, shared_storage=flags.shared_storage)
    token_file = Path(flags.token_file) if flags.token_file else storage.root / TOKEN_FILE
    rules = AccessRules(
        None if flags.no_token else Credentials.load(token_file), frozenset({*LOOPBACK, flags.host.lower()}),
        TokenBuckets(flags.reads_per_s, max(20, 2 * flags.reads_per_s)),
        TokenBuckets(flags.changes_per_s, max(20, 2 * flags.changes_per_s)),
        has_public_metrics=flags.public_metrics, is_behind_proxy=flags.behind_proxy is not None,
    )  # fmt: skip
    experiments = registered_experiments()
    for reference in flags.register:
        experiments += as_experiments(load_reference(reference), reference)
    root_path = flags.root_path.rstrip("/")
    app = create_app(client, rules, experiments, root_path=root_path, version=__version__)
    logging.basicConfig(format=_LOG_FORMAT, level=logging.WARNING, stream=sys.stderr)
    # Messages of commands have no time stamps.
    logging.getLogger("tune_hpc").handlers.clear()
    listener = listen(flags.host, flags.port)
    host, port = listener.getsockname()[:2]
    address = f"{f'[{host}]' if ':' in host else host}:{port}{root_path}"
    _print_address(address, storage.uri, None if flags.no_token else token_file)
    warn_of_cluster(client)
    run_server(app, listener, flags.behind_proxy)
    logging.shutdown()
    sys.stdout.flush()
    # A thread may wait for a storage that does not respond; a normal exit would wait for the thread.
    os._exit(0)


def _check_flags(flags: argparse.Namespace) -> None:
    """Check the values and combinations of flags."""
    if flags.no_token and not is_loopback(flags.host):
        raise InvalidExperimentError(
            f"a service without a token must listen on this machine only; got --host {flags.host}: omit --no-token"
        )
    if not 0 <= flags.port <= 65535:
        raise InvalidExperimentError(f"--port must be from 0 to 65535; got {flags.port}")
    for name, value in (("reads", flags.reads_per_s), ("changes", flags.changes_per_s)):
        if not 0 < value < 1e9:
            raise InvalidExperimentError(f"--{name}-per-s must be above 0; got {value:g}")
    if flags.root_path and not (flags.root_path.startswith("/") and flags.root_path.isascii()):
        raise InvalidExperimentError(f"--root-path must begin with a slash; got {flags.root_path!r}")
    try:
        ip_address(flags.behind_proxy or "127.0.0.1")
    except ValueError as error:
        raise InvalidExperimentError(f"--behind-proxy must be an IP address; got {flags.behind_proxy!r}") from error


def warn_of_cluster(client: "JobClient") -> None:
    """Print a warning if no search can be started now; existing searches can still be read."""
    try:
        client.launcher.check()
    except ClusterError as error:
        print(f"tune-hpc: searches can be read, but not started: {error}", file=sys.stderr, flush=True)


def _print_address(address: str, storage: str, token_file: Path | None) -> None:
    print(f"tune-hpc serves {storage} at http://{address}", flush=True)
    if token_file is None:
        print("no token: all processes of this machine may use it", flush=True)
        return
    print(f"token: in {token_file}", flush=True)
    if sys.stdout.isatty():
        # Browsers do not send the part of an address after #.
        print(f"page: http://{address}/login#token={token_file.read_text(encoding='ascii').strip()}", flush=True)
