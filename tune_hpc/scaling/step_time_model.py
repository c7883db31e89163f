"""Step-time model: predicts the time of a step on several workers from probes, without a step of several workers.

    step_s(n) = contention(n) * (compute_s(batch / n) + ddp_overhead_s) + all_reduce_s(bytes, n)

``compute_s`` is the time of one worker for its share of the batch, and ``ddp_overhead_s`` the cost of DDP with one
worker. ``contention`` is the slow-down of a worker while the others compute, and ``all_reduce_s`` the time to average
the gradients. All four are probed on this machine (``workers``). For other links there is no contention, and the
all-reduce is a ring (Patarasuk and Yuan, 2009): 2 (n - 1) times the latency, plus 2 (n - 1) / n times the bytes over
the bandwidth. The model assumes that no communication overlaps with the backward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from tune_hpc.scaling.plan import Plan

#: Efficiency at which a network counts as wide enough.
TARGET_EFFICIENCY = 0.8
#: Widths of a curve: one more between any two powers of two.
NUM_CURVE_POINTS = 17
#: Name of the link between the measured workers in predictions.
MEASURED_LINK = "this machine"
#: Names of probes in folders of earlier commits.
_OLD_NAMES = {"way": "ddp_overhead", "crowd": "contention"}
#: Numbers of workers that are predicted for each link, up to ``MAX_EXTRAPOLATION`` times the largest measured one.
PREDICTED_WORKERS = (1, 2, 4, 8)
MAX_EXTRAPOLATION = 4


@dataclass(frozen=True)
class Link:
    """Network link between workers.

    Attributes:
        latency_s: Seconds for an empty message.
        bytes_per_s: Bandwidth in one direction.
        source: Origin of the numbers.
        needs_gpu: Whether the link connects GPUs only.
    """

    latency_s: float
    bytes_per_s: float
    source: str
    needs_gpu: bool = False


#: Published peak rates; the latencies are round numbers, typical of collectives on such links.
LINKS = {
    "NVLink 4": Link(10e-6, 450e9, "NVIDIA H200: 900 GB/s in both directions together", needs_gpu=True),
    "PCIe 4.0 x16": Link(15e-6, 32e9, "PCI-SIG: 16 GT/s a lane, 16 lanes, in one direction", needs_gpu=True),
    "200 Gbit/s": Link(15e-6, 25e9, "line rate"),
    "25 Gbit/s": Link(30e-6, 3.125e9, "line rate"),
}


class StepModel:
    """Step-time model of one machine.

    Args:
        probes: Rows of the ``probes`` in experiment.json; the model takes the median of repeated probes.
        use_gpu: Whether the probes ran on GPUs.
    """

    def __init__(self, probes: pd.DataFrame, *, use_gpu: bool = False) -> None:
        by_kind = dict(iter(probes.groupby(probes["probe"].replace(_OLD_NAMES))))
        none = probes.iloc[:0].reindex(columns=["width", "workers", "bytes", "seconds", "alone_s"])
        compute, overhead = by_kind["compute"], by_kind.get("ddp_overhead", none)
        contention, all_reduce = by_kind.get("contention", none), by_kind.get("all_reduce", none)
        # Fractions of the batch and their seconds, by batch size and width.
        self._compute: dict[Any, dict[Any, tuple[np.ndarray, np.ndarray]]] = {}
        for key, rows in compute.groupby(["batch_size", "width"]):
            batch_size, width = cast("tuple[Any, Any]", key)
            shares = rows.groupby("share")["seconds"].median()
            fractions = 1 / shares.index.to_numpy(float)
            self._compute.setdefault(batch_size, {})[width] = (fractions, shares.to_numpy(float))
        self._bytes = compute.groupby("width")["bytes"].median()
        self._ddp_overhead = overhead.groupby("width")["seconds"].median()
        ratios = contention.assign(ratio=contention["seconds"] / contention["alone_s"])
        self._contention = {
            workers: ratios[ratios["workers"] == workers].groupby("width")["ratio"].median()
            for workers in ratios["workers"].astype(int).unique().tolist()
        }
        self._links = {name: link for name, link in LINKS.items() if use_gpu or not link.needs_gpu}
        self._all_reduce = {
            workers: all_reduce[all_reduce["workers"] == workers].groupby("bytes")["seconds"].median()
            for workers in sorted(all_reduce["workers"].astype(int).unique().tolist())
        }

    @property
    def links(self) -> dict[str, Link]:
        """Links by name: those of ``LINKS`` for the probed device, and the local one, fitted to the fewest workers."""
        if not self._all_reduce:
            return dict(self._links)
        workers, seconds = min(self._all_reduce.items())
        return {f"{MEASURED_LINK}'s link": fit_link(workers, seconds), **self._links}

    def supports(self, workers: int, link: Link | None = None) -> bool:
        """Return whether this number of workers can be predicted: any over a link, without one if it was probed."""
        return link is not None or workers == 1 or workers in self._all_reduce

    def widths(self, batch_size: int) -> list[float]:
        """Return the probed widths, sorted."""
        return sorted(self._compute[batch_size])

    def compute_s(self, fraction: float, width: float, batch_size: int) -> float:
        """Return the seconds of one worker for a fraction of a probed batch size; any width, on log scales."""
        widths = self.widths(batch_size)
        seconds = [_interpolate(*self._compute[batch_size][probed], fraction) for probed in widths]
        return _interpolate_log(widths, seconds, width)

    def num_bytes(self, width: float) -> float:
        """Return the size of the gradients of a network."""
        return _interpolate_log(self._bytes.index.to_list(), self._bytes.to_list(), width)

    def all_reduce_s(self, num_bytes: float, workers: int, link: Link | None = None) -> float:
        """Return the seconds of an all-reduce: as probed, or over a link."""
        if workers == 1:
            return 0.0
        if link is not None:
            transfer_s = 2 * (workers - 1) / workers * num_bytes / link.bytes_per_s
            return 2 * (workers - 1) * link.latency_s + transfer_s
        seconds = self._all_reduce[workers]
        return _interpolate(seconds.index.to_numpy(float), seconds.to_numpy(float), num_bytes)

    def step(
        self, workers: int, width: float, batch_size: int, mode: str = "strong", link: Link | None = None
    ) -> dict[str, float]:
        """Predict the time of a step and its parts.

        Args:
            workers: Number of workers; without a link a probed one.
            width: Width of the network.
            batch_size: Batch size of all workers (strong) or of each worker (weak); a probed one.
            mode: ``strong`` or ``weak``.
            link: Link between the workers; by default that of the probes.

        Returns:
            ``step_s`` = ``compute_s`` + ``communicate_s``; ``samples_per_s``; ``speedup`` against one worker;
            ``efficiency``.
        """
        compute_s = self.compute_s(1 / workers if mode == "strong" else 1.0, width, batch_size)
        communicate_s = 0.0
        if workers > 1:
            overhead = self._ddp_overhead
            ddp_overhead_s = float(np.interp(width, overhead.index, overhead)) if len(overhead) else 0.0
            by_width = self._contention.get(workers)
            contention = 1.0 if link or by_width is None else float(np.interp(width, by_width.index, by_width))
            compute_s *= contention
            communicate_s = contention * ddp_overhead_s + self.all_reduce_s(self.num_bytes(width), workers, link)
        step_s = compute_s + communicate_s
        samples = batch_size * (workers if mode == "weak" else 1)
        speedup = samples / step_s * self.compute_s(1.0, width, batch_size) / batch_size
        return {
            "step_s": step_s,
            "compute_s": compute_s,
            "communicate_s": communicate_s,
            "samples_per_s": samples / step_s,
            "speedup": speedup,
            "efficiency": speedup / workers,
        }

    def min_width(
        self, workers: int, batch_size: int, link: Link | None = None, target: float = TARGET_EFFICIENCY
    ) -> tuple[float | None, float, float]:
        """Return the least probed width that reaches an efficiency or ``None``, the best efficiency, and its width."""
        probed = self.widths(batch_size)
        widths = np.geomspace(probed[0], probed[-1], 201)
        efficiencies = np.array([self.step(workers, width, batch_size, link=link)["efficiency"] for width in widths])
        best = int(np.argmax(efficiencies))
        reached = np.flatnonzero(efficiencies >= target)
        return float(widths[reached[0]]) if len(reached) else None, float(efficiencies[best]), float(widths[best])


def predictions(plan: Plan, probes: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Return the predictions for experiment.json.

    Args:
        plan: The measured cases.
        probes: See ``StepModel``.

    Returns:
        ``predictions``: ``link``, ``workers``, ``mode``, ``width``, ``batch_size`` and the columns of
        ``StepModel.step``, for the measured cases, and for ``PREDICTED_WORKERS`` over every link.

        ``widths``: for each link and number of workers the smallest ``width`` that reaches the efficiency ``aim``
        (``None``: not reached), ``best_efficiency``, ``best_width``, and the probed range ``narrowest`` and ``widest``.

        ``width_curves``: ``link``, ``workers``, ``width`` and ``efficiency`` over that range.

        The last two are empty if only one width was probed, and all three if the networks have added convolutions.
    """
    if not (cases := plan.predicted_cases):
        return {"predictions": [], "widths": [], "width_curves": []}
    model = StepModel(probes, use_gpu=plan.use_gpu)
    predicted_workers = [number for number in PREDICTED_WORKERS if number <= MAX_EXTRAPOLATION * plan.max_workers]
    measured: dict[tuple[float, int, str], set[int]] = {}
    for case in cases:
        width = case.config["width"] if case.config["model"] == "cnn" else 1.0
        measured.setdefault((width, case.config["batch_size"], case.mode), set()).add(case.workers)
    rows = [
        {"link": name, "workers": number, "mode": mode, "width": width, "batch_size": batch_size}
        | model.step(number, width, batch_size, mode, link)
        for (width, batch_size, mode), counts in measured.items()
        for name, link in {MEASURED_LINK: None, **model.links}.items()
        for number in (predicted_workers if link else sorted(counts))
        if mode == "weak" or number <= batch_size
    ]
    batch_size = cases[0].single_worker.batch_size
    probed = model.widths(batch_size)
    widths, curves = [], []
    for name, link in {MEASURED_LINK: None, **model.links}.items() if len(probed) > 1 else ():
        for number in sorted({2, 4, *plan.worker_counts} - {1}):
            if number > batch_size or not model.supports(number, link):
                continue
            width, best_efficiency, best_width = model.min_width(number, batch_size, link)
            widths.append(
                {"link": name, "workers": number, "aim": TARGET_EFFICIENCY, "width": width,
                 "best_efficiency": best_efficiency, "best_width": best_width, "narrowest": probed[0],
                 "widest": probed[-1]}
            )  # fmt: skip
            curves += [
                {"link": name, "workers": number, "width": float(width),
                 "efficiency": model.step(number, float(width), batch_size, link=link)["efficiency"]}
                for width in np.geomspace(probed[0], probed[-1], NUM_CURVE_POINTS)
            ]  # fmt: skip
    return {"predictions": rows, "widths": widths, "width_curves": curves}


