"""A span for each request: whose child it is, what it says, when its stages were; by OpenTelemetry's own exporter."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator

import pytest
import torch
from http_app import Raw, RawAnswer, body_messages, exchange, messages, settings
from http_bodies import NPY, npy
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NoOpTracerProvider, ProxyTracerProvider, SpanKind, StatusCode

from service.app import create_app
from service.logs import JsonLines, TextLines
from service.tracing.choice import spans_for

BODY = npy(torch.tensor([0.6, -0.4]))
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = ("traceparent", f"00-{TRACE}-{PARENT}-01")
Ask = Callable[[Raw], RawAnswer]


class Collected:
    """An application, its provider, and the spans that came out."""

    def __init__(self, **given: object) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False, **given)  # type: ignore[arg-type]
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.app = create_app(settings(), tracer_provider=self.provider)

    def ask(self, *requests: Raw) -> list[RawAnswer]:
        async def asked() -> list[RawAnswer]:
            async with self.app.router.lifespan_context(self.app):
                return [await exchange(self.app, request) for request in requests]

        return asyncio.run(asked())

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()


@pytest.fixture
def collected() -> Collected:
    return Collected()


def call(*headers: tuple[str, str], query: bytes = b"op=round", body: bytes = BODY, **given: str) -> Raw:
    """A call as an ASGI server hands it on."""
    own = [("host", "a"), ("content-type", NPY), ("content-length", str(len(body))), *headers]
    return Raw(query=query, headers=own, receive=body_messages(body), **given)


def get(path: str, *headers: tuple[str, str], method: str = "GET") -> Raw:
    """A request without a body."""
    return Raw(method, path, b"", [("host", "a"), *headers], receive=messages())


def test_a_call_is_a_span_that_says_what_was_asked_and_answered(collected: Collected) -> None:
    (answer,) = collected.ask(call(("x-request-id", "mine")))
    (span,) = collected.spans
    assert (span.name, span.kind, span.parent) == ("POST /quantize", SpanKind.SERVER, None)
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/quantize",
        "http.response.status_code": 200,
        "http.request.body.size": len(BODY),
        "http.response.body.size": len(answer.body),
        "url.path": "/quantize",
        "url.query": "op=round",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "stequant.operator": "round",
        "stequant.format": "npy",
        "stequant.request_id": "mine",
    }


def test_the_stages_of_a_call_are_events_in_their_order_and_within_the_span(collected: Collected) -> None:
    collected.ask(call(body=npy(torch.zeros(2**20))))
    (span,) = collected.spans
    assert [event.name for event in span.events] == ["received", "compute begins", "compute ends"]
    times = [span.start_time, *(event.timestamp for event in span.events), span.end_time]
    assert None not in times
    assert times == sorted(times)  # type: ignore[type-var]


@pytest.mark.parametrize("request_", [call(TRACEPARENT), get("/healthz", TRACEPARENT), call(TRACEPARENT, query=b"op=no")])
def test_a_span_is_the_child_of_its_callers(collected: Collected, request_: Raw) -> None:
    collected.ask(request_)
    (span,) = collected.spans
    assert span.parent is not None
    assert (f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert span.parent.is_remote
    assert span.context.trace_id == span.parent.trace_id
    assert span.context.span_id != span.parent.span_id


def test_what_vendors_say_of_a_trace_is_kept(collected: Collected) -> None:
    collected.ask(call(TRACEPARENT, ("tracestate", "a=1,b=2"), ("tracestate", "c=3")))
    (span,) = collected.spans
    assert dict(span.context.trace_state) == {"a": "1", "b": "2", "c": "3"}


@pytest.mark.parametrize(
    "headers",
    [
        [("traceparent", "")],
        [("traceparent", "00-x-y-01")],
        [("traceparent", f"ff-{TRACE}-{PARENT}-01")],
        [("traceparent", f"00-{'0' * 32}-{PARENT}-01")],
        [("traceparent", f"00-{TRACE}-{PARENT}-01-more")],
        [("traceparent", "\xff" * 600)],
        [TRACEPARENT, TRACEPARENT],
    ],
)
def test_a_caller_who_cannot_be_understood_has_no_child(collected: Collected, headers: list[tuple[str, str]]) -> None:
    (answer,) = collected.ask(call(*headers))
    (span,) = collected.spans
    assert (answer.status, span.parent) == (200, None)


@pytest.mark.parametrize(
    ("request_", "name", "route", "status", "code"),
    [
        (call(query=b"op=nothing"), "POST /quantize", "/quantize", 422, "unknown_operator"),
        (get("/quantize"), "GET /quantize", "/quantize", 405, "method_not_allowed"),
        (get("/healthz"), "GET /healthz", "/healthz", 200, None),
        (get("/any/where"), "GET", None, 404, "not_found"),
        (get("/healthz", method="BREW"), "HTTP /healthz", "/healthz", 405, "method_not_allowed"),
    ],
)
def test_names_are_few_and_refusals_are_not_our_errors(
    collected: Collected, request_: Raw, name: str, route: str | None, status: int, code: str | None
) -> None:
    collected.ask(request_)
    (span,) = collected.spans
    said = span.attributes or {}
    assert span.name == name
    assert (said.get("http.route"), said["http.response.status_code"], said.get("stequant.code")) == (route, status, code)
    assert span.status.status_code is StatusCode.UNSET
    assert said["http.request.method"] in {"GET", "POST", "_OTHER"}
    assert said.get("http.request.method_original") == ("BREW" if request_.method == "BREW" else None)


def test_what_we_have_failed_to_do_is_an_error(collected: Collected) -> None:
    answers = asyncio.run(exchange(collected.app, call()))  # its lifespan has not begun, so nothing is ready
    (span,) = collected.spans
    assert answers.status == 503
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "not_ready"


def test_a_caller_who_has_gone_was_given_no_status(collected: Collected) -> None:
    gone = Raw(headers=call().headers, receive=messages({"type": "http.disconnect"}))
    collected.ask(gone)
    (span,) = collected.spans
    assert (span.attributes or {})["error.type"] == "caller_gone"
    assert "http.response.status_code" not in (span.attributes or {})


class Lines(logging.Handler):
    """What a formatter makes of the log."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture(params=[TextLines, JsonLines])
