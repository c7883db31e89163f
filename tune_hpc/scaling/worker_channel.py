"""What the workers of a trial say to the trial, which stands elsewhere: reports, states to keep, how it ended.

The trial's process listens; the first worker connects, and each of its messages is answered before it goes on. So a
report has arrived when ``report`` returns, and the answer says whether the trial goes on. A worker that is lost closes
the connection.
"""

import pickle
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from tune_hpc.learning.training import Checkpoint

CONTINUE, STOP, SEND_STATE = "go on", "stop", "make"
Address = tuple[str, int]


class TrialStopped(Exception):
    """The trial ends here, by its own wish or somebody else's."""


class WorkersLost(Exception):
    """The workers ended without a last word."""


class TrialServer:
    """The trial's end of the line.

    Args:
        host: The address of this machine, as the workers' machines know it.

    Attributes:
        address: Where it listens.
        key: What a caller must know.
    """

    def __init__(self, host: str) -> None:
        self.key = secrets.token_bytes(32)
        self._listener = Listener((host, 0), authkey=self.key)
        self.address: Address = self._listener.address
        self._is_reached = False

    def serve(self, report: Callable[[Any, Mapping[str, Any]], None], checkpoint: Checkpoint | None) -> dict[str, Any]:
        """Answer the workers until they have ended.

        Args:
            report: The trial's.
            checkpoint: The trial's.

        Returns:
            The row that the first worker came to.

        Raises:
            Lost: the workers ended otherwise; ``hang_up`` was called, or the line broke.
            BaseException: whatever ``report`` and ``checkpoint`` raise; the workers are told to stop.
        """
        with self._accepted() as line:
            while True:
                try:
                    kind, *rest = _receive(line)
                except (EOFError, OSError) as error:
                    raise WorkersLost from error
                if kind == "ended":
                    return dict(rest[0])
                if kind == "lost":
                    raise WorkersLost
                try:
                    answer = self._answer(line, kind, rest, report, checkpoint)
                except BaseException:
                    with suppress(OSError):
                        _send(line, STOP)
                    raise
                _send(line, answer)

    def _accepted(self) -> Connection:
        while True:
            # Whoever does not know the key is none of ours.
            with suppress(AuthenticationError, EOFError, ConnectionError):
                line = self._listener.accept()
                self._is_reached = True
                return line

    def _answer(
        self,
        line: Connection,
        kind: str,
        rest: list[Any],
        report: Callable[[Any, Mapping[str, Any]], None],
        checkpoint: Checkpoint | None,
    ) -> Any:
        if kind == "report":
            report(*rest)
        elif kind == "load":
            return checkpoint.load() if checkpoint else None
        elif checkpoint:

            def make_state() -> Mapping[str, Any]:
                _send(line, SEND_STATE)
                return dict(_receive(line))

            checkpoint.save(rest[0], make_state)
        return CONTINUE

    def hang_up(self) -> None:
        """Wake ``serve`` where no worker has connected, and none will."""
        if self._is_reached:
            return  # The line that breaks will wake it.
        with suppress(OSError, EOFError, AuthenticationError), Client(self.address, authkey=self.key) as line:
            _send(line, ("lost",))

    def close(self) -> None:
        """Listen no more."""
        self._listener.close()


class WorkerClient:
    """The first worker's end of the line.

    Args:
        address: The station's.
        key: The station's.
    """

    def __init__(self, address: Address, key: bytes) -> None:
        self._line = Client(address, authkey=key)

    def report(self, step: Any, metrics: Mapping[str, Any]) -> bool:
        """Report; return whether the trial goes on."""
        return bool(self._asked("report", step, dict(metrics)) == CONTINUE)

    def load(self) -> Any:
        """Return the state to go on from, or ``None``."""
        return self._asked("load")

    def is_wanted(self, step: int) -> str:
        """Offer a state; return what is to be done: go on, stop, or make it and ``give`` it."""
        return str(self._asked("save", step))

    def give(self, state: Mapping[str, Any]) -> bool:
        """Give a state that is wanted; return whether the trial goes on."""
        _send(self._line, dict(state))
        return bool(_receive(self._line) == CONTINUE)

    def end(self, row: Mapping[str, Any]) -> None:
        """Say how it ended."""
        _send(self._line, ("ended", dict(row)))

    def close(self) -> None:
        """Hang up."""
        self._line.close()

    def _asked(self, *message: Any) -> Any:
        _send(self._line, message)
        return _receive(self._line)


def _send(line: Connection, message: Any) -> None:
    # By value: between processes of one machine torch would hand out shared memory, and not to those of another.
    line.send_bytes(pickle.dumps(message))


def _receive(line: Connection) -> Any:
    return pickle.loads(line.recv_bytes())