def fit_link(workers: int, seconds: pd.Series) -> Link:
    """Fit latency and bandwidth of a ring to all-reduce times by number of bytes: least squares of relative errors."""
    sizes, times = seconds.index.to_numpy(float), seconds.to_numpy(float)
    terms = np.column_stack([np.full_like(sizes, 2 * (workers - 1)), 2 * (workers - 1) / workers * sizes])
    latency, per_byte = np.linalg.lstsq(terms / times[:, None], np.ones_like(times), rcond=None)[0]
    return Link(max(float(latency), 0.0), 1 / max(float(per_byte), 1e-15), "measured here")


def _interpolate(x: np.ndarray, y: np.ndarray, at: float) -> float:
    """Interpolate linearly, and extrapolate the outer segments, but never below the smallest value."""
    order = np.argsort(x)
    return max(_piecewise_linear(x[order], y[order], at), float(min(y)))


def _interpolate_log(x: Sequence[float], y: Sequence[float], at: float) -> float:
    """Interpolate and extrapolate on log scales."""
    return float(np.exp(_piecewise_linear(np.log(x), np.log(y), float(np.log(at)))))


def _piecewise_linear(x: np.ndarray, y: np.ndarray, at: float) -> float:
    if len(x) == 1:
        return float(y[0])
    right = int(np.clip(np.searchsorted(x, at), 1, len(x) - 1))
    slope = (y[right] - y[right - 1]) / (x[right] - x[right - 1])
    return float(y[right - 1] + slope * (at - x[right - 1]))
