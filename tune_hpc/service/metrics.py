"""Prometheus metrics: number of searches by state, of ended trials by status, and durations of requests."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE

from tune_hpc.service.schemas import STATES

__all__ = ["CONTENT_TYPE", "Metrics"]


class Metrics:
    """Metrics of one service, in a separate registry."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._searches = Gauge("tune_hpc_searches", "Searches by state.", ["state"], registry=self._registry)
        self._trials = Gauge("tune_hpc_trials_ended", "Trials that ended.", ["status"], registry=self._registry)
        self._requests = Histogram(
            "tune_hpc_request_duration_seconds", "Duration of requests.", ["route", "method", "status"],
            buckets=(0.005, 0.02, 0.1, 0.5, 2, 10), registry=self._registry,
        )  # fmt: skip

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, method, str(status)).observe(seconds)

    def render(self, searches: Iterable[Mapping[str, Any]]) -> bytes:
        """Return all metrics in the text format of Prometheus; ``searches`` is the status of each search."""
        states, trials = Counter(dict.fromkeys(STATES, 0)), Counter[str]()
        for search in searches:
            states[search["state"]] += 1
            for experiment in search["experiments"]:
                trials.update(experiment["counts"])
        for gauge, counts in ((self._searches, states), (self._trials, trials)):
            gauge.clear()
            for label, count in counts.items():
                gauge.labels(label).set(count)
        return generate_latest(self._registry)
