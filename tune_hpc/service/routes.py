"""Routes of the API: searches, and their trials, history, curves, logs and report."""

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from fastapi import APIRouter, Body, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from tune_hpc.analysis.frame_query import MEDIA_TYPES, csv_chunks, records, select, split_names
from tune_hpc.analysis.frames import write_parquet
from tune_hpc.analysis.loading import load
from tune_hpc.analysis.reader import ResultsSnapshot
from tune_hpc.errors import FolderError, RequestError, UnknownNameError
from tune_hpc.jobs.job_folder import JobFolder, is_id
from tune_hpc.report.chart_data import CurveList, ResponseCurve, learning_curves, response_curve
from tune_hpc.service import schemas
from tune_hpc.service.middleware import REPORT_POLICY
from tune_hpc.service.problems import READ_ERRORS, AsciiJsonResponse, TooManyRequestsError, problem_docs, to_json
from tune_hpc.service.services import CachedResponse, SearchSnapshot, Services
from tune_hpc.storage.shared_folder import open_no_follow

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key", min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$",
        description="chosen by the client: a request that is repeated with the same key has no second effect",
    ),
]  # fmt: skip
_CHANGE_ERRORS = problem_docs(400, 401, 403, 404, 408, 409, 413, 422, 429, 503, 507)
#: Downloads of whole frames at a time, and seconds that another one waits.
MAX_DOWNLOADS, DOWNLOAD_WAIT_S = 4, 10.0
_CHUNK_BYTES = 65536
_ERRORS = problem_docs(*READ_ERRORS)
_FILES = {MEDIA_TYPES[kind]: {"schema": {"type": "string", "format": "binary"}} for kind in ("csv", "parquet")}
_FRAME: dict[int | str, dict[str, Any]] = {200: {"content": _FILES}, **_ERRORS}
_TEXT: dict[str, Any] = {
    "response_class": Response,
    "responses": {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_ERRORS},
}


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
        responses=_ERRORS,
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


