"""Computing in this process, with the server's own engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from service.batch.errors import BadUsage, GaveUp
from service.batch.options import Options
from service.batch.persistence import Persistence
from service.batch.rooms import Room
from service.batch.survey import Survey
from service.batch.task import Task
from service.call import plan
from service.device.devices import choose
from service.device.engine import Engine
from service.errors import DeviceFault, OutOfMemory
from service.wire.message import Message


class Embedded:
    """A backend that is its own session: the engine may be used by several threads at once."""

    def __init__(self, device: str) -> None:
        try:
            self._engine = Engine(choose(device))
        except DeviceFault as error:
            raise BadUsage(error.detail) from error
        self.name = self._engine.device.name
        with self._faults():
            self._engine.warm_up()

    def session(self) -> Embedded:
        """The backend itself."""
        return self

    def compute(self, task: Task, message: Message, room: Room) -> memoryview:
        """Computed in place wherever that is possible."""
        with self._faults():
            results = self._engine.run(plan(task.kind, task.expression, message))
        return results[task.result].tensors[0].data

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """A device that has failed does not come back in this process; one without room may have some later."""
        try:
            yield
        except OutOfMemory:
            raise
        except DeviceFault as error:
            raise GaveUp(f"the device {self.name} failed: {error.detail}") from error

    def check(self, options: Options, files: Survey, persistence: Persistence) -> None:
        """There is no limit but memory."""

    def close(self) -> None:
        """Let go of the engine."""
        self._engine.close()
