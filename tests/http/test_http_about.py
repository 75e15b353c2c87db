"""What the service tells about itself: operators, probes, metrics, documentation; and its budget of bytes."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import torch
from fastapi import FastAPI
from http_app import Raw, RawAnswer, Service, body_messages, exchange, messages, settings
from http_bodies import JSON, MSGPACK, NPY, SAFETENSORS, encode, npy
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families
from referencing import Registry, Resource

from service.app import create_app
from service.errors import BY_CODE
from service.ops import REGISTRY

X = torch.tensor([0.25, 0.5, 2.0])
BODY = npy(X)
HEAD = (("host", "a"), ("content-type", NPY), ("content-length", str(len(BODY))))


# The catalogue -------------------------------------------------------------------------------------------


def test_operators_are_described_with_their_parameters_and_bounds(service: Service) -> None:
    response = service.get("/operators")
    assert response.headers["content-type"] == "application/json"
    described = {one["name"]: one for one in response.json()["operators"]}
    assert list(described) == list(REGISTRY)
    assert {name: [parameter["name"] for parameter in one["parameters"]] for name, one in described.items()} == {
        "round": [],
        "ceil": [],
        "floor": [],
        "clamp": ["min_value", "max_value"],
        "step_quantize": ["step"],
        "k_bit_quantize": ["k"],
        "affine_k_bit_quantize": ["k", "w", "b"],
        "clamp_by_linear": ["eps"],
    }
    for one in described.values():
        assert set(one) >= {"name", "parameters", "formula", "gradient", "elementwise", "sources"}
        assert one["formula"]
        assert one["gradient"]
        assert one["sources"]
        for parameter in one["parameters"]:
            assert set(parameter) >= {"name", "type", "required", "default", "description"}
    assert [name for name, one in described.items() if not one["elementwise"]] == ["clamp_by_linear"]
    (k,) = described["k_bit_quantize"]["parameters"]
    assert (k["type"], k["required"], k["default"], k["minimum"]) == ("int", True, None, 1)
    (step,) = described["step_quantize"]["parameters"]
    assert step["exclusiveMinimum"] == 0
    (eps,) = described["clamp_by_linear"]["parameters"]
    assert (eps["required"], eps["default"], eps["minimum"]) == (False, 1e-5, 0)


# Probes --------------------------------------------------------------------------------------------------


def test_a_warm_service_is_alive_and_ready(service: Service) -> None:
    assert service.get("/healthz").status_code == 200
    response = service.get("/readyz")
    assert response.status_code == 200
    told = response.json()
    assert told["device"] == "cpu"
    assert told["draining"] is False
    assert told["dtypes"] == ["float16", "bfloat16", "float32", "float64"]


def test_before_its_device_is_warm_a_service_is_alive_but_not_ready() -> None:
    async def ask() -> None:
        app = create_app(settings())  # its lifespan is not run
        head = (("host", "a"),)
        assert (await exchange(app, Raw("GET", "/healthz", b"", head, body_messages(b"")))).status == 200
        ready = await exchange(app, Raw("GET", "/readyz", b"", head, body_messages(b"")))
        assert ready.status == 503
        assert int(ready.headers["retry-after"]) >= 1
        # Refused before a byte of the body is read.
        for path in ("/quantize", "/grad"):
            refused = await exchange(app, Raw(path=path, headers=HEAD, receive=messages()))
            assert refused.status == 503
            assert json.loads(refused.body)["code"] == "not_ready"
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.headers["content-type"] == "application/problem+json"
        app.state.core.engine.close()

    asyncio.run(ask())


def test_after_its_end_a_service_is_not_ready() -> None:
    with Service() as running:
        app = running.app
        assert running.get("/readyz").status_code == 200
    answer = asyncio.run(exchange(app, Raw("GET", "/readyz", b"", (("host", "a"),), body_messages(b""))))
    assert answer.status == 503


# Metrics -------------------------------------------------------------------------------------------------


def metrics(service: Service) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of /metrics, by name and labels."""
    response = service.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(response.text)
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def total(samples: dict[Any, float], name: str, **labels: str) -> float:
    return sum(value for (one, own), value in samples.items() if one == name and set(labels.items()) <= own)


