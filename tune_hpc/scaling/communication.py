"""Gradient synchronization of the workers of one training.

DistributedDataParallel averages gradients at every step during the backward pass. ``plan.GradientSync`` has options
that may make this cheaper. With ``local_steps`` the workers average parameters instead, and each optimizer has its own
state (local SGD: Stich, 2019, arXiv:1805.09767).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from tune_hpc.learning.training import Communicator, Value
from tune_hpc.scaling.plan import GradientSync


@dataclass
class DistributedCommunicator(Communicator):
    """Communicator of several processes that share each batch.

    Attributes:
        group: Process group; ``None`` for a single process without one.
        device: Device of this process.
        gradient_sync: Options of the synchronization.
        always_wrap: Whether a single process is wrapped for DDP, too, to measure the overhead.
    """

    group: Any = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    gradient_sync: GradientSync = field(default_factory=GradientSync)
    always_wrap: bool = False
    #: A CUDA graph cannot contain the synchronization. Runs that are compared with it use no graph either.
    allow_cuda_graphs: bool = False
    _skips_sync: bool = False

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return a model that averages its gradients, or the model itself with ``local_steps``."""
        if (self.size == 1 and not self.always_wrap) or self.gradient_sync.local_steps > 1:
            return model
        wrapped = DistributedDataParallel(
            model,
            process_group=self.group,
            bucket_cap_mb=self.gradient_sync.bucket_mb,
            gradient_as_bucket_view=self.gradient_sync.bucket_view,
        )
        if self.gradient_sync.compression == "bf16":
            wrapped.register_comm_hook(self.group, bf16_compress_hook)
        return wrapped

    def after_step(self, model: nn.Module, step: int) -> None:
        """Average the parameters after every ``local_steps`` steps."""
        if self.gradient_sync.local_steps > 1 and step % self.gradient_sync.local_steps == 0 and not self._skips_sync:
            self.sync_parameters(model)

    @torch.no_grad()
    def sync_parameters(self, model: nn.Module) -> None:
        """Average the parameters if they may differ between workers."""
        if self.size == 1 or self.gradient_sync.local_steps == 1:
            return
        parameters = list(model.parameters())
        flat = torch.cat([parameter.detach().flatten() for parameter in parameters])
        distributed.all_reduce(flat, group=self.group)
        flat /= self.size
        for parameter, mean in zip(parameters, flat.split([one.numel() for one in parameters]), strict=True):
            parameter.copy_(mean.view_as(parameter))

    def mean(self, curves: np.ndarray) -> np.ndarray:
        """Return the mean of the workers' values."""
        if self.size == 1:
            return curves
        total = torch.as_tensor(curves, dtype=torch.float64).to(self.device)
        distributed.all_reduce(total, group=self.group)
        return (total / self.size).cpu().numpy()

    def broadcast_from_rank0(self, make: Callable[[], Value]) -> Value:
        """Return the value that rank 0 makes."""
        if self.size == 1:
            return make()
        values = [make() if self.rank == 0 else None]
        distributed.broadcast_object_list(values, group=self.group, group_src=0, device=self.device)
        return values[0]  # type: ignore[return-value]

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all workers, ordered by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value, group=self.group)
        return values

    @contextmanager
    def no_sync(self, wrapped_model: nn.Module) -> Iterator[None]:
        """Disable the synchronization of steps inside the block."""
        is_wrapped = isinstance(wrapped_model, DistributedDataParallel)
        self._skips_sync = True
        try:
            with wrapped_model.no_sync() if is_wrapped else nullcontext():  # type: ignore[operator]
                yield
        finally:
            self._skips_sync = False
