"""Routes: health, readiness, Prometheus metrics, registered experiments."""

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from starlette.concurrency import run_in_threadpool

from tune_hpc.errors import FolderError
from tune_hpc.service.problems import AsciiJsonResponse, problem_docs
from tune_hpc.service.schemas import STATES, Health, SpaceDetail, SpaceList
from tune_hpc.service.search_routes import READ_ERRORS
from tune_hpc.service.services import CLUSTER_TIMEOUT_S, Services


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


def system_routes(services: Services, metrics: Metrics, version: str) -> APIRouter:
    """Return the routes of the service itself."""
    router = APIRouter(tags=["service"])
    ok = {"status": "ok", "version": version}

    @router.get("/ready", operation_id="readReadiness", response_model=Health, responses=problem_docs(401, 429, 503))
    async def read_readiness() -> Response:
        """Check that the storage can be read and written, and that the cluster responds."""
        await run_in_threadpool(_check_ready, services)
        return AsciiJsonResponse(ok, headers={"Cache-Control": "no-store"})

    text: dict[int | str, Any] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @router.get("/metrics", operation_id="readMetrics", responses={**text, **problem_docs(401, 429, 503)},
                response_class=Response)  # fmt: skip
    async def read_metrics() -> Response:
        """Return metrics in the text format of Prometheus."""
        _, statuses = await services.list()
        return Response(metrics.render(statuses), headers={"Cache-Control": "no-store", "Content-Type": CONTENT_TYPE})

    @router.get("/api/v1/spaces", operation_id="listSpaces", response_model=SpaceList, responses=problem_docs(401, 429))
    def list_spaces() -> Response:
        """Return the registered experiments, with their spaces as plain JSON."""
        spaces = [services.registry.describe(experiment.name) for experiment in services.registry]
        return AsciiJsonResponse({"spaces": spaces})

    @router.get("/api/v1/spaces/{name}", operation_id="readSpace", response_model=SpaceDetail,
                responses=problem_docs(*READ_ERRORS))  # fmt: skip
    def read_space(name: str) -> Response:
        """Return a registered experiment."""
        return AsciiJsonResponse(services.registry.describe(name))

    return router


def health_routes(version: str) -> APIRouter:
    """Return the health route, which needs no token."""
    router = APIRouter(tags=["service"])

    @router.get("/health", operation_id="readHealth", response_model=Health, responses=problem_docs(429))
    async def read_health() -> Response:
        """Return the health of the process."""
        return AsciiJsonResponse({"status": "ok", "version": version}, headers={"Cache-Control": "no-store"})

    return router


def _check_ready(services: Services) -> None:
    """Check that searches can be read and started."""
    storage = services.client.storage
    storage.list_names()
    if not storage.is_remote:
        try:
            file, name = tempfile.mkstemp(prefix=".ready-", dir=storage.root)
            os.close(file)
            os.unlink(name)
        except OSError as error:
            raise FolderError(f"{storage.uri} cannot be written: {error.strerror}; check the storage") from error
    services.client.launcher.check(CLUSTER_TIMEOUT_S)
