"""What clients see of the protocol beside the bits: documents, headers, statistics, and the rules that hold for every call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from http_app import Service
from jsonschema import Draft202012Validator
from oip_bodies import JSON_LENGTH, X, binary, call, document, shared, tensor
from server_process import ServerProcess, Wire, get, serving
from shared_objects import SharedObject
from triton_calls import CLIENTS, Aio, Sync
from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from service.ops import REGISTRY

Y = (np.round(X * 15) / 15).astype(np.float32)
MODELS = [*REGISTRY, *(f"{name}.grad" for name in REGISTRY), "chain", "chain.grad"]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A server with its default settings."""
    with serving() as running:
        yield running


@pytest.fixture(scope="module", params=CLIENTS)
def client(request: pytest.FixtureRequest, server: ServerProcess) -> Iterator[Sync | Aio]:
    """Both clients, one after the other."""
    made = CLIENTS[request.param](server)
    yield made
    made.close()


def given(array: np.ndarray[Any, Any] = X) -> InferInput:
    return InferInput("x", list(array.shape), "FP32").set_data_from_numpy(array)


# The methods of the clients --------------------------------------------------------------------------------


def test_the_server_and_its_models_are_live_and_ready(client: Sync | Aio) -> None:
    assert client.call("is_server_live") is True
    assert client.call("is_server_ready") is True
    for model in MODELS:
        assert client.call("is_model_ready", model) is True
        assert client.call("is_model_ready", model, "1") is True
    assert client.call("is_model_ready", "sign") is False
    assert client.call("is_model_ready", "round", "2") is False


def test_the_server_says_what_it_offers(client: Sync | Aio) -> None:
    described = client.call("get_server_metadata")
    assert described["name"] == "stequant"
    assert set(described["extensions"]) == {"binary_tensor_data", "model_configuration", "parameters", "statistics"}


def test_the_index_lists_every_model(client: Sync | Aio) -> None:
    index = client.call("get_model_repository_index")
    assert sorted(one["name"] for one in index) == sorted(MODELS)
    assert {(one["version"], one["state"]) for one in index} == {("1", "READY")}


@pytest.mark.parametrize("model", MODELS)
def test_metadata_and_configuration_agree(client: Sync | Aio, model: str) -> None:
    metadata, configuration = client.call("get_model_metadata", model), client.call("get_model_config", model, "1")
    assert metadata["name"] == configuration["name"] == model
    assert metadata["versions"] == ["1"]
    assert configuration["max_batch_size"] == 0
    inputs = [one["name"] for one in metadata["inputs"]]
    assert inputs == [one["name"] for one in configuration["input"]]
    affine = ["w", "b"] if "affine" in model else []
    assert inputs == (["x", "grad_output"] if model.endswith(".grad") else ["x"]) + affine
    outputs = [one["name"] for one in metadata["outputs"]]
    assert outputs == [one["name"] for one in configuration["output"]]
    assert outputs == (["grad_x", *(f"grad_{name}" for name in affine)] if model.endswith(".grad") else ["y"])
    name = model.removesuffix(".grad")
    assert list(configuration["parameters"]) == (["op"] if name == "chain" else list(REGISTRY[name].parameters()))


@pytest.mark.parametrize(
    "ask",
    [
        ("get_model_metadata", "sign"),
        ("get_model_config", "round", "2"),
        ("get_inference_statistics", "sign"),
        ("infer", "sign", []),
        ("register_system_shared_memory", "a", "/a", 1),
        ("get_system_shared_memory_status",),
        ("get_cuda_shared_memory_status", "a"),
    ],
)
def test_the_clients_show_what_went_wrong(client: Sync | Aio, ask: tuple[Any, ...]) -> None:
    with pytest.raises(InferenceServerException) as raised:
        client.call(*ask)
    assert raised.value.status() == "404"
    assert "decoding" not in raised.value.message()
    assert raised.value.message()


def test_a_body_that_the_client_compresses_is_refused_and_answers_are_never_compressed(client: Sync | Aio) -> None:
    with pytest.raises(InferenceServerException) as raised:
        client.call("infer", "k_bit_quantize", [given()], parameters={"k": 4}, request_compression_algorithm="gzip")
    assert raised.value.status() == "415"
    result = client.call("infer", "k_bit_quantize", [given()], parameters={"k": 4}, response_compression_algorithm="gzip")
    assert (result.as_numpy("y") == Y).all()


