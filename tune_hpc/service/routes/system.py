"""Routes: health, readiness, metrics, registered experiments."""

import os
import tempfile
from typing import Any

from fastapi import APIRouter, Response
from starlette.concurrency import run_in_threadpool

from tune_hpc.errors import FolderError
from tune_hpc.service.metrics import CONTENT_TYPE, Metrics
from tune_hpc.service.problems import AsciiJsonResponse, problem_docs
from tune_hpc.service.routes.searches import READ_ERRORS
from tune_hpc.service.schemas import Health, SpaceDetail, SpaceList
from tune_hpc.service.services import CLUSTER_TIMEOUT_S, Services


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
    """Check that searches can be read and started.

    Raises:
        FolderError: The storage cannot be listed or written.
        ClusterError: The cluster does not respond.
    """
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
