"""Requests of arbitrary JSON, paths and queries: a response of the API or a problem, never an error of the server."""

import json
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.fuzz.profile import check_message, examples, restored
from tests.service.conftest import API, populated_service, problem_of, serve
from tune_hpc.errors import TuneHpcError
from tune_hpc.jobs.status import job_status
from tune_hpc.search.options import ExperimentOverrides, RunOptions, options_of
from tune_hpc.service.schemas import ExtendRequest, ResumeRequest, SearchRequest, StopRequest
from tune_hpc.service.services import _describe_status

#: Operations of the API: path and method.
OPERATIONS = [
    (path, method)
    for path, methods in serve("unused").http.app.openapi()["paths"].items()
    for method in methods
    if path.startswith(API)
]
TEXTS = st.text(max_size=10) | st.sampled_from([
    "", "a", "t00000", "t00001", "train_loss", "status", "-status", "learning_rate<1", "status=finished", "nan",
    "1e400",
    "line.random", "exercise1_1stpart", "step>=1,2", "error~a", "=", "<", "..", ".", "%00", "\0", "9" * 400, "-1",
    "0", "json", "csv", "parquet",
    "trial_id", "seed=1", "status~", "learning_rate=", "learning_rate!=nan", "step<inf", "1", "10", "min", "attempt",
])  # fmt: skip
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, -1, 2**63, 10**30, 0.5, 1e308])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6,
)  # fmt: skip
DOMAINS = st.one_of(
    JSON, st.fixed_dictionaries({"choice": st.lists(JSON, max_size=3)}),
    st.fixed_dictionaries({"loguniform": st.lists(NUMBERS, max_size=3)}),
    st.fixed_dictionaries({"cases": st.lists(st.fixed_dictionaries({"when": JSON, "value": JSON}), max_size=2)}),
)  # fmt: skip
PARAMETERS = st.dictionaries(
    st.sampled_from(["learning_rate", "model", "steps", "optimizer"]) | TEXTS, DOMAINS, max_size=3
)
#: Values of the fields of options, mostly of the right type.
OPTIONS = {
    option.name: st.one_of(
        JSON, NUMBERS if option.number else st.booleans() if option.hint is bool else TEXTS,
        st.sampled_from(option.choices or ["a"]),
        st.integers(1, 5),
    )
    for option_set in (RunOptions, ExperimentOverrides) for option in options_of(option_set)
}  # fmt: skip
FIELDS = OPTIONS | {
    "space": st.sampled_from(["line.random", "exercise1_1stpart"]) | JSON, "set": PARAMETERS | JSON,
    "parameters": PARAMETERS | st.none() | JSON,
    "points_to_evaluate": st.lists(PARAMETERS, max_size=2), "force": st.booleans() | JSON, "attempt": NUMBERS,
    "experiment": TEXTS, "retry_failed": st.booleans(),
}  # fmt: skip
BODIES = {
    name: st.fixed_dictionaries({}, optional={field: FIELDS[field] for field in model.model_fields})
    for name, model in {"": SearchRequest, "stop": StopRequest, "resume": ResumeRequest,
    "extend": ExtendRequest}.items()
}  # fmt: skip


@pytest.fixture(scope="module")
def populated(tmp_path_factory):
    """A service with a search that has ended, one that runs and one that has not begun."""
    with populated_service(tmp_path_factory.mktemp("populated") / "jobs") as made:
        yield made


def check(response: Any) -> None:
    """Check that a response is that of an endpoint, or a problem in one line."""
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        problem_of(response)
    elif response.headers.get("content-type") == "application/json":
        json.loads(response.content)


