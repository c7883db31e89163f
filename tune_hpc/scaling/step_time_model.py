"""What a step takes on several workers, predicted from probes that none of these steps is among.

    time(n) = crowd(n) * (compute(batch / n) + way) + all_reduce(bytes, n)

``compute`` is what one worker takes for a share of the batch, ``way`` what the way of several costs even one alone,
``crowd`` how much slower each computes while the others do, and ``all_reduce`` what averaging so many bytes takes. On
this machine all four were measured (probes.py). On another link the workers do not crowd one another, and averaging is
a ring (Patarasuk and Yuan, 2009): 2 (n - 1) times the latency, and 2 (n - 1) / n times the bytes over the bandwidth.
Nothing of the exchange is taken to be hidden behind the backward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.errors import UnknownNameError

#: What workers reach the aim of ``min_width`` if they keep so much of their speed.
TARGET_EFFICIENCY = 0.8
#: How many widths a curve has: a power of two between any two.
NUM_CURVE_POINTS = 17
#: The name of the link that the probes ran over.
HERE = "this machine"


@dataclass(frozen=True)
class Link:
    """What connects workers.

    Attributes:
        latency_s: Seconds for a message of no length.
        bytes_per_s: In one direction.
        source: Where the numbers are from.
    """

    latency_s: float
    bytes_per_s: float
    source: str


#: Peak rates as published; latencies are round numbers of what collectives on such links are known to start with.
LINKS = {
    "NVLink 4": Link(10e-6, 450e9, "NVIDIA H200: 900 GB/s in both directions together"),
    "PCIe 4.0 x16": Link(15e-6, 32e9, "PCI-SIG: 16 GT/s a lane, 16 lanes, in one direction"),
    "200 Gbit/s": Link(15e-6, 25e9, "line rate"),
    "25 Gbit/s": Link(30e-6, 3.125e9, "line rate"),
}


class StepModel:
    """The model, calibrated on probes.

    Args:
        probes: What ``probes.probe`` measured, a row each; repeats are reduced to their median.
    """

    def __init__(self, probes: pd.DataFrame) -> None:
        compute = probes[probes["probe"] == "compute"]
        self._compute = compute.groupby(["batch_size", "width", "share"])["seconds"].median()
        self._bytes = compute.groupby("width")["bytes"].median()
        way = probes[probes["probe"] == "way"]
        self._way = way.groupby("width")["seconds"].median() if len(way) else pd.Series(dtype=float)
        crowd = probes[probes["probe"] == "crowd"]
        self._crowd: dict[int, float] = {}
        if len(crowd):
            ratios = (crowd["seconds"] / crowd["alone_s"]).groupby(crowd["workers"]).median()
            self._crowd = {int(number): float(ratio) for number, ratio in zip(ratios.index, ratios, strict=True)}
        reduced = probes[probes["probe"] == "all_reduce"]
        self._reduced: dict[int, pd.Series] = {}
        if len(reduced):
            numbers = [int(number) for number in sorted(reduced["workers"].unique())]
            self._reduced = {
                number: reduced[reduced["workers"] == number].groupby("bytes")["seconds"].median() for number in numbers
            }

    @property
    def links(self) -> dict[str, Link]:
        """The links that are known by name: those of ``LINKS``, and the one between the fewest workers here."""
        if not self._reduced:
            return dict(LINKS)
        number, seconds = min(self._reduced.items())
        return {f"{HERE}'s link": fit_link(number, seconds), **LINKS}

    def supports(self, workers: int) -> bool:
        """Return whether so many workers were probed here."""
        return workers == 1 or workers in self._reduced

    def widths(self, batch_size: int) -> list[float]:
        """Return the widths that were probed, the narrowest first."""
        return sorted(self._compute[batch_size].index.unique("width"))

    def compute_s(self, part: float, width: float, batch_size: int) -> float:
        """Return what one worker alone takes for a part of a batch.

        Args:
            part: Up to 1.
            width: The network's; between two that were probed it is interpolated, beyond them extended, on log scales.
            batch_size: One that was probed.
        """
        own = self._compute[batch_size]
        widths = self.widths(batch_size)
        seconds = [float(_line(1 / own[one].index.to_numpy(float), own[one].to_numpy(float), part)) for one in widths]
        return _power(widths, seconds, width)

    def num_bytes(self, width: float) -> float:
        """Return the bytes of a network's gradients."""
        return _power(self._bytes.index.to_list(), self._bytes.to_list(), width)

    def all_reduce_s(self, num_bytes: float, workers: int, link: Link | None = None) -> float:
        """Return what it takes to average so many bytes: here as it was probed, or over a link."""
        if workers == 1:
            return 0.0
        if link is not None:
            wire = 2 * (workers - 1) / workers * num_bytes / link.bytes_per_s
            return 2 * (workers - 1) * link.latency_s + wire
        seconds = self._reduced[workers]
        return float(_line(seconds.index.to_numpy(float), seconds.to_numpy(float), num_bytes))

    def step(
        self, workers: int, width: float, batch_size: int, mode: str = "strong", link: Link | None = None
    ) -> dict[str, float]:
        """Return a step's seconds and their parts.

        Args:
            workers: How many; here a number that was probed.
            width: The network's.
            batch_size: What a step sees: of all workers (strong), or of each (weak); one that was probed.
            mode: ``strong`` or ``weak``.
            link: What connects them; by default they are where the probes were.

        Returns:
            ``step_s`` = ``compute_s`` + ``communicate_s``; ``samples_per_s``, ``speedup`` (samples a second against
            those of one worker), ``efficiency``.
        """
        compute = self.compute_s(1 / workers if mode == "strong" else 1.0, width, batch_size)
        communicate = 0.0
        if workers > 1:
            way = float(np.interp(width, self._way.index, self._way)) if len(self._way) else 0.0
            crowd = self._crowd.get(workers, 1.0) if link is None else 1.0
            compute *= crowd
            communicate = crowd * way + self.all_reduce_s(self.num_bytes(width), workers, link)
        step = compute + communicate
        samples = batch_size * (workers if mode == "weak" else 1)
        speedup = samples / step * self.compute_s(1.0, width, batch_size) / batch_size
        return {
            "step_s": step,
            "compute_s": compute,
            "communicate_s": communicate,
            "samples_per_s": samples / step,
            "speedup": speedup,
            "efficiency": speedup / workers,
        }

    def min_width(
        self, workers: int, batch_size: int, link: Link | None = None, aim: float = TARGET_EFFICIENCY
    ) -> tuple[float | None, float, float]:
        """Return the narrowest network whose workers keep so much of their speed, of the widths that were probed.

        Returns:
            That width or ``None``; and the best efficiency of all, with its width.
        """
        probed = self.widths(batch_size)
        widths = np.geomspace(probed[0], probed[-1], 201)
        kept = np.array([self.step(workers, width, batch_size, link=link)["efficiency"] for width in widths])
        best = int(np.argmax(kept))
        reached = next((float(width) for width, own in zip(widths, kept, strict=True) if own >= aim), None)
        return reached, float(kept[best]), float(widths[best])

    def table(
        self,
        workers: Sequence[int],
        widths: Sequence[float],
        batch_size: int,
        mode: str = "strong",
        links: Sequence[str] = (),
    ) -> pd.DataFrame:
        """Return predictions, a row for each link, width and number of workers.

        Args:
            workers: Numbers of workers; of a batch that they share no more than it has samples.
            widths: The network's.
            batch_size: As for ``step``.
            mode: ``strong`` or ``weak``.
            links: Names of ``links``; none: where the probes were.

        Raises:
            UnknownNameError: no link is called so.
        """
        known = self.links
        if wrong := next((name for name in links if name not in known), None):
            raise UnknownNameError(f"no link is called {wrong!r}; known: {', '.join(known)}")
        chosen: dict[str, Link | None] = {name: known[name] for name in links} or {HERE: None}
        rows = [
            {"link": name, "workers": number, "mode": mode, "width": width, "batch_size": batch_size}
            | self.step(number, width, batch_size, mode, link)
            for name, link in chosen.items() for width in widths for number in workers
            if mode == "weak" or number <= batch_size
        ]  # fmt: skip
        return pd.DataFrame(rows)


