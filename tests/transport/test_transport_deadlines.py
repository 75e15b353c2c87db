"""Slow, silent, greedy and vanishing callers: each costs the server a bounded time and nothing else."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from http_bodies import npy
from server_process import ServerProcess, Wire, eventually, get, post, serving

MIB = 2**20
SMALL, ROUNDED = npy(torch.tensor([0.6, -0.4])), npy(torch.tensor([1.0, -0.0]))
# A body that fills the whole budget: while a byte of another is in flight, it is refused.
FULL = npy(torch.full((4 * MIB - 32,), 0.6))
LIMIT_BYTES = len(FULL)
SLOW_CHAIN = "op=" + "%7C".join(["step_quantize(0.1)"] * 32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A hasty server, with room for one body of 16 MiB."""
    limits = {"MAX_BODY_BYTES": LIMIT_BYTES, "MAX_IN_FLIGHT_BYTES": LIMIT_BYTES}
    times = {"HEADER_TIMEOUT_S": 0.5, "BODY_IDLE_TIMEOUT_S": 0.5, "BODY_TIMEOUT_S": 1.5, "WRITE_TIMEOUT_S": 0.5, "KEEP_ALIVE_S": 1}
    variables = {f"STEQUANT_{name}": str(value) for name, value in (limits | times).items()}
    with serving(variables=variables) as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_stays_behind(server: ServerProcess) -> Iterator[None]:
    """After every test the whole budget is free, and the server answers."""
    yield

    def free() -> bool:
        with Wire(server) as wire:
            answer = wire.ask(post(FULL))
        assert answer.status in (200, 429), answer
        return answer.status == 200

    eventually(free, "the whole budget is free", 10)
    assert server.metric("stequant_in_flight_bytes") == 0
    assert server.metric("stequant_requests_total", status="500") == 0


def budget_is_taken(server: ServerProcess) -> bool:
    """Whether a body of full size is refused, before it is sent."""
    head = post(b"", length=LIMIT_BYTES).replace(b"Host", b"Expect: 100-continue\r\nHost")
    with Wire(server) as wire:
        return wire.ask(head).status == 429


# Slow senders --------------------------------------------------------------------------------------------


def closed_or_408(wire: Wire, patience_s: float = 5) -> bool:
    """Whether the connection ends in time, with a 408 or without a word."""
    readable, _, _ = select.select([wire.socket], [], [], patience_s)
    if not readable:
        return False
    try:
        answer = wire.read()
    except ConnectionError:
        return True
    assert (answer.status, answer.code) == (408, "request_timeout")
    assert answer.headers["connection"] == "close"
    return wire.is_closed()


@pytest.mark.parametrize(
    "part", [b"", b"P", b"POST /quantize?op=round HTTP/1.1\r\nHost: a\r\nX-Slow: ", post(SMALL).partition(b"\r\n\r\n")[0]]
)
def test_a_head_that_does_not_come_ends_the_connection(server: ServerProcess, part: bytes) -> None:
    with Wire(server) as wire:
        wire.send(part)
        began = time.monotonic()
        assert closed_or_408(wire)
        assert time.monotonic() - began < 3


