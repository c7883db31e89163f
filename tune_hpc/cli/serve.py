"""The verb that serves searches over HTTP, as in cli.py."""

import argparse
import os
import sys
from collections.abc import Callable
from importlib import import_module
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_hpc import __version__
from tune_hpc.analysis.object_store import here, is_remote, place_of
from tune_hpc.cli.jobs import DEFAULT_STORAGE, STORAGE_VARIABLE, client_at
from tune_hpc.errors import ClusterError, FolderError, InvalidExperimentError, MissingPackageError, UnknownNameError

if TYPE_CHECKING:
    from tune_hpc.cluster.client import JobClient
    from tune_hpc.search.experiment import Experiment

DEFAULT_PORT = 8300
NEEDED = ("fastapi", "uvicorn", "httptools", "starlette", "pydantic", "anyio")
#: Threads that read results let the one that answers have its turn after so many seconds.
SWITCH_S = 0.0005
TOKEN_FILE = "service-token"


def add_serve_verb(add: Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]) -> None:
    """Add the verb to a parser.

    Args:
        add: Makes the parser of a verb, of its name, its function and its help.
    """
    serve = add("serve", _serve, "serve searches over HTTP, with a page to start, watch and steer them")
    serve.add_argument(
        "--storage", metavar="DIR", help=f"where jobs are kept (default: ${STORAGE_VARIABLE}, or {DEFAULT_STORAGE})"
    )
    serve.add_argument(
        "--address", metavar="ADDRESS",
        help="the dashboard of the Ray cluster that runs searches, http://HEAD:8265 (default: this machine does)",
    )  # fmt: skip
    serve.add_argument(
        "--register", action="append", default=[], metavar="NAME",
        help="an experiment of one's own that may be asked for, package.module:attribute; repeatable",
    )  # fmt: skip
    where = serve.add_argument_group("where it listens, and to whom")
    where.add_argument("--host", default="127.0.0.1", metavar="HOST", help="default: 127.0.0.1, this machine alone")
    where.add_argument("--port", type=int, default=DEFAULT_PORT, metavar="N", help=f"default: {DEFAULT_PORT}; 0: any")
    where.add_argument(
        "--token-file",
        metavar="FILE",
        help=f"the token's; it is made (default: {TOKEN_FILE} in the storage)",
    )
    where.add_argument("--no-token", action="store_true", help="let in every process of this machine (loopback only)")
    where.add_argument(
        "--reads-per-s", type=float, metavar="N", help="requests a second of one address that read (default: 600)"
    )
    where.add_argument(
        "--changes-per-s", type=float, metavar="N", help="requests a second of one that change something (default: 5)"
    )


def registered(references: list[str]) -> list["Experiment"]:
    """Return the experiments that may be asked for: those of ``search_spaces``, and the operator's own.

    Raises:
        UnknownNameError: a reference that leads to no experiment.
    """
    from tune_hpc.search.experiment import Experiment
    from tune_hpc.search.reference import load_reference

    found: list[Experiment] = list(import_module("search_spaces").all_experiments())
    for reference in references:
        target = load_reference(reference)
        own = list(target) if isinstance(target, list | tuple) else [target]
        if not own or not all(isinstance(one, Experiment) for one in own):
            raise UnknownNameError(
                f"--register takes an Experiment, or a list of them; {reference} is of type {type(target).__name__}"
            )
        found += own
    return found


def is_loopback(host: str) -> bool:
    """Whether a host is this machine alone."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _serve(flags: argparse.Namespace) -> int:
    try:
        # The first chart would have to wait for it.
        import scipy.special  # noqa: F401
        import uvicorn

        from tune_hpc.service.app import LOOPBACK, create_app
        from tune_hpc.service.http import ServiceHttp
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in NEEDED:
            raise
        raise MissingPackageError(
            f"tune-hpc serve needs {error.name}, which is not installed: pip install 'tune-hpc[serve]'"
        ) from error
    from tune_hpc.service.tokens import find_or_make_token

    if flags.no_token and not is_loopback(flags.host):
        raise InvalidExperimentError(
            f"without a token the service listens on this machine alone; got --host {flags.host}: leave out --no-token"
        )
    if not 0 <= flags.port <= 65535:
        raise InvalidExperimentError(f"--port is a number from 0 to 65535; got {flags.port}")
    limits = {"reads_per_s": flags.reads_per_s, "writes_per_s": flags.changes_per_s}
    for name, value in limits.items():
        if value is not None and not 0 < value < 1e9:
            raise InvalidExperimentError(f"--{name.replace('_', '-')} must be above 0; got {value}")
    storage = here(flags.storage or os.environ.get(STORAGE_VARIABLE) or DEFAULT_STORAGE).absolute()
    try:
        storage.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderError(f"{storage} cannot be made: {error.strerror}; choose another with --storage") from error
    if is_remote(place_of(storage)) and not (flags.token_file or flags.no_token):
        raise InvalidExperimentError(
            f"a token is kept on this machine, not in {place_of(storage)}; name its file with --token-file"
        )
    client = client_at(flags.address, place_of(storage))
    token_file = Path(flags.token_file) if flags.token_file else storage / TOKEN_FILE
    token = None if flags.no_token else find_or_make_token(token_file)
    app = create_app(
        client, token, registered(flags.register), hosts=LOOPBACK | {flags.host.lower()}, version=__version__,
        **{name: value for name, value in limits.items() if value is not None},
    )  # fmt: skip
    config = uvicorn.Config(
        app, host=flags.host, port=flags.port, access_log=False, log_level="warning", server_header=False,
        http=ServiceHttp, limit_concurrency=2000, timeout_keep_alive=30, timeout_graceful_shutdown=5,
    )  # fmt: skip
    server = uvicorn.Server(config)
    socket = _bind(config)
    host, port = socket.getsockname()[:2]
    _say(f"{f'[{host}]' if ':' in host else host}:{port}", place_of(storage), token_file, token)
    warn_of_cluster(client)
    sys.setswitchinterval(SWITCH_S)
    server.run(sockets=[socket])
    return 0


def _bind(config: Any) -> Any:
    """Return a socket that listens where it was asked to.

    Raises:
        InvalidExperimentError: nobody may listen there, or somebody else does.
    """
    import socket

    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((config.host, config.port), family=family, backlog=2048)
    except OSError as error:
        raise InvalidExperimentError(
            f"nothing can listen at {config.host} port {config.port}: {error}; choose another with --host and --port"
        ) from error


def warn_of_cluster(client: "JobClient") -> None:
    """Say so where no search could be begun now; those that are there can be looked at all the same."""
    try:
        client.launcher.check()
    except ClusterError as error:
        print(f"tune-hpc: searches can be looked at, and not begun: {error}", file=sys.stderr, flush=True)


def _say(where: str, storage: str, token_file: Path, token: str | None) -> None:
    print(f"tune-hpc serves {storage} at http://{where}", flush=True)
    if token is None:
        print("no token: every process of this machine may use it", flush=True)
        return
    print(f"token: in {token_file}", flush=True)
    if sys.stdout.isatty():
        # What follows the # stays in the browser; a terminal shows it to whoever may read the file.
        print(f"page: http://{where}/login#token={token}", flush=True)