def result_routes(services: Services) -> APIRouter:
    """Return the routes of results."""
    router = APIRouter(prefix="/api/v1/searches/{search_id}", tags=["results"])
    slots = asyncio.Semaphore(MAX_DOWNLOADS)

    async def respond_with_rows(
        request: Request,
        search_id: str,
        query: schemas.TrialsQuery,
        name: str,
        read: Callable[[ResultsSnapshot], pd.DataFrame],
    ) -> Response:
        frame_query = query.frame_query()

        def read_page(snapshot: SearchSnapshot) -> tuple[pd.DataFrame, int]:
            return select(read(services.results(snapshot.folder, query.experiment)), frame_query)

        def make(snapshot: SearchSnapshot) -> CachedResponse:
            page, total = read_page(snapshot)
            columns = [str(column) for column in page.columns]
            rows = {"total": total, "offset": query.offset, "columns": columns, name: records(page)}
            end = query.offset + len(page)
            link = schemas.next_link(request, query, offset=end) if len(page) and end < total else {}
            return CachedResponse(to_json(rows), headers=link)

        if query.format == "json":
            return await services.respond(search_id, f"{name} {request.url.path} {query.model_dump_json()}", make)
        snapshot = await services.snapshot(search_id)
        return _Download(slots, lambda: read_page(snapshot), query.format, f"{search_id}-{name}.{query.format}")

    async def respond_with_chart(
        search_id: str, query: schemas.ExperimentQuery, make: Callable[[ResultsSnapshot], CurveList | ResponseCurve]
    ) -> Response:
        def chart(snapshot: SearchSnapshot) -> CachedResponse:
            return CachedResponse(to_json(asdict(make(services.results(snapshot.folder, query.experiment)))))

        return await services.respond(search_id, f"{type(query).__name__} {query.model_dump_json()}", chart)

    async def respond_with_text(search_id: str, key: str, read: Callable[[SearchSnapshot], str]) -> Response:
        def text(snapshot: SearchSnapshot) -> CachedResponse:
            return CachedResponse(read(snapshot).encode("utf-8", "replace"), "text/plain; charset=utf-8")

        return await services.respond(search_id, f"log {key}", text)

    @router.get("/trials", operation_id="listTrials", response_model=schemas.TrialList, responses=_FRAME)
    async def list_trials(request: Request, search_id: str, query: Annotated[schemas.TrialsQuery, Query()]) -> Response:
        """Return trials, one row each, as JSON, CSV or Parquet."""
        return await respond_with_rows(request, search_id, query, "trials", lambda results: results.trials)

    @router.get("/history", operation_id="listHistory", response_model=schemas.HistoryList, responses=_FRAME)
    async def list_history(
        request: Request, search_id: str, query: Annotated[schemas.HistoryQuery, Query()]
    ) -> Response:
        """Return the metrics of trials, one row per trial and step, as JSON, CSV or Parquet."""
        trials = split_names(query.trial)

        def read(results: ResultsSnapshot) -> pd.DataFrame:
            _check_trials(results, trials)
            return results.histories.frame(trials or None)

        return await respond_with_rows(request, search_id, query, "history", read)

    @router.get("/curves", operation_id="readCurves", response_model=CurveList, responses=_ERRORS)
    async def read_curves(search_id: str, query: Annotated[schemas.CurvesQuery, Query()]) -> Response:
        """Return learning curves of running trials and of the best ones, downsampled for a chart."""
        selection = query.metric, query.filter, query.max_curves, query.max_points
        return await respond_with_chart(search_id, query, lambda results: learning_curves(results, *selection))

    @router.get("/response", operation_id="readResponseCurve", response_model=ResponseCurve, responses=_ERRORS)
    async def read_response(search_id: str, query: Annotated[schemas.ResponseQuery, Query()]) -> Response:
        """Return a metric of ended trials as a function of a parameter, averaged over seeds."""
        selection = query.metric, query.parameter
        return await respond_with_chart(search_id, query, lambda results: response_curve(results, *selection))

    @router.get("/trials/{trial_id}/log", operation_id="readTrialLog", **_TEXT)
    async def read_trial_log(
        search_id: str, trial_id: str, query: Annotated[schemas.TrialLogQuery, Query()]
    ) -> Response:
        """Return the tail of the output of a trial, with its traceback."""
        selection = trial_id, query.experiment, query.bytes
        key = f"{trial_id} {query.model_dump_json()}"
        return await respond_with_text(search_id, key, lambda snapshot: trial_log(services, snapshot, *selection))

    @router.get("/log", operation_id="readLog", **_TEXT)
    async def read_log(search_id: str, query: Annotated[schemas.LogQuery, Query()]) -> Response:
        """Return the tail of the output of the drivers."""
        return await respond_with_text(
            search_id, str(query.bytes), lambda found: _read_tail(found.folder, found.folder.output, query.bytes)
        )

    state = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}

    @router.get(
        "/checkpoint",
        operation_id="readCheckpoint",
        response_class=Response,
        responses={200: {"content": state}, **_ERRORS},
    )
    async def read_checkpoint(search_id: str, query: Annotated[schemas.CheckpointQuery, Query()]) -> Response:
        """Return a retained checkpoint: of a trial, or of the best trial. ``torch.load`` reads it."""
        snapshot = await services.snapshot(search_id)
        path = await run_in_threadpool(checkpoint_file, services, snapshot, query.trial, query.experiment)
        name = f"{path.parent.name}.{path.name}"
        headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "private, no-store"}
        chunks = _chunks(snapshot.folder, path)
        return StreamingResponse(chunks, headers=headers, media_type="application/octet-stream")

    html: dict[int | str, Any] = {200: {"content": {"text/html": {"schema": {"type": "string"}}}}}

    @router.get("/report", operation_id="readReport", response_class=Response, responses={**html, **_ERRORS})
    async def read_report(search_id: str) -> Response:
        """Return the report: findings, tables and figures on one page. A search writes it when it ends."""
        snapshot = await services.snapshot(search_id)
        try:
            with await services.cache.run(open_no_follow, snapshot.folder.storage, snapshot.folder.report) as file:
                status = os.fstat(file.fileno())
        except FileNotFoundError:
            raise RequestError(f"{search_id} has no report yet: {report_hint(snapshot)}", 404) from None

        headers = {"Content-Security-Policy": REPORT_POLICY, "ETag": f'W/"{status.st_mtime_ns:x}-{status.st_size:x}"'}
        chunks = _chunks(snapshot.folder, snapshot.folder.report)
        return StreamingResponse(chunks, headers=headers, media_type="text/html")

    return router


