"""Where chunks are computed: what the job asks of this process's engine, or of servers."""

from __future__ import annotations

from typing import Protocol

from service.batch.options import Options
from service.batch.persistence import Persistence
from service.batch.rooms import Room
from service.batch.survey import Survey
from service.batch.task import Task
from service.wire.message import Message


class Session(Protocol):
    """One thread's way to a backend."""

    def compute(self, task: Task, message: Message, room: Room) -> memoryview:
        """The elements of `y`, or of `grad_x`; what the message holds may be overwritten.

        `room` is where the operand lies that the result is like. Raises the errors of `service.errors`, and
        `GaveUp` where waiting does not help.
        """

    def close(self) -> None:
        """Let go of what the thread holds."""


class Backend(Protocol):
    """A place that computes; shared by threads."""

    name: str

    def session(self) -> Session:
        """A way to it for the calling thread."""

    def check(self, options: Options, files: Survey, persistence: Persistence) -> None:
        """`BadUsage` where it is clear already that it will refuse what the job is going to ask for."""

    def close(self) -> None:
        """Let go of it."""