def min_efficient_width(probes: pd.DataFrame, workers: Sequence[int], batch_size: int) -> list[dict[str, Any]]:
    """Return from which width of the network on workers keep so much of their speed as ``TARGET_EFFICIENCY`` says.

    Returns:
        Rows of ``link`` (here, and all that are known), ``workers``, ``width`` (``None``: none that was probed does),
        ``best_efficiency`` of all widths and ``best_width``, and what was probed: ``narrowest`` and ``widest``.
    """
    model = StepModel(probes)
    widths = model.widths(batch_size)
    if len(widths) < 2:
        return []
    links: dict[str, Link | None] = {HERE: None, **model.links}
    return [
        {"link": name, "workers": number, "aim": TARGET_EFFICIENCY}
        | dict(zip(("width", "best_efficiency", "best_width"), model.min_width(number, batch_size, link), strict=True))
        | {"narrowest": min(widths), "widest": max(widths)}
        for name, link in links.items()
        for number in workers
        if link is not None or model.supports(number)
    ]


def width_curves(probes: pd.DataFrame, workers: Sequence[int], batch_size: int) -> list[dict[str, Any]]:
    """Return what workers keep of their speed, over the widths that were probed.

    Returns:
        Rows of ``link``, ``workers``, ``width`` and ``efficiency``; none where only one width was probed.
    """
    model = StepModel(probes)
    widths = model.widths(batch_size)
    if len(widths) < 2:
        return []
    links: dict[str, Link | None] = {HERE: None, **model.links}
    return [
        {
            "link": name,
            "workers": number,
            "width": float(width),
            "efficiency": model.step(number, float(width), batch_size, link=link)["efficiency"],
        }
        for name, link in links.items()
        for number in workers
        if link is not None or model.supports(number)
        for width in np.geomspace(widths[0], widths[-1], NUM_CURVE_POINTS)
    ]


