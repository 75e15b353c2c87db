"""Which request was it, and where did its time go: `X-Request-Id`, `Server-Timing`, the stages in the metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch
from http_app import Raw, Service, messages
from http_bodies import NPY, npy
from prometheus_client.parser import text_string_to_metric_families
from server_process import ServerProcess, Wire, get, post

BODY = npy(torch.tensor([0.6, -0.4]))
DURATION = r";dur=\d+\.\d{3}"
# Requests to every way of answering: hot, refused before and after the body, the framework's, its errors.
REQUESTS: dict[str, tuple[bytes, int]] = {
    "call": (post(BODY), 200),
    "large call": (post(npy(torch.rand(2**20))), 200),
    "chunked call": (post(BODY, chunks=[BODY]), 200),
    "gradient": (post(BODY + BODY, path="/grad"), 200),
    "refused head": (post(BODY, "op=nothing"), 422),
    "refused body": (post(b"x" * 20), 400),
    "too large": (post(BODY, length=2**40), 413),
    "probe": (get("/healthz"), 200),
    "nothing there": (get("/nothing"), 404),
    "wrong method": (get("/quantize"), 405),
    "no host": (get("/healthz", host=None), 400),
    "no http": (b"what is this\r\n\r\n", 400),
}


@pytest.fixture
def wire(server: ServerProcess) -> Iterator[Wire]:
    with Wire(server) as one:
        yield one


@pytest.mark.parametrize("name", REQUESTS)
def test_every_answer_says_which_request_it_is_to_and_where_the_time_went(wire: Wire, name: str) -> None:
    request, status = REQUESTS[name]
    answer = wire.ask(request)
    assert answer.status == status
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]+", answer.headers["x-request-id"])
    assert re.fullmatch(f"(read{DURATION}, queue{DURATION}, )?compute{DURATION}", answer.headers["server-timing"])


def test_no_two_requests_have_the_same_name(wire: Wire) -> None:
    names = [wire.ask(request).headers["x-request-id"] for request in [post(BODY)] * 5 + [get("/healthz")] * 3 + [post(BODY)] * 2]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["call", "large call", "chunked call", "refused head", "refused body", "probe", "nothing there"])
@pytest.mark.parametrize("given", ["job-7/chunk-3", "a", "~" * 128])
def test_a_request_keeps_the_name_that_its_caller_gives_it(wire: Wire, name: str, given: str) -> None:
    request, status = REQUESTS[name]
    for _ in range(2):
        answer = wire.ask(request.replace(b"\r\n", f"\r\nX-Request-Id: {given}\r\n".encode(), 1))
        assert (answer.status, answer.headers["x-request-id"]) == (status, given)
    if status == 200:
        # The next one without a name gets one of its own.
        assert wire.ask(request).headers["x-request-id"] != given


@pytest.mark.parametrize("given", ["", "two words", "ünicode", "x" * 129, "tab\there"])
def test_a_name_that_could_not_be_read_again_is_replaced(wire: Wire, given: str) -> None:
    line = f"X-Request-Id: {given}"
    for request in (post(BODY, "op=round", line), get("/healthz", line)):
        assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]+", wire.ask(request).headers["x-request-id"])


def test_an_ordinary_asgi_server_gives_the_same_headers(service: Service) -> None:
    answers = [
        service.post("/quantize?op=round", BODY, NPY, headers={"x-request-id": "mine"}),
        service.get("/healthz", headers={"x-request-id": "mine"}),
    ]
    for answer in answers:
        assert answer.headers["x-request-id"] == "mine"
        assert "compute;dur=" in answer.headers["server-timing"]
    refused = service.raw(Raw(headers=[("x-request-id", "mine")], receive=messages()))
    assert (refused.status, refused.headers["x-request-id"]) == (400, "mine")


def test_each_stage_of_a_call_is_in_the_metrics(service: Service) -> None:
    def stages() -> dict[str, float]:
        families = text_string_to_metric_families(service.get("/metrics").text)
        samples = next(family.samples for family in families if family.name == "stequant_stage_seconds")
        return {sample.labels["stage"]: sample.value for sample in samples if sample.name.endswith("_count")}

    service.post("/quantize?op=round", BODY, NPY)
    before = stages()
    assert before.keys() == {"read", "queue", "compute", "write"}
    for _ in range(3):
        service.post("/quantize?op=round", BODY, NPY)
    service.post("/quantize?op=nothing", BODY, NPY)
    assert stages() == {stage: count + 3 for stage, count in before.items()}


def test_many_observations_at_once_are_the_same_as_one_by_one() -> None:
    from prometheus_client import CollectorRegistry, Histogram, generate_latest

    from service.metrics import Histogram as Ours

    values = [0.0, 0.5, 1.0, 1.0000001, 2.0, 7.5, 1e9]
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    Ours("seconds", "s", ("a",), buckets=(0.5, 1, 2, 5), registry=ours).labels("x").observe_all(values)
    plain = Histogram("seconds", "s", ("a",), buckets=(0.5, 1, 2, 5), registry=theirs).labels("x")
    for value in values:
        plain.observe(value)

    def samples(registry: CollectorRegistry) -> list[str]:
        return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]

    assert samples(ours) == samples(theirs)
