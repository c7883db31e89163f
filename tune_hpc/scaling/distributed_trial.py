"""Trial on several workers: a trainable that starts a TorchTrainer and forwards its reports to the search.

The process of the trial does no training. Its workers train as in a trial of one process, and share each batch. At its
end the trial waits until its workers have ended.

The trial listens on a TCP port, and the worker of rank 0 connects. The trial answers each message with the decision to
continue or to stop, so a report has arrived when ``report`` returns. Rank 0 broadcasts the answers, so that all workers
stop together. A lost worker closes the connection.

``multiprocessing.connection`` frames and authenticates the messages. A Ray actor between trial and worker was measured
as an alternative on two CPU cores. It adds a process to each trial (0.45 s of CPU time at its start, 62 MB of memory),
and a report takes 2.2 ms instead of 0.05 ms.
"""

import os
import pickle
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

import ray
import torch
from torch import distributed

from tune_hpc.errors import TrialError
from tune_hpc.learning.config import complete
from tune_hpc.learning.data import ImageData
from tune_hpc.learning.training import Checkpoint
from tune_hpc.learning.training import train as train_model
from tune_hpc.scaling.communication import DistributedCommunicator
from tune_hpc.scaling.plan import GradientSync
from tune_hpc.search.trial_spec import WorkerPlacement

#: Seconds that a trial waits for the end of its workers.
SHUTDOWN_TIMEOUT_S = 60
#: Seconds that workers wait at the rendezvous for a worker that was lost during its start.
RENDEZVOUS_TIMEOUT_S = 180
CONTINUE, STOP, SEND_STATE = "continue", "stop", "send state"


def train(
    config: Mapping[str, Any],
    report: Callable[[Any, Mapping[str, Any]], None],
    *,
    checkpoint: Checkpoint | None = None,
    placement: WorkerPlacement,
) -> dict[str, Any]:
    """Train one model on several workers; a trainable, see ``tune_hpc.learning.training.train``.

    Args:
        config: Keys of a trial; ``workers`` is their number (1).
        report: See ``training.train``.
        checkpoint: See ``training.train``; another number of workers may load its state.
        placement: Resources and folder of the workers, and their data set.

    Returns:
        The row of ``training.train`` on the worker of rank 0; ``setup_s`` includes the start of the workers.

    Raises:
        InvalidConfigError: the configuration breaks a rule.
        TrialError: a worker was lost, or ended with an error.
    """
    entered = time.time()
    GradientSync.from_config(config)
    # Ray allows a stopped trial two seconds; the workers need longer to end.
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(SHUTDOWN_TIMEOUT_S)
    server = TrialServer(ray.util.get_node_ip_address())
    failures: list[BaseException] = []
    workers = threading.Thread(target=_run_workers, args=(dict(config), placement, server, failures), daemon=True)
    workers.start()
    try:
        row = server.serve(report, checkpoint)
    except WorkersLost:
        workers.join(SHUTDOWN_TIMEOUT_S)
        if failures:
            raise failures[0] from None
        raise TrialError("the workers ended without a result; look at Ray's logs") from None
    finally:
        # Stopped workers end soon; then Ray Train removes its actors and its placement group.
        server.close()
        workers.join(SHUTDOWN_TIMEOUT_S)
    started = row.pop("began")
    return row | {"setup_s": row["setup_s"] + started - entered}


def _run_workers(
    config: dict[str, Any], placement: WorkerPlacement, server: "TrialServer", failures: list[BaseException]
) -> None:
    settings = {
        "config": config,
        "images": list(placement.images),
        "address": server.address,
        "key": server.key,
        "num_threads": max(1, int(placement.per_worker["CPU"])),
    }
    try:
        run_workers(
            _work,
            settings,
            num_workers=config.get("workers", 1),
            per_worker=placement.per_worker,
            # NCCL rejects two workers on one GPU; gloo transfers their gradients through the host.
            backend="nccl" if placement.per_worker.get("GPU", 0) >= 1 else "gloo",
            folder=placement.folder,
            name=f"workers-{secrets.token_hex(6)}",
        )
    except BaseException as error:  # noqa: BLE001 - the thread of the trial raises it
        failures.append(error)
    finally:
        server.report_loss()