def test_what_the_client_sends_by_itself_is_tolerated(client: Sync | Aio) -> None:
    options = {"sequence_id": 7, "sequence_start": True, "sequence_end": True, "priority": 3, "timeout": 1000}
    result = client.call("infer", "k_bit_quantize", [given()], "1", parameters={"k": "4"}, **options)
    assert (result.as_numpy("y") == Y).all()


def test_calls_that_do_not_wait_for_each_other(server: ServerProcess) -> None:
    with InferenceServerClient(server.url.removeprefix("http://"), concurrency=4) as client:
        waiting = [client.async_infer("k_bit_quantize", [given(X + i)], parameters={"k": 4}) for i in range(8)]
        for i, one in enumerate(waiting):
            assert (one.get_result().as_numpy("y") == np.round((X + np.float32(i)) * np.float32(15)) / np.float32(15)).all()


def test_statistics_are_what_was_measured(server: ServerProcess, client: Sync | Aio) -> None:
    def stats() -> dict[str, Any]:
        (one,) = client.call("get_inference_statistics", "step_quantize")["model_stats"]
        return one

    before = stats()
    for _ in range(3):
        client.call("infer", "step_quantize", [given()], parameters={"step": 0.5})
    with pytest.raises(InferenceServerException):
        client.call("infer", "step_quantize", [given()], parameters={"step": 0})
    after = stats()
    assert after["inference_count"] - before["inference_count"] == after["execution_count"] - before["execution_count"] == 3
    parts = {name: one["ns"] - before["inference_stats"][name]["ns"] for name, one in after["inference_stats"].items()}
    counts = {name: one["count"] - before["inference_stats"][name]["count"] for name, one in after["inference_stats"].items()}
    stages = ("queue", "compute_input", "compute_infer", "compute_output")
    assert counts == {"success": 3, "fail": 1, **dict.fromkeys(stages, 3), "cache_hit": 0, "cache_miss": 0}
    assert parts["compute_infer"] > 0
    assert parts["fail"] > 0
    assert sum(parts[stage] for stage in stages) <= parts["success"]
    everything = client.call("get_inference_statistics")["model_stats"]
    assert [one["name"] for one in everything if one["name"] == "step_quantize"] == ["step_quantize"]
    assert len(everything) == len(MODELS)


# Calls by hand ------------------------------------------------------------------------------------------


def test_the_answer_to_json_is_json_without_its_length(service: Service) -> None:
    response = call(service, "k_bit_quantize", document(tensor(), id="7 é"))
    assert response.headers["content-type"] == "application/json"
    assert JSON_LENGTH not in response.headers
    assert response.json() == {
        "model_name": "k_bit_quantize",
        "model_version": "1",
        "id": "7 é",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [4], "data": Y.tolist()}],
    }


def test_bytes_follow_the_json_in_the_order_of_the_outputs(service: Service) -> None:
    inputs = [binary(), binary("grad_output"), binary("w", X[:1])]
    body = {"inputs": inputs, "parameters": {"k": 4, "b": 1, "binary_data_output": True}}
    data = X.tobytes() * 2 + X[3:].tobytes()
    response = call(service, "affine_k_bit_quantize.grad", body | {"outputs": [{"name": "grad_w"}, {"name": "grad_x"}]}, data)
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers[JSON_LENGTH])
    outputs = json.loads(response.content[:length])["outputs"]
    assert [(one["name"], one["parameters"]["binary_data_size"]) for one in outputs] == [("grad_w", 4), ("grad_x", 16)]
    grads = np.frombuffer(response.content[length:], np.float32)
    assert (grads[1:] == np.float32(0.75) * X).all()
    # One output as JSON beside one as bytes.
    wanted = [{"name": "grad_w", "parameters": {"binary_data": False}}, {"name": "grad_x"}]
    response = call(service, "affine_k_bit_quantize.grad", body | {"outputs": wanted}, data)
    length = int(response.headers[JSON_LENGTH])
    assert json.loads(response.content[:length])["outputs"][0]["data"] == [grads[0]]
    assert response.content[length:] == grads[1:].tobytes()


@pytest.mark.parametrize(
    ("data", "shape"),
    [([0.0, 0.25, 0.5, 0.75], [2, 2]), ([[0.0, 0.25], [0.5, 0.75]], [2, 2]), ([[0.0], [0.25], [0.5], [0.75]], [4, 1])],
)
def test_data_are_flat_or_of_the_shape(service: Service, data: list[Any], shape: list[int]) -> None:
    (output,) = call(service, "k_bit_quantize", document(tensor(data=data, shape=shape))).json()["outputs"]
    assert (output["shape"], output["data"]) == (shape, Y.tolist())


