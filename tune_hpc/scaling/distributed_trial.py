"""A trial that uses several workers: a trainable that starts a TorchTrainer, and is its voice in the search.

The trial's own process does no work. The workers train as the search's own trainable does, sharing each batch; the
first of them says what there is to say (relay.py), and all of them hear the answer, so that they stop together. However
a trial ends, its workers are told to, and it waits until they are gone.
"""

import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
import torch
from torch import distributed

from tune_hpc.errors import TrialError
from tune_hpc.learning.config import complete
from tune_hpc.learning.data import ImageData
from tune_hpc.learning.training import Checkpoint
from tune_hpc.learning.training import train as train_one
from tune_hpc.scaling.communication import DistributedCommunicator
from tune_hpc.scaling.plan import GRADIENT_SYNC_KEYS, GradientSync
from tune_hpc.scaling.trainer import run_workers
from tune_hpc.scaling.worker_channel import SEND_STATE, STOP, TrialServer, TrialStopped, WorkerClient, WorkersLost
from tune_hpc.search.trial_spec import WorkerPlacement

#: How long a trial that ends waits for its workers to be gone.
LEAVING_TIMEOUT_S = 60


def train(
    config: Mapping[str, Any],
    report: Callable[[Any, Mapping[str, Any]], None],
    *,
    checkpoint: Checkpoint | None = None,
    placement: WorkerPlacement,
) -> dict[str, Any]:
    """Train one model on several workers; a trainable, see ``tune_hpc.learning.training.train``.

    Args:
        config: Keys of a trial; ``workers`` says how many, 1 where it is left out.
        report: See there.
        checkpoint: See there; a state may go on with another number of workers.
        placement: Resources and folder of the workers, and the data set.

    Returns:
        What ``training.train`` returns on the first worker; ``setup_s`` includes the start of the workers.

    Raises:
        InvalidConfigError: a rule of the configuration is broken.
        TrialError: a worker was lost, or ended with an error.
    """
    entered = time.time()
    GradientSync(**{name: config[name] for name in GRADIENT_SYNC_KEYS if name in config})
    # A trial that is stopped needs longer than Ray's two seconds until its workers are gone.
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(LEAVING_TIMEOUT_S)
    station = TrialServer(ray.util.get_node_ip_address())
    failures: list[BaseException] = []
    workers = threading.Thread(target=_run_workers, args=(dict(config), placement, station, failures), daemon=True)
    workers.start()
    try:
        row = station.serve(report, checkpoint)
    except WorkersLost:
        workers.join(LEAVING_TIMEOUT_S)
        if failures:
            raise failures[0] from None
        raise TrialError("the workers ended without a word; look at Ray's logs") from None
    finally:
        # Those that were told to stop are about to; what they were started by then removes what it has made.
        station.close()
        workers.join(LEAVING_TIMEOUT_S)
    began = row.pop("began")
    return row | {"setup_s": row["setup_s"] + began - entered}


def _run_workers(
    config: dict[str, Any], placement: WorkerPlacement, station: TrialServer, failures: list[BaseException]
) -> None:
    """Run the workers to their end; in a thread of its own."""
    settings = {
        "config": config,
        "images": list(placement.images),
        "address": station.address,
        "key": station.key,
        "num_threads": max(1, int(placement.per_worker["CPU"])),
    }
    try:
        run_workers(
            _work,
            settings,
            num_workers=config.get("workers", 1),
            per_worker=placement.per_worker,
            # NCCL refuses two workers on one GPU; gloo carries their gradients through the host.
            backend="nccl" if placement.per_worker.get("GPU", 0) >= 1 else "gloo",
            folder=placement.folder,
            name=f"workers-{secrets.token_hex(6)}",
        )
    except BaseException as error:  # noqa: BLE001 - it is told by the trial, which stands in another thread
        failures.append(error)
    finally:
        station.hang_up()


def _work(settings: Mapping[str, Any]) -> None:
    """Train with the others; run by every worker."""
    from ray.train.torch import get_device

    began = time.time()
    config = settings["config"]
    device = get_device()
    torch.set_num_threads(settings["num_threads"])
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    exchange = GradientSync(**{name: config[name] for name in GRADIENT_SYNC_KEYS if name in config})
    group = distributed.group.WORLD if distributed.is_initialized() else None
    communicator = DistributedCommunicator(rank, config.get("workers", 1), group=group, device=device, exchange=exchange)
    images = ImageData.from_arrays(ray.get(settings["images"][0])).to(device) if settings["images"] else None
    caller = WorkerClient(settings["address"], settings["key"]) if rank == 0 else None
    said = DistributedReporter(communicator, caller)
    try:
        row = train_one(
            {"workers": communicator.size, **complete(config)}, said.report, checkpoint=said, images=images, device=device,
            communicator=communicator,
        )  # fmt: skip
        if caller:
            caller.end(row | {"began": began})
    except TrialStopped:
        pass
    finally:
        if caller:
            caller.close()


class DistributedReporter:
    """What the workers say, as one: the first of them speaks, all hear the answer.

    Args:
        communicator: They.
        caller: The line to the trial, at the first one.
    """

    def __init__(self, communicator: DistributedCommunicator, caller: WorkerClient | None) -> None:
        self._communicator = communicator
        self._caller = caller

    def report(self, step: Any, metrics: Mapping[str, Any]) -> None:
        """Report.

        Raises:
            Stopped: the trial ends here.
        """
        caller = self._caller
        if not self._communicator.broadcast_from_rank0(lambda: caller is None or caller.report(step, metrics)):
            raise TrialStopped

    def load(self) -> Mapping[str, Any] | None:
        """Return the state to go on from, or ``None``: each worker its own, where there are as many as there were."""
        caller = self._caller
        kept = self._communicator.broadcast_from_rank0(lambda: caller.load() if caller else None)
        if kept is None:
            return None
        states = kept["workers"]
        own: Mapping[str, Any] = states[self._communicator.rank if len(states) == self._communicator.size else 0]
        return own

    def save(self, step: int, make_state: Callable[[], Mapping[str, Any]]) -> None:
        """Offer a state; it is made only when it is wanted now.

        Raises:
            Stopped: the trial ends here.
        """
        caller = self._caller
        answer = self._communicator.broadcast_from_rank0(lambda: caller.is_wanted(step) if caller else "")
        if answer == SEND_STATE:
            answer = "" if self._give(make_state) else STOP
        if answer == STOP:
            raise TrialStopped

    def _give(self, make_state: Callable[[], Mapping[str, Any]]) -> bool:
        """Give the state of all workers, which is one, unless each has an optimizer of its own."""
        if self._communicator.exchange.local_steps > 1:
            states = self._communicator.gather(_on_cpu(make_state()))
        else:
            states = [_on_cpu(make_state())] if self._communicator.rank == 0 else []
        caller = self._caller
        return bool(self._communicator.broadcast_from_rank0(lambda: caller is None or caller.give({"workers": states})))


def _on_cpu(value: Any) -> Any:
    """Return a state whose tensors are where every process can read them."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {name: _on_cpu(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_cpu(one) for one in value)
    return value