def _work(settings: Mapping[str, Any]) -> None:
    """Train with the other workers."""
    from ray.train.torch import get_device

    began = time.time()
    config = settings["config"]
    device = get_device()
    torch.set_num_threads(settings["num_threads"])
    is_distributed = distributed.is_initialized()
    communicator = DistributedCommunicator(
        distributed.get_rank() if is_distributed else 0,
        config.get("workers", 1),
        group=distributed.group.WORLD if is_distributed else None,
        device=device,
        gradient_sync=GradientSync.from_config(config),
    )
    images = ImageData.from_arrays(ray.get(settings["images"][0])).to(device) if settings["images"] else None
    reporter = DistributedReporter(communicator, settings["address"], settings["key"])
    with closing(reporter), suppress(TrialStopped):
        row = train_model(
            {"workers": communicator.size, **complete(config)}, reporter.report, checkpoint=reporter, images=images,
            device=device, communicator=communicator,
        )  # fmt: skip
        reporter.end(row | {"began": began})


class TrialStopped(Exception):
    """The trial has stopped its workers."""


class WorkersLost(Exception):
    """The workers ended without a final row."""


class TrialServer:
    """Trial's end of the connection; ``host`` is the address of this machine in the network of the workers."""

    def __init__(self, host: str) -> None:
        self.key = secrets.token_bytes(32)
        self._listener = Listener((host, 0), authkey=self.key)
        self.address: tuple[str, int] = self._listener.address
        self._is_connected = False

    def serve(self, report: Callable[[Any, Mapping[str, Any]], None], checkpoint: Checkpoint | None) -> dict[str, Any]:
        """Answer the worker with the trial's functions until it sends its final row, and return that row.

        Raises:
            WorkersLost: the connection broke, or ``report_loss`` was called.
            BaseException: an exception of ``report`` or ``checkpoint``, after the workers have been stopped.
        """
        with self._accept() as connection:
            while True:
                try:
                    kind, *arguments = _receive(connection)
                except (EOFError, OSError) as error:
                    raise WorkersLost from error
                if kind == "end":
                    return dict(arguments[0])
                if kind == "lost":
                    raise WorkersLost
                answer: Any = CONTINUE
                try:
                    if kind == "report":
                        report(*arguments)
                    elif kind == "load":
                        answer = checkpoint.load() if checkpoint else None
                    elif checkpoint:
                        offer = checkpoint.save if kind == "save" else checkpoint.keep
                        step, further = arguments[0], dict(*arguments[1:])
                        offer(step, lambda: _request(connection, SEND_STATE)[1], **further)
                except BaseException:
                    with suppress(OSError):
                        _send(connection, STOP)
                    raise
                _send(connection, answer)

    def _accept(self) -> Connection:
        while True:
            # A client without the key is ignored.
            with suppress(AuthenticationError, EOFError, ConnectionError):
                connection = self._listener.accept()
                self._is_connected = True
                return connection

    def report_loss(self) -> None:
        """Make ``serve`` raise ``WorkersLost`` if no worker has connected; a broken connection does so by itself."""
        if not self._is_connected:
            with suppress(OSError, EOFError, AuthenticationError), Client(self.address, authkey=self.key) as connection:
                _send(connection, ("lost",))

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()