def log(request: pytest.FixtureRequest) -> Iterator[Lines]:
    handler, logger = Lines(request.param()), logging.getLogger("stequant.access")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_the_log_names_the_trace(collected: Collected, log: Lines) -> None:
    collected.ask(call(TRACEPARENT, ("x-request-id", "mine")), get("/healthz", TRACEPARENT))
    assert len(log.lines) == 2
    for line in log.lines:
        if isinstance(log.formatter, JsonLines):
            assert json.loads(line)["trace_id"] == TRACE
        else:
            assert line.split()[-2] == TRACE


def test_without_a_provider_nothing_is_traced(log: Lines) -> None:
    app = create_app(settings())
    assert app.state.core.spans is None
    answer = asyncio.run(exchange(app, get("/healthz", TRACEPARENT)))
    assert answer.status == 200
    assert TRACE not in log.lines[0]
    assert "trace_id" not in log.lines[0]


@pytest.mark.parametrize("provider", [NoOpTracerProvider(), ProxyTracerProvider()], ids=lambda provider: type(provider).__name__)
def test_a_provider_that_collects_nothing_is_none(provider: NoOpTracerProvider | ProxyTracerProvider) -> None:
    assert spans_for(provider, scheme="http") is None


def test_what_is_not_sampled_is_not_collected_and_the_call_is_answered() -> None:
    collected = Collected(sampler=ALWAYS_OFF)
    (answer,) = collected.ask(call())
    assert answer.status == 200
    assert not collected.spans
