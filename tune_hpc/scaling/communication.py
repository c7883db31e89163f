"""How the workers of one training exchange what they have computed.

Usually gradients, averaged at every step by DistributedDataParallel while the backward pass still runs; what could make
that cheaper are the options of ``plan.Exchange``. With ``local_steps`` each worker's optimizer keeps a state of its own
(local SGD: Stich, 2019, arXiv:1805.09767).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from tune_hpc.learning.communicator import Communicator, Value
from tune_hpc.scaling.plan import GradientSync

#: How long workers wait for one another while others are being measured.
GROUP_TIMEOUT = timedelta(hours=24)


@dataclass
class DistributedCommunicator(Communicator):
    """Several processes, each with its share of every batch.

    Attributes:
        group: Their process group; ``None`` of one alone.
        device: Where this one computes.
        exchange: What they exchange, and how.
        always_wrap: Whether even one alone goes the way of several, so that this way's cost can be told.
    """

    group: Any = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    exchange: GradientSync = field(default_factory=GradientSync)
    always_wrap: bool = False
    #: Recorded steps have no exchange; what is compared with several workers is not recorded, either.
    allow_cuda_graphs: bool = False
    _skips_sync: bool = False

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return a model that averages its gradients; the model itself, where parameters are averaged instead."""
        if (self.size == 1 and not self.always_wrap) or self.exchange.local_steps > 1:
            return model
        wrapped = DistributedDataParallel(
            model,
            process_group=self.group,
            bucket_cap_mb=self.exchange.bucket_mb,
            gradient_as_bucket_view=self.exchange.bucket_view,
        )
        if self.exchange.compression == "bf16":
            wrapped.register_comm_hook(self.group, bf16_compress_hook)
        return wrapped

    def after_step(self, model: nn.Module, step: int) -> None:
        """Average the parameters, if that is due."""
        if self.exchange.local_steps > 1 and step % self.exchange.local_steps == 0 and not self._skips_sync:
            self.sync_parameters(model)

    @torch.no_grad()
    def sync_parameters(self, model: nn.Module) -> None:
        """Average the parameters, where they may differ."""
        if self.size == 1 or self.exchange.local_steps == 1:
            return
        parameters = list(model.parameters())
        flat = torch.cat([one.detach().flatten() for one in parameters])
        distributed.all_reduce(flat, group=self.group)
        flat /= self.size
        for one, own in zip(parameters, flat.split([one.numel() for one in parameters]), strict=True):
            one.copy_(own.view_as(one))

    def mean(self, curves: np.ndarray) -> np.ndarray:
        """Return the mean over the workers of what each of them measured on its share."""
        if self.size == 1:
            return curves
        shared = torch.as_tensor(curves, dtype=torch.float64).to(self.device)
        distributed.all_reduce(shared, group=self.group)
        return (shared / self.size).cpu().numpy()

    def broadcast_from_rank0(self, make: Callable[[], Value]) -> Value:
        """Return what the first worker makes; the others wait for it."""
        if self.size == 1:
            return make()
        made = [make() if self.rank == 0 else None]
        distributed.broadcast_object_list(made, group=self.group, group_src=0, device=self.device)
        return made[0]  # type: ignore[return-value]

    def gather(self, value: Value) -> list[Value]:
        """Return what every worker has, in their order."""
        if self.size == 1:
            return [value]
        all_of_them: list[Any] = [None] * self.size
        distributed.all_gather_object(all_of_them, value, group=self.group)
        return all_of_them

    @contextmanager
    def no_sync(self, wrapped_model: nn.Module) -> Iterator[None]:
        """Exchange nothing between two steps inside the block."""
        is_averaged = isinstance(wrapped_model, DistributedDataParallel)
        self._skips_sync = True
        try:
            with wrapped_model.no_sync() if is_averaged else nullcontext():  # type: ignore[operator]
                yield
        finally:
            self._skips_sync = False


def make_group(number: int) -> Any:
    """Return the first workers as a process group; every worker calls this, ``None`` without any."""
    if not distributed.is_initialized():
        return None
    return distributed.new_group(list(range(number)), timeout=GROUP_TIMEOUT)
