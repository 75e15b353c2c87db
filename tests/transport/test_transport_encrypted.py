"""The transport under TLS: pieces in their order, a protocol that is paused and resumed, an end that loses nothing.

Beneath it is a scripted one, which takes as much at a time as a test says.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from service.transport.encrypted import PacedTransport

PIECE_BYTES = 256 * 1024


class Below(asyncio.Transport):
    """A TLS transport that keeps data back once it has taken `room_bytes`, and says so as uvloop's does."""

    def __init__(self, room_bytes: float = math.inf) -> None:
        super().__init__()
        self.room_bytes = room_bytes
        self.written: list[bytes] = []
        self.limits: tuple[int | None, int | None] | None = None
        self.is_closed = self.is_aborted = False
        self.above: PacedTransport | None = None
        self._kept_bytes = 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.limits = high, low

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert self._kept_bytes == 0
        self.written.append(bytes(data))
        self.room_bytes -= len(data)
        if self.room_bytes < 0:
            self._kept_bytes = len(data)
            assert self.above is not None
            self.above.wait()

    def make_room(self, nbytes: float = math.inf) -> None:
        """What was kept leaves."""
        self.room_bytes, self._kept_bytes = nbytes, 0
        assert self.above is not None
        self.above.go_on()

    def get_write_buffer_size(self) -> int:
        return self._kept_bytes

    def is_closing(self) -> bool:
        return self.is_closed or self.is_aborted

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_aborted = True


class Protocol(asyncio.BufferedProtocol):
    """Notes how often it is paused and resumed."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")


def stack(room_bytes: float = math.inf) -> tuple[PacedTransport, Below, Protocol]:
    below, protocol = Below(room_bytes), Protocol()
    below.above = transport = PacedTransport(below, protocol)
    return transport, below, protocol


def on_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def rounds(count: int = 1) -> None:
    """Let the loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)


@on_a_loop
async def test_a_small_answer_is_handed_on_at_once() -> None:
    transport, below, protocol = stack()
    transport.write(b"head")
    transport.writelines((b"", b"head", memoryview(b"body")))
    assert below.written == [b"head", b"head", b"body"]
    assert transport.get_write_buffer_size() == 0
    assert protocol.events == []
    assert below.limits == (1, None)


@on_a_loop
async def test_a_large_answer_is_handed_on_a_piece_each_round_and_then_the_protocol_resumes() -> None:
    transport, below, protocol = stack()
    answer = bytes(range(256)) * 4000
    transport.writelines((b"head", memoryview(answer)))
    assert sum(map(len, below.written)) == PIECE_BYTES
    assert transport.get_write_buffer_size() == 4 + len(answer) - PIECE_BYTES
    assert protocol.events == ["pause"]
    for round_ in range(2, 5):
        await rounds()
        assert sum(map(len, below.written)) == min(round_ * PIECE_BYTES, 4 + len(answer))
    assert b"".join(below.written) == b"head" + answer
    assert protocol.events == ["pause", "resume"]
    assert transport.get_write_buffer_size() == 0


@on_a_loop
async def test_nothing_is_handed_on_while_there_is_no_room() -> None:
    transport, below, protocol = stack(room_bytes=0)
    answer = bytes(3 * PIECE_BYTES)
    transport.write(answer)
    transport.write(b"next")
    await rounds(5)
    assert len(below.written) == 1
    assert transport.get_write_buffer_size() == len(answer) + 4
    below.make_room(0)
    await rounds(5)
    assert len(below.written) == 2
    assert protocol.events == ["pause"]
    below.make_room()
    await rounds(5)
    assert b"".join(below.written) == answer + b"next"
    assert protocol.events == ["pause", "resume"]


@on_a_loop
async def test_the_protocol_resumes_only_when_the_last_piece_has_left() -> None:
    transport, below, protocol = stack(room_bytes=0)
    transport.write(b"only")
    await rounds(3)
    assert protocol.events == ["pause"]
    below.make_room()
    assert protocol.events == ["pause", "resume"]


@on_a_loop
async def test_closing_waits_for_what_was_kept_and_takes_no_more() -> None:
    transport, below, _ = stack(room_bytes=0)
    answer = bytes(2 * PIECE_BYTES)
    transport.write(answer)
    transport.close()
    transport.write(b"too late")
    assert transport.is_closing()
    assert not below.is_closed
    below.make_room()
    await rounds(3)
    assert b"".join(below.written) == answer
    assert below.is_closed


@on_a_loop
async def test_with_nothing_kept_closing_is_at_once() -> None:
    transport, below, _ = stack()
    transport.close()
    assert below.is_closed


@on_a_loop
async def test_aborting_does_not_wait() -> None:
    transport, below, _ = stack(room_bytes=0)
    transport.write(bytes(2 * PIECE_BYTES))
    transport.abort()
    assert below.is_aborted


@on_a_loop
async def test_a_connection_that_is_lost_holds_on_to_nothing_and_takes_everything_that_is_done_to_it() -> None:
    transport, below, protocol = stack()
    transport.write(bytes(2 * PIECE_BYTES))
    transport.lost()
    await rounds(3)
    assert len(below.written) == 1
    assert protocol.events == ["pause"]
    assert transport.is_closing()
    assert transport.get_write_buffer_size() == 0
    assert transport.get_extra_info("socket") is None
    assert not transport.is_reading()
    for use in (transport.close, transport.abort, transport.pause_reading, transport.resume_reading, transport.go_on):
        use()
    transport.write(b"more")
    assert len(below.written) == 1


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES])
def test_every_size_arrives_whole(size: int) -> None:
    async def arrives() -> None:
        transport, below, _ = stack()
        data = bytes(size)
        transport.write(data)
        await rounds(5)
        assert b"".join(below.written) == data

    asyncio.run(arrives())
