"""Small calls that wait at the same time, computed as one.

A call costs a device like CUDA two copies and some launches, however small it is. Calls that want the
same done to elements of the same dtype are laid side by side and cost that once. Only elementwise
expressions without tensor parameters, whose bits do not depend on what lies beside an element. Nothing
ever waits for company: whoever becomes free takes what has come meanwhile.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import chain
from typing import NamedTuple

from service.call import Call, Kind
from service.device.gathering import LARGE_BYTES
from service.wire.message import Bundle, Message

# From here on the bus is the bound and not the launches, and the first call would only wait for the copies of the others.
TOGETHER_BYTES = 4 * 2**20


class Likeness(NamedTuple):
    """What calls must have in common to be computed as one."""

    kind: Kind
    expression: str
    dtype: str
    with_x: bool


class Waiting(NamedTuple):
    """A call that waits, and where its answer belongs."""

    call: Call
    likeness: Likeness | None
    nbytes: int
    outcome: Future[Message]


class Queue:
    """The calls that wait, oldest first; `coalesced_calls` of them were taken together with others."""

    def __init__(self, limit_bytes: int = TOGETHER_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.coalesced_calls = 0
        self._calls: deque[Waiting] = deque()
        self._lock = threading.Lock()

    def add(self, call: Call, outcome: Future[Message]) -> None:
        """A call has come."""
        waiting = Waiting(call, likeness(call), sum(tensor.data.nbytes for tensor in call.operand.tensors), outcome)
        with self._lock:
            self._calls.append(waiting)

    def take(self) -> list[Waiting]:
        """The oldest call, and all that are like it up to `limit_bytes` in all; the others keep their order.

        Calls that nobody waits for any more are left out. Empty when nothing waits.
        """
        with self._lock:
            taken: list[Waiting] = []
            others: deque[Waiting] = deque()
            nbytes = 0
            for waiting in self._calls:
                if waiting.outcome.done():
                    continue
                if not taken or self._goes_with(taken[0], waiting, nbytes):
                    taken.append(waiting)
                    nbytes += waiting.nbytes
                else:
                    others.append(waiting)
            self._calls = others
            self.coalesced_calls += len(taken) if len(taken) > 1 else 0
            return taken

    def _goes_with(self, oldest: Waiting, other: Waiting, nbytes: int) -> bool:
        alike = oldest.likeness is not None and oldest.likeness == other.likeness
        return alike and nbytes + other.nbytes <= self.limit_bytes


def likeness(call: Call) -> Likeness | None:
    """What another call must have in common with this one; None where it has to be computed alone.

    All tensors must be small: those are copied side by side, so a failure leaves the operands as they
    came and each call can still be computed alone.
    """
    operands = [bundle.tensors for bundle in (call.x, call.grad_output) if bundle is not None]
    dtypes = {tensor.dtype.name for tensor in operands[0]}
    if call.tensors or not call.expression.elementwise or len(dtypes) != 1:
        return None
    if any(tensor.data.nbytes >= LARGE_BYTES for tensor in chain(*operands)):
        return None
    if len(operands) == 2 and any(one.fortran != other.fortran for one, other in zip(*operands, strict=True)):
        return None
    return Likeness(call.kind, str(call.expression), dtypes.pop(), call.x is not None)


def merge(calls: Sequence[Call]) -> Call:
    """One call over the tensors of all of these, which are alike. It may only read them: where it fails, each has its own turn."""
    first = calls[0]
    return first._replace(
        x=_joined([call.x for call in calls if call.x is not None]),
        grad_output=_joined([call.grad_output for call in calls if call.grad_output is not None]),
    )


def split(answer: Message, calls: Sequence[Call]) -> list[Message]:
    """The answer to each of the calls that were merged, in their order."""
    ((name, bundle),) = answer.items()
    answers: list[Message] = []
    start = 0
    for call in calls:
        operand = call.operand
        stop = start + len(operand.tensors)
        answers.append({name: Bundle(bundle.tensors[start:stop], operand.names, operand.single)})
        start = stop
    return answers


def _joined(bundles: Sequence[Bundle]) -> Bundle | None:
    if not bundles:
        return None
    tensors = chain.from_iterable(bundle.tensors for bundle in bundles)
    return Bundle(tuple(tensor.like(tensor.data.toreadonly()) for tensor in tensors))
