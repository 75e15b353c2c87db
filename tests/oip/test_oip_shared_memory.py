"""Regions of shared memory: what may be registered, what calls do with them, and that nobody can break the server with one."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from http_app import Service
from oip_bodies import MAX_BODY_BYTES, X, call, document, shared, tensor
from server_process import Wire, get, serving
from shared_objects import OBJECTS, SharedObject

from service.oip.regions import MAX_REGIONS
from service.settings import Settings

ROOT = "/v2/systemsharedmemory"
Y = np.round(X * 15) / 15


def register(service: Service, name: str, **members: Any) -> httpx.Response:
    return service.request("POST", f"{ROOT}/region/{name}/register", json=members)


def refused(response: httpx.Response) -> tuple[int, str]:
    problem = response.json()
    assert problem["error"] == problem["detail"]
    return response.status_code, problem["code"]


@pytest.fixture
def memory(service: Service) -> Iterator[SharedObject]:
    """An object of 4096 bytes, registered whole as `r`; everything is unregistered in the end."""
    with SharedObject(4096) as made:
        assert register(service, "r", key=made.key, byte_size=4096).status_code == 200
        yield made
        assert service.request("POST", f"{ROOT}/unregister").json() == {}
        assert service.get(f"{ROOT}/status").json() == []


def into(region: str = "r", *, offset: int, nbytes: int = X.nbytes, name: str = "y") -> dict[str, Any]:
    parameters = {"shared_memory_region": region, "shared_memory_offset": offset, "shared_memory_byte_size": nbytes}
    return {"name": name, "parameters": parameters}


# Registration --------------------------------------------------------------------------------------------


def test_regions_are_listed_alone_and_together(service: Service, memory: SharedObject) -> None:
    assert register(service, "part", key=memory.key.removeprefix("/"), offset=96, byte_size=4000).status_code == 200
    whole = {"name": "r", "key": memory.key, "offset": 0, "byte_size": 4096}
    part = {"name": "part", "key": memory.key[1:], "offset": 96, "byte_size": 4000}
    assert service.get(f"{ROOT}/status").json() == [whole, part]
    assert service.get(f"{ROOT}/region/part/status").json() == [part]
    assert service.request("POST", f"{ROOT}/region/r/unregister").status_code == 200
    assert service.get(f"{ROOT}/status").json() == [part]
    assert refused(service.get(f"{ROOT}/region/r/status")) == (422, "bad_region")


def test_forgetting_what_is_not_there_is_no_error(service: Service) -> None:
    assert service.request("POST", f"{ROOT}/region/nothing/unregister").status_code == 200


@pytest.mark.parametrize(
    "key",
    ["", "/", ".", "..", "/..", "//stequant-test-a", "/stequant-test-a/b", "stequant-test-/../../etc/passwd", "stequant-test-\0",
     "stequant-test-\n", "stequant-test-ä", "stequant-test-\ud800", "stequant-test-" + "a" * 300],
)  # fmt: skip
def test_names_that_are_no_names_are_refused(service: Service, key: str) -> None:
    # As ASCII: JSON can write half of a surrogate pair as an escape.
    response = service.post(f"{ROOT}/region/a/register", json.dumps({"key": key, "byte_size": 1}).encode(), None)
    assert refused(response) == (422, "bad_region"), response.text


@pytest.mark.parametrize("key", ["/psm_a", "stequant-tes", "xstequant-test-a", "STEQUANT-TEST-A"])
def test_names_that_the_settings_do_not_allow_are_refused_whether_they_exist_or_not(service: Service, key: str) -> None:
    response = register(service, "a", key=key, byte_size=1)
    assert refused(response) == (422, "bad_region")
    assert "shared_memory_names" in response.json()["detail"]


def test_an_object_must_be_there_and_long_enough(service: Service, memory: SharedObject) -> None:
    assert "No such file" in register(service, "a", key="/stequant-test-none", byte_size=1).json()["detail"]
    assert register(service, "a", key=memory.key, byte_size=4097).json()["detail"].count("4096") == 1
    for offset, byte_size in ((1, 4096), (4096, 1), (2**63, 1), (0, 2**70)):
        assert refused(register(service, "a", key=memory.key, offset=offset, byte_size=byte_size)) == (422, "bad_region")
    assert refused(register(service, "a", key=memory.key, byte_size=0)) == (422, "bad_region")
    assert refused(register(service, "r", key=memory.key, byte_size=1)) == (422, "bad_region")  # the name is taken


def test_only_files_are_memory_and_links_are_not_followed(service: Service, memory: SharedObject) -> None:
    link, fifo, folder = (OBJECTS / f"{memory.key[1:]}-{kind}" for kind in ("link", "fifo", "folder"))
    link.symlink_to("/etc/hostname")
    os.mkfifo(fifo)
    folder.mkdir()
    try:
        for path in (link, fifo, folder):
            assert refused(register(service, "a", key=f"/{path.name}", byte_size=1)) == (422, "bad_region"), path
    finally:
        link.unlink()
        fifo.unlink()
        folder.rmdir()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "malformed_body"),
        (b"[]", "malformed_body"),
        (b"{", "malformed_body"),
        (b'{"key": 1, "byte_size": 1}', "malformed_body"),
        (b'{"key": "/stequant-test-a"}', "malformed_body"),
        (b'{"byte_size": 1}', "malformed_body"),
        (b'{"key": "/stequant-test-a", "byte_size": "1"}', "malformed_body"),
        (b'{"key": "/stequant-test-a", "byte_size": -1}', "malformed_body"),
        (b'{"key": "/stequant-test-a", "byte_size": 1.0}', "malformed_body"),
        (b'{"key": "/stequant-test-a", "byte_size": true}', "malformed_body"),
        (b'{"key": "/stequant-test-a", "byte_size": 1, "offset": -1}', "malformed_body"),
        (b'{"key": "a", "key": "a", "byte_size": 1}', "malformed_body"),
    ],
)
def test_a_registration_that_is_none_is_refused(service: Service, body: bytes, code: str) -> None:
    assert refused(service.post(f"{ROOT}/region/a/register", body, None)) == (400, code)


def test_a_registration_is_short(service: Service) -> None:
    assert refused(service.post(f"{ROOT}/region/a/register", b" " * 17_000, None)) == (413, "body_too_large")


def test_the_number_of_regions_is_bounded(service: Service, memory: SharedObject) -> None:
    for number in range(MAX_REGIONS - 1):
        assert register(service, f"r{number}", key=memory.key, byte_size=1).status_code == 200
    assert refused(register(service, "one more", key=memory.key, byte_size=1)) == (422, "bad_region")


# Calls ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1, 3, 4096 - X.nbytes])
def test_tensors_are_read_and_written_where_they_lie(service: Service, memory: SharedObject, offset: int) -> None:
    memory.memory[offset : offset + X.nbytes] = X.tobytes()
    # The answer goes where x was: x was read before.
    response = call(service, "k_bit_quantize", document(shared(offset=offset), outputs=[into(offset=offset)]))
    assert response.status_code == 200, response.text
    (described,) = response.json()["outputs"]
    # No parameters: Triton's clients in C++ fail where there are some without binary_data_size.
    assert described == {"name": "y", "datatype": "FP32", "shape": [4]}
    assert bytes(memory.memory[offset : offset + X.nbytes]) == Y.astype(np.float32).tobytes()


def test_one_tensor_may_travel_so_and_another_otherwise(service: Service, memory: SharedObject) -> None:
    memory.memory[: X.nbytes] = X.tobytes()
    body = document(shared(), tensor("grad_output"), outputs=[{"name": "grad_x"}], parameters={"min_value": 0.2, "max_value": 0.6})
    answer = call(service, "clamp.grad", body).json()
    assert answer["outputs"][0]["data"] == [0.0, 0.25, 0.5, 0.0]
    answer = call(service, "k_bit_quantize", document(tensor(), outputs=[into(offset=100)]))
    assert bytes(memory.memory[100:116]) == Y.astype(np.float32).tobytes()
    assert bytes(memory.memory[116:]) == bytes(4096 - 116)


@pytest.mark.parametrize(
    ("x", "output", "refusal"),
    [
        (shared(offset=4081), None, (422, "bad_region")),
        (shared(offset=2**64), None, (422, "bad_region")),
        (shared(region="none"), None, (422, "bad_region")),
        (tensor(), into(offset=4081), (422, "bad_region")),
        (tensor(), into(offset=0, nbytes=15), (422, "bad_region")),
        (tensor(), into(offset=0, nbytes=4097), (422, "bad_region")),
        (tensor(), into("none", offset=0), (422, "bad_region")),
    ],
)
def test_ranges_outside_of_a_region_are_refused(
    service: Service, memory: SharedObject, x: dict[str, Any], output: dict[str, Any] | None, refusal: tuple[int, str]
) -> None:
    before = bytes(memory.memory)
    response = call(service, "k_bit_quantize", document(x, outputs=[] if output is None else [output]))
    assert refused(response) == refusal, response.text
    assert bytes(memory.memory) == before


def test_an_object_that_has_become_shorter_is_the_callers_mistake(service: Service, memory: SharedObject) -> None:
    memory.truncate(8)
    assert refused(call(service, "k_bit_quantize", document(shared()))) == (422, "bad_region")
    assert refused(call(service, "k_bit_quantize", document(tensor(), outputs=[into(offset=0)]))) == (422, "bad_region")
    assert memory.nbytes == 8  # a refused answer does not make it longer again
    memory.path.unlink()
    assert refused(call(service, "k_bit_quantize", document(shared()))) == (422, "bad_region")


def test_what_lies_in_shared_memory_counts_as_if_it_were_sent(service: Service) -> None:
    core = service.app.state.core
    with SharedObject(MAX_BODY_BYTES) as made:
        register(service, "big", key=made.key, byte_size=MAX_BODY_BYTES)
        x = shared(region="big", array=np.empty(0, np.float32), shape=[MAX_BODY_BYTES // 4]) | {
            "parameters": {"shared_memory_region": "big", "shared_memory_byte_size": MAX_BODY_BYTES}
        }
        assert refused(call(service, "round", document(x, parameters={}))) == (413, "body_too_large")
        x["shape"], x["parameters"]["shared_memory_byte_size"] = [1000], 4000
        core.budget.reserve(core.budget.limit_bytes - 3000)
        try:
            response = call(service, "round", document(x, parameters={}))
            assert refused(response) == (429, "overloaded")
            assert int(response.headers["retry-after"]) >= 1
        finally:
            core.budget.release(core.budget.limit_bytes - 3000)
        assert call(service, "round", document(x, parameters={})).status_code == 200
        assert core.budget.in_flight_bytes == 0
        service.request("POST", f"{ROOT}/unregister")


# Servers -------------------------------------------------------------------------------------------------


def test_it_is_off_unless_names_are_given() -> None:
    with Service() as plain:
        assert "system_shared_memory" not in plain.get("/v2").json()["extensions"]
        for response in (
            plain.get(f"{ROOT}/status"),
            plain.request("POST", f"{ROOT}/unregister"),
            plain.get(f"{ROOT}/region/a/status"),
            register(plain, "a", key="/stequant-test-a", byte_size=1),
            plain.request("POST", f"{ROOT}/region/a/unregister"),
        ):
            assert refused(response) == (404, "not_found")
            assert "shared_memory_names" in response.json()["detail"]
        assert refused(call(plain, "k_bit_quantize", document(shared()))) == (422, "bad_region")


def test_it_is_listed_where_it_is_on(service: Service) -> None:
    assert "system_shared_memory" in service.get("/v2").json()["extensions"]


def test_cuda_memory_is_refused_clearly(service: Service) -> None:
    assert service.get("/v2/cudasharedmemory/status").json() == []
    assert service.request("POST", "/v2/cudasharedmemory/unregister").status_code == 200
    response = service.request("POST", "/v2/cudasharedmemory/region/a/register", json={"raw_handle": {"b64": ""}, "device_id": 0})
    assert refused(response) == (404, "not_found")
    assert "CUDA shared memory is not offered" in response.json()["detail"]


def infer_request(elements: int) -> bytes:
    """A call that reads a region of so many float32 and writes into it."""
    part = f'"parameters":{{"shared_memory_region":"r","shared_memory_byte_size":{4 * elements}}}'
    body = f'{{"inputs":[{{"name":"x","datatype":"FP32","shape":[{elements}],{part}}}],"outputs":[{{"name":"y",{part}}}]}}'
    return f"POST /v2/models/round/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def test_a_caller_who_truncates_while_the_server_reads_and_writes_cannot_end_it() -> None:
    """Of a mapping, every access beyond the new end would be SIGBUS."""
    elements = 2**20
    with serving("--shared-memory-names", "stequant-test-*") as server, SharedObject(4 * elements) as made, Wire(server) as wire:
        body = f'{{"key":"{made.key}","byte_size":{4 * elements}}}'
        path = f"{ROOT}/region/r/register"
        assert wire.ask(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()).status == 200
        ended = threading.Event()

        def shrink_and_grow() -> None:
            while not ended.is_set():
                made.truncate(0)
                made.truncate(4 * elements)

        vandal = threading.Thread(target=shrink_and_grow)
        vandal.start()
        try:
            statuses = {wire.ask(infer_request(elements)).status for _ in range(60)}
        finally:
            ended.set()
            vandal.join()
        assert statuses <= {200, 422}
        made.truncate(4 * elements)
        assert wire.ask(infer_request(elements)).status == 200
        assert wire.ask(get("/readyz")).status == 200


def test_several_workers_would_not_know_each_others_regions() -> None:
    with pytest.raises(ValueError, match="shared_memory_names needs workers to be 1, not 2"):
        Settings(shared_memory_names="a", workers=2)
