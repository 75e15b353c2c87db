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
from service.transport.answer_head import answer_head, fixed_lines
from service.transport.scratch import Scratch


class Repeat:
    """A call whose body lies from `start` to `stop` in the scratch buffer; `exchange` is that of the earlier one."""

    __slots__ = (
        "_constants",
        "_elements_at",
        "_exchange",
        "_fixed",
        "_scratch",
        "_tally",
        "answer",
        "compute",
        "shortcut",
        "start",
        "stop",
    )

    def __init__(self, core: Core, exchange: Exchange, shortcut: Shortcut, scratch: Scratch, start: int) -> None:
        self.shortcut = shortcut
        self.start = start
        self.stop = start + shortcut.length
        self._elements_at = start + shortcut.starts[-1]
        self.answer = shortcut.answer_of(scratch.view[start : self.stop])
        # Overwrites the elements of the call that lies there, as `Shortcut.overwrite` does.
        self.compute = shortcut.bound(core.engine, scratch.view[start : self.stop])
        self._scratch = scratch
        self._constants = tuple((start + at, same) for at, same in shortcut.constants)
        self._fixed = fixed_lines(200, shortcut.media_type, keep_alive=True)
        self._exchange = exchange
        self._tally = core.metrics.tally(exchange)

    def fits(self, start: int, stop: int) -> bool:
        """Whether what lies there is such a call."""
        if start != self.start or stop != self.stop:
            return False
        holds = self._scratch.bytes.startswith
        return all([holds(same, at) for at, same in self._constants])  # noqa: C419  # a generator would cost twice as much

    def placed(self, default_lines: bytes, request_id: bytes, compute_s: float) -> memoryview:
        """The whole answer, whose elements are computed."""
        head = answer_head(self._fixed, default_lines, request_id, compute_timing(compute_s), self.answer.length)
        head += self.shortcut.answer_prefix
        begin = self._elements_at - len(head)
        self._scratch.bytes[begin : self._elements_at] = head
        return self._scratch.view[begin : self.stop]

    def count(self, request_id: bytes, began: float, ended: float) -> None:
        """Count and log a call that was answered now, computed from `began` to `ended`."""
        now = time.perf_counter()
        stages = (0.0, 0.0, ended - began, now - ended)
        self._tally.add(self.shortcut.length, self.answer.length, now - began, stages)
        if is_heard():
            log_exchange(self._exchange._replace(duration_s=now - began, request_id=request_id, stages=Stages(*stages)))