@pytest.mark.parametrize(("data", "shape"), [(0.25, []), ([0.25], []), ([], [0]), ([], [3, 0]), ([[], [], []], [3, 0])])
def test_no_element_and_no_dimension_are_shapes_too(service: Service, data: Any, shape: list[int]) -> None:
    (output,) = call(service, "round", {"inputs": [tensor(data=data, shape=shape)]}).json()["outputs"]
    assert (output["shape"], output["data"]) == (shape, [0.0] * int(np.prod(shape)))


def test_numbers_that_are_not_finite_are_words_or_strings_and_answered_as_words(service: Service) -> None:
    text = (
        b'{"inputs": [{"name": "x", "datatype": "BF16", "shape": [6], "data": [NaN, "NaN", Infinity, "-Infinity", -0.0, 1e999]}]}'
    )
    response = call(service, "round", text)
    assert b'"data":[NaN,NaN,Infinity,-Infinity,-0.0,Infinity]' in response.content


def test_parameters_may_be_strings(service: Service) -> None:
    body = {"inputs": [tensor()], "parameters": {"min_value": "-inf", "max_value": "5e-1"}}
    assert call(service, "clamp", body).json()["outputs"][0]["data"] == [0.0, 0.25, 0.5, 0.5]
    body = {"inputs": [tensor(), tensor("scale", X[3:])], "parameters": {"k": 4, "w": "scale", "b": 0}}
    assert call(service, "affine_k_bit_quantize", body).status_code == 200
    body["parameters"]["op"] = "round"  # type: ignore[index]
    assert call(service, "affine_k_bit_quantize", body).json()["code"] == "unknown_parameter"


def test_the_index_may_be_asked_for_what_is_ready(service: Service) -> None:
    assert len(service.request("POST", "/v2/repository/index", json={"ready": True}).json()) == len(MODELS)
    core = service.app.state.core
    core.draining = True
    try:
        assert service.request("POST", "/v2/repository/index", json={"ready": True}).json() == []
        assert {one["state"] for one in service.request("POST", "/v2/repository/index").json()} == {"UNAVAILABLE"}
        ready = service.get("/v2/health/ready")
        assert (ready.status_code, ready.json()["code"], ready.headers["retry-after"]) == (503, "not_ready", "1")
        assert service.get("/v2/models/round/ready").status_code == 503
        assert service.get("/v2/health/live").status_code == 200
    finally:
        core.draining = False
    for body in (b"[]", b'{"ready": 1}', b"{"):
        assert service.post("/v2/repository/index", body, None).json()["code"] == "malformed_body"


# What holds for every call ---------------------------------------------------------------------------------


def test_a_call_is_traced_counted_and_its_bytes_are_released(server: ServerProcess) -> None:
    body = json.dumps(document(tensor()))
    routes = ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer")
    labels = {"operator": "k_bit_quantize", "format": "oip", "status": "200"}
    before = [server.metric("stequant_requests_total", route=route, **labels) for route in routes]
    refused_before = server.metric("stequant_requests_total", route="/v2/models/{model}/stats", status="404")
    with Wire(server) as wire:
        for path in ("k_bit_quantize", "k_bit_quantize/versions/1", "nothing"):
            head = f"POST /v2/models/{path}/infer HTTP/1.1\r\nHost: a\r\nX-Request-Id: me\r\nContent-Length: {len(body)}\r\n\r\n"
            answer = wire.ask((head + body).encode())
            assert answer.status == (404 if path == "nothing" else 200)
            assert answer.headers["x-request-id"] == "me"
            assert "compute;dur=" in answer.headers["server-timing"]
        wire.ask(get("/v2/models/nothing/stats"))
    after = [server.metric("stequant_requests_total", route=route, **labels) for route in routes]
    assert after == [count + 1 for count in before]
    assert server.metric("stequant_requests_total", route="/v2/models/{model}/stats", status="404") == refused_before + 1
    assert server.metric("stequant_in_flight_bytes") == 0


