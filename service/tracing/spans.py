"""One span for each request, a child of its caller's.

It is made when the request is over, from the times that were taken anyway: on its way nothing is done for it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from opentelemetry import propagate
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import SpanKind, Status, StatusCode, TracerProvider, format_trace_id

from service import __version__
from service.head import Head
from service.metrics import Exchange, Stages

_METHODS = frozenset(("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"))
# The route of what the service has no path for; spans have none then.
_NO_ROUTE = "other"
# A caller who had gone was not answered.
_CALLER_GONE = 499
# The method in a head that stands for bytes which were no request.
_NO_REQUEST = "-"

Headers = Sequence[tuple[bytes, bytes]]
Value = str | int


class Spans:
    """Makes spans by a provider; `scheme` is by which the service is called, http or https."""

    def __init__(self, provider: TracerProvider, *, scheme: str) -> None:
        self._tracer = provider.get_tracer("stequant", __version__)
        self._scheme = scheme

    def traced(self, head: Head, exchange: Exchange) -> Exchange:
        """Make the span of an exchange that ends now; the exchange, with the name of the trace that it belongs to."""
        if head.method == _NO_REQUEST:
            return exchange
        started_ns = time.time_ns() - _nanoseconds(exchange.duration_s)
        span = self._tracer.start_span(
            _name(exchange),
            propagate.extract(head.headers, getter=_HEADERS),
            SpanKind.SERVER,
            {**_request_attributes(head, exchange, self._scheme), **_answer_attributes(exchange)},
            start_time=started_ns,
        )
        if span.is_recording():
            for name, seconds in _events(exchange.stages):
                span.add_event(name, timestamp=started_ns + _nanoseconds(seconds))
            if exchange.status >= 500:
                span.set_status(Status(StatusCode.ERROR, exchange.code))
        span.end(started_ns + _nanoseconds(exchange.duration_s))
        return exchange._replace(trace_id=format_trace_id(span.get_span_context().trace_id))


class _Headers(Getter[Headers]):
    """Headers as the wire had them, for a propagator; their names are in lower case."""

    def get(self, carrier: Headers, key: str) -> list[str] | None:
        """All values of a header; None where it is not there."""
        wanted = key.lower().encode("latin-1")
        values = [value.decode("latin-1") for name, value in carrier if name == wanted]
        if key == "traceparent" and len(values) > 1:
            return None  # nobody can say which of two is the caller
        return values or None

    def keys(self, carrier: Headers) -> list[str]:
        """The names of all headers."""
        return [name.decode("latin-1") for name, _ in carrier]


_HEADERS = _Headers()


def _name(exchange: Exchange) -> str:
    """`POST /quantize`; only the method where there is no such route, so that names are few."""
    method = exchange.method if exchange.method in _METHODS else "HTTP"
    return method if exchange.route == _NO_ROUTE else f"{method} {exchange.route}"


def _request_attributes(head: Head, exchange: Exchange, scheme: str) -> Mapping[str, Value]:
    """What the semantic conventions for HTTP servers say of a request."""
    known = exchange.method in _METHODS
    given: dict[str, Value] = {
        "http.request.method": exchange.method if known else "_OTHER",
        "http.request.method_original": "" if known else exchange.method,
        "http.route": "" if exchange.route == _NO_ROUTE else exchange.route,
        "url.path": exchange.path,
        "url.query": head.query.decode("latin-1"),
        "url.scheme": scheme,
        "network.protocol.version": head.http_version,
        "stequant.operator": exchange.operator,
        "stequant.format": exchange.format,
        "stequant.request_id": exchange.request_id.decode("latin-1"),
    }
    return {name: value for name, value in given.items() if value}


def _answer_attributes(exchange: Exchange) -> Mapping[str, Value]:
    """What they say of the answer. Refusals are the caller's errors, not ours."""
    if exchange.status == _CALLER_GONE:
        return {"error.type": "caller_gone"}
    given: dict[str, Value] = {
        "http.response.status_code": exchange.status,
        "http.request.body.size": exchange.received_bytes,
        "http.response.body.size": exchange.sent_bytes,
    }
    if exchange.code:
        given["stequant.code"] = exchange.code
    if exchange.status >= 500:
        given["error.type"] = exchange.code or str(exchange.status)
    return given


def _events(stages: Stages | None) -> Sequence[tuple[str, float]]:
    """When the stages of a call changed, in seconds from its start."""
    if stages is None:
        return ()
    received = stages.read
    began = received + stages.queue
    return ("received", received), ("compute begins", began), ("compute ends", began + stages.compute)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
