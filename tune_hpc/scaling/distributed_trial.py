"""Trial on several workers: a trainable that starts a TorchTrainer and forwards its reports to the search.

The process of the trial does no training. Its workers train as in a trial of one process, and share each batch. The
worker of rank 0 exchanges messages with the trial (``worker_channel``) and broadcasts the answers, so that all workers
stop together. When the trial ends, it waits until its workers have ended.
"""

import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
from tune_hpc.scaling.worker_channel import SEND_STATE, STOP, TrialServer, TrialStopped, WorkerClient, WorkersLost
from tune_hpc.search.trial_spec import WorkerPlacement

#: Seconds that a trial waits for the end of its workers.
SHUTDOWN_TIMEOUT_S = 60


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
    config: dict[str, Any], placement: WorkerPlacement, server: TrialServer, failures: list[BaseException]
) -> None:
    """Run the workers to their end; target of a thread."""
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
    """Train with the other workers; the function of every worker."""
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
    client = WorkerClient(settings["address"], settings["key"]) if communicator.rank == 0 else None
    reporter = DistributedReporter(communicator, client)
    try:
        row = train_model(
            {"workers": communicator.size, **complete(config)}, reporter.report, checkpoint=reporter, images=images,
            device=device, communicator=communicator,
        )  # fmt: skip
        if client:
            client.end(row | {"began": began})
    except TrialStopped:
        pass
    finally:
        if client:
            client.close()


class DistributedReporter:
    """Report and checkpoint of all workers: rank 0 calls the trial and broadcasts the answers.

    Args:
        communicator: Communicator of the workers.
        client: Connection of rank 0 to the trial; ``None`` on other ranks.
    """

    def __init__(self, communicator: DistributedCommunicator, client: WorkerClient | None) -> None:
        self._communicator = communicator
        self._client = client

    def report(self, step: Any, metrics: Mapping[str, Any]) -> None:
        """Report metrics.

        Raises:
            TrialStopped: the trial has stopped.
        """
        client = self._client
        if not self._communicator.broadcast_from_rank0(lambda: client is None or client.report(step, metrics)):
            raise TrialStopped

    def load(self) -> Mapping[str, Any] | None:
        """Return the latest state, or ``None``; each worker gets its own if their number is that of the states."""
        client = self._client
        state = self._communicator.broadcast_from_rank0(lambda: client.load() if client else None)
        if state is None:
            return None
        states: list[Mapping[str, Any]] = state["workers"]
        return states[self._communicator.rank if len(states) == self._communicator.size else 0]

    def save(self, step: int, make_state: Callable[[], Mapping[str, Any]]) -> None:
        """Offer a state, and send it if the trial requests it.

        Raises:
            TrialStopped: the trial has stopped.
        """
        client = self._client
        answer = self._communicator.broadcast_from_rank0(lambda: client.offer_state(step) if client else "")
        if answer == STOP or (answer == SEND_STATE and not self._send_state(make_state)):
            raise TrialStopped

    def _send_state(self, make_state: Callable[[], Mapping[str, Any]]) -> bool:
        """Send the state of rank 0, or of all workers if each has an optimizer of its own."""
        if self._communicator.gradient_sync.local_steps > 1:
            states = self._communicator.gather(_on_cpu(make_state()))
        else:
            states = [_on_cpu(make_state())] if self._communicator.rank == 0 else []
        client = self._client
        return self._communicator.broadcast_from_rank0(lambda: client is None or client.send_state({"workers": states}))


def _on_cpu(value: Any) -> Any:
    """Return a state with all tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {name: _on_cpu(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_cpu(item) for item in value)
    return value


#: Seconds that workers wait at the rendezvous for a worker that was lost during its start.
RENDEZVOUS_TIMEOUT_S = 180


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
    """Run a function on several workers of one process group.

    Args:
        work: Function of each worker.
        settings: Its argument.
        num_workers: Number of workers.
        per_worker: Resources of each worker, ``CPU`` and optionally ``GPU``.
        backend: ``gloo`` or ``nccl``.
        folder: Folder for the files of Ray Train.
        name: Name of the run; Ray Train resumes a run of this name in the folder.
        max_restarts: Number of restarts of all workers after the loss of one.
        spread: Whether each worker needs a separate node.

    Returns:
        The result of the function on the worker of rank 0.

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