def fit_link(workers: int, seconds: pd.Series) -> Link:
    """Return the link whose ring takes what was measured, as nearly as a line in the bytes can say.

    Args:
        workers: How many averaged.
        seconds: What it took, by bytes; errors count in proportion to it.
    """
    sizes, taken = seconds.index.to_numpy(float), seconds.to_numpy(float)
    terms = np.column_stack([np.full_like(sizes, 2 * (workers - 1)), 2 * (workers - 1) / workers * sizes])
    latency, per_byte = np.linalg.lstsq(terms / taken[:, None], np.ones_like(taken), rcond=None)[0]
    return Link(max(float(latency), 0.0), 1 / max(float(per_byte), 1e-15), "measured here")


def _line(x: np.ndarray, y: np.ndarray, at: float) -> float:
    """Return a value on straight lines between points, and on the last ones beyond; never below the least of them."""
    order = np.argsort(x)
    x, y = x[order], y[order]
    if len(x) == 1:
        return float(y[0])
    place = int(np.clip(np.searchsorted(x, at), 1, len(x) - 1))
    slope = (y[place] - y[place - 1]) / (x[place] - x[place - 1])
    return float(max(y[place - 1] + slope * (at - x[place - 1]), min(y)))


def _power(x: Sequence[float], y: Sequence[float], at: float) -> float:
    """Return a value on powers between points, and on the last ones beyond."""
    if len(x) == 1:
        return float(y[0])
    logs = np.log(x), np.log(y)
    place = int(np.clip(np.searchsorted(logs[0], np.log(at)), 1, len(x) - 1))
    slope = (logs[1][place] - logs[1][place - 1]) / (logs[0][place] - logs[0][place - 1])
    return float(np.exp(logs[1][place - 1] + slope * (np.log(at) - logs[0][place - 1])))


def predictions(probes: pd.DataFrame, cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the model says of measured cases, and of more workers on stated links.

    Args:
        probes: As for ``StepModel``.
        cases: ``workers``, ``width``, ``batch_size`` and ``mode`` of what was measured.

    Returns:
        Rows of ``StepModel.table``.
    """
    model = StepModel(probes)
    tables = []
    for width, batch_size, mode in dict.fromkeys((one["width"], one["batch_size"], one["mode"]) for one in cases):
        own = [one for one in cases if (one["width"], one["batch_size"], one["mode"]) == (width, batch_size, mode)]
        here = sorted({one["workers"] for one in own})
        tables.append(model.table(here, [width], batch_size, mode))
        tables.append(model.table([1, 2, 4, 8, 16, 32, 64], [width], batch_size, mode, list(model.links)))
    rows = pd.concat(tables, ignore_index=True).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]
