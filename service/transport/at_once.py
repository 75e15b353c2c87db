"""Small calls whose body came whole with its head, answered before anything else happens.

Between two callbacks of the loop nothing of such a call has to be kept, unless its answer cannot leave.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import NamedTuple, cast

from service.answer import Answer, problem
from service.core import Core, Terms, failed
from service.errors import StequantError
from service.job import Job
from service.metrics import Exchange
from service.shortcuts import one
from service.transport.answer_head import AnswerHeads
from service.transport.heads import Known
from service.transport.repeat import Repeat
from service.transport.scratch import Scratch

# More than the head of any answer with status 200 has: a name of 128 bytes, a date, two numbers, a media type.
_HEAD_BYTES = 768


class Unsent(NamedTuple):
    """An answer that the transport has not sent to its end; it has a copy of the rest."""

    answer: Answer
    job: Job


class AtOnce:
    """Answers the small calls of one connection; both ways give what is `Unsent`, or None where the answer has left."""

    def __init__(self, core: Core, scratch: Scratch, heads: AnswerHeads) -> None:
        self._core = core
        self._scratch = scratch
        self._heads = heads
        self._transport = asyncio.Transport()
        # The socket, where answers can be written to it without the transport: not where that encrypts them.
        self._descriptor: int | None = None

    def begin(self, transport: asyncio.Transport) -> None:
        """The connection has come."""
        self._transport = transport
        if transport.get_extra_info("sslcontext") is None:
            self._descriptor = transport.get_extra_info("socket").fileno()

    def end(self) -> None:
        """The connection has gone: its descriptor may be another's soon."""
        self._descriptor = None

    # Calls with a known head ------------------------------------------------------------------------------

    def answer(self, known: Known, start: int, stop: int) -> Unsent | None:
        """Answer a call whose body lies there in the scratch buffer, where the next one will overwrite it."""
        job = Job(self._core.identities.of(known.request_id))
        try:
            self._core.begin(job, known.terms)
            answer = self._core.answer_at_once(job, self._scratch.view[start:stop])
        except StequantError as error:
            answer = problem(error)
        self._write(answer, job)
        if self._transport.get_write_buffer_size():
            return Unsent(answer, job)
        exchange = self._core.done(known.head, answer, job, known.length)
        if answer.status == 200:
            self._learn(known, exchange, start)
        return None

    def _learn(self, known: Known, exchange: Exchange, start: int) -> None:
        """Remember how to answer the next call if it is like this one."""
        terms = known.terms
        assert isinstance(terms, Terms)  # those of other protocols are never small
        if self._descriptor is None or terms.timeout_s is not None or self._core.spans is not None:
            return
        shortcut = terms.shortcuts.known
        if not isinstance(shortcut, one.Shortcut) or (known.repeat is not None and known.repeat.shortcut is shortcut):
            return
        if _HEAD_BYTES + len(shortcut.answer_prefix) <= start + shortcut.starts[-1]:
            known.repeat = Repeat(self._core, exchange, shortcut, self._scratch, start)

    # Calls that repeat another ----------------------------------------------------------------------------

    def may_answer(self, known: Known) -> bool:
        """Whether `answer_again` can be called now: with nothing before it in the transport, and bytes for it in the budget."""
        return self._descriptor is not None and not self._transport.get_write_buffer_size() and self._core.passes(known.length)

    def answer_again(self, known: Known, repeat: Repeat) -> Unsent | None:
        """Answer a call like an earlier one, which lies where that one lay."""
        core = self._core
        began = time.perf_counter()
        request_id = core.identities.of(known.request_id)
        failure = None
        try:
            repeat.compute()
        except Exception as error:
            failure = failed(error, cast(Terms, known.terms))
        ended = time.perf_counter()
        if failure is None and self._write_now(repeat.placed(self._heads, request_id, ended - began)):
            core.repeated_calls += 1
            repeat.count(request_id, began, ended)
            return None
        job = Job(request_id)
        job.started = job.received = job.began = began
        job.ended = ended
        core.begin(job, known.terms)
        answer = repeat.answer
        if failure is not None:
            answer = failure
            self._write(failure, job)
        if self._transport.get_write_buffer_size():
            return Unsent(answer, job)
        core.done(known.head, answer, job, known.length)
        return None

    # The socket -------------------------------------------------------------------------------------------

    def _write(self, answer: Answer, job: Job) -> None:
        self._transport.write(b"".join((self._heads.head(answer, job, keep_alive=True), *answer.pieces)))

    def _write_now(self, data: memoryview) -> bool:
        """Send all of it; false where the transport has to see to the rest, of which it gets a copy."""
        assert self._descriptor is not None
        try:
            sent_bytes = os.write(self._descriptor, data)
        except OSError:
            sent_bytes = 0  # there is no room, or nobody there: the transport will find out
        if sent_bytes == len(data):
            return True
        self._transport.write(bytes(data[sent_bytes:]))
        return False