def test_metrics_count_requests_errors_and_bytes() -> None:
    with Service() as fresh:
        service = fresh
        for _ in range(3):
            answer = service.post("/quantize?op=k_bit_quantize&k=4", BODY, NPY)
        service.post("/grad?op=clamp(0,1)|round", encode("msgpack", {"x": X, "grad_output": X}), MSGPACK)
        service.post("/quantize?op=nothing", BODY, NPY)
        service.post("/quantize?op=round", BODY[:-1], NPY)
        service.get("/nothing/here")
        service.get("/healthz")
        samples = metrics(service)
        requests = "stequant_requests_total"
        assert total(samples, requests, route="/quantize", operator="k_bit_quantize", format="npy", status="200") == 3
        assert total(samples, requests, route="/grad", operator="chain", format="msgpack", status="200") == 1
        assert total(samples, requests, route="/quantize", status="422") == 1
        assert total(samples, requests, route="/quantize", status="400") == 1
        assert total(samples, requests, status="404") == 1
        assert total(samples, requests, route="/healthz", status="200") == 1
        assert total(samples, "stequant_errors_total", code="unknown_operator") == 1
        assert total(samples, "stequant_errors_total", code="malformed_body") == 1
        assert total(samples, "stequant_errors_total", code="not_found") == 1
        # Paths that callers make up are no labels.
        assert not any("nothing" in value for _, labels in samples for _, value in labels)
        assert total(samples, "stequant_received_bytes_total", route="/quantize") >= 3 * len(BODY)
        assert total(samples, "stequant_sent_bytes_total", route="/quantize") >= 3 * len(answer.content)
        assert total(samples, "stequant_request_seconds_count", route="/quantize") == 5
        assert total(samples, "stequant_in_flight_bytes") == 0


def test_the_labels_of_metrics_are_of_bounded_sets(service: Service) -> None:
    def make_up(i: int) -> None:
        service.get(f"/made/up/{i}")
        service.request(f"VERB{i}", "/quantize")
        service.post(f"/quantize?op=k_bit_quantize&k={i + 1}", BODY, NPY)
        service.post(f"/quantize?op=unknown_{i}", BODY, NPY)

    make_up(0)
    make_up(999)
    metrics(service)
    before = len(metrics(service))
    for i in range(1, 50):
        make_up(i)
    assert len(metrics(service)) == before


# The budget of bytes ----------------------------------------------------------------------------------------


