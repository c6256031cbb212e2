"""Requests drawn from the committed OpenAPI file, valid and not: no 5xx, and every answer as it describes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.python import asgi
from schemathesis.specs.openapi import checks

from ray_app.bundle import REPORT, Bundle
from ray_app.data.clean import MAX_TIMESTAMP
from ray_app.evaluation.report import render
from serve.ingress import make_api
from tests.bundles import LinearStudent
from tests.pages import make_front
from tests.reports import invented_metrics, invented_samples

DESCRIPTION = json.loads((Path(__file__).parents[2] / "docs" / "openapi.json").read_text())
OPERATIONS = [(path, method) for path, methods in DESCRIPTION["paths"].items() for method in methods]
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]
USERS, ITEMS = [f"u{n}" for n in range(30)], [f"i{n}" for n in range(40)]
KNOWN = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from(USERS),
        "item_id": st.sampled_from(ITEMS),
        "name": st.sampled_from(["exposed-1.svg", "stages-1.svg"]),
        "liked": st.lists(st.sampled_from(ITEMS[:20]), max_size=3),
        "disliked": st.lists(st.sampled_from(ITEMS[20:]), max_size=3),
        "k": st.integers(1, 50),
        "rating": st.none() | st.integers(0, 10).map(lambda half: half / 2),
        "timestamp": st.none() | st.integers(0, MAX_TIMESTAMP),
        "event": st.sampled_from(["feedback", "page"]),
        "key": st.none() | st.uuids().map(str),
    }
)
ACCEPT = st.sampled_from(["*/*", "application/json", "text/event-stream"])


def answerable(case: schemathesis.Case, known: dict[str, Any], accept: str) -> schemathesis.Case:
    """A valid case with ids that exist and values in range, so that it is not only well-formed."""
    case.headers["Accept"] = accept
    case.path_parameters |= {name: known[name] for name in case.path_parameters}
    if case.path == "/v1/interactions":
        case.headers.pop("idempotency-key", None)
        case.body |= {"rating": known["rating"], "label": 1 if known["rating"] is None else None}
    if isinstance(case.body, dict):
        case.body |= {name: known[name] for name in set(known) & set(case.body)}
        if not (case.body.get("liked") or case.body.get("disliked")):
            case.body["user_id"] = known["user_id"]
    return case


@pytest.fixture(scope="module")
def client(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[asgi.ASGIClient]:
    folder = tmp_path_factory.mktemp("properties") / "bundle"
    shutil.copytree(published, folder)
    render(invented_metrics(), invented_samples(2), folder / REPORT)
    with asgi.get_client(make_api(make_front(Bundle.open(folder), LinearStudent()))) as client:
        yield client


@pytest.fixture(scope="module")
def api() -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_dict(DESCRIPTION)


def ask(api: schemathesis.BaseSchema, client: asgi.ASGIClient, path: str, method: str, examples: int) -> None:
    operation = api[path][method.upper()]
    valid, wrong = (operation.as_strategy(generation_mode=mode) for mode in GenerationMode)
    some = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )

    @some
    @given(case=st.one_of(valid, wrong))
    def nothing_fails(case: schemathesis.Case) -> None:
        case.call_and_validate(session=client, checks=CHECKS)

    @some
    @given(case=st.builds(answerable, valid, KNOWN, ACCEPT))
    def what_can_be_answered_is(case: schemathesis.Case) -> None:
        answer = case.call_and_validate(session=client, checks=CHECKS)
        assert answer.status_code in (200, 201), answer.text

    nothing_fails()
    what_can_be_answered_is()


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_no_request_makes_the_service_fail(api, client, path, method):
    ask(api, client, path, method, 50)


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_bound_of_the_description_holds(api, client, path, method):
    """Each value at, just within and just beyond its bounds, each field missing, of another type or twice."""
    operation = api[path][method.upper()]
    bounds = api.config.generation_for(operation=operation)
    modes = list(GenerationMode)
    for case in api.iter_coverage_cases(operation, generation_modes=modes, generation_config=bounds):
        case.call_and_validate(session=client, checks=[*CHECKS, checks.unsupported_method])


@pytest.mark.heavy
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_no_request_of_very_many_makes_the_service_fail(api, client, path, method):
    ask(api, client, path, method, 600)
