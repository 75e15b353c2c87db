"""One hot request on a connection, from its head to the moment its answer has left."""

from __future__ import annotations

from service.ahead import NEVER
from service.answer import Answer
from service.head import Head
from service.job import Job


class DirectCycle:
    """A request whose body the connection receives itself.

    Either `job` is admitted and `body` is filled, or `answer` holds the refusal and the body is
    skipped. `remaining_bytes` of the body are still to come. When `look_bytes` of it are there, something can be
    computed already.
    """

    __slots__ = (
        "answer",
        "body",
        "disconnected",
        "expects_continue",
        "head",
        "is_current",
        "is_done",
        "job",
        "keep_alive",
        "late_bytes",
        "length",
        "look_bytes",
        "remaining_bytes",
        "response_complete",
    )

    def __init__(self, head: Head, job: Job, length: int, *, keep_alive: bool, expects_continue: bool) -> None:
        self.head = head
        self.length = length
        self.remaining_bytes = length
        self.keep_alive = keep_alive
        self.expects_continue = expects_continue
        self.job = job
        self.answer: Answer | None = None
        self.body: memoryview | None = None
        self.is_current = False
        self.is_done = False
        # Still reserved for work that goes on after its call was answered.
        self.late_bytes = 0
        self.look_bytes = NEVER
        self.disconnected = False
        self.response_complete = False

    def take(self, data: memoryview | bytes) -> None:
        """Bytes of the body that came together with the head."""
        if self.body is not None:
            position = self.length - self.remaining_bytes
            self.body[position : position + len(data)] = data
        self.remaining_bytes -= len(data)

    @property
    def rest(self) -> memoryview | None:
        """Where the next bytes of the body belong; None when they are to be skipped."""
        return None if self.body is None else self.body[self.length - self.remaining_bytes :]

    @property
    def received_bytes(self) -> int:
        """How much of the body has come."""
        return self.length - self.remaining_bytes