class _Held:
    """A body that stops halfway until it is told to go on."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.waiting = asyncio.Event()
        self._pieces = iter((BODY[:70], BODY[70:]))

    async def receive(self) -> dict[str, Any]:
        """The first half at once, the second when it may."""
        piece = next(self._pieces)
        if piece == BODY[70:]:
            self.waiting.set()
            await self.go_on.wait()
        return {"type": "http.request", "body": piece, "more_body": piece != BODY[70:]}


@asynccontextmanager
async def held(app: FastAPI) -> AsyncIterator[Callable[[], Awaitable[RawAnswer]]]:
    """A call whose body has come by half; what it gives lets the rest come, and returns the answer."""
    body = _Held()
    task = asyncio.create_task(exchange(app, Raw(headers=HEAD, receive=body.receive)))
    await asyncio.wait_for(body.waiting.wait(), 5)

    async def finish() -> RawAnswer:
        body.go_on.set()
        return await asyncio.wait_for(asyncio.shield(task), 5)

    try:
        yield finish
    finally:
        await finish()


@pytest.fixture(scope="module")
def tight() -> Iterator[Service]:
    """An application with room for one body and a half."""
    with Service(max_body_bytes=200, max_in_flight_bytes=210) as running:
        yield running


def test_bytes_beyond_the_budget_are_refused_until_there_is_room(tight: Service) -> None:
    async def calls() -> None:
        async with held(tight.app) as finish:
            # Refused at once: `messages()` fails when a byte of the body is asked for.
            refused = await exchange(tight.app, Raw(headers=HEAD, receive=messages()))
            assert refused.status == 429
            assert int(refused.headers["retry-after"]) >= 1
            document = json.loads(refused.body)
            assert document["code"] == "overloaded"
            assert str(len(BODY)) in document["detail"]
            assert "210" in document["detail"]
            # What needs no room is answered.
            assert (await exchange(tight.app, Raw("GET", "/healthz", b"", HEAD[:1], body_messages(b"")))).status == 200
            assert (await finish()).status == 200
            assert (await exchange(tight.app, Raw(headers=HEAD, receive=body_messages(BODY)))).status == 200

    tight.run(calls())


def test_metrics_show_the_bytes_in_flight(tight: Service) -> None:
    async def shown() -> float:
        text = (await exchange(tight.app, Raw("GET", "/metrics", b"", HEAD[:1], body_messages(b"")))).body.decode()
        return next(one.samples[0].value for one in text_string_to_metric_families(text) if one.name == "stequant_in_flight_bytes")

    async def calls() -> None:
        async with held(tight.app) as finish:
            assert await shown() == len(BODY)
            await finish()
            assert await shown() == 0

    tight.run(calls())


def test_room_is_given_back_after_errors_and_disconnects(tight: Service) -> None:
    gone = {"type": "http.disconnect"}
    part = {"type": "http.request", "body": BODY[:70], "more_body": True}
    chunked = (*HEAD[:2], ("transfer-encoding", "chunked"))

    async def calls() -> None:
        for _ in range(3):
            for request, status in [
                (Raw(headers=HEAD, receive=body_messages(BODY)), 200),
                (Raw(headers=HEAD, receive=body_messages(b"x" * len(BODY))), 400),
                (Raw(headers=HEAD, receive=body_messages(BODY[:-1])), 400),
                (Raw(headers=HEAD, receive=body_messages(BODY + b"x")), 400),
                (Raw(headers=HEAD, receive=messages(gone)), 0),
                (Raw(headers=HEAD, receive=messages(part, gone)), 0),
                (Raw(headers=chunked, receive=messages(part, gone)), 0),
                (Raw(query=b"op=nothing", headers=HEAD, receive=messages()), 422),
                (Raw(query=b"op=k_bit_quantize(1000)", headers=HEAD, receive=body_messages(BODY)), 422),
            ]:
                assert (await exchange(tight.app, request)).status == status
                assert tight.app.state.core.budget.in_flight_bytes == 0

    tight.run(calls())


def test_a_chunked_body_counts_as_it_comes(tight: Service) -> None:
    async def calls() -> None:
        def chunked() -> Raw:
            head = (*HEAD[:2], ("transfer-encoding", "chunked"))
            return Raw(headers=head, receive=body_messages(BODY[:70], BODY[70:]))

        assert (await exchange(tight.app, chunked())).status == 200
        async with held(tight.app):
            assert (await exchange(tight.app, chunked())).status == 429
        assert (await exchange(tight.app, chunked())).status == 200

    tight.run(calls())


# Documentation -----------------------------------------------------------------------------------------------


class Links(HTMLParser):
    """Everything that a page makes a browser load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called for every tag."""
        self.found += [value for name, value in attrs if name in ("src", "href", "action") and value]


def test_the_documentation_loads_nothing_from_elsewhere(service: Service) -> None:
    page = service.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+", page.text)
    links = Links(page.text).found
    assert len(links) >= 2
    for link in [*links, "/openapi.json"]:
        assert not urlsplit(link).netloc
        asset = service.get(link)
        assert asset.status_code == 200, link
        assert len(asset.content) > 500
    assert "/openapi.json" in page.text
    # Nor does the style sheet.
    for link in links:
        if link.endswith(".css"):
            assert not re.findall(r"url\(['\"]?https?:", service.get(link).text)
            assert "@import" not in service.get(link).text


@pytest.fixture(scope="module")
def document(service: Service) -> dict[str, Any]:
    """The OpenAPI document."""
    response = service.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    return response.json()


def parts(value: Any, key: str) -> Iterator[Any]:
    """Every value under this key, at any depth."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key:
                yield inner
            yield from parts(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from parts(inner, key)


def validator(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    """A validator for a schema of the document, its references resolved in it."""
    registry = Registry().with_resource(
        "urn:api", Resource.from_contents(document | {"$schema": "https://json-schema.org/draft/2020-12/schema"})
    )
    return Draft202012Validator(json.loads(json.dumps(schema).replace('"#/', '"urn:api#/')), registry=registry)


def test_the_api_document_is_an_openapi_document_whose_schemas_are_valid(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    assert document["info"]["title"]
    assert document["info"]["version"]
    for schema in [*parts(document, "schema"), *document["components"]["schemas"].values()]:
        Draft202012Validator.check_schema(schema)
    for reference in parts(document, "$ref"):
        target = document
        for name in reference.removeprefix("#/").split("/"):
            target = target[name]
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids)
    for operation in operations:
        assert operation["responses"]
        assert all(re.fullmatch(r"[1-5][0-9X]{2}|default", status) for status in operation["responses"])
        assert all(response["description"] for response in operation["responses"].values())


def test_the_api_document_lists_every_path_format_operator_and_parameter(document: dict[str, Any]) -> None:
    own = {path for path in document["paths"] if not path.startswith("/v2")}  # tests/oip has the others
    assert own == {"/quantize", "/grad", "/operators", "/healthz", "/readyz", "/metrics"}
    for path in ("/quantize", "/grad"):
        operation = document["paths"][path]["post"]
        assert set(operation["requestBody"]["content"]) == {
            NPY,
            "application/vnd.numpy",
            MSGPACK,
            "application/msgpack",
            "application/x-msgpack",
            JSON,
            SAFETENSORS,
        }
        assert set(operation["responses"]["200"]["content"]) >= {NPY, MSGPACK, JSON, SAFETENSORS}
        parameters = {parameter["name"]: parameter for parameter in operation["parameters"]}
        assert set(parameters) == {"op", "output", "min_value", "max_value", "step", "k", "w", "b", "eps"}
        assert parameters["op"]["required"]
        assert not any(parameter["required"] for name, parameter in parameters.items() if name != "op")
        written = json.dumps(parameters["op"]) + operation["description"]
        for name in REGISTRY:
            assert name in written
        assert parameters["k"]["schema"]["minimum"] == 1
        assert parameters["step"]["schema"]["exclusiveMinimum"] == 0
        assert operation["requestBody"]["required"]


def test_the_api_document_lists_every_error_under_its_status(document: dict[str, Any]) -> None:
    codes = document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]
    assert set(codes) == set(BY_CODE)
    for path in ("/quantize", "/grad"):
        responses = document["paths"][path]["post"]["responses"]
        for error in BY_CODE.values():
            response = responses[str(error.status)]
            assert error.code in response["description"]
            assert "application/problem+json" in response["content"]


def test_every_example_of_the_api_document_can_be_sent(service: Service, document: dict[str, Any]) -> None:
    sent = 0
    for path in ("/quantize", "/grad"):
        operation = document["paths"][path]["post"]
        (op,) = (parameter for parameter in operation["parameters"] if parameter["name"] == "op")
        request = operation["requestBody"]["content"][JSON]
        answered = operation["responses"]["200"]["content"][JSON]["schema"]
        problems = document["components"]["schemas"]["Problem"]
        for example in request["examples"].values():
            validator(document, request["schema"]).validate(example["value"])
            for expression in op["examples"].values():
                response = service.request("POST", f"{path}?op={quote(expression['value'])}", json=example["value"])
                assert response.status_code == 200, response.text
                validator(document, answered).validate(response.json())
                sent += 1
        response = service.request("POST", f"{path}?op=nothing", json={"x": 1})
        validator(document, problems).validate(response.json())
    assert sent >= 2 * len(REGISTRY)


def test_the_api_document_tells_of_keys_where_they_are_needed(document: dict[str, Any], tmp_path: Any) -> None:
    assert "securitySchemes" not in document["components"]
    (tmp_path / "keys").write_text("key\n")
    with Service(api_keys_file=tmp_path / "keys") as locked:
        told = locked.get("/openapi.json", headers={"authorization": "Bearer key"}).json()
    (scheme,) = told["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")


def test_the_server_does_not_tell_what_it_runs_on(service: Service) -> None:
    for path in ("/healthz", "/nothing"):
        assert not {"server", "x-powered-by"} & set(service.get(path).headers)
