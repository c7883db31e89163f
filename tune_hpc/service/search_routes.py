"""Routes: start, list, read, stop, resume, extend and delete searches."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from tune_hpc.errors import RequestError
from tune_hpc.jobs.job_folder import is_id
from tune_hpc.service import schemas
from tune_hpc.service.cache import CachedResponse
from tune_hpc.service.problems import READ_ERRORS, AsciiJsonResponse, problem_docs, to_json
from tune_hpc.service.services import SearchSnapshot, Services

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key", min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$",
        description="chosen by the client: a request that is repeated with the same key has no second effect",
    ),
]  # fmt: skip
_CHANGE_ERRORS = problem_docs(400, 401, 403, 404, 408, 409, 413, 422, 429, 503, 507)


def search_routes(services: Services) -> APIRouter:
    """Return the routes of searches."""
    router = APIRouter(prefix="/api/v1/searches", tags=["searches"])

    @router.get(
        "", operation_id="listSearches", response_model=schemas.SearchList, responses=problem_docs(401, 422, 429, 503)
    )
    async def list_searches(request: Request, query: Annotated[schemas.SearchesQuery, Query()]) -> Response:
        """Return the searches of the storage, the latest first."""
        if unknown := [state for state in query.state if state not in schemas.STATES]:
            states = ", ".join(schemas.STATES)
            raise RequestError(f"no search has the state {unknown[0][:50]!r}; there are {states}")
        if query.after is not None and not is_id(query.after):
            raise RequestError(f"after must be the id of a search; got {query.after[:100]!r}")
        version, statuses = await services.list()

        def make() -> CachedResponse:
            found = [one for one in statuses if query.state == [] or one["state"] in query.state]
            found = [one for one in found if (query.name or "") in one["id"]]
            later = [one for one in found if query.after is None or _order(one["id"]) < _order(query.after)]
            page = later[: query.limit]
            link = schemas.next_link(request, query, after=page[-1]["id"]) if len(page) < len(later) else {}
            return CachedResponse(to_json({"total": len(found), "searches": page}), headers=link)

        key = f"list {request.url.path} {query.model_dump_json()}"
        return (await services.cache.get(key, str(version), True, make)).response()

    @router.post(
        "", operation_id="startSearch", status_code=201, response_model=schemas.SearchStatus,
        responses={
            200: {
                "model": schemas.SearchStatus, "description": "An earlier request with this key started the search"
            },
            **_CHANGE_ERRORS,
        },
    )  # fmt: skip
    async def start_search(request: Request, body: schemas.SearchRequest, key: Key = None) -> Response:
        """Start a search."""
        job, is_new = await run_in_threadpool(services.start, body, key)
        status = (await services.snapshot(job.id)).status
        return AsciiJsonResponse(status, 201 if is_new else 200, {"Location": f"{request.url.path}/{job.id}"})

    @router.get(
        "/{search_id}",
        operation_id="readSearch",
        response_model=schemas.SearchDetail,
        responses=problem_docs(*READ_ERRORS),
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

    @router.delete("/{search_id}", operation_id="deleteSearch", status_code=204, responses=_CHANGE_ERRORS)
    async def delete_search(search_id: str) -> Response:
        """Delete a search that has ended, and all its results."""
        await run_in_threadpool(services.change, search_id, schemas.DeleteRequest())
        return Response(status_code=204)

    async def change(search_id: str, body: schemas.Body, key: str | None) -> Response:
        await run_in_threadpool(services.change, search_id, body, key)
        return AsciiJsonResponse((await services.snapshot(search_id)).status, 202)

    changes: dict[str, Any] = {
        "status_code": 202, "response_model": schemas.SearchStatus, "responses": _CHANGE_ERRORS
    }  # fmt: skip

    @router.post("/{search_id}/stop", operation_id="stopSearch", **changes)
    async def stop_search(
        search_id: str, body: Annotated[schemas.StopRequest | None, Body()] = None, key: Key = None
    ) -> Response:
        """Stop a search: trials save their state, and the search can be resumed. No effect on an ended search."""
        return await change(search_id, body or schemas.StopRequest(), key)

    @router.post("/{search_id}/resume", operation_id="resumeSearch", **changes)
    async def resume_search(
        search_id: str, body: Annotated[schemas.ResumeRequest | None, Body()] = None, key: Key = None
    ) -> Response:
        """Resume a search with trials that have not ended."""
        return await change(search_id, body or schemas.ResumeRequest(), key)

    @router.post("/{search_id}/extend", operation_id="extendSearch", **changes)
    async def extend_search(search_id: str, body: schemas.ExtendRequest, key: Key = None) -> Response:
        """Add configurations to a search; its searcher knows all earlier trials."""
        return await change(search_id, body, key)

    return router


def _order(search_id: str) -> tuple[str, str]:
    """Return the sort key of a search: the time of submission in the id, then the id."""
    return search_id[-20:-5], search_id
