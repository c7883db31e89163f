"""Metrics, divergence and time of one member of a stack."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

#: A trial diverges if its loss is not finite, or exceeds a limit in this number of successive steps. The limit is this
#: factor times the first loss, or times 1 if that is larger. A softmax regression stays finite at a huge learning rate;
#: the largest loss in Exercise 2's 72 trials of that model is 26. A single step does not suffice: the loss of the cnn
#: with Adam at 0.5 starts at 10, jumps to 5e6, and recovers soon.
DIVERGENCE_FACTOR = 1e4
DIVERGENCE_STEPS = 5

Report = Callable[[Any, Mapping[str, Any]], None]


class MemberProgress:
    """Progress of one member of a stack.

    Attributes:
        status: ``finished`` or ``diverged``.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self.status = "finished"
        self._stop_reason = ""
        self._steps_run = 0
        self._train_s = self._eval_s = 0.0
        self._first_loss = math.nan
        self._num_over = 0

    def take_block(self, start: int, end: int, curves: Mapping[str, np.ndarray], train_s: float) -> None:
        """Report a block of steps up to a divergence."""
        losses = curves["train_loss"]
        self._train_s += train_s
        if start == 0:
            self._first_loss = float(losses[0])
        diverged_at, self._num_over = _first_divergence(losses, self._first_loss, self._num_over)
        num_healthy = len(losses) if diverged_at is None else diverged_at
        if num_healthy:
            healthy = {name: curve[:num_healthy] for name, curve in curves.items()}
            self._report(np.arange(start, start + num_healthy), healthy)
        self._steps_run = end
        if diverged_at is not None:
            self._steps_run = start + diverged_at
            self._diverge(_divergence_reason(float(losses[diverged_at]), self._steps_run))

    def take_evaluation(self, step: int, metrics: Mapping[str, float], eval_s: float) -> None:
        """Report an evaluation; non-finite metrics are a divergence."""
        self._eval_s += eval_s
        if not all(math.isfinite(value) for value in metrics.values()):
            self._diverge(f"non-finite evaluation loss at step {step}")
        elif metrics:
            self._report(step, metrics)

    def _diverge(self, reason: str) -> None:
        self.status, self._stop_reason = "diverged", reason

    def row(self, default_reason: str, samples_per_step: int) -> dict[str, Any]:
        """Return columns of the trials frame; ``default_reason`` is the stop reason without a divergence."""
        return {
            "status": self.status,
            "stop_reason": self._stop_reason or default_reason,
            "steps_run": self._steps_run,
            "train_s": self._train_s,
            "eval_s": self._eval_s,
            "samples_per_s": self._steps_run * samples_per_step / self._train_s if self._train_s else math.nan,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state, without the report function."""
        return {name: value for name, value in vars(self).items() if name != "_report"}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of ``state_dict``."""
        vars(self).update(state)


def _first_divergence(losses: np.ndarray, first_loss: float, num_over: int) -> tuple[int | None, int]:
    """Return the index of the divergence in a block of losses or ``None``, and the new ``num_over``.

    ``num_over`` is the number of successive losses over the limit at the end of the previous block.
    """
    limit = DIVERGENCE_FACTOR * max(1.0, first_loss)
    if (losses <= limit).all():
        return None, 0
    for index, loss in enumerate(losses):
        num_over = num_over + 1 if loss > limit else 0
        if not math.isfinite(loss) or num_over == DIVERGENCE_STEPS:
            return index, num_over
    return None, num_over


def _divergence_reason(loss: float, step: int) -> str:
    if not math.isfinite(loss):
        return f"non-finite loss at step {step}"
    return f"loss {loss:.3g} at step {step}, for {DIVERGENCE_STEPS} steps over {DIVERGENCE_FACTOR:g} times the first"