def test_a_head_that_trickles_ends_the_connection(server: ServerProcess) -> None:
    """A byte now and then does not keep it open."""
    with Wire(server) as wire:
        wire.send(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
        began = time.monotonic()
        while wire.is_silent(0.1):
            assert time.monotonic() - began < 5
            wire.send_until_refused(b"a")
        assert closed_or_408(wire)


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
def test_a_body_that_stops_is_answered_with_408(server: ServerProcess, chunked: bool) -> None:
    request = post(SMALL, chunks=[SMALL] if chunked else None)
    with Wire(server) as wire:
        wire.send(request[:-20])
        began = time.monotonic()
        answer = wire.read()
        assert (answer.status, answer.code) == (408, "request_timeout")
        assert "0.5" in answer.body.decode()
        assert 0.2 < time.monotonic() - began < 3  # times are counted in steps of 0.25 s
        assert wire.is_closed()


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
def test_a_body_that_trickles_has_a_deadline_in_all(server: ServerProcess, chunked: bool) -> None:
    body = npy(torch.zeros(1000))
    head, _, rest = post(body, chunks=[body[i : i + 1] for i in range(len(body))] if chunked else None).partition(b"\r\n\r\n")
    with Wire(server) as wire:
        wire.send(head + b"\r\n\r\n")
        began = time.monotonic()
        for start in range(0, len(rest), 6):
            if not wire.is_silent(0.1):
                break
            wire.send_until_refused(rest[start : start + 6])
        answer = wire.read()
        assert (answer.status, answer.code) == (408, "request_timeout")
        assert 1 < time.monotonic() - began < 5


def test_a_body_with_pauses_within_the_limit_is_read(server: ServerProcess) -> None:
    request = post(SMALL)
    with Wire(server) as wire:
        for start in range(0, len(request), len(request) // 4 + 1):
            wire.send(request[start : start + len(request) // 4 + 1])
            wire.is_silent(0.15)
        assert wire.read().body == ROUNDED


def test_an_idle_connection_is_kept_for_a_while_and_then_closed(server: ServerProcess) -> None:
    with Wire(server) as wire:
        assert wire.ask(get("/healthz")).status == 200
        assert wire.is_silent(0.6)  # longer than headers may take
        assert wire.ask(post(SMALL)).body == ROUNDED
        began = time.monotonic()
        assert wire.is_closed(5)
        assert 0.7 < time.monotonic() - began < 3


def test_other_callers_do_not_notice_hundreds_of_silent_ones(server: ServerProcess) -> None:
    silent = [Wire(server) for _ in range(200)]
    try:
        with Wire(server) as wire:
            for _ in range(20):
                assert wire.ask(post(SMALL)).body == ROUNDED
        for one in silent:
            assert one.is_closed(5)
    finally:
        for one in silent:
            one.socket.close()


# Slow readers ----------------------------------------------------------------------------------------------


def test_a_reader_that_does_not_read_is_cut(server: ServerProcess) -> None:
    with Wire(server, receive_buffer_bytes=4096) as wire:
        wire.send(post(FULL))
        # Its answer cannot leave; the fixture sees that its bytes are free again, in time.
        eventually(lambda: not budget_is_taken(server), "the reader is cut", 10)
        received = 0
        try:
            while data := wire.socket.recv(MIB):
                received += len(data)
        except ConnectionResetError:
            pass
        assert received < LIMIT_BYTES


def test_a_reader_that_reads_slowly_gets_everything(server: ServerProcess) -> None:
    """The limit is on a time in which nothing is taken, not on the whole."""
    with Wire(server, receive_buffer_bytes=16_384) as wire:
        wire.send(post(FULL))
        began = time.monotonic()
        received = bytearray()
        while len(received) < LIMIT_BYTES:
            piece = wire.socket.recv(MIB)
            assert piece, f"cut after {len(received)} bytes"
            received += piece
            if time.monotonic() - began < 1.5:
                time.sleep(0.1)  # slow is what is tested
        assert received.startswith(b"HTTP/1.1 200")


# Refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "length", "status"),
    [("op=nothing", LIMIT_BYTES, 422), ("op=round", 2 * LIMIT_BYTES, 413), ("op=round", LIMIT_BYTES + 1, 413)],
)
def test_a_caller_that_sends_everything_first_sees_the_refusal(server: ServerProcess, query: str, length: int, status: int) -> None:
    """The answer is written at once; closing at once would reset the connection before it is read."""
    with Wire(server) as wire:
        wire.send(post(bytes(length), query))
        answer = wire.read()
        assert answer.status == status
        assert answer.code
        assert wire.is_closed()


def test_a_chunked_body_over_the_limit_is_refused_while_it_comes(server: ServerProcess) -> None:
    chunk = bytes(MIB)
    with Wire(server) as wire:
        wire.send(post(b"", chunks=[chunk]).removesuffix(b"0\r\n\r\n"))
        for _ in range(40):
            wire.send_until_refused(b"%x\r\n%b\r\n" % (MIB, chunk))
        answer = wire.read()
        assert (answer.status, answer.code) == (413, "body_too_large")


def test_what_is_too_much_at_once_is_refused_until_there_is_room(server: ServerProcess) -> None:
    with Wire(server) as first, Wire(server) as second:
        request = post(FULL)
        first.send(request[: 2 * MIB])
        eventually(lambda: budget_is_taken(server), "the first call is admitted")
        answer = second.ask(post(SMALL))
        assert (answer.status, answer.code) == (429, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        assert second.ask(get("/healthz")).status == 200
        first.send(request[2 * MIB :])
        assert first.read().status == 200
        # The connection that was refused is still good.
        assert eventually(lambda: (one := second.ask(post(SMALL))).status == 200 and one, "there is room").body == ROUNDED


# Callers that vanish ---------------------------------------------------------------------------------------


def vanish(wire: Wire, how: str) -> None:
    """End a connection, politely or not."""
    if how == "reset":
        wire.reset()
    else:
        wire.socket.close()


both_ways = pytest.mark.parametrize("how", ["close", "reset"])


@both_ways
@pytest.mark.parametrize("sent_bytes", [0, 1, 50, 140, 1000, MIB, LIMIT_BYTES])
def test_a_caller_may_vanish_anywhere_in_a_request(server: ServerProcess, sent_bytes: int, how: str) -> None:
    """In its head, after it, at any place in its body."""
    with Wire(server) as wire:
        wire.send(post(FULL)[:sent_bytes])
        vanish(wire, how)


@both_ways
def test_a_caller_may_vanish_within_chunks(server: ServerProcess, how: str) -> None:
    with Wire(server) as wire:
        wire.send(post(b"", chunks=[bytes(MIB)] * 3)[: 2 * MIB])
        eventually(lambda: budget_is_taken(server), "the chunks are counted")
        vanish(wire, how)


@both_ways
def test_a_caller_may_vanish_while_its_call_is_computed(server: ServerProcess, how: str) -> None:
    with Wire(server) as wire:
        wire.send(post(FULL, SLOW_CHAIN))
        assert wire.is_silent(0)
        vanish(wire, how)


@both_ways
def test_a_caller_may_vanish_in_the_middle_of_its_answer(server: ServerProcess, how: str) -> None:
    with Wire(server, receive_buffer_bytes=4096) as wire:
        wire.send(post(FULL))
        assert wire.socket.recv(1000).startswith(b"HTTP/1.1 200")
        vanish(wire, how)


@both_ways
def test_a_caller_may_vanish_with_a_pipeline_behind_it(server: ServerProcess, how: str) -> None:
    half = npy(torch.full((MIB,), 0.6))
    with Wire(server) as wire:
        # Whoever sends on without reading an answer of this size may be cut before he vanishes.
        wire.send_until_refused(post(half, SLOW_CHAIN) + post(half, SLOW_CHAIN) + post(half)[:MIB])
        vanish(wire, how)


def test_many_callers_may_vanish_at_once(server: ServerProcess) -> None:
    body = post(npy(torch.ones(100_000)))

    def caller(number: int) -> None:
        with Wire(server) as wire:
            wire.send(body[: (number + 1) * len(body) // 40])
            if number % 2:
                wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# The log, as text ------------------------------------------------------------------------------------------


def test_no_request_can_forge_a_line_of_the_text_log(server: ServerProcess) -> None:
    mark = "forged-by-a-test"
    with Wire(server) as wire:
        assert wire.ask(get(f"/{mark}%0D%0A2026-01-01T00:00:00Z ERROR %1B[31m%E2%80%A8%C2%85".replace(" ", "%20"))).status == 404
    line = eventually(lambda: next((line for line in list(server.lines) if mark in line), None), "the request is logged")
    assert line.isprintable()
    assert " 404 " in line
    assert "\\r\\n2026-01-01" in line
    assert not [one for one in list(server.lines) if one.startswith("2026-01-01T00:00:00Z ERROR")]
