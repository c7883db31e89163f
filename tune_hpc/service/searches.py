"""The routes of searches: to begin, list, look at, stop, resume and extend them. A search is a job of the storage."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Request, Response

from tune_hpc.cluster.client import Job
from tune_hpc.cluster.job_folder import JobState
from tune_hpc.errors import RequestError
from tune_hpc.service.answers import Answer, Json, in_thread, to_json
from tune_hpc.service.bodies import Extension, NewSearch, Options, Stop
from tune_hpc.service.descriptions import SearchList, SearchStatus, SearchTold, errors, json_of
from tune_hpc.service.parts import Parts
from tune_hpc.service.queries import Listing
from tune_hpc.service.statuses import find

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="chosen by the client: a second request with it starts nothing and returns the first one's search",
    ),
]


def search_routes(parts: Parts) -> APIRouter:
    """Return the routes of searches."""
    router = APIRouter(tags=["searches"])

    @router.get("/searches", responses={200: {"model": SearchList}, **errors(401, 422, 429)})
    async def list_searches(request: Request, listing: Annotated[Listing, Query()]) -> Response:
        """Return the searches of the storage, the latest first."""

        def make(_: Answer | None) -> Answer:
            states = {state for one in listing.state for state in one.split(",")}
            found = [
                one
                for one in parts.statuses.all()
                if (not states or one["state"] in states) and (listing.name or "") in one["id"]
            ]
            page = found[listing.offset : listing.offset + listing.limit]
            return Answer(to_json({"total": len(found), "offset": listing.offset, "searches": page}))

        return (await parts.kept.get(("searches", listing.model_dump_json()), make)).as_response(request.scope)

    @router.post(
        "/searches",
        status_code=201,
        responses={
            201: {"model": SearchStatus, "description": "It was started."},
            200: {"model": SearchStatus, "description": "It was started by an earlier request with this key."},
            **errors(400, 401, 403, 404, 409, 413, 422, 429, 502, 507),
        },
    )
    async def start_search(body: NewSearch, key: Key = None) -> Response:
        """Start a search."""

        def start() -> tuple[Job, bool, dict[str, Any]]:
            job, is_new = parts.submissions.submit(parts.catalogue.asked(body), body.options(), key)
            return job, is_new, parts.statuses.one(job.id)

        job, is_new, told = await in_thread(start)
        parts.has_changed()
        return Json(told, 201 if is_new else 200, {"Location": f"/searches/{job.id}"})

    @router.get("/searches/{search_id}", responses=json_of(SearchTold))
    async def read_search(request: Request, search_id: str) -> Response:
        """Return how a search stands, and what was asked."""

        def make(_: Answer | None) -> Answer:
            told = parts.statuses.one(search_id)
            asked = find(parts.client, search_id).read()
            more = {
                "submitted": asked.get("submitted"),
                "options": asked.get("options", {}),
                "parameters": {one["name"]: one.get("space") for one in asked["experiments"]},
            }
            return Answer(to_json(told | more))

        return (await parts.kept.get(("search", search_id), make)).as_response(request.scope)

    async def changed(search_id: str, change: Callable[[], object]) -> Response:
        """Change a search; answer how it stands then."""

        def work() -> dict[str, Any]:
            change()
            return parts.statuses.one(search_id)

        told = await in_thread(work)
        parts.has_changed()
        return Json(told, 202)

    told_after = {202: {"model": SearchStatus}, **errors(400, 401, 403, 404, 409, 413, 422, 429, 502, 507)}

    @router.post("/searches/{search_id}/stop", status_code=202, responses=told_after)
    async def stop_search(search_id: str, body: Annotated[Stop | None, Body()] = None) -> Response:
        """Ask a search to stop: its trials save their state, and it can be resumed. One that has ended stays so."""
        return await changed(search_id, lambda: stop(parts, search_id, force=body is not None and body.force))

    @router.post("/searches/{search_id}/resume", status_code=202, responses=told_after)
    async def resume_search(search_id: str, body: Annotated[Options | None, Body()] = None) -> Response:
        """Have a search go on that ended before all its trials had."""
        return await changed(search_id, lambda: resume(parts, search_id, (body or Options()).options()))

    @router.post("/searches/{search_id}/extend", status_code=202, responses=told_after)
    async def extend_search(search_id: str, body: Extension) -> Response:
        """Have a search try more configurations; its searcher knows all that was tried."""
        return await changed(search_id, lambda: extend(parts, search_id, body))

    return router


def stop(parts: Parts, search_id: str, *, force: bool = False) -> None:
    """Ask a search to stop."""
    find(parts.client, search_id)
    parts.client.stop(search_id, force=force)


def resume(parts: Parts, search_id: str, options: dict[str, Any]) -> None:
    """Have a search go on.

    Raises:
        RequestError: it is under way, or has finished.
    """
    _check_at_rest(parts, search_id, "resume")
    parts.client.resume(search_id, **options)


def extend(parts: Parts, search_id: str, asked: Extension) -> None:
    """Have a search try more configurations.

    Raises:
        RequestError: it is under way.
    """
    _check_at_rest(parts, search_id, "extend")
    parts.client.extend(search_id, asked.num_samples, experiment=asked.experiment, **asked.options())


def _check_at_rest(parts: Parts, search_id: str, verb: str) -> None:
    find(parts.client, search_id)
    state = parts.client.status(search_id).state
    if state.is_active:
        raise RequestError(f"{search_id} is {state}; stop it first, or wait for its end, to {verb} it", 409)
    if verb == "resume" and state is JobState.FINISHED:
        raise RequestError(f"{search_id} has finished; extend it, or start another search", 409)
