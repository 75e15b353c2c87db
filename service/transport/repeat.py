"""Small calls that differ from an earlier one in nothing but their data, answered where they were received.

Head, body header and place are those of the earlier call, so nothing is read, planned or allocated any more: the elements
are computed where they lie, the head of the answer is put in front of them, and both leave in one piece.
"""

from __future__ import annotations

import time

from service.core import Core
from service.job import compute_timing
from service.logs import is_heard, log_exchange
from service.metrics import Exchange, Stages
from service.shortcuts.one import Shortcut
from service.transport.answer_head import AnswerHeads, fixed_lines
from service.transport.scratch import Scratch


class Repeat:
    """A call whose body is to lie from `start` on in the scratch buffer; `exchange` is that of the earlier one."""

    __slots__ = (
        "_constants",
        "_elements_at",
        "_elements_end",
        "_exchange",
        "_fixed",
        "_scratch",
        "_tally",
        "answer",
        "compute",
        "shortcut",
        "start",
    )

    def __init__(self, core: Core, exchange: Exchange, shortcut: Shortcut, scratch: Scratch, start: int) -> None:
        self.shortcut = shortcut
        self.start = start
        self._elements_at = start + shortcut.starts[-1]
        self._elements_end = self._elements_at + shortcut.nbytes
        body = scratch.view[start : start + shortcut.length]
        self.answer = shortcut.answer_of(body)
        # Overwrites the elements of the call that lies there, as `Shortcut.overwrite` does.
        self.compute = shortcut.bound(core.engine, body)
        self._scratch = scratch
        self._constants = shortcut.constants
        self._fixed = fixed_lines(200, shortcut.media_type, keep_alive=True)
        self._exchange = exchange
        self._tally = core.metrics.tally(exchange)

    def fits(self, start: int, stop: int) -> bool:
        """Whether the body that lies there, wherever it is, is that of such a call."""
        if stop - start != self.shortcut.length:
            return False
        holds = self._scratch.bytes.startswith
        return all([holds(same, start + at) for at, same in self._constants])  # noqa: C419  # a generator would cost twice as much

    def placed(self, heads: AnswerHeads, request_id: bytes, compute_s: float) -> memoryview:
        """The whole answer, whose elements are computed."""
        head = heads.head_of(self._fixed, request_id, compute_timing(compute_s), self.answer.length)
        head += self.shortcut.answer_prefix
        begin = self._elements_at - len(head)
        self._scratch.bytes[begin : self._elements_at] = head
        return self._scratch.view[begin : self._elements_end]

    def count(self, request_id: bytes, began: float, ended: float) -> None:
        """Count and log a call that was answered now, computed from `began` to `ended`."""
        now = time.perf_counter()
        stages = (0.0, 0.0, ended - began, now - ended)
        self._tally.add(self.shortcut.length, self.answer.length, now - began, stages)
        if is_heard():
            log_exchange(self._exchange._replace(duration_s=now - began, request_id=request_id, stages=Stages(*stages)))
