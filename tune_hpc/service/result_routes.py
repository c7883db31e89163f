"""Routes: trials, history, curves, logs, report."""

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from tune_hpc.analysis.frame_query import MEDIA_TYPES, csv_chunks, records, select, split_names
from tune_hpc.analysis.reader import ResultsSnapshot
from tune_hpc.errors import RequestError
from tune_hpc.jobs.job_folder import JobFolder
from tune_hpc.report.chart_data import CurveList, ResponseCurve, learning_curves, response_curve
from tune_hpc.service import schemas
from tune_hpc.service.cache import CachedResponse
from tune_hpc.service.middleware import REPORT_POLICY
from tune_hpc.service.problems import READ_ERRORS, TooManyRequestsError, problem_docs, to_json
from tune_hpc.service.services import SearchSnapshot, Services

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

    html: dict[int | str, Any] = {200: {"content": {"text/html": {"schema": {"type": "string"}}}}}

    @router.get("/report", operation_id="readReport", response_class=Response, responses={**html, **_ERRORS})
    async def read_report(search_id: str) -> Response:
        """Return the report: findings, tables and figures on one page. A search writes it when it ends."""
        snapshot = await services.snapshot(search_id)
        try:
            with await services.cache.run(snapshot.folder.storage.open_no_follow, snapshot.folder.report) as file:
                status = os.fstat(file.fileno())
        except FileNotFoundError:
            raise RequestError(f"{search_id} has no report yet: {report_hint(snapshot)}", 404) from None

        def chunks() -> Iterator[bytes]:
            with snapshot.folder.storage.open_no_follow(snapshot.folder.report) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk

        headers = {"Content-Security-Policy": REPORT_POLICY, "ETag": f'W/"{status.st_mtime_ns:x}-{status.st_size:x}"'}
        return StreamingResponse(chunks(), headers=headers, media_type="text/html")

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
            await run_in_threadpool(df.to_parquet, file.name, index=False)
            await FileResponse(file.name, **options)(scope, receive, send)


def report_hint(snapshot: SearchSnapshot) -> str:
    """Return the reason why a search has no report, and the remedy."""
    if snapshot.status["is_active"]:
        return "it is written when the search ends; wait for that, or stop the search"
    return f"the search ended without one; tune-hpc report {snapshot.folder.uri} writes it"


def _read_tail(job: JobFolder, path: Path, max_bytes: int) -> str:
    """Return the tail of a text file of a job from the beginning of a line; empty if there is no such file."""
    try:
        with job.storage.open_no_follow(path) as file:
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
