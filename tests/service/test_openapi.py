"""Whatever Schemathesis makes of the OpenAPI description, the service answers it, and never with a fault of its own."""

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

from tests.service.conftest import TOKEN, serve

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
NUM_EXAMPLES = 12
OPERATIONS = [
    (path, method) for path, ways in serve("unused").http.app.openapi()["paths"].items() for method in ways
]  # fmt: skip


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """A service with a search that has ended, one that runs and one that has not begun."""
    one = serve(tmp_path_factory.mktemp("crowded") / "jobs")
    with one.http:
        ids = [one.start() for _ in range(3)]
        one.write_results(ids[0])
        one.drive(ids[0], "finished")
        one.write_results(ids[1], is_running=True)
        one.drive(ids[1])
        yield one, ids


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_request_makes_the_service_fail(crowded, path, method, mode):
    service, ids = crowded
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", service.http.app)
    num = 0

    def ask(case):
        nonlocal num
        num += 1
        if "search_id" in (case.path_parameters or {}) and num % 4:
            case.path_parameters["search_id"] = ids[num % 4 - 1]
        case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"}, checks=CHECKS)

    run = settings(
        max_examples=NUM_EXAMPLES, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )(given(case=schema[path][method.upper()].as_strategy(generation_mode=mode))(ask))  # fmt: skip
    try:
        run()
    except Unsatisfiable:
        # Nothing about such a request can be wrong.
        assert mode is GenerationMode.NEGATIVE
        return
    assert num


def test_every_route_that_tells_of_searches_names_the_token():
    described = serve("unused").http.app.openapi()
    for path, ways in described["paths"].items():
        for way in ways.values():
            assert ("security" in way) == (path != "/health"), path
