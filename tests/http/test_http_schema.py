"""What the OpenAPI document promises, asked of a real server with inputs that schemathesis makes of it.

Of each operation there are its examples, each bound of its parameters and bodies from both sides, other methods than
the documented ones, and inputs at random. The same inputs are made in every run.
"""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest
import requests
import schemathesis
import torch
from http_app import settings
from http_bodies import encode
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi import checks
from server_process import ServerProcess, serving

from service.app import create_app
from service.wire import FORMATS

# An input that the document allows may be refused nevertheless: that `op` is an operator, its schema does not say.
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.missing_required_header,
    checks.unsupported_method,
    checks.allow_header_conformance,
]
SAME_EVERY_TIME = hypothesis.settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)
_CONFIG = {"checks": {"negative_data_rejection": {"expected-statuses": ["4xx"]}}, "generation": {"deterministic": True}}

_X = torch.tensor([0.25, 0.5, 2.0])
for _one in FORMATS.values():
    if _one.name != "json":
        _whole = st.sampled_from([encode(_one.name, {"x": _X}), encode(_one.name, {"x": _X, "grad_output": _X})])
        schemathesis.openapi.media_type(_one.media_type, _whole | st.binary(max_size=64), aliases=_one.aliases)

schema = schemathesis.openapi.from_dict(create_app(settings()).openapi(), config=SchemathesisConfig.from_dict(_CONFIG))


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A server that offers all that is documented."""
    with serving("--shared-memory-names", "stequant-test-*") as running:
        yield running


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """One connection for all requests."""
    with requests.Session() as opened:
        yield opened


# This parameter also tells the operations' tests apart: without one they share a name, and pytest-xdist runs one of them.
every_accept = pytest.mark.parametrize("accept", ["*/*", "application/json"])


@every_accept
@schema.parametrize()
@SAME_EVERY_TIME
def test_every_answer_is_as_documented(
    case: schemathesis.Case, accept: str, server: ServerProcess, session: requests.Session
) -> None:
    session.headers["accept"] = accept
    case.call_and_validate(base_url=server.url, session=session, checks=CHECKS)


@pytest.mark.slow
@every_accept
@schema.parametrize()
@hypothesis.settings(SAME_EVERY_TIME, max_examples=200)
def test_many_answers_are_as_documented(
    case: schemathesis.Case, accept: str, server: ServerProcess, session: requests.Session
) -> None:
    session.headers["accept"] = accept
    case.call_and_validate(base_url=server.url, session=session, checks=CHECKS)


def test_no_two_tests_share_a_name_so_that_none_is_left_out(request: pytest.FixtureRequest) -> None:
    names = [item.nodeid for item in request.session.items if item.path == request.path]
    assert len(set(names)) == len(names)