class DistributedReporter:
    """Workers' end of the connection, their report and checkpoint.

    The methods raise ``TrialStopped`` if the trial has stopped.

    Args:
        communicator: Communicator of the workers.
        address: Address of the trial's ``TrialServer``.
        key: Its key.
    """

    def __init__(self, communicator: DistributedCommunicator, address: tuple[str, int], key: bytes) -> None:
        self._communicator = communicator
        self._connection = Client(address, authkey=key) if communicator.rank == 0 else None

    def _call(self, *message: Any) -> Any:
        """Send a message of rank 0 to the trial, and return the answer on all ranks."""

        def request() -> Any:
            assert self._connection is not None
            return _request(self._connection, message)

        answer = self._communicator.broadcast_from_rank0(request)
        if answer == STOP:
            raise TrialStopped
        return answer

    def report(self, step: Any, metrics: Mapping[str, Any]) -> None:
        """Report metrics."""
        self._call("report", step, dict(metrics))

    def load(self) -> Mapping[str, Any] | None:
        """Return the latest state, or ``None``; each worker gets its own if their number is that of the states."""
        state = self._call("load")
        if state is None:
            return None
        states: list[Mapping[str, Any]] = state["workers"]
        return states[self._communicator.rank if len(states) == self._communicator.size else 0]

    def save(self, step: int, make_state: Callable[[], Mapping[str, Any]]) -> None:
        """Offer a state; if the trial requests it, send that of rank 0, or of all workers if theirs differ."""
        if self._call("save", step) != SEND_STATE:
            return
        if self._communicator.gradient_sync.local_steps > 1:
            states = self._communicator.gather(_on_cpu(make_state()))
        else:
            states = [_on_cpu(make_state())] if self._communicator.rank == 0 else []
        self._call("state", {"workers": states})

    def keep(
        self, step: int, make_state: Callable[[], Mapping[str, Any]], *, is_last: bool | None = None, member: int = 0
    ) -> None:
        """Offer the weights, which are the same on all ranks; rank 0 sends them if the trial requests them."""
        if self._call("keep", step, {"is_last": bool(is_last)}) == SEND_STATE:
            self._call("state", make_state() if self._communicator.rank == 0 else None)

    def end(self, row: Mapping[str, Any]) -> None:
        """Send the final row."""
        if self._connection:
            _send(self._connection, ("end", row))

    def close(self) -> None:
        """Close the connection."""
        if self._connection:
            self._connection.close()


def _request(connection: Connection, message: Any) -> Any:
    _send(connection, message)
    return _receive(connection)


def _send(connection: Connection, message: Any) -> None:
    # Connection.send would pass torch tensors as shared memory, which other machines cannot read.
    connection.send_bytes(pickle.dumps(message))


def _receive(connection: Connection) -> Any:
    return pickle.loads(connection.recv_bytes())


def _on_cpu(value: Any) -> Any:
    """Return a state with all tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {name: _on_cpu(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_cpu(item) for item in value)
    return value


def run_workers(
    work: Callable[[Mapping[str, Any]], Any],
    settings: Mapping[str, Any],
    *,
    num_workers: int,
    per_worker: Mapping[str, float],
    backend: str,
    folder: str,
    name: str,
    max_restarts: int = 0,
    spread: bool = False,
) -> Any:
    """Run a function of ``settings`` on several workers of one process group, and return the result of rank 0.

    ``per_worker`` are the resources of a worker, ``CPU`` and optionally ``GPU``. Ray Train resumes a run of this name
    in the folder of its files.

    Raises:
        TrialError: a worker was lost, or ended with an error.
    """
    import ray.train
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    trainer = TorchTrainer(
        work,
        train_loop_config=dict(settings),
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            use_gpu=per_worker.get("GPU", 0) > 0,
            resources_per_worker=dict(per_worker),
            placement_strategy="STRICT_SPREAD" if spread else "PACK",
        ),
        torch_config=TorchConfig(backend=backend, timeout_s=RENDEZVOUS_TIMEOUT_S),
        run_config=RunConfig(name=name, storage_path=folder, failure_config=FailureConfig(max_failures=max_restarts)),
    )
    try:
        with _restored_interrupt_handler():
            return trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # Its traceback has references to Ray Train's actors.
        cause = error.with_traceback(None)
        raise TrialError(f"a worker ended: {lines[-1] if lines else 'no reason given'}") from cause


@contextmanager
def _restored_interrupt_handler() -> Iterator[None]:
    """Restore the handler of Ctrl-C: that of Ray Train has references to its actors."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if is_main else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