def test_no_byte_of_a_body_is_read_where_there_is_no_room(service: Service) -> None:
    core = service.app.state.core
    core.budget.reserve(core.budget.limit_bytes)
    try:
        response = call(service, "k_bit_quantize", document(tensor()))
        assert (response.status_code, response.json()["code"]) == (429, "overloaded")
    finally:
        core.budget.release(core.budget.limit_bytes)


def test_a_deadline_holds(service: Service) -> None:
    response = call(service, "k_bit_quantize", document(tensor()), headers={"x-request-timeout": "0.000001"})
    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
    assert response.json()["error"]
    assert service.app.state.core.budget.in_flight_bytes == 0


def test_calls_are_refused_while_the_device_is_not_ready(service: Service) -> None:
    core = service.app.state.core
    core.ready = False
    try:
        response = call(service, "k_bit_quantize", document(tensor()))
        assert (response.status_code, response.json()["code"]) == (503, "not_ready")
        assert "retry-after" in response.headers
    finally:
        core.ready = True


def test_calls_need_a_key_and_probes_do_not(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("secret\n")
    with Service(api_keys_file=tmp_path / "keys", trusted_hosts="other.example") as locked:
        assert locked.get("/v2/health/live").status_code == locked.get("/v2/health/ready").status_code == 200
        here = {"host": "other.example"}
        for path in ("/v2", "/v2/models/round", "/v2/models/stats", "/v2/systemsharedmemory/status"):
            assert locked.get(path).json()["code"] == "untrusted_host"
            assert locked.get(path, headers=here).json()["code"] == "unauthorized"
        assert call(locked, "round", {"inputs": [tensor()]}, headers=here).json()["error"]
        allowed = here | {"authorization": "Bearer secret"}
        assert call(locked, "round", {"inputs": [tensor()]}, headers=allowed).status_code == 200


def test_a_caller_who_leaves_takes_nothing_along(server: ServerProcess) -> None:
    with Wire(server) as wire:
        wire.send(b"POST /v2/models/round/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n{")
    with Wire(server) as wire:
        assert wire.ask(get("/v2/health/ready")).status == 200
    assert server.metric("stequant_in_flight_bytes") == 0


def test_many_calls_at_once_share_regions_and_pool(service: Service) -> None:
    """Buffers of the pool go from call to call; none may be given away while another call uses it."""
    count, elements = 4, 200_000  # more at once would not fit into this application's limit
    with SharedObject(2 * 4 * elements) as made:
        body = json.dumps({"key": made.key, "byte_size": 8 * elements}).encode()
        assert service.post("/v2/systemsharedmemory/region/r/register", body, None).status_code == 200
        x = np.linspace(0, 1, elements, dtype=np.float32)
        made.memory[: x.nbytes] = x.tobytes()

        async def one(number: int) -> bytes:
            given = shared(array=x[:0], shape=[elements], parameters=shared(array=x)["parameters"])
            wanted = {"name": "y", "parameters": {"binary_data": True}}
            request = {"inputs": [given], "outputs": [wanted], "parameters": {"k": 1 + number % 8}}
            response = await service._client.post("/v2/models/k_bit_quantize/infer", content=json.dumps(request))
            assert response.status_code == 200, response.text
            return response.content[int(response.headers[JSON_LENGTH]) :]

        async def all_of_them() -> list[bytes]:
            return await asyncio.gather(*map(one, range(count)))

        for number, answer in enumerate(service.run(all_of_them())):
            s = np.float32(2 ** (1 + number % 8) - 1)
            assert answer == (np.round(x * s) / s).tobytes()
        service.request("POST", "/v2/systemsharedmemory/unregister")


# OpenAPI -------------------------------------------------------------------------------------------------


def test_openapi_describes_calls(service: Service) -> None:
    paths = service.get("/openapi.json").json()["paths"]
    infer = paths["/v2/models/{model}/infer"]["post"]
    assert infer["parameters"][0]["schema"]["enum"] == [model for name in [*REGISTRY, "chain"] for model in (name, f"{name}.grad")]
    content = infer["requestBody"]["content"]["application/json"]
    request = Draft202012Validator(content["schema"])
    request.validate(document(tensor(), binary("w"), shared("b"), outputs=[{"name": "y"}]))
    assert call(service, "k_bit_quantize", content["example"]).status_code == 200
    answer = Draft202012Validator(infer["responses"]["200"]["content"]["application/json"]["schema"])
    answer.validate(call(service, "k_bit_quantize", document(tensor())).json())
    assert {"404", "422", "429", "504"} <= infer["responses"].keys()
