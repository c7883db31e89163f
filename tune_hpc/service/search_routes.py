"""Routes: start, list, read, stop, resume, extend and delete searches."""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from tune_hpc.errors import RequestError
from tune_hpc.jobs.client import Job
from tune_hpc.jobs.job_folder import is_id
from tune_hpc.service.cache import CachedResponse
from tune_hpc.service.problems import READ_ERRORS, AsciiJsonResponse, problem_docs, to_json
from tune_hpc.service.schemas import (
    STATES,
    ExtendRequest,
    ResumeRequest,
    SearchDetail,
    SearchesQuery,
    SearchList,
    SearchRequest,
    SearchStatus,
    StopRequest,
    next_link,
)
from tune_hpc.service.services import SearchSnapshot, Services

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key", min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$",
        description="chosen by the client: a request that is repeated with the same key has no second effect",
    ),
]  # fmt: skip
_CHANGE_ERRORS = (400, 401, 403, 404, 408, 409, 413, 422, 429, 503, 507)


def search_routes(services: Services) -> APIRouter:
    """Return the routes of searches."""
    router = APIRouter(prefix="/api/v1/searches", tags=["searches"])

    @router.get("", operation_id="listSearches", response_model=SearchList, responses=problem_docs(401, 422, 429, 503))
    async def list_searches(request: Request, query: Annotated[SearchesQuery, Query()]) -> Response:
        """Return the searches of the storage, the latest first."""
        if unknown := [state for state in query.state if state not in STATES]:
            raise RequestError(f"no search has the state {unknown[0][:50]!r}; there are {', '.join(STATES)}")
        if query.after is not None and not is_id(query.after):
            raise RequestError(f"after must be the id of a search; got {query.after[:100]!r}")
        version, statuses = await services.list()

        def make() -> CachedResponse:
            found = [one for one in statuses if query.state == [] or one["state"] in query.state]
            found = [one for one in found if (query.name or "") in one["id"]]
            later = [one for one in found if query.after is None or _order(one["id"]) < _order(query.after)]
            page = later[: query.limit]
            link = next_link(request, query, after=page[-1]["id"]) if len(page) < len(later) else {}
            return CachedResponse(to_json({"total": len(found), "searches": page}), headers=link)

        key = f"list {request.url.path} {query.model_dump_json()}"
        return (await services.cache.get(key, str(version), True, make)).response()

    @router.post(
        "", operation_id="startSearch", status_code=201, response_model=SearchStatus,
        responses={
            200: {"model": SearchStatus, "description": "An earlier request with this key started the search"},
            **problem_docs(*_CHANGE_ERRORS),
        },
    )  # fmt: skip
    async def start_search(request: Request, body: SearchRequest, key: Key = None) -> Response:
        """Start a search."""
        job, is_new = await run_in_threadpool(start, services, body, key)
        status = (await services.snapshot(job.id)).status
        return AsciiJsonResponse(status, 201 if is_new else 200, {"Location": f"{request.url.path}/{job.id}"})

    @router.get(
        "/{search_id}", operation_id="readSearch", response_model=SearchDetail, responses=problem_docs(*READ_ERRORS)
    )
    async def read_search(search_id: str) -> Response:
        """Return the status of a search, and its request."""

        def make(snapshot: SearchSnapshot) -> CachedResponse:
            request = snapshot.folder.read()
            detail = {
                "submitted": request.get("submitted"),
                "options": request.get("options", {}),
                "parameters": {one["name"]: one.get("space") for one in request["experiments"]},
            }
            return CachedResponse(to_json({**snapshot.status, **detail}))

        return await services.respond(search_id, "search", make)

    @router.delete(
        "/{search_id}", operation_id="deleteSearch", status_code=204, responses=problem_docs(*_CHANGE_ERRORS)
    )
    async def delete_search(search_id: str) -> Response:
        """Delete a search that has ended, and all its results."""
        await run_in_threadpool(delete, services, search_id)
        return Response(status_code=204)

    changes: dict[str, Any] = {
        "status_code": 202, "response_model": SearchStatus, "responses": problem_docs(*_CHANGE_ERRORS)
    }  # fmt: skip

    @router.post("/{search_id}/stop", operation_id="stopSearch", **changes)
    async def stop_search(
        search_id: str, body: Annotated[StopRequest | None, Body()] = None, key: Key = None
    ) -> Response:
        """Stop a search: trials save their state, and the search can be resumed. No effect on an ended search."""
        force = body is not None and body.force
        return AsciiJsonResponse(await run_in_threadpool(stop, services, search_id, force), 202)

    @router.post("/{search_id}/resume", operation_id="resumeSearch", **changes)
    async def resume_search(
        search_id: str, body: Annotated[ResumeRequest | None, Body()] = None, key: Key = None
    ) -> Response:
        """Resume a search with trials that have not ended."""
        return AsciiJsonResponse(
            await run_in_threadpool(resume, services, search_id, body or ResumeRequest(), key), 202
        )

    @router.post("/{search_id}/extend", operation_id="extendSearch", **changes)
    async def extend_search(search_id: str, body: ExtendRequest, key: Key = None) -> Response:
        """Add configurations to a search; its searcher knows all earlier trials."""
        return AsciiJsonResponse(await run_in_threadpool(extend, services, search_id, body, key), 202)

    return router


def start(services: Services, body: SearchRequest, key: str | None) -> tuple[Job, bool]:
    """Start a search, once per key; return its job, and whether the job is new."""
    experiment = services.registry.build_experiment(body)
    if key is None:
        job, is_new = services.client.submit(experiment, **body.run_options()), True
    else:
        digest = hashlib.sha256(to_json(body.model_dump(mode="json"))).hexdigest()
        job, is_new = services.client.submit_once(experiment, key, digest, **body.run_options())
    services.forget(job.id)
    return job, is_new


def stop(services: Services, search_id: str, force: bool) -> Mapping[str, Any]:
    """Stop a search; return its status."""
    return services.change(search_id, lambda job: job.stop(force=force))


def resume(services: Services, search_id: str, body: ResumeRequest, key: str | None) -> Mapping[str, Any]:
    """Resume a search; return its status."""
    return services.change(search_id, lambda job: job.resume(key=key or "", **body.restart_options()))


def extend(services: Services, search_id: str, body: ExtendRequest, key: str | None) -> Mapping[str, Any]:
    """Extend a search; return its status."""
    options = {"key": key or "", "experiment": body.experiment, **body.restart_options()}
    return services.change(search_id, lambda job: job.extend(body.num_samples, **options))


def delete(services: Services, search_id: str) -> None:
    """Delete a search."""
    job = Job(services.client, services.find(search_id).id)
    try:
        job.delete()
    finally:
        services.forget(search_id)


def _order(search_id: str) -> tuple[str, str]:
    """Return the sort key of a search: the time of submission in the id, then the id."""
    return search_id[-20:-5], search_id
