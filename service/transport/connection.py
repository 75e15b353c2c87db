r"""A connection: uvicorn's HTTP protocol, with bodies of hot requests received into tensor memory.

The loop asks a `BufferedProtocol` for memory before it receives. While headers are on their way it is
given a scratch buffer, whose content goes to uvicorn's parser. Once the headers of a hot request
announce a body of N bytes, it is given that body's own memory, and the parser never sees the body. The
answer is written as memoryviews of the same memory. Small calls that came whole are answered where they came in
(`at_once`). Where several large calls are in flight, threads receive and send (`haul`). Chunked bodies and all other
paths are uvicorn's.

    NEW -> HEAD -> BODY -> WORK -> LEAVING -> IDLE -> HEAD …      every phase but WORK and HAULED has a deadline
                    \-> HAULED -/        \-> LINGER -> closed
"""

from __future__ import annotations

import asyncio
import enum
import fcntl
import math
import sys
import termios
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from service.answer import CALLER_GONE, Answer, problem
from service.core import Core, late
from service.device.buffers import ALIGNMENT, no_memory
from service.errors import BadFraming, Overloaded, RequestTimeout, StequantError
from service.head import Head
from service.job import Job, given_id
from service.transport.answer_head import AnswerHeads
from service.transport.at_once import AtOnce, Unsent
from service.transport.bounds import announced_length, body_time_s, body_timeout, too_large
from service.transport.cycle import DirectCycle
from service.transport.haul import End, Haul, Ready
from service.transport.hauls import HAULED_BYTES, Hauls
from service.transport.heads import HEAD_END, Known
from service.transport.nearby import shorten_if_near
from service.transport.reaper import NEVER
from service.transport.scratch import MARGIN
from service.transport.shared import shared

# Up to here a body that came whole with its head is worked on in the scratch buffer, where it lies.
_BORROWED_BYTES = 192 * 1024
# A refused request with at most this much of its body to come keeps its connection: skipping is cheaper than connecting.
_SKIP_BYTES = 2**20
# Below this size, on average, joining the pieces for one write is cheaper than writing each.
_JOIN_BYTES = 64 * 1024
# A body of which so much came at once flows, and may be worth a thread.
_FLOWING_BYTES = 4096
# What is received at once where a large body is likely to follow a head: the rest goes where it belongs.
_HEAD_BYTES = 8192
# How much of a body is received before other connections have their turn: about a millisecond of copying.
_BURST_BYTES = 2**21
# How long a connection is read after a refusal, so that the caller sees the answer and not a reset.
_LINGER_S = 5.0
# And how long it is not read before that. Who looks for an answer while it sends then stops, and closes: what it would have
# sent meanwhile costs more than the refusal (0.4 ms a MiB).
_FIRST_LOOK_S = 0.01
# How long an idle connection is served after SIGTERM: a request may be on its way in it.
_LAST_CALL_S = 0.5

# The parser also lets through 0.9, which is what a request line without a version counts as, and 2.0.
_VERSIONS = ("1.1", "1.0")


class Phase(enum.Enum):
    """What a connection waits for."""

    NEW = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()
    WORK = enum.auto()
    HAULED = enum.auto()
    LEAVING = enum.auto()
    IDLE = enum.auto()
    LINGER = enum.auto()


class Connection(asyncio.BufferedProtocol):
    """What the event loop talks to. (uvloop takes a `BufferedProtocol` only if it is no `Protocol`.)"""

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        self._http = _Http(config, server_state, app_state, _loop)
        self.connection_made = self._http.connection_made  # type: ignore[assignment,method-assign]
        self.connection_lost = self._http.connection_lost  # type: ignore[method-assign]
        self.pause_writing = self._http.pause_writing  # type: ignore[method-assign]
        self.resume_writing = self._http.resume_writing  # type: ignore[method-assign]
        self.eof_received = self._http.eof_received  # type: ignore[method-assign]
        self.get_buffer = self._http.get_buffer  # type: ignore[method-assign]
        self.buffer_updated = self._http.buffer_updated  # type: ignore[method-assign]


