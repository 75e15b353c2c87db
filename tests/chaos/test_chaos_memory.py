"""A server that may take only so much more memory than it has when it is idle: who does not fit is told, and nobody is killed."""

from __future__ import annotations

import json
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from http_bodies import JSON, MSGPACK, SAFETENSORS, encode, npy
from process_figures import MIB, look_at
from server_process import Answer, ServerProcess, Wire, get, post, serving

BODY, ROUNDED = npy(torch.full((16 * MIB,), 0.6)), npy(torch.ones(16 * MIB))
SMALL, SMALL_ROUNDED = npy(torch.tensor([0.6, -0.4])), npy(torch.tensor([1.0, -0.0]))


def limit_memory(server: ServerProcess, room_bytes: int) -> None:
    """Let the process have this much more memory of its own than now.

    What it maps beyond is refused (`RLIMIT_DATA`): earlier than a container would end it for what it uses, and just as unasked for.
    """
    status = (Path("/proc") / str(server.pid) / "status").read_text()
    now_bytes = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData:"))
    limit = now_bytes + room_bytes
    resource.prlimit(server.pid, resource.RLIMIT_DATA, (limit, limit))


def warm_up(server: ServerProcess) -> None:
    """Start what the first large call starts."""
    with Wire(server) as wire:
        assert wire.ask(post(npy(torch.zeros(MIB)))).status == 200


# One call at a time -----------------------------------------------------------------------------------------

ROOM_FOR_ONE_BYTES = 96 * MIB


@pytest.fixture(scope="module")
def narrow() -> Iterator[ServerProcess]:
    """A server that has room for a body of 64 MiB, and none for a copy of it."""
    limits = ("--max-body-bytes", str(512 * MIB), "--max-json-bytes", str(64 * MIB))
    # Or the C library keeps up to 64 MiB of what was freed, by what it was asked for before, and a test depends on the last.
    allocator = {"MALLOC_MMAP_THRESHOLD_": str(MIB // 2), "MALLOC_TRIM_THRESHOLD_": str(MIB // 2)}
    with serving(*limits, variables=allocator) as server:
        warm_up(server)
        limit_memory(server, ROOM_FOR_ONE_BYTES)
        yield server


def another_order() -> bytes:
    """64 MiB in Fortran order, for an answer in a format that knows C order alone."""
    return post(npy(torch.full((4 * MIB, 4), 0.6), fortran=True), "op=round", f"Accept: {MSGPACK}")


def chunked() -> bytes:
    """A body that never says how long it will be."""
    return post(b"", chunks=[bytes(MIB)] * 192)


def numbers() -> bytes:
    """A few bytes of text a number, which Python needs ten times the memory for."""
    return post(b'{"x":[' + b",".join([b"0.625"] * 5 * MIB) + b"]}", media_type=JSON)


def inference_numbers() -> bytes:
    """The same in the Open Inference Protocol."""
    count = 5 * MIB
    start = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [count], "data": []}]}).removesuffix("]}]}")
    body = start.encode() + b",".join([b"0.625"] * count) + b"]}]}"
    return post(body, "", path="/v2/models/round/infer", media_type=JSON)


@pytest.mark.parametrize(
    "request_of",
    [
        pytest.param(another_order, id="another order"),
        pytest.param(chunked, id="chunked"),
        pytest.param(numbers, id="json"),
        pytest.param(inference_numbers, id="open inference protocol"),
    ],
)
def test_a_call_that_finds_no_memory_is_told_so(narrow: ServerProcess, request_of: Callable[[], bytes]) -> None:
    with Wire(narrow) as wire:
        wire.send_until_refused(request_of())
        is_out_of_memory(wire.read())
    serves(narrow)


def test_a_caller_who_asks_before_sending_is_told_at_once_and_nothing_else(narrow: ServerProcess) -> None:
    for _ in range(2):  # the second head is known
        with Wire(narrow) as wire:
            is_out_of_memory(wire.ask(post(b"", "op=round", "Expect: 100-continue", length=256 * MIB)))
            wire.half_close()
            assert wire.is_closed()
    serves(narrow)


