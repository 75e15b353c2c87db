"""Large bodies and answers, moved between socket and memory by threads.

One event loop copies on one core. While several large calls are in flight, the loop leaves each to a thread that receives
its body, computes what has come while it is in cache, and sends the answer: on two cores, with eight connections that send
16 MiB each, 1.2 times the rate, and 1.3 to 1.5 times together with the short socket buffers of `nearby`. A single call is
left to the loop, which it keeps busy alone: a thread would only be one more to wait for.

A thread works in turns and never waits for long. A connection whose data do not flow goes back to the loop, which has the
deadlines; so slow callers cost no thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import select
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

from service.answer import Answer
from service.device.lanes import Lanes
from service.logs import log
from service.transport.cycle import DirectCycle

# What is received at once, and then computed while it is in the core's own cache.
_PIECE_BYTES = 512 * 1024
# How much is to be there before a thread that waits is woken, so that it is not for every packet.
_WORTH_WAKING_BYTES = 256 * 1024
# What one connection moves before others have their turn.
_TURN_BYTES = 16 * 2**20
# Less than this in a turn is no flow.
_FLOW_BYTES = 64 * 1024
# How long a thread waits for a socket while nobody waits for the thread.
_PATIENCE_MS = 5
# How many pieces the kernel takes in one call (UIO_MAXIOV is 1024).
_MOST_PIECES = 512
# Copying is bound by memory, so more threads than a few bring nothing.
_MOST_THREADS = 4


class End(enum.Enum):
    """Why a haul has come back to the loop."""

    SENT = enum.auto()
    STALLED = enum.auto()
    RECEIVED = enum.auto()
    GONE = enum.auto()


class Ready(NamedTuple):
    """An answer, with its head as it is sent."""

    head: bytes
    answer: Answer


class Road:
    """A connection's socket as threads see it; `close` it with the connection.

    It has a descriptor of its own: that of the loop may be closed at any time, and then be another connection's.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = socket.socket(sock.family, socket.SOCK_STREAM, 0, fileno=os.dup(sock.fileno()))
        self._least_bytes = 1
        self._poll = select.poll()

    def receive(self, room: memoryview) -> int | None:
        """Receive what is there; None where nothing is."""
        try:
            return self._socket.recv_into(room)
        except BlockingIOError:
            return None

    def send(self, pieces: Sequence[memoryview]) -> int | None:
        """Send as much as there is room for; None where there is none."""
        try:
            return os.writev(self._socket.fileno(), pieces[:_MOST_PIECES])
        except BlockingIOError:
            return None

    def wait_to_receive(self, least_bytes: int) -> bool:
        """Wait until about so much is there, for a little while."""
        self.wake_for(least_bytes)
        return self._wait(select.POLLIN)

    def wait_to_send(self) -> bool:
        """Wait until there is room, for a little while."""
        return self._wait(select.POLLOUT)

    def wake_for(self, least_bytes: int) -> None:
        """Call the socket readable when so much is there."""
        if least_bytes != self._least_bytes:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least_bytes)
            self._least_bytes = least_bytes

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()

    def _wait(self, event: int) -> bool:
        self._poll.register(self._socket, event)
        return bool(self._poll.poll(_PATIENCE_MS))


class Haul:
    """A call that is left to the threads until `ended` is called, on the loop: nobody else touches its connection meanwhile.

    `look` computes what can be computed already. `answer` gives the answer when the whole body is there, or None where
    the loop has to see to it. Of an answer that was begun, `unsent` is left.
    """

    def __init__(
        self,
        road: Road,
        cycle: DirectCycle,
        threads: Lanes,
        *,
        look: Callable[[DirectCycle], None],
        answer: Callable[[DirectCycle], Ready | None],
        ended: Callable[[Haul, End], None],
    ) -> None:
        self.cycle = cycle
        self.answer: Answer | None = None
        self.unsent: list[memoryview] = []
        self._road = road
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._look = look
        self._find_answer = answer
        self._ended = ended

    def begin(self, ready: Ready | None = None) -> None:
        """Have the first turn when a thread is free, with an answer that is there or with the body.

        Raises `OutOfMemory` where there is no thread, and none can be started.
        """
        if ready is not None:
            self._take(ready)
        self._threads.put(self._turn)

    def _take(self, ready: Ready) -> None:
        self.answer = ready.answer
        self.unsent = [memoryview(piece) for piece in (ready.head, *ready.answer.pieces)]

    def _turn(self) -> None:
        """What one thread does before the next haul has its turn."""
        try:
            end = self._move()
            if end is None:
                self._threads.put(self._turn)
                return
            self._road.wake_for(1)
        except OSError:
            end = End.GONE
        except Exception:
            log.exception("moving a call failed")
            end = End.GONE
        with contextlib.suppress(RuntimeError):  # the loop is closed, and all connections with it
            self._loop.call_soon_threadsafe(self._ended, self, end)

    def _move(self) -> End | None:
        """Receive, compute and send; None when it is another's turn."""
        cycle = self.cycle
        if cycle.remaining_bytes:
            end = self._receive(cycle)
            if cycle.remaining_bytes:
                return end
        if self.answer is None:
            ready = self._find_answer(cycle)
            if ready is None:
                return End.RECEIVED
            self._take(ready)
        return self._send()

    def _receive(self, cycle: DirectCycle) -> End | None:
        moved_bytes = 0
        while cycle.remaining_bytes and moved_bytes < _TURN_BYTES:
            rest = cycle.rest
            assert rest is not None
            nbytes = self._road.receive(rest[:_PIECE_BYTES])
            if nbytes is None:
                if not self._may_wait():
                    return self._yield(moved_bytes)
                if not self._road.wait_to_receive(min(_WORTH_WAKING_BYTES, cycle.remaining_bytes)):
                    return End.STALLED
                continue
            if not nbytes:
                return End.STALLED  # the caller has ended it; the loop will see that too
            moved_bytes += nbytes
            cycle.remaining_bytes -= nbytes
            if cycle.remaining_bytes and cycle.received_bytes >= cycle.look_bytes:
                self._look(cycle)
        return None

    def _send(self) -> End | None:
        moved_bytes = 0
        while self.unsent:
            nbytes = self._road.send(self.unsent)
            if nbytes is None:
                if not self._may_wait():
                    return self._yield(moved_bytes)
                if not self._road.wait_to_send():
                    return End.STALLED
                continue
            moved_bytes += nbytes
            self.unsent = _without(self.unsent, nbytes)
        return End.SENT

    def _may_wait(self) -> bool:
        return not self._threads.is_wanted

    @staticmethod
    def _yield(moved_bytes: int) -> End | None:
        """Others wait for the thread: this connection waits for its next turn where its data flow, else at the loop."""
        return None if moved_bytes >= _FLOW_BYTES else End.STALLED


def threads() -> Lanes:
    """The threads that one event loop has for this."""
    return Lanes("haul", min(os.cpu_count() or 1, _MOST_THREADS), lambda: None)


def _without(pieces: list[memoryview], nbytes: int) -> list[memoryview]:
    """What is left of pieces of which so much was sent."""
    whole = 0
    for piece in pieces:
        if nbytes < len(piece):
            break
        nbytes -= len(piece)
        whole += 1
    left = pieces[whole:]
    if nbytes:
        left[0] = left[0][nbytes:]
    return left