class _Download(Response):
    """A frame as a file: CSV in chunks, Parquet through a temporary file; a few at a time."""

    def __init__(
        self, slots: asyncio.Semaphore, read: Callable[[], tuple[pd.DataFrame, int]], format: str, filename: str
    ) -> None:
        super().__init__()
        self._slots, self._read, self._format, self._filename = slots, read, format, filename

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(DOWNLOAD_WAIT_S):
                await self._slots.acquire()
        except TimeoutError:
            text = f"at most {MAX_DOWNLOADS} downloads run at a time; try again later"
            raise TooManyRequestsError(text, DOWNLOAD_WAIT_S) from None
        try:
            await self._send(scope, receive, send)
        finally:
            self._slots.release()

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        df, total = await run_in_threadpool(self._read)
        options: dict[str, Any] = {
            "media_type": MEDIA_TYPES[self._format],
            "headers": {
                "X-Total-Count": str(total),
                "Content-Disposition": f'attachment; filename="{self._filename}"',
                "Cache-Control": "private, no-store",
            },
        }
        if self._format == "csv":
            await StreamingResponse(csv_chunks(df), **options)(scope, receive, send)
            return
        with tempfile.NamedTemporaryFile(prefix="tune-hpc-", suffix=".parquet") as file:
            await run_in_threadpool(write_parquet, df, Path(file.name))
            await FileResponse(file.name, **options)(scope, receive, send)


def _chunks(job: JobFolder, path: Path) -> Iterator[bytes]:
    with open_no_follow(job.storage, path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def checkpoint_file(services: Services, snapshot: SearchSnapshot, trial_id: str | None, experiment: str | None) -> Path:
    """Return the retained checkpoint of a trial, or of the best one."""
    snapshot_results = services.results(snapshot.folder, experiment)
    if trial_id is not None:
        _check_trials(snapshot_results, (trial_id,))
    try:
        results = load(snapshot.folder.experiment(snapshot_results.name).path)
        return results.best_checkpoint() if trial_id is None else results.checkpoint(trial_id)
    except (FolderError, UnknownNameError) as error:
        raise RequestError(str(error), 404) from None


def report_hint(snapshot: SearchSnapshot) -> str:
    """Return the reason why a search has no report, and the remedy."""
    if snapshot.status["is_active"]:
        return "it is written when the search ends; wait for that, or stop the search"
    return f"the search ended without one; tune-hpc report {snapshot.folder.uri} writes it"


def _read_tail(job: JobFolder, path: Path, max_bytes: int) -> str:
    """Return the tail of a text file of a job from the beginning of a line; empty if there is no such file."""
    try:
        with open_no_follow(job.storage, path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max_bytes))
            data = file.read(max_bytes)
    except FileNotFoundError:
        return ""
    if size > max_bytes and b"\n" in data:
        data = data.partition(b"\n")[2]
    return data.decode("utf-8", errors="replace")


def trial_log(
    services: Services, snapshot: SearchSnapshot, trial_id: str, experiment: str | None, max_bytes: int
) -> str:
    """Return the tail of the output of a trial; empty if there is no output."""
    results = services.results(snapshot.folder, experiment)
    # Only an id in the frame becomes part of a path.
    _check_trials(results, (trial_id,))
    folder = snapshot.folder.experiment(results.name)
    path = folder.log(trial_id)
    if path.parent != folder.logs:
        raise RequestError(f"{trial_id[:200]!r} is not the id of a trial", 404)
    return _read_tail(snapshot.folder, path, max_bytes)


def _check_trials(results: ResultsSnapshot, trials: tuple[str, ...]) -> None:
    for trial_id in trials:
        if not (results.trials["trial_id"] == trial_id).any():
            raise RequestError(
                f"{results.name} has no trial {trial_id!r} yet; /trials lists those that have begun", 404
            )