@examples(60)
@given(BODIES[""], st.sampled_from(["line.random", "line.random", None]))
@example({"space": "line.random", "seeds": 1000, "num_samples": 10_000}, None)
@example({"space": "line.random", "set": {"\ud800": 1}}, None)
@example({"space": "line.random", "target": float("inf")}, None)
def test_search_is_started_or_rejected(populated, body, space):
    service, _ = populated
    body = body | ({"space": space} if space else {})
    content = json.dumps(body).encode("utf-8")
    check(service.http.post(f"{API}/searches", content=content, headers={"Content-Type": "application/json"}))


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
@examples(10)
@given(st.data())
def test_request_is_answered_or_rejected(populated, path, method, data):
    service, ids = populated
    target = path
    search_ids = [ids[0], *ids[1:]] if method != "delete" else []
    for name in ("search_id", "trial_id", "name"):
        known = st.sampled_from([*search_ids, "t00000"]) if name != "search_id" or search_ids else TEXTS
        target = target.replace(f"{{{name}}}", quote(data.draw(known | TEXTS).encode("utf-8", "replace"), safe=""))
    names = [
        "experiment",
        "filter",
        "sort",
        "columns",
        "limit",
        "offset",
        "format",
        "trial",
        "metric",
        "parameter",
        "max_curves",
        "max_points",
        "state",
        "name",
        "after",
        "bytes",
    ]
    query = data.draw(st.lists(st.tuples(st.sampled_from(names) | TEXTS, TEXTS), max_size=3))
    text = urlencode([(key.encode("utf-8", "replace"), value.encode("utf-8", "replace")) for key, value in query])
    content, headers = b"", {}
    if method == "post":
        body = data.draw(BODIES.get(path.rpartition("/")[2], JSON) | JSON)
        content = data.draw(st.just(json.dumps(body).encode()) | st.binary(max_size=5))
        headers = {"Content-Type": data.draw(st.sampled_from(["application/json", "application/json", "text/plain"]))}
        if data.draw(st.booleans()):
            headers["Idempotency-Key"] = data.draw(st.text("ab1 \x7f", max_size=3))
    check(service.http.request(method.upper(), f"{target}?{text}", content=content, headers=headers))


PAGES = [
    "/", "/fragments/searches", "/new", "/new/line.random", "/new/line.random/preview", "/login", "/view/{id}",
    "/view/{id}/table",
    "/view/{id}/summary", "/view/{id}/parallel", "/view/{id}/trial/{trial}", "/health", "/ready", "/metrics",
]  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
@examples(10)
@given(st.data())
def test_page_is_shown_or_rejected(populated, page, data):
    service, ids = populated
    target = page.replace("{id}", data.draw(st.sampled_from(ids))).replace(
        "{trial}", data.draw(st.just("t00000") | st.just("t00001"))
    )
    names = st.sampled_from(
        ["experiment", "filter", "sort", "offset", "state", "space", "metric", "parameter", "p.learning_rate"]
    )
    query = data.draw(st.lists(st.tuples(names | TEXTS, TEXTS), max_size=3))
    text = urlencode([(key.encode("utf-8", "replace"), value.encode("utf-8", "replace")) for key, value in query])
    response = service.http.get(f"{target}?{text}")
    assert response.status_code < 500, response.text


@examples(60)
@given(
    st.sampled_from(["progress", "experiment_file"]),
    JSON,
    st.sampled_from([None, "name", "ended", "best", "running", "left_s", "num_trials"]),
)
@example("progress", [], None)
@example("progress", None, "best")
@example("progress", {"finished": "a"}, "ended")
def test_status_of_a_search_with_another_file_is_read_or_rejected(populated, file, value, name):
    service, ids = populated
    job = service.client.folder(ids[1])
    path = getattr(job.experiment("exercise1_1stpart"), file)
    content = value if name is None else json.loads(path.read_bytes()) | {name: value}
    with restored(path):
        path.write_text(json.dumps(content), encoding="utf-8")
        try:
            # The service would answer from its cache, and reports a field that its model rejects.
            status = job_status(job)
            assert str(status)
            _describe_status(status, job.read()["experiments"])
        except TuneHpcError as error:
            check_message(error)
        except ValidationError:
            pass