class _Http(HttpToolsProtocol):
    """uvicorn's protocol, with hot requests answered here."""

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: asyncio.AbstractEventLoop | None
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.core: Core = app_state["core"]
        self.settings = self.core.settings
        common = shared(app_state, self.loop)
        self.reaper = common.reaper
        self.heads = common.heads
        self.scratch = common.scratch
        self.hauls = Hauls(self.core, common.threads, look=self._look_ahead, answer=self._answer_on_thread, ended=self._is_back)
        self.addresses = common.addresses
        self.phase = Phase.NEW
        self.deadline = NEVER
        self.body_deadline = NEVER
        self.receiving: DirectCycle | None = None
        self.leaving: tuple[DirectCycle, Answer] | None = None
        self.unsent_bytes = 0
        self.head_bytes = 0
        self.fed_bytes = 0
        self.in_body = False
        self.burst_bytes = 0
        self.is_last = False
        # Whether the parser is within a request; a known head counts only where a request can begin.
        self.in_message = False
        # Where in the scratch buffer is received, so that the body of a request like the last one lies aligned; and how much.
        self.scratch_start = MARGIN
        self.scratch_stop = len(self.scratch.view)
        self.answer_heads = AnswerHeads(server_state)
        self.at_once = AtOnce(self.core, self.scratch, self.answer_heads)

    # The loop -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection has come."""
        super().connection_made(transport)
        # With a high-water mark of 0, resume_writing says exactly when an answer has left.
        transport.set_write_buffer_limits(high=0)
        shorten_if_near(transport.get_extra_info("socket"))
        self.at_once.begin(transport)
        self.reaper.watch(self)
        self._enter(Phase.NEW, self.settings.header_timeout_s)
        self.core.metrics.connections.inc()
        self.addresses[self._address()] += 1
        self._turn_away_if_too_many()

    def connection_lost(self, exc: Exception | None) -> None:
        """A connection has gone: nothing on it is answered any more."""
        self.at_once.end()
        self.reaper.forget(self)
        self.core.metrics.connections.dec()
        address = self._address()
        self.addresses[address] -= 1
        if not self.addresses[address]:
            del self.addresses[address]
        if self.phase is not Phase.HAULED:
            self.hauls.end()
        for cycle in (self.cycle, *(queued for queued, _ in self.pipeline)):
            if isinstance(cycle, DirectCycle):
                self._abandon(cycle)
        if self.leaving is not None:
            self._finish(*self.leaving)
            self.leaving = None
        self.pipeline.clear()
        self.receiving = None
        if isinstance(self.cycle, DirectCycle):
            self.cycle = None
        super().connection_lost(exc)

    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def _turn_away_if_too_many(self) -> None:
        limit, most_from_one = self.settings.max_connections, self.settings.max_connections_per_address
        if len(self.connections) > limit:
            self._cut("too_many")
            self._refuse(Overloaded(f"there are more than {limit} connections; try again later", retry_after_s=1.0))
        elif most_from_one is not None and self.client and self.addresses[self._address()] > most_from_one:
            self._cut("too_many_from_address")
            self._refuse(Overloaded(f"there are more than {most_from_one} connections from your address", retry_after_s=1.0))

    def _cut(self, reason: str) -> None:
        """Count a connection that is ended for what its other side did, or did not do."""
        self.core.metrics.cut(reason)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Memory for what comes next: the body's own, or the scratch buffer."""
        cycle = self.receiving
        if cycle is None:
            return self.scratch.view[self.scratch_start : self.scratch_stop]
        rest = cycle.rest
        return rest[:_BURST_BYTES] if rest is not None else self.scratch.view[: cycle.remaining_bytes]

    def buffer_updated(self, nbytes: int) -> None:
        """`nbytes` have come."""
        cycle = self.receiving
        if cycle is None:
            self._read_scratch(self.scratch_start, self.scratch_start + nbytes)
            return
        cycle.remaining_bytes -= nbytes
        self.deadline = min(self.reaper.now + self.settings.body_idle_timeout_s, self.body_deadline)
        if not cycle.remaining_bytes:
            self._body_is_there(cycle)
            return
        if nbytes >= _FLOWING_BYTES and self._is_worth_a_thread(cycle, cycle.remaining_bytes) and self._haul(cycle):
            return
        if cycle.received_bytes >= cycle.look_bytes:
            self._look_ahead(cycle)
        self.burst_bytes += nbytes
        if self.burst_bytes >= _BURST_BYTES and len(self.connections) > 1:
            # The loop would read on while there is more; now it looks after the other connections first.
            self.burst_bytes = 0
            self.flow.pause_reading()
            self.loop.call_soon(self._resume_after_burst)

    def _look_ahead(self, cycle: DirectCycle) -> None:
        """Compute what can be computed already."""
        job, received_bytes = cycle.job, cycle.received_bytes
        if job.ahead is not None:
            cycle.look_bytes = job.ahead.advance(received_bytes)
        elif cycle.body is not None:
            cycle.look_bytes = self.core.look_ahead(job, cycle.body, received_bytes)

    def _resume_after_burst(self) -> None:
        if self.receiving is not None and not self.transport.is_closing():
            self.flow.resume_reading()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The caller sends no more; what it has asked for is still answered."""
        if self.phase not in (Phase.WORK, Phase.LEAVING):
            return False
        self.is_last = True
        self.cycle.keep_alive = False
        return True

    def resume_writing(self) -> None:
        """Everything written has left."""
        super().resume_writing()
        if self.leaving is not None:
            cycle, answer = self.leaving
            self.leaving = None
            self._left(cycle, answer)

    def shutdown(self) -> None:
        """The server stops: serve what is on its way, then close."""
        self.is_last = True
        if self.phase in (Phase.NEW, Phase.IDLE):
            self.deadline = min(self.deadline, self.loop.time() + _LAST_CALL_S)
        elif isinstance(self.cycle, RequestResponseCycle) and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def expired(self, now: float) -> None:
        """The deadline of the phase has passed."""
        if self.phase in (Phase.NEW, Phase.IDLE, Phase.LINGER):
            if self.phase is not Phase.LINGER:
                self._cut("silent" if self.phase is Phase.NEW else "idle")
            self.transport.close()
            self.deadline = now + _LINGER_S
            if self.phase is Phase.LINGER:
                self.transport.abort()
            self.phase = Phase.LINGER
        elif self.phase is Phase.LEAVING:
            unsent_bytes = self._unsent_bytes()
            if unsent_bytes < self.unsent_bytes:
                self.unsent_bytes = unsent_bytes
                self.deadline = now + self.settings.write_timeout_s
            else:
                self._cut("slow_reader")
                self.transport.abort()
        else:
            self._time_out()

    def _unsent_bytes(self) -> int:
        """What the reader has not taken: in this process, and in the kernel, which takes megabytes at a time."""
        try:
            queued = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        except (OSError, AttributeError):
            queued = bytes(4)
        return self.transport.get_write_buffer_size() + int.from_bytes(queued, sys.byteorder)

    # A head and what comes with it ---------------------------------------------------------------------

    def _read_scratch(self, start: int, stop: int) -> None:
        """Bytes that came while no body was awaited: mostly a head, with the beginning of its body."""
        if not self.in_message and (self.phase is Phase.IDLE or self.phase is Phase.NEW):
            scratch = self.scratch
            end = scratch.bytes.find(HEAD_END, start, stop) + len(HEAD_END)
            if end >= len(HEAD_END):
                raw = bytes(scratch.view[start:end])
                known = self.heads.get(raw)
                if known is None:
                    self._parse(scratch.view[start:end])
                    self._learn(raw)
                    if end < stop:
                        self._read_on(scratch.view[end:stop])
                    return
                repeat = known.repeat
                if repeat is not None and repeat.fits(end, stop) and not self.is_last and self.at_once.may_answer(known):
                    self.scratch_start, self.scratch_stop = repeat.start - end + start, len(scratch.view)
                    self.scratch.move(end, stop, repeat.start)
                    self._answered_at_once(known, self.at_once.answer_again(known, repeat))
                    return
                if stop - end <= known.length:
                    self._begin_known(known, start, end, stop)
                    return
        self._parse(self.scratch.view[start:stop])

    def _learn(self, raw: bytes) -> None:
        """Remember the head that the parser has just read, if it is that of a hot request like any other."""
        cycle = self.receiving
        if cycle is None or self.expect_100_continue or self.is_last or not cycle.is_current:
            return
        terms = cycle.job.terms
        if terms is not None:
            self.heads.learn(raw, Known(cycle.head, terms, cycle.length, cycle.keep_alive, given_id(cycle.head.headers)))

    def _read_on(self, data: memoryview) -> None:
        """What came behind a head: its body, and what may follow."""
        cycle = self.receiving
        if cycle is not None:
            body, data = data[: cycle.remaining_bytes], data[cycle.remaining_bytes :]
            cycle.take(body)
            if cycle.remaining_bytes:
                return
            self._body_is_there(cycle)
        if data:
            self._parse(data)

    def _begin_known(self, known: Known, start: int, end: int, stop: int) -> None:
        """A known head stands at `start`, its body from `end` to `stop`, not always all of it."""
        data = self.scratch.view[end:stop]
        self.scratch_start = MARGIN + -(end - start + known.length) % ALIGNMENT
        self.scratch_stop = self.scratch_start + _HEAD_BYTES if known.length >= HAULED_BYTES else len(self.scratch.view)
        if (
            stop - end == known.length <= _BORROWED_BYTES
            and known.keep_alive
            and not self.is_last
            and self.core.is_small(known.terms, known.length)
        ):
            body_start = self.scratch_start + end - start
            self.scratch.move(end, stop, body_start)
            self._answered_at_once(known, self.at_once.answer(known, body_start, body_start + known.length))
            return
        cycle = self._cycle(known, Job(self.core.identities.of(known.request_id)))
        try:
            self.core.begin(cycle.job, known.terms)
            cycle.body = self.core.pool.take(known.length)
        except StequantError as error:
            cycle.answer = problem(error, cycle.head.path)
        cycle.take(data)
        self.cycle = cycle  # type: ignore[assignment]
        self._begin(cycle)
        self._switch_to_body()
        flows = self.receiving is cycle and len(data) >= _FLOWING_BYTES
        if flows and self._is_worth_a_thread(cycle, cycle.remaining_bytes):
            self._haul(cycle)

    def _answered_at_once(self, known: Known, unsent: Unsent | None) -> None:
        """Go on after an answer that was written at once, not always to its end."""
        if unsent is not None:
            cycle = self.cycle = self._cycle(known, unsent.job)  # type: ignore[assignment]
            cycle.remaining_bytes, cycle.is_current = 0, True
            self._leave(cycle, unsent.answer)
            return
        self.server_state.total_requests += 1
        self.phase = Phase.IDLE
        self.deadline = self.reaper.now + self.settings.keep_alive_s

    def _cycle(self, known: Known, job: Job) -> DirectCycle:
        keep_alive = known.keep_alive and not self.is_last
        return DirectCycle(known.head, job, known.length, keep_alive=keep_alive, expects_continue=False)

    def _body_is_there(self, cycle: DirectCycle) -> None:
        self.receiving = None
        if self.in_message:
            # The parser still waits for the body.
            self._new_parser()
        self._received(cycle)

    # The parser ---------------------------------------------------------------------------------------

    def _parse(self, data: memoryview) -> None:
        if self.phase is Phase.LINGER:
            return
        if self.phase is Phase.IDLE or self.phase is Phase.NEW:
            self._enter(Phase.HEAD, self.settings.header_timeout_s)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # Another protocol was offered; this one goes on. What follows the head is its body, or the next head.
            self._new_parser()
            self._switch_to_body()
            self._read_on(data[upgrade.args[0] :])
            return
        except httptools.HttpParserCallbackError as error:
            self._refuse(error.__context__)
            return
        except httptools.HttpParserError as error:
            self._refuse(BadFraming(f"the request is not valid HTTP/1.1: {error}"))
            return
        if self.phase is Phase.HEAD:
            self.fed_bytes += len(data)
            if self.fed_bytes > self.settings.max_header_bytes + self.settings.max_url_bytes:
                self._refuse(too_large(self.settings, self.url))
        self._switch_to_body()

    def _switch_to_body(self) -> None:
        """Let the loop receive the rest of a hot request's body where it belongs."""
        cycle = self.cycle
        if isinstance(cycle, DirectCycle) and cycle.remaining_bytes and not self.transport.is_closing():
            if cycle.expects_continue and cycle.is_current and cycle.answer is None:
                cycle.expects_continue = False
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if self.phase is not Phase.LINGER:
                self.receiving = cycle

    def _new_parser(self) -> None:
        self.in_message = False
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def on_message_begin(self) -> None:
        """A request begins. uvicorn's scope is made later, for the requests that need one."""
        self.in_message = True
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self.head_bytes = 0
        self.fed_bytes = 0
        self.in_body = False
        if self.phase is Phase.BODY or self.phase is Phase.IDLE:
            self._enter(Phase.HEAD, self.settings.header_timeout_s)

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self.url += url
        if len(self.url) > self.settings.max_url_bytes:
            raise too_large(self.settings, self.url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))
        self.head_bytes += len(name) + len(value)
        if len(self.headers) > self.settings.max_headers or self.head_bytes > self.settings.max_header_bytes:
            raise too_large(self.settings, self.url)

    def on_headers_complete(self) -> None:
        """A head is complete: hot requests with an announced length stay here, others are uvicorn's."""
        version = self.parser.get_http_version()
        if version not in _VERSIONS:
            raise BadFraming(f"the request is of HTTP/{version}; allowed: {', '.join(_VERSIONS)}")
        self.body_deadline = self.reaper.now + self.settings.body_timeout_s
        waits = self.cycle is not None and not self.cycle.response_complete
        if waits and len(self.pipeline) >= self.settings.max_pipelined:
            self._cut("pipelined")
            raise Overloaded(f"more than {self.settings.max_pipelined} requests wait on this connection", retry_after_s=1.0)
        if not waits:
            self._enter(Phase.BODY, self.settings.body_idle_timeout_s)
        target, _, query = self.url.partition(b"?")
        path = self.core.urls.get(target)
        length = announced_length(self.headers) if path is not None and b"#" not in query else None
        if path is None or length is None:
            self._hand_to_uvicorn()
            return
        head = Head(self.parser.get_method().decode("ascii"), path, query, self.headers, version)
        cycle = DirectCycle(
            head,
            self.core.job(head),
            length,
            keep_alive=version != "1.0" and self.parser.should_keep_alive() and not self.is_last,
            expects_continue=self.expect_100_continue,
        )
        self._admit(cycle)
        self.cycle = cycle  # type: ignore[assignment]
        if waits:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))  # type: ignore[arg-type]
        else:
            self._begin(cycle)

    def on_body(self, body: bytes) -> None:
        """Bytes of a body that came together with its head."""
        if isinstance(self.cycle, DirectCycle):
            self.cycle.take(body)
        else:
            self.deadline = min(self.reaper.now + self.settings.body_idle_timeout_s, self.body_deadline)
            super().on_body(body)

    def on_message_complete(self) -> None:
        """A request has come whole."""
        self.in_message = False
        self.in_body = False
        if isinstance(self.cycle, DirectCycle):
            if not self.cycle.remaining_bytes:  # after an ignored upgrade the parser takes the body for something else
                self._received(self.cycle)
        else:
            super().on_message_complete()
            self._work_or_idle()

    def _hand_to_uvicorn(self) -> None:
        self.in_body = True
        url, headers, expects_continue = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects_continue
        self.headers[:] = headers
        super().on_headers_complete()
        if self.is_last:
            self.cycle.keep_alive = False

    def _should_upgrade(self) -> bool:
        return False

    def _unsupported_upgrade_warning(self) -> None:
        """An offer to upgrade is not worth a line in the log."""

    # Hot requests -------------------------------------------------------------------------------------

    def _admit(self, cycle: DirectCycle) -> None:
        try:
            self.core.admit(cycle.job, cycle.head)
            cycle.body = self.core.pool.take(cycle.length)
        except StequantError as error:
            cycle.answer = problem(error, cycle.head.path)
            # What follows a request whose framing is in doubt might be a part of it.
            cycle.keep_alive = cycle.keep_alive and not isinstance(error, BadFraming)

    def _begin(self, cycle: DirectCycle) -> None:
        """It is this request's turn on the connection."""
        cycle.is_current = True
        if cycle.answer is not None:
            if cycle.remaining_bytes > _SKIP_BYTES or (cycle.expects_continue and cycle.remaining_bytes):
                cycle.keep_alive = False
            self._respond(cycle, cycle.answer)
        elif not cycle.remaining_bytes:
            self._work(cycle)
        else:
            # Reading was paused while it waited for its turn: its time begins now.
            self.body_deadline = self.reaper.now + body_time_s(self.settings, cycle.length, cycle.job)
            self._enter(Phase.BODY, self.settings.body_idle_timeout_s)
            if cycle.job.terms is not None:
                cycle.look_bytes = self.core.first_look_bytes(cycle.job.terms, cycle.length)

    def _received(self, cycle: DirectCycle) -> None:
        """The whole body is there."""
        # One without a body has begun with its head, and its work may still go on.
        if cycle.answer is None and cycle.is_current and cycle.length:
            self._work(cycle)
        elif cycle.response_complete:
            self._work_or_idle()

    def _work(self, cycle: DirectCycle) -> None:
        job, terms, body = cycle.job, cycle.job.terms, cycle.body
        assert terms is not None
        assert body is not None
        self.phase, self.deadline = Phase.WORK, NEVER
        job.is_received()
        if job.ahead is not None or self.core.is_small(terms, cycle.length):
            self._respond(cycle, self.core.answer_at_once(job, body))
            return
        if job.deadline != math.inf:
            self.deadline = self.loop.time() + job.left_s()
        task = self.loop.create_task(self._work_elsewhere(cycle))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _work_elsewhere(self, cycle: DirectCycle) -> None:
        job, body = cycle.job, cycle.body
        assert body is not None
        answer = await self.core.answer_elsewhere(job, body, lambda: not cycle.disconnected)
        if cycle.is_done:
            # Answered with 504 meanwhile; only now is its memory free.
            self.core.budget.release(cycle.late_bytes)
        elif cycle.disconnected:
            self._finish(cycle, CALLER_GONE)
        else:
            self._respond(cycle, answer)

    def _give_up_waiting(self, cycle: DirectCycle) -> None:
        """Answer a call whose deadline has passed while its work waits or goes on, in memory that stays reserved."""
        cycle.disconnected = True
        cycle.body = None
        cycle.late_bytes, cycle.job.reserved_bytes = cycle.job.reserved_bytes, 0
        self._respond(cycle, late(cycle.job))

    def _respond(self, cycle: DirectCycle, answer: Answer) -> None:
        if self.transport.is_closing():
            self._finish(cycle, CALLER_GONE)
            return
        if self.is_last:
            cycle.keep_alive = False
        head = self.answer_heads.head(answer, cycle.job, keep_alive=cycle.keep_alive)
        if not cycle.remaining_bytes and self._is_worth_a_thread(cycle, answer.length) and self._haul(cycle, Ready(head, answer)):
            return
        if cycle.head.method == "HEAD":
            self.transport.write(head)
        elif (whole := _joined(head, answer)) is not None:
            self.transport.write(whole)
        else:
            self.transport.writelines((head, *answer.pieces))
        cycle.answer = answer
        self._leave_or_left(cycle, answer)

    def _leave_or_left(self, cycle: DirectCycle, answer: Answer) -> None:
        if self.transport.get_write_buffer_size():
            self._leave(cycle, answer)
        else:
            self._left(cycle, answer)

    def _leave(self, cycle: DirectCycle, answer: Answer) -> None:
        """Wait until the answer has left."""
        self.unsent_bytes = self._unsent_bytes()
        self._enter(Phase.LEAVING, self.settings.write_timeout_s)
        self.leaving = (cycle, answer)

    def _left(self, cycle: DirectCycle, answer: Answer) -> None:
        """The answer has left the process."""
        if cycle.body is not None:
            self.core.pool.give(cycle.body)
        self._finish(cycle, answer)
        cycle.response_complete = True
        self.server_state.total_requests += 1
        if not cycle.keep_alive:
            self._linger(cycle)
            return
        self._work_or_idle()
        if self.pipeline:
            self.loop.call_soon(self._next_in_line)
        else:
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """uvicorn has answered a request that was handed to it."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._work_or_idle()
        if self.pipeline:
            self._next_in_line()
        else:
            self.flow.resume_reading()

    def _next_in_line(self) -> None:
        if not self.pipeline or self.transport.is_closing():
            return
        cycle, app = self.pipeline.pop()
        if not self.pipeline:
            self.flow.resume_reading()
        if isinstance(cycle, DirectCycle):
            self._begin(cycle)
            self._switch_to_body()
        else:
            self._start_asgi_task(cycle, app)

    def _finish(self, cycle: DirectCycle, answer: Answer) -> None:
        """Count it, once, and give back what it had reserved."""
        if not cycle.is_done:
            cycle.is_done = True
            cycle.body = None
            self.core.done(cycle.head, answer, cycle.job, cycle.received_bytes)

    def _abandon(self, cycle: DirectCycle) -> None:
        working = self.phase in (Phase.WORK, Phase.HAULED) and cycle.is_current and not cycle.response_complete
        cycle.disconnected = True
        if not working:  # else its memory is still in use; the work's end finishes it
            self._finish(cycle, CALLER_GONE)

    # Threads ------------------------------------------------------------------------------------------

    def _is_worth_a_thread(self, cycle: DirectCycle, nbytes: int) -> bool:
        return self.reaper.now < self.body_deadline and self.hauls.are_worth_it(self.transport, cycle, nbytes)

    def _haul(self, cycle: DirectCycle, ready: Ready | None = None) -> bool:
        """Leave a call to the threads: the rest of its body and its answer, or the answer that is there; false where it stays."""
        if not self.hauls.begin(self.transport, cycle, ready):
            return False
        self.flow.pause_reading()
        self.receiving = None
        self.burst_bytes = 0
        self.phase, self.deadline = Phase.HAULED, NEVER
        return True

    def _answer_on_thread(self, cycle: DirectCycle) -> Ready | None:
        """The answer to a call whose body a thread has received; None where it is for the loop, or a lane."""
        job, terms, body = cycle.job, cycle.job.terms, cycle.body
        assert terms is not None
        assert body is not None
        if job.ahead is None and not self.core.is_small(terms, cycle.length):
            return None
        job.is_received()
        answer = self.core.answer_at_once(job, body)
        if self.is_last:
            cycle.keep_alive = False
        return Ready(self.answer_heads.head(answer, job, keep_alive=cycle.keep_alive), answer)

    def _is_back(self, one: Haul, end: End) -> None:
        """A thread has done what it could with a call."""
        self.phase = Phase.WORK
        cycle, answer = one.cycle, one.answer
        if cycle.disconnected or self.transport.is_closing() or end is End.GONE:
            self.hauls.end()
            self._finish(cycle, CALLER_GONE if answer is None or end is not End.SENT else answer)
            self.transport.abort()
        elif cycle.remaining_bytes:
            self._enter(Phase.BODY, self.settings.body_idle_timeout_s)
            self.deadline = min(self.deadline, self.body_deadline)
            self.receiving = cycle
            self.flow.resume_reading()
        elif answer is None:
            self.flow.resume_reading()
            self._body_is_there(cycle)
        else:
            if self.in_message:
                self._new_parser()
            cycle.answer = answer
            if one.unsent:
                self.transport.writelines(one.unsent)
            self._leave_or_left(cycle, answer)

    # Ends ---------------------------------------------------------------------------------------------

    def _enter(self, phase: Phase, seconds: float) -> None:
        self.phase = phase
        self.deadline = self.reaper.now + seconds

    def _work_or_idle(self) -> None:
        """After a request has come whole, or was answered: what does the connection wait for now."""
        if self.phase is Phase.LINGER:
            return
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            self.phase, self.deadline = Phase.WORK, NEVER
        elif cycle.remaining_bytes if isinstance(cycle, DirectCycle) else self.in_body:
            # Answered before its body had come, which is skipped.
            self._enter(Phase.BODY, self.settings.body_idle_timeout_s)
        else:
            # The answer that has left may not have said that it was the last: another request may be on its way.
            self._enter(Phase.IDLE, _LAST_CALL_S if self.is_last else self.settings.keep_alive_s)

    def _linger(self, cycle: DirectCycle) -> None:
        """Close; but while the caller still sends, read on for a while, or it would see a reset instead of the answer."""
        self.receiving = None
        if not cycle.remaining_bytes:
            self.transport.close()
            return
        self._enter(Phase.LINGER, _LINGER_S)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.pause_reading()
        self.loop.call_later(_FIRST_LOOK_S, self._read_on_lingering)

    def _read_on_lingering(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def _refuse(self, error: BaseException | None) -> None:
        """Answer bytes that are no request, or no longer one, and close."""
        if isinstance(error, MemoryError):
            error = no_memory("this request")
        if not isinstance(error, StequantError):
            error = BadFraming(f"the request is not valid HTTP/1.1: {error}")
        if self.transport.is_closing() or self.phase is Phase.LINGER:
            return
        if self.in_body and self.cycle is not None and not self._give_up(self.cycle):
            self.transport.close()
            return
        # Whatever follows is skipped, so there is always something to come.
        head = Head("-", "-", b"", ())
        refusal = DirectCycle(head, self.core.job(head), 1, keep_alive=False, expects_continue=False)
        waits = self.cycle is not None and not self.cycle.response_complete
        self.cycle = refusal  # type: ignore[assignment]
        if waits:
            # Earlier requests of this connection are still to be answered; then this refusal, then the end.
            refusal.answer = problem(error)
            self.flow.pause_reading()
            self.pipeline.appendleft((refusal, self.app))  # type: ignore[arg-type]
        else:
            self._respond(refusal, problem(error))

    def _give_up(self, cycle: RequestResponseCycle) -> bool:
        """Let go of uvicorn's request whose body cannot be read on; false when its answer has begun."""
        self.in_body = False
        if self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline.popleft()
            return True
        if cycle.response_started and not cycle.response_complete:
            return False
        cycle.disconnected = True
        cycle.response_complete = True
        cycle.message_event.set()
        return True

    def _time_out(self) -> None:
        cycle = self.cycle
        if self.phase is Phase.WORK and isinstance(cycle, DirectCycle):
            self._give_up_waiting(cycle)
        elif self.phase is Phase.HEAD:
            self._cut("slow_head")
            self._refuse(RequestTimeout(f"the headers were not complete after {self.settings.header_timeout_s:g} s"))
        elif isinstance(cycle, DirectCycle) and not cycle.response_complete:
            self.receiving = None
            cycle.keep_alive = False
            if cycle.job.left_s() <= 0:
                self._respond(cycle, late(cycle.job))
                return
            self._cut("slow_body")
            self._respond(cycle, problem(body_timeout(self.settings), cycle.head.path))
        elif cycle is not None and not cycle.response_complete:
            self._cut("slow_body")
            self._refuse(body_timeout(self.settings))
        else:
            self.transport.close()


def _joined(head: bytes, answer: Answer) -> bytes | None:
    """An answer of small pieces as one; None where they are large, or too many for the memory that is left."""
    if answer.length > _JOIN_BYTES * len(answer.pieces):
        return None
    try:
        return b"".join((head, *answer.pieces))
    except MemoryError:
        return None
