"""Worker processes of one training, started by Ray Train."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tune_hpc.errors import TrialError

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