def test_a_body_without_room_is_refused_before_it_comes(narrow: ServerProcess) -> None:
    head = post(b"", length=256 * MIB)
    for _ in range(2):
        with Wire(narrow) as wire:
            is_out_of_memory(wire.ask(head + bytes(1000)))
    serves(narrow)


def test_a_call_that_fits_is_answered(narrow: ServerProcess) -> None:
    with Wire(narrow) as wire:
        answer = wire.ask(post(BODY))
    assert answer.status == 200
    assert answer.body == ROUNDED


@pytest.mark.parametrize(("form", "media_type"), [("msgpack", MSGPACK), ("safetensors", SAFETENSORS)])
def test_many_small_tensors_need_no_more_memory_than_one(narrow: ServerProcess, form: str, media_type: str) -> None:
    """64 MiB, computed a few tensors at a time where they lie; the second time all else is known."""
    x, y = ([torch.full((MIB // 64,), value)] * 1024 for value in (0.6, 1.0))
    with Wire(narrow) as wire:
        for _ in range(3):
            answer = wire.ask(post(encode(form, {"x": x}), media_type=media_type))
            assert answer.status == 200
            assert answer.body == encode(form, {"y": y})


def test_a_body_in_chunks_that_fits_is_answered(narrow: ServerProcess) -> None:
    body = npy(torch.full((4 * MIB,), 0.6))
    with Wire(narrow) as wire:
        answer = wire.ask(post(b"", chunks=[body[:1000], body[1000:]]))
    assert answer.status == 200
    assert answer.body == npy(torch.ones(4 * MIB))


def is_out_of_memory(answer: Answer) -> None:
    assert answer.status == 503, answer.status  # and not the whole of an answer
    assert answer.code == "out_of_memory"
    assert answer.headers["retry-after"] == "1"


def serves(server: ServerProcess) -> None:
    """It goes on as if nothing had been."""
    assert server.metric("stequant_in_flight_bytes") == 0
    with Wire(server) as wire:
        assert wire.ask(post(SMALL)).body == SMALL_ROUNDED
        assert wire.ask(get("/readyz")).status == 200


# Many at once ---------------------------------------------------------------------------------------------------

CALLERS = 64
ROOM_BYTES = 512 * MIB
# Room for four bodies, as for four bodies with their answers in the kernel's buffers; and more than there is.
FITTING, TOO_LARGE = 4 * len(BODY), 1024 * MIB


def call(server: ServerProcess, statuses: Counter[int]) -> None:
    """One caller, who tries until there is room."""
    request = post(BODY)
    end = time.monotonic() + 150
    while time.monotonic() < end:
        with Wire(server, timeout_s=120) as wire:
            wire.send_until_refused(request)
            answer = wire.read()
        statuses[answer.status] += 1
        if answer.status == 200:
            assert answer.body == ROUNDED
            return
        assert int(answer.headers["retry-after"]) >= 1
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget_bytes", "allowed"), [(FITTING, {200, 429}), (TOO_LARGE, {200, 429, 503})], ids=["fitting", "too large"]
)
def test_more_than_the_memory_holds_is_refused_and_nobody_is_killed(budget_bytes: int, allowed: set[int]) -> None:
    with serving("--max-body-bytes", str(len(BODY)), "--max-in-flight-bytes", str(budget_bytes)) as server:
        warm_up(server)
        idle_bytes, peak_bytes = look_at(server.pid, 0).resident_bytes, 0
        statuses: Counter[int] = Counter()
        limit_memory(server, ROOM_BYTES)
        threads = [threading.Thread(target=call, args=(server, statuses)) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            peak_bytes = max(peak_bytes, look_at(server.pid, 0).resident_bytes)
            time.sleep(0.02)
        print(f"{dict(statuses)}, grown by {(peak_bytes - idle_bytes) / MIB:.0f} MiB")
        assert statuses[200] == CALLERS
        assert statuses.keys() <= allowed
        assert peak_bytes - idle_bytes < ROOM_BYTES
        serves(server)
