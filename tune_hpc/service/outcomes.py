"""The routes of what came of a search: trials, history, curves, logs, the report."""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import pandas as pd
from fastapi import APIRouter, Query, Request, Response

from tune_hpc.analysis.folder import ExperimentFolder
from tune_hpc.analysis.object_store import pull
from tune_hpc.errors import RequestError
from tune_hpc.service import queries, texts
from tune_hpc.service.access import REPORT_POLICY
from tune_hpc.service.answers import Answer, to_json
from tune_hpc.service.charts import response
from tune_hpc.service.curves import curves
from tune_hpc.service.descriptions import CurveList, HistoryList, ResponseTold, TrialList, frame, json_of, text
from tune_hpc.service.frames import as_answer, split
from tune_hpc.service.parts import Parts
from tune_hpc.service.queries import Curves, HistoryRows, OfExperiment, Rows, Tail, TrialTail
from tune_hpc.service.readings import Reading, chosen
from tune_hpc.service.statuses import find


def outcome_routes(parts: Parts) -> APIRouter:
    """Return the routes of what came of a search."""
    router = APIRouter(tags=["results"])

    async def answer(
        request: Request, kind: str, search_id: str, asked: OfExperiment, look: Callable[[Reading], Answer]
    ) -> Response:
        """Answer with what is made of one experiment's results, once for all who ask, and anew where they changed."""

        def make(before: Answer | None) -> Answer:
            reading = parts.readings.read(find(parts.client, search_id), asked.experiment)
            if before and before.version == reading.version:
                return before
            return replace(look(reading), version=reading.version)

        return (await parts.kept.get((kind, search_id, asked.model_dump_json()), make)).as_response(request.scope)

    @router.get("/searches/{search_id}/trials", responses=frame(TrialList))
    async def read_trials(request: Request, search_id: str, rows: Annotated[Rows, Query()]) -> Response:
        """Return trials, one row each: filtered, ordered, a page of them; as JSON, CSV or Parquet."""

        def look(reading: Reading) -> Answer:
            return as_answer(reading.results.trials, rows.query(), f"{search_id}-trials", "trials")

        return await answer(request, "trials", search_id, rows, look)

    @router.get("/searches/{search_id}/history", responses=frame(HistoryList))
    async def read_history(request: Request, search_id: str, rows: Annotated[HistoryRows, Query()]) -> Response:
        """Return what trials reported, one row per trial and step."""

        def look(reading: Reading) -> Answer:
            trials = split(rows.trial)
            _check_trials(reading, trials)
            history = reading.results.histories.of(trials or None)
            return as_answer(history, rows.query(), f"{search_id}-history", "history")

        return await answer(request, "history", search_id, rows, look)

    @router.get("/searches/{search_id}/curves", responses=json_of(CurveList))
    async def read_curves(request: Request, search_id: str, asked: Annotated[Curves, Query()]) -> Response:
        """Return learning curves for a chart: those of trials under way and of the best, thinned."""

        def look(reading: Reading) -> Answer:
            drawn = curves(reading.results, asked.metric, asked.filter, asked.max_curves, asked.max_points)
            return Answer(to_json(drawn))

        return await answer(request, "curves", search_id, asked, look)

    @router.get("/searches/{search_id}/response", responses=json_of(ResponseTold))
    async def read_response(
        request: Request, search_id: str, asked: Annotated[queries.Response, Query()]
    ) -> Response:  # fmt: skip
        """Return a metric of the trials that ended against one parameter, for a chart; seeds are taken together."""

        def look(reading: Reading) -> Answer:
            return Answer(to_json(response(reading.results, asked.metric, asked.parameter)))

        return await answer(request, "response", search_id, asked, look)

    @router.get("/searches/{search_id}/trials/{trial_id}/log", responses=text())
    async def read_trial_log(
        request: Request, search_id: str, trial_id: str, asked: Annotated[TrialTail, Query()]
    ) -> Response:
        """Return the end of what a trial printed, its traceback included."""

        def make(_: Answer | None) -> Answer:
            return _text(trial_log(parts, search_id, trial_id, asked.experiment, asked.bytes))

        key = ("log", search_id, trial_id, asked.model_dump_json())
        return (await parts.kept.get(key, make)).as_response(request.scope)

    @router.get("/searches/{search_id}/log", responses=text())
    async def read_log(request: Request, search_id: str, asked: Annotated[Tail, Query()]) -> Response:
        """Return the end of what a search's drivers printed."""

        def make(_: Answer | None) -> Answer:
            return _text(texts.tail(find(parts.client, search_id).output, asked.bytes) or "")

        return (await parts.kept.get(("log", search_id, asked.bytes), make)).as_response(request.scope)

    @router.get("/searches/{search_id}/report", responses=text("html"))
    async def read_report(request: Request, search_id: str) -> Response:
        """Return the report: conclusions, tables and figures on one page. It is written when a search ends."""

        def make(_: Answer | None) -> Answer:
            job = find(parts.client, search_id)
            if not pull(job.report):
                raise RequestError(f"{search_id} has no report yet: {why_no_report(parts, search_id)}", 404)
            return Answer(job.report.read_bytes(), "text/html", {"Content-Security-Policy": REPORT_POLICY})

        return (await parts.kept.get(("report", search_id), make)).as_response(request.scope)

    return router


def why_no_report(parts: Parts, search_id: str) -> str:
    """Return why a search has no report, and what to do about it."""
    if parts.statuses.one(search_id)["is_active"]:
        return "it is written when a search ends; wait for it, or stop the search"
    return f"the search ended without one; tune-hpc report {find(parts.client, search_id).place} writes it"


def trial_log(parts: Parts, search_id: str, trial_id: str, experiment: str | None, most: int) -> str:
    """Return the end of what a trial printed; empty where it printed nothing.

    Raises:
        RequestError: there is no such search, experiment or trial.
    """
    job = find(parts.client, search_id)
    reading = parts.readings.read(job, experiment)
    # A name that a frame holds is a trial's; whatever else is asked for never becomes a path.
    _check_trials(reading, (trial_id,))
    home = ExperimentFolder(job.path / str(chosen(job, experiment)["name"]))
    path = home.log(trial_id)
    if path.parent != home.logs:
        raise RequestError(f"{trial_id!r} is no trial's id", 404)
    return texts.tail(path, most) or ""


def _check_trials(reading: Reading, trials: tuple[str, ...]) -> None:
    known: pd.Series = reading.results.trials["trial_id"]
    for name in trials:
        if not (known == name).any():
            raise RequestError(
                f"{reading.results.name} has no trial {name!r} yet; /trials lists those that have begun", 404
            )


def _text(content: str) -> Answer:
    return Answer(content.encode("utf-8", "replace"), "text/plain; charset=utf-8")
