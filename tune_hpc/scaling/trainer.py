"""Workers that train together, started by Ray Train, from first to last."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tune_hpc.errors import TrialError

#: How long workers wait for one that has not come: lost while it started, it never will.
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
    """Run a function on several workers that can reach one another.

    Args:
        work: What each of them does.
        settings: What it is given.
        num_workers: How many there are.
        per_worker: What each gets, ``CPU`` and perhaps ``GPU``.
        backend: ``gloo`` or ``nccl``.
        folder: Where Ray Train keeps its own files.
        name: Of those; what it finds there under this name it goes on with.
        max_restarts: How often all of them begin anew where one was lost.
        spread: Whether each is to be on a node of its own.

    Returns:
        What the function returned on the first worker.

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
        with _own_interrupt_handler():
            return trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # Its traceback holds on to Ray Train's actors.
        cause = error.with_traceback(None)
        raise TrialError(f"a worker ended: {lines[-1] if lines else 'no reason given'}") from cause


@contextmanager
def _own_interrupt_handler() -> Iterator[None]:
    """Put back what Ctrl-C did before: Ray Train leaves a handler that holds on to its actors."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if is_main else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
