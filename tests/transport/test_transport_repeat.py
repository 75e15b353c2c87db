"""Calls that repeat another, answered in the memory they came in: the same bytes as ever, and nothing of one in another."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from http_app import running
from http_bodies import MEDIA_TYPES, encode, npy
from server_process import Answer, ServerProcess, Wire, eventually, get, post, serving
from tls_server import TlsWire, authority, tls_serving
from uvicorn.config import Config
from uvicorn.server import ServerState

from service.transport.answer_head import AnswerHeads
from service.transport.at_once import AtOnce
from service.transport.connection import Connection
from service.transport.repeat import Repeat
from service.transport.scratch import Scratch

CHAIN = "op=clamp(0,1)|k_bit_quantize(4)"
# The first call teaches the head, the second the body.
TO_LEARN = 2
# Up to here a call is answered where it came in.
BORROWED_BYTES = 192 * 1024


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving("--body-idle-timeout-s", "2", "--write-timeout-s", "2") as running_server:
        yield running_server


def repeats(server: ServerProcess) -> float:
    return server.metric("stequant_repeated_calls_total")


def values(count: int, turn: int = 0) -> torch.Tensor:
    return torch.linspace(-1, 2, max(count, 2))[:count].roll(turn)


def quantized(x: torch.Tensor) -> bytes:
    return npy(torch.round(x.clamp(0, 1) * 15) / 15)


def taught(wire: Wire, request: bytes) -> None:
    for _ in range(TO_LEARN):
        assert wire.ask(request).status == 200


# Bits -------------------------------------------------------------------------------------------------------

EDGES = sorted({1, 2, 1023, 1024, 1025, *((BORROWED_BYTES + offset) // 4 for offset in (-132, -128, -124, 0, 4))})


@pytest.mark.parametrize("count", EDGES)
def test_every_size_around_a_boundary(server: ServerProcess, count: int) -> None:
    with Wire(server) as wire:
        for turn in range(TO_LEARN + 3):
            x = values(count, turn)
            assert wire.ask(post(npy(x), CHAIN)).body == quantized(x), turn


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("form", ["npy", "msgpack", "safetensors"])
def test_values_and_gradients_in_every_format(server: ServerProcess, form: str, dtype: torch.dtype) -> None:
    def encoded(message: dict[str, torch.Tensor]) -> bytes:
        return npy(*message.values()) if form == "npy" else encode(form, message)

    before = repeats(server)
    with Wire(server) as wire:
        for turn in range(TO_LEARN + 3):
            x, grad_output = values(500, turn).to(dtype), values(500, turn + 100).to(dtype)
            answer = wire.ask(post(encoded({"x": x}), "op=clamp(0,1)", media_type=MEDIA_TYPES[form]))
            assert answer.body == encoded({"y": x.clamp(0, 1)})
            for op, expected in (
                ("round", grad_output),
                ("clamp(0,1)", torch.where((x >= 0) & (x <= 1), grad_output, torch.zeros((), dtype=dtype))),
            ):
                pair = encoded({"x": x, "grad_output": grad_output})
                answer = wire.ask(post(pair, f"op={op}", path="/grad", media_type=MEDIA_TYPES[form]))
                assert answer.headers["content-type"] == MEDIA_TYPES[form]
                assert answer.body == encoded({"grad_x": expected})
    assert repeats(server) >= before + 9, "the last three calls of each kind repeat"


def test_two_connections_with_the_same_head_and_other_bodies(server: ServerProcess) -> None:
    shapes = [values(60).reshape(6, 10), values(60).reshape(10, 6), values(60).reshape(2, 30)]
    with Wire(server) as one, Wire(server) as other:
        for turn in range(4 * len(shapes)):
            x = shapes[turn % len(shapes)] + turn / 100
            assert one.ask(post(npy(x), CHAIN)).body == quantized(x)
            y = shapes[0] - turn / 100
            assert other.ask(post(npy(y), CHAIN)).body == quantized(y)


def test_headers_are_those_of_any_answer(server: ServerProcess) -> None:
    with Wire(server) as wire:
        answers = [wire.ask(post(npy(values(10)), CHAIN)) for _ in range(TO_LEARN + 3)]
        named = [wire.ask(post(npy(values(10)), CHAIN, "X-Request-Id: mine")) for _ in range(TO_LEARN + 3)]
    assert len({tuple(answer.headers) for answer in answers}) == 1, "the same headers, in the same order"
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)
    assert all(re.fullmatch(r"compute;dur=\d+\.\d{3}", answer.headers["server-timing"]) for answer in answers[TO_LEARN:])
    assert {answer.headers["x-request-id"] for answer in named} == {"mine"}
    assert all(int(answer.headers["content-length"]) == len(answer.body) for answer in answers)


def test_they_are_counted_like_others(server: ServerProcess) -> None:
    def counted() -> tuple[float, float, float]:
        labels = {"route": "/quantize", "operator": "ceil", "format": "npy", "status": "200"}
        return (
            server.metric("stequant_requests_total", **labels),
            server.metric("stequant_received_bytes_total", route="/quantize"),
            server.metric("stequant_stage_seconds_count", route="/quantize", stage="compute"),
        )

    body = npy(values(100))
    with Wire(server) as wire:
        taught(wire, post(body, "op=ceil"))
        requests, received, stages = counted()
        again = repeats(server)
        for _ in range(10):
            wire.ask(post(body, "op=ceil"))
    assert repeats(server) == again + 10
    assert counted() == (requests + 10, received + 10 * len(body), stages + 10)


def test_a_refused_call_between_others_teaches_nothing(server: ServerProcess) -> None:
    labels = {"route": "/quantize", "operator": "floor", "format": "npy", "status": "200"}
    body = npy(values(77))
    with Wire(server) as wire:
        wire.ask(post(body, "op=floor"))
        wire.ask(post(body, "op=floor"))
        for _ in range(3):
            assert wire.ask(post(b"\0" + body[1:], "op=floor")).status == 400
            assert wire.ask(post(body, "op=floor")).status == 200
    assert server.metric("stequant_requests_total", **labels) == 5
    assert server.metric("stequant_requests_total", **(labels | {"status": "400"})) == 3


# What comes in pieces, or too early ---------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 50, 1000])
def test_repeated_calls_in_pieces(server: ServerProcess, step: int) -> None:
    with Wire(server) as wire:
        for turn in range(TO_LEARN + 3):
            x = values(100 if step == 1 else 5000, turn)
            request = post(npy(x), CHAIN)
            for at in range(0, len(request), step):
                wire.send(request[at : at + step])
            assert wire.read().body == quantized(x)
            x = x.flip(0)
            assert wire.ask(post(npy(x), CHAIN)).body == quantized(x)


def test_pipelined_calls_are_answered_in_order(server: ServerProcess) -> None:
    with Wire(server) as wire:
        xs = [values(1000, turn) for turn in range(12)]
        taught(wire, post(npy(xs[0]), CHAIN))
        for start in range(0, len(xs), 4):
            wire.send(b"".join(post(npy(x), CHAIN) for x in xs[start : start + 4]))
            for x in xs[start : start + 4]:
                assert wire.read().body == quantized(x)


def test_a_call_does_not_overtake_an_answer_that_has_not_left(server: ServerProcess) -> None:
    """The document is larger than what a small receive buffer takes, so that it leaves slowly."""
    x = values(1000)
    with Wire(server, receive_buffer_bytes=4096) as wire:
        taught(wire, post(npy(x), CHAIN))
        wire.send(get("/openapi.json") * 8)
        wire.send(post(npy(x), CHAIN))
        for _ in range(8):
            assert json.loads(wire.read().body)["openapi"]
        assert wire.read().body == quantized(x)


def test_a_reader_who_begins_late_gets_every_answer(server: ServerProcess) -> None:
    """More answers than the kernel holds: the rest of one stays with the transport, while others use the scratch buffer."""
    count = 16_000

    def in_flight() -> bool:
        return server.metric("stequant_in_flight_bytes") > 0

    with Wire(server, receive_buffer_bytes=4096) as wire, Wire(server) as other:
        taught(wire, post(npy(values(count)), CHAIN))
        sent = []
        has_left = True
        while has_left:  # one at a time: calls that come together go the long way
            before = repeats(server)
            sent.append(values(count, len(sent)))
            wire.send(post(npy(sent[-1]), CHAIN))
            eventually(lambda before=before: repeats(server) > before or in_flight(), "the call has come")  # type: ignore[misc]
            has_left = repeats(server) > before
            assert len(sent) < 500
        for _ in range(3):
            assert other.ask(post(npy(values(BORROWED_BYTES // 4 - 64)), "op=ceil")).status == 200
        for x in sent:
            assert wire.read().body == quantized(x)


def test_nothing_is_written_past_what_the_transport_has_not_sent_nor_to_a_connection_that_has_gone() -> None:
    class Transport(asyncio.Transport):
        unsent_bytes = 0

        def get_write_buffer_size(self) -> int:
            return self.unsent_bytes

    with socket.socket() as sock:
        transport = Transport({"socket": sock})
        core: Any = SimpleNamespace(passes=lambda _: True)
        known: Any = SimpleNamespace(length=10)
        at_once = AtOnce(core, Scratch(), AnswerHeads(ServerState()))
        at_once.begin(transport)
        assert at_once.may_answer(known)
        transport.unsent_bytes = 1
        assert not at_once.may_answer(known)
        transport.unsent_bytes = 0
        at_once.end()
        assert not at_once.may_answer(known)


def test_a_caller_who_leaves_harms_no_other(server: ServerProcess) -> None:
    x = values(40_000)
    with Wire(server) as other:
        taught(other, post(npy(x), CHAIN))
        for _ in range(20):
            with Wire(server) as wire:
                taught(wire, post(npy(x), CHAIN))
                wire.send(post(npy(x), CHAIN) * 3)
                wire.reset()
            assert other.ask(post(npy(x), CHAIN)).body == quantized(x)
    assert server.metric("stequant_in_flight_bytes") == 0


def test_the_last_call_before_the_end_of_sending_is_answered(server: ServerProcess) -> None:
    x = values(100)
    with Wire(server) as wire:
        taught(wire, post(npy(x), CHAIN))
        wire.send(post(npy(x), CHAIN))
        wire.half_close()
        assert wire.read().body == quantized(x)
        assert wire.is_closed()


# Where it must not happen -------------------------------------------------------------------------------------


def test_limits_hold_for_repeated_calls() -> None:
    body = npy(values(1000))
    with serving("--max-in-flight-bytes", str(len(body) + 100), "--max-body-bytes", str(len(body))) as small, Wire(small) as wire:
        taught(wire, post(body, CHAIN))
        with Wire(small) as other:
            other.send(post(body, CHAIN)[:-1])
            # A call that is on its way has the budget: until it has come to its end there is no room.
            refused = wire.ask(post(body, CHAIN))
            for _ in range(1000):
                if refused.status != 200:
                    break
                refused = wire.ask(post(body, CHAIN))
            assert (refused.status, refused.code) == (429, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1
            other.send(body[-1:])
            assert other.read().status == 200
        assert wire.ask(post(body, CHAIN)).status == 200


def test_a_key_that_was_taken_back_opens_no_more(tmp_path_factory: pytest.TempPathFactory) -> None:
    import signal

    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("old-key-0123456789abcdef\n")
    request = post(npy(values(10)), CHAIN, "Authorization: Bearer old-key-0123456789abcdef")
    with serving("--api-keys-file", str(keys), "--metrics-without-key", "true") as guarded, Wire(guarded) as wire:
        taught(wire, request)
        keys.write_text("new-key-0123456789abcdef\n")
        guarded.process.send_signal(signal.SIGHUP)

        def refused() -> Answer | None:
            answer = wire.ask(request)
            return answer if answer.status != 200 else None

        assert eventually(refused, "the old key is refused").code == "unauthorized"


def test_calls_with_a_deadline_of_their_own_go_the_long_way(server: ServerProcess) -> None:
    before = repeats(server)
    with Wire(server) as wire:
        for _ in range(TO_LEARN + 3):
            assert wire.ask(post(npy(values(10)), CHAIN, "X-Request-Timeout: 5")).status == 200
    assert repeats(server) == before


def test_what_is_encrypted_is_never_written_past_the_encryption(tmp_path_factory: pytest.TempPathFactory) -> None:
    who = authority(tmp_path_factory.mktemp("tls"))
    x = values(1000)
    with tls_serving(who) as encrypted, TlsWire(encrypted, who.trust()) as wire:
        for _ in range(TO_LEARN + 3):
            assert wire.ask(post(npy(x), CHAIN)).body == quantized(x)
        assert b"stequant_repeated_calls_total 0.0" in wire.ask(get("/metrics")).body


# What goes wrong ----------------------------------------------------------------------------------------------


def test_a_call_that_cannot_be_computed_is_answered_and_the_next_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, as nothing makes a real one fail."""
    request = post(npy(values(100)), CHAIN)
    made: list[Repeat] = []
    initialize = Repeat.__init__

    def remember(self: Repeat, *arguments: object) -> None:
        initialize(self, *arguments)  # type: ignore[arg-type]
        made.append(self)

    monkeypatch.setattr(Repeat, "__init__", remember)

    async def exchanges() -> list[bytes]:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        async with running() as app:
            config = Config(app, log_config=None)
            config.load()
            core = app.state.core
            await loop.connect_accepted_socket(lambda: Connection(config, ServerState(), {"core": core}), theirs)

            async def ask() -> bytes:
                await loop.sock_sendall(ours, request)
                answer = b""
                while not (found := re.search(rb"content-length: (\d+)\r\n", answer)) or len(answer) < answer.index(
                    b"\r\n\r\n"
                ) + 4 + int(found[1]):
                    answer += await loop.sock_recv(ours, 65536)
                return answer

            answers = [await ask() for _ in range(TO_LEARN + 1)]
            assert core.repeated_calls == 1
            compute, made[-1].compute = made[-1].compute, lambda: 1 / 0
            answers.append(await ask())
            made[-1].compute = compute
            answers.append(await ask())
            assert core.repeated_calls == 2
            assert core.budget.in_flight_bytes == 0
            ours.close()
        return answers

    *_, failed, after = asyncio.run(exchanges())
    assert failed.startswith(b"HTTP/1.1 500 ")
    assert b'"code":"internal_error"' in failed
    assert after.endswith(quantized(values(100)))
