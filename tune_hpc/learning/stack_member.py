"""How one member of a stack fares: what it reports, when it counts as diverged, its share of the time."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

#: A trial has diverged when its loss is not finite, or so many steps in a row this many times its first one (or 1, if
#: that is more). A softmax regression at an absurd rate stays finite for ever; the worst of Exercise 2's 72 trials with
#: that model reaches 26. One step is not enough: the cnn with Adam at 0.5 starts at 10, jumps to 5e6, and is back soon.
DIVERGENCE_FACTOR = 1e4
DIVERGENCE_STEPS = 5

Report = Callable[[Any, Mapping[str, Any]], None]


class MemberProgress:
    """How one member of a stack fares.

    Attributes:
        status: ``finished`` until it diverges.
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
        """Report the healthy part of a block of steps; note a divergence."""
        losses = curves["train_loss"]
        self._train_s += train_s
        if start == 0:
            self._first_loss = float(losses[0])
        diverged_at, self._num_over = _first_divergence(losses, self._first_loss, self._num_over)
        healthy = len(losses) if diverged_at is None else diverged_at
        if healthy:
            self._report(np.arange(start, start + healthy), {name: curve[:healthy] for name, curve in curves.items()})
        self._steps_run = end
        if diverged_at is not None:
            self._steps_run = start + diverged_at
            self._diverge(_divergence(float(losses[diverged_at]), self._steps_run))

    def take_evaluation(self, step: int, metrics: Mapping[str, float], eval_s: float) -> None:
        """Report an evaluation."""
        self._eval_s += eval_s
        if not all(math.isfinite(value) for value in metrics.values()):
            self._diverge(f"non-finite evaluation loss at step {step}")
        elif metrics:
            self._report(step, metrics)

    def _diverge(self, reason: str) -> None:
        self.status, self._stop_reason = "diverged", reason

    def row(self, all_done: str, samples_per_step: int) -> dict[str, Any]:
        """Return the columns of its trial."""
        return {
            "status": self.status,
            "stop_reason": self._stop_reason or all_done,
            "steps_run": self._steps_run,
            "train_s": self._train_s,
            "eval_s": self._eval_s,
            "samples_per_s": self._steps_run * samples_per_step / self._train_s if self._train_s else math.nan,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return all but the report."""
        return {name: value for name, value in vars(self).items() if name != "_report"}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        vars(self).update(state)


def _first_divergence(losses: np.ndarray, first_loss: float, num_over: int) -> tuple[int | None, int]:
    """Return the index at which a block of losses counts as diverged, or ``None``.

    Also return how many losses in a row are over the limit at the block's end, for the next one; ``num_over`` is that
    of the block before.
    """
    limit = DIVERGENCE_FACTOR * max(1.0, first_loss)
    if (losses <= limit).all():
        return None, 0
    for index, loss in enumerate(losses):
        num_over = num_over + 1 if loss > limit else 0
        if not math.isfinite(loss) or num_over == DIVERGENCE_STEPS:
            return index, num_over
    return None, num_over


def _divergence(loss: float, step: int) -> str:
    if not math.isfinite(loss):
        return f"non-finite loss at step {step}"
    return f"loss {loss:.3g} at step {step}, for {DIVERGENCE_STEPS} steps over {DIVERGENCE_FACTOR:g} times the first"
