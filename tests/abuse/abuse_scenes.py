"""Clients that are slow, that vanish, or that ask without listening.

A scene is played against a server with `IMPATIENT` deadlines; it fails by an assertion. What a client
does is bounded by the deadlines of the server, never by a number of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import chain, cycle

import torch
from abuse_case import SMALL
from http_bodies import npy
from server_process import Answer, ServerProcess, Wire, get, post

Scene = Callable[[ServerProcess], None]

DEADLINE_S = 1.0
BODY_S = 2.0
MIB = 2**20
IMPATIENT = (
    *("--header-timeout-s", str(DEADLINE_S), "--body-idle-timeout-s", str(DEADLINE_S), "--body-timeout-s", str(BODY_S)),
    *("--write-timeout-s", str(DEADLINE_S), "--keep-alive-s", str(DEADLINE_S), "--min-body-bytes-per-s", "1000"),
)
# So long a client goes on before the scene has failed: many times the server's longest deadline.
_PATIENCE_S = 30.0
_PAUSE_S = 0.1

LARGE = npy(torch.full((MIB,), 0.6))
TOO_LATE = (408, "request_timeout")

SCENES: dict[str, Scene] = {}


def scene(claim: str) -> Callable[[Scene], Scene]:
    """Enter a scene into the table under its claim."""

    def enter(play: Scene) -> Scene:
        assert claim not in SCENES, claim
        SCENES[claim] = play
        return play

    return enter


def dribble(wire: Wire, pieces: Iterable[bytes]) -> Answer:
    """Send piece by piece, pausing, until the server answers; then it must close."""
    end = time.monotonic() + _PATIENCE_S
    for piece in pieces:
        assert time.monotonic() < end, "the server would let this go on for ever"
        wire.send_until_refused(piece)
        if not wire.is_silent(_PAUSE_S):
            break
    answer = wire.read()
    assert wire.is_closed(), "an answer, but the connection stays open"
    return answer


def letters(data: bytes) -> Iterator[bytes]:
    """Byte by byte."""
    return (data[at : at + 1] for at in range(len(data)))


def assert_too_late(server: ServerProcess, at_once: bytes, slowly: Iterable[bytes]) -> None:
    """After `at_once`, a client that sends `slowly` is told that it is too slow."""
    with Wire(server) as wire:
        wire.send(at_once)
        answer = dribble(wire, slowly)
        assert (answer.status, answer.code) == TOO_LATE


def assert_well(server: ServerProcess) -> None:
    """The next client is served."""
    with Wire(server) as wire:
        assert wire.ask(post(SMALL)).status == 200


# Slow senders --------------------------------------------------------------------------------------------


@scene("a connection on which nothing comes is closed")
def _silent(server: ServerProcess) -> None:
    with Wire(server) as wire:
        assert wire.is_closed()


@scene("a connection on which nothing more comes is closed")
def _idle(server: ServerProcess) -> None:
    with Wire(server) as wire:
        assert wire.ask(get("/healthz")).status == 200
        assert wire.is_closed()


@scene("a first line that comes letter by letter is too late")
def _slow_line(server: ServerProcess) -> None:
    assert_too_late(server, b"", letters(b"GET /healthz?" + b"a" * 1000))


@scene("headers that come letter by letter are too late")
def _slow_headers(server: ServerProcess) -> None:
    assert_too_late(server, b"GET /healthz HTTP/1.1\r\n", letters(b"X: " + b"a" * 1000))


@scene("headers that come line by line are too late")
def _slow_header_lines(server: ServerProcess) -> None:
    assert_too_late(server, b"GET /healthz HTTP/1.1\r\n", (b"X-%d: 1\r\n" % i for i in range(1000)))


@scene("empty lines in front of a request are too late")
def _slow_empty_lines(server: ServerProcess) -> None:
    assert_too_late(server, b"", cycle([b"\r\n"]))


@scene("a second request that comes letter by letter is too late")
def _slow_second(server: ServerProcess) -> None:
    with Wire(server) as wire:
        assert wire.ask(post(SMALL)).status == 200
        answer = dribble(wire, letters(post(SMALL)))
        assert (answer.status, answer.code) == TOO_LATE


@scene("a body that does not come is too late")
def _no_body(server: ServerProcess) -> None:
    assert_too_late(server, post(SMALL)[: -len(SMALL)], [b""] * 1000)


@scene("a body that stops half way is too late")
def _half_a_body(server: ServerProcess) -> None:
    assert_too_late(server, post(LARGE)[:-MIB], [b""] * 1000)


@scene("a body that comes letter by letter is too late")
def _slow_body(server: ServerProcess) -> None:
    assert_too_late(server, post(LARGE)[:-MIB], letters(LARGE[-MIB:]))


@scene("a body that was to be continued and is not is too late")
def _expected(server: ServerProcess) -> None:
    with Wire(server) as wire:
        request = post(SMALL, "op=round", "Expect: 100-continue")
        assert wire.ask(request[: -len(SMALL)]).status == 100
        answer = dribble(wire, [b""] * 1000)
        assert (answer.status, answer.code) == TOO_LATE


@scene("a body of a probe that comes letter by letter ends with its connection")
def _slow_probe(server: ServerProcess) -> None:
    with Wire(server) as wire:
        assert wire.ask(get("/healthz", "Content-Length: 100000")).status == 200
        end = time.monotonic() + _PATIENCE_S
        while wire.is_silent(_PAUSE_S):
            assert time.monotonic() < end, "the server would let this go on for ever"
            wire.send_until_refused(b"a")


CHUNKED = post(b"", chunks=[])[: -len(b"0\r\n\r\n")]


@scene("chunks that do not come are too late")
def _no_chunks(server: ServerProcess) -> None:
    assert_too_late(server, CHUNKED, [b""] * 1000)


@scene("chunks of one byte that come slowly are too late")
def _slow_chunks(server: ServerProcess) -> None:
    assert_too_late(server, CHUNKED, cycle([b"1\r\n\x93\r\n"]))


@scene("a chunk of 100 GiB that comes slowly is too late")
def _slow_chunk(server: ServerProcess) -> None:
    assert_too_late(server, CHUNKED + b"1900000000\r\n", cycle([b"a"]))


@scene("extensions of a chunk that come slowly are too late")
def _slow_chunk_extensions(server: ServerProcess) -> None:
    assert_too_late(server, CHUNKED, chain([b"1"], cycle([b";a=b"])))


@scene("trailers that come line by line are too late")
def _slow_trailers(server: ServerProcess) -> None:
    assert_too_late(server, CHUNKED + b"%x\r\n%b\r\n0\r\n" % (len(SMALL), SMALL), cycle([b"X: 1\r\n"]))


@scene("a refused client that sends on slowly is let go")
def _refused_and_slow(server: ServerProcess) -> None:
    with Wire(server) as wire:
        answer = wire.ask(post(b"", length=300 * MIB))
        assert (answer.status, answer.code) == (413, "body_too_large")
        end = time.monotonic() + _PATIENCE_S
        while not wire.is_closed(_PAUSE_S):
            assert time.monotonic() < end, "the server would let this go on for ever"
            wire.send_until_refused(b"a")


# Clients that do not listen --------------------------------------------------------------------------------


@scene("a client that does not read its answer is cut off")
def _deaf(server: ServerProcess) -> None:
    # Made before the connection is: its head has to come in time. What the kernel takes of an answer is 4 MiB at most.
    call = post(npy(torch.zeros(2 * MIB)))
    with Wire(server, receive_buffer_bytes=4096) as wire:
        wire.send(call)
        time.sleep(3 * DEADLINE_S)
        try:
            wire.read()
        except (ConnectionError, AssertionError):
            return
        raise AssertionError("it got its whole answer, deadline or not")


@scene("a client that calls again and again and never reads is cut off")
def _flood(server: ServerProcess) -> None:
    call = post(npy(torch.zeros(MIB // 16)))
    with Wire(server, receive_buffer_bytes=4096) as wire:
        try:
            for _ in range(1000):
                wire.send(call)
        except (ConnectionResetError, BrokenPipeError):
            return
        raise AssertionError("250 MiB were taken of a client that takes nothing")


@scene("100 000 probes at once on one connection are answered as far as they may wait")
def _probes(server: ServerProcess) -> None:
    with Wire(server) as wire:
        wire.send_until_refused(get("/healthz") * 100_000)
        while (answer := wire.read()).status == 200:
            pass
        assert (answer.status, answer.code) == (429, "overloaded")
        assert wire.is_closed()


@scene("2 000 calls at once on one connection are answered as far as they may wait")
def _pipelined(server: ServerProcess) -> None:
    with Wire(server) as wire:
        wire.send_until_refused(get("/operators") + post(SMALL) * 2000)
        while (answer := wire.read()).status == 200:
            pass
        assert (answer.status, answer.code) == (429, "overloaded")
        assert wire.is_closed()


@scene("500 connections that are opened and reset do no harm")
def _knocks(server: ServerProcess) -> None:
    for _ in range(500):
        with Wire(server) as wire:
            wire.reset()
    assert_well(server)


@scene("300 half requests at once keep nobody waiting")
def _half_open(server: ServerProcess) -> None:
    with ExitStack() as stack:
        for i in range(300):
            wire = stack.enter_context(Wire(server))
            wire.send_until_refused(post(LARGE)[: 100 + i])
        assert_well(server)


@scene("a client that resets while its call is computed does no harm")
def _gone_while_computed(server: ServerProcess) -> None:
    for _ in range(5):
        with Wire(server) as wire:
            wire.send(post(LARGE * 4, "op=clamp_by_linear"))
            wire.reset()
    assert_well(server)


@scene("a client that resets in the middle of its answer does no harm")
def _gone_while_answered(server: ServerProcess) -> None:
    for _ in range(5):
        with Wire(server, receive_buffer_bytes=4096) as wire:
            wire.send(post(LARGE * 4))
            assert wire.socket.recv(100)
            wire.reset()
    assert_well(server)


# Disconnects at every stage --------------------------------------------------------------------------------

_REQUESTS = {
    "a small call": post(SMALL),
    "a large call": post(LARGE),
    "a call in chunks": post(SMALL, chunks=[SMALL[:50], SMALL[50:]]),
    "a call of JSON": post(b'{"x": [0.6, -0.4]}', media_type="application/json"),
    "a probe": get("/healthz"),
    "two calls": post(SMALL) * 2,
}
_STAGES = {
    "within the first line": 9,
    "behind the first line": 36,
    "within the headers": 60,
    "at the end of the headers": None,
    "one byte into the body": None,
    "one byte before the end": -1,
    "at the end": 0,
}


def _cut(request: bytes, stage: str) -> bytes:
    at = _STAGES[stage]
    if at is None:
        at = request.index(b"\r\n\r\n") + 4 + (stage == "one byte into the body")
    return request[:at] if at else request


def _vanishing(part: bytes, *, politely: bool) -> Scene:
    def play(server: ServerProcess) -> None:
        with Wire(server) as wire:
            wire.send(part)
            if politely:
                wire.socket.close()
            else:
                wire.reset()
        assert_well(server)

    return play


for _what, _request in _REQUESTS.items():
    for _stage in _STAGES:
        scene(f"{_what} whose client closes {_stage} does no harm")(_vanishing(_cut(_request, _stage), politely=True))
        scene(f"{_what} whose client resets {_stage} does no harm")(_vanishing(_cut(_request, _stage), politely=False))
