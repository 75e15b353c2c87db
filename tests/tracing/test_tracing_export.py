"""A server that sends its spans to a collector: as the usual variables say, and never at the cost of a call."""

from __future__ import annotations

import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from http_bodies import npy
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from server_process import ROOT, ServerProcess, Wire, environment, get, post, serving

BODY, ROUNDED = npy(torch.tensor([0.6, -0.4])), npy(torch.tensor([1.0, -0.0]))
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"traceparent: 00-{TRACE}-{PARENT}-01"
SOON_S = 20.0


class Collector(HTTPServer):
    """What takes spans, as a collector of OpenTelemetry does over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: queue.Queue[ExportTraceServiceRequest] = queue.Queue()

    @property
    def variables(self) -> dict[str, str]:
        """What sends a server's spans here, ten times a second."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server_port}", "OTEL_BSP_SCHEDULE_DELAY": "100"}

    def spans(self, name: str, count: int) -> list[Span]:
        """The first spans of this name."""
        found: list[Span] = []
        while len(found) < count:
            request = self.requests.get(timeout=SOON_S)
            (resource,) = request.resource_spans
            self.resource = {one.key: one.value.string_value for one in resource.resource.attributes}
            found += [span for scope in resource.scope_spans for span in scope.spans if span.name == name]
        return found


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.put(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as one:
        thread = threading.Thread(target=one.serve_forever, args=(0.05,))
        thread.start()
        yield one
        one.shutdown()
        thread.join()


@contextmanager
def asked(*requests: bytes, variables: dict[str, str], flags: tuple[str, ...] = ()) -> Iterator[ServerProcess]:
    """A server that has answered these on one connection."""
    with serving(*flags, variables=variables) as server, Wire(server) as wire:
        for request in requests:
            assert wire.ask(request).status == 200
        yield server


def test_every_call_on_a_kept_connection_is_sent_as_the_child_of_its_caller(collector: Collector) -> None:
    large = post(npy(torch.zeros(2**20)), "op=round", TRACEPARENT)
    with asked(*[post(BODY, "op=round", TRACEPARENT)] * 4, large, variables=collector.variables) as server:
        spans = collector.spans("POST /quantize", 5)
        assert {(span.trace_id.hex(), span.parent_span_id.hex()) for span in spans} == {(TRACE, PARENT)}
        assert len({span.span_id for span in spans}) == 5
        assert all(span.start_time_unix_nano <= span.end_time_unix_nano for span in spans)
        assert collector.resource["service.name"] == "stequant"
        assert sum(f" {TRACE} " in line for line in server.lines) == 5
        assert any("traces are sent to" in line for line in server.lines)


def test_workers_send_their_spans_and_the_last_ones_before_they_end(collector: Collector) -> None:
    variables = collector.variables | {"OTEL_BSP_SCHEDULE_DELAY": "3600000", "OTEL_SERVICE_NAME": "quantizers"}
    with asked(get("/operators"), variables=variables, flags=("--workers", "2")):
        assert collector.requests.empty()
    collector.spans("GET /operators", 1)
    assert collector.resource["service.name"] == "quantizers"


def test_a_collector_that_is_not_there_costs_nobody_a_call_and_hardly_delays_the_end() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{nobody.getsockname()[1]}", "OTEL_BSP_SCHEDULE_DELAY": "100"}
        with asked(*[post(BODY)] * 50, variables=variables) as server:
            began = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - began < 8


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_SDK_DISABLED": "true"},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_what_switches_traces_off_does(variables: dict[str, str], collector: Collector) -> None:
    code = (
        "import sys; from service.logs import configure; from service.tracing.export import exported\n"
        "configure('info', 'text')\n"
        "with exported() as provider: print(provider)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(collector.variables | variables),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "None\n"
    warned = "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'; allowed: http/protobuf" in done.stderr
    assert warned == ("OTEL_EXPORTER_OTLP_PROTOCOL" in variables)


def test_a_server_without_the_extra_says_so_and_serves(collector: Collector) -> None:
    code = (
        "import sys; sys.modules['opentelemetry.exporter'] = None\n"
        "from service.logs import configure; from service.tracing.export import exported\n"
        "configure('info', 'text')\n"
        "with exported() as provider: print(provider)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(collector.variables),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "None\n"
    assert "pip install 'stequant[otel]'" in done.stderr
