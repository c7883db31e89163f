"""Requests that Schemathesis derives from the OpenAPI description: no failure, and only described responses."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.service.conftest import TOKEN, populated_service, serve

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
NUM_EXAMPLES = 12
SCHEMA = serve("unused").http.app.openapi()
OPERATIONS = [(path, method) for path, methods in SCHEMA["paths"].items() for method in methods]


@pytest.fixture(scope="module")
def populated(tmp_path_factory):
    """A service with a search that has ended, one that runs and one that has not begun."""
    with populated_service(tmp_path_factory.mktemp("populated") / "jobs") as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_request_makes_the_service_fail(populated, path, method, mode):
    service, ids = populated
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", service.http.app)
    num_requests = 0

    def send(case):
        nonlocal num_requests
        num_requests += 1
        if "search_id" in (case.path_parameters or {}) and num_requests % 4 and method != "delete":
            case.path_parameters["search_id"] = ids[num_requests % 4 - 1]
        case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"}, checks=CHECKS)

    run = settings(
        max_examples=NUM_EXAMPLES, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )(given(case=schema[path][method.upper()].as_strategy(generation_mode=mode))(send))  # fmt: skip
    try:
        run()
    except Unsatisfiable:
        # Such a request has nothing that can be wrong.
        assert mode is GenerationMode.NEGATIVE
        return
    assert num_requests


def test_description_has_ids_credentials_enums_and_examples():
    ids = [operation["operationId"] for methods in SCHEMA["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))
    assert "startSearch" in ids
    for path, methods in SCHEMA["paths"].items():
        for operation in methods.values():
            schemes = [name for scheme in operation.get("security", []) for name in scheme]
            assert schemes == ([] if path == "/health" else ["HTTPBearer", "APIKeyCookie"]), path
    schemas = SCHEMA["components"]["schemas"]
    for name in ("SearchRequest", "StopRequest", "ResumeRequest", "ExtendRequest"):
        assert schemas[name]["examples"], name
    assert "unknown" in schemas["SearchStatus"]["properties"]["state"]["enum"]
    assert "urn:tune-hpc:problem:conflict" in schemas["Problem"]["properties"]["type"]["enum"]
    assert SCHEMA["servers"] == [{"url": "/"}]
