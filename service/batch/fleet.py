"""Several servers: in turns, without those that are gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from service.batch.connection import Address, Connection
from service.batch.errors import BadInput, BadUsage
from service.batch.options import Options
from service.batch.persistence import Persistence
from service.batch.preflight import check_sizes
from service.batch.rooms import Room
from service.batch.survey import Survey
from service.batch.task import Task
from service.call import fields
from service.client.calls import exchange
from service.client.errors import ConnectionFailed
from service.dtypes import DTYPES
from service.errors import BodyTooLarge, Draining, NotReady
from service.wire.layout import bytes_of
from service.wire.message import Bundle, Message, WireTensor

Result = TypeVar("Result")

_FIRST_ABSENCE_S = 0.2
_LONGEST_ABSENCE_S = 10.0
_GONE = (ConnectionFailed, Draining, NotReady)


class Fleet:
    """Servers that all give the same bits, so that any may be asked. Shared by threads.

    One that cannot be reached, or says that it takes no calls, is left out for a while, and for
    longer each time it is found so again.
    """

    def __init__(self, addresses: Sequence[Address], timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = ", ".join(address.name for address in addresses)
        self._addresses = addresses
        self._timeout_s = timeout_s
        self._clock = clock
        self._lock = threading.Lock()
        self._turn = 0
        self._back_at = [0.0] * len(addresses)
        self._absence_s = [0.0] * len(addresses)

    def session(self) -> FleetSession:
        """The connections of one thread."""
        return FleetSession(self, [Connection(address, self._timeout_s) for address in self._addresses])

    def check(self, options: Options, files: Survey, persistence: Persistence) -> None:
        """Ask whether the largest calls of the job will be taken; waits for a server, as the job itself does."""
        session = self.session()
        try:
            check_sizes(options, files, lambda nbytes: persistence.attempt(lambda: session.takes(options.task, nbytes)))
        except BadInput as error:
            raise BadUsage(f"the server refuses the job: {error}") from error
        finally:
            session.close()

    def close(self) -> None:
        """Nothing is held here; sessions hold their connections."""

    def next(self) -> int:
        """Whose turn it is: one that is there, or where none is, the one that is tried again first."""
        with self._lock:
            now = self._clock()
            order = [(self._turn + step) % len(self._addresses) for step in range(len(self._addresses))]
            chosen = next((one for one in order if self._back_at[one] <= now), None)
            if chosen is None:
                chosen = min(order, key=self._back_at.__getitem__)
            self._turn = chosen + 1
            return chosen

    def answered(self, index: int) -> None:
        """This one is there."""
        self._absence_s[index] = self._back_at[index] = 0.0

    def lost(self, index: int) -> float:
        """Leave this one out for a while; seconds until there is one to ask again."""
        with self._lock:
            now = self._clock()
            if self._back_at[index] <= now:
                self._absence_s[index] = min(_LONGEST_ABSENCE_S, self._absence_s[index] * 2 or _FIRST_ABSENCE_S)
                self._back_at[index] = now + self._absence_s[index]
            return max(0.0, min(self._back_at) - now)


class FleetSession:
    """One connection to each server."""

    def __init__(self, fleet: Fleet, connections: Sequence[Connection]) -> None:
        self._fleet = fleet
        self._connections = connections

    def compute(self, task: Task, message: Message, room: Room) -> memoryview:
        """Asked of the server whose turn it is; an error says how long to wait before the next."""
        call = exchange(task.kind, task.text, message, None, lambda results: results)
        (operand,) = message["x"].tensors
        results = self._asked(lambda connection: connection.call(call, room, len(operand.data)))
        return _in_order_of(operand, results[task.result].tensors[0])

    def takes(self, task: Task, nbytes: int) -> bool:
        """Whether a call with so many bytes of elements is small enough. Raises what else it would be refused for."""
        element = Bundle.of(WireTensor(DTYPES["float32"], (1,), memoryview(bytes(4))))
        message = dict.fromkeys(fields(task.kind), element) | {name: Bundle.of(one) for name, one in task.tensors.items()}
        call = exchange(task.kind, task.text, message, None, lambda results: results)
        try:
            self._asked(lambda connection: connection.probe(call, nbytes))
        except BodyTooLarge:
            return False
        return True

    def _asked(self, ask: Callable[[Connection], Result]) -> Result:
        index = self._fleet.next()
        try:
            result = ask(self._connections[index])
        except _GONE as error:
            error.retry_after_s = max(error.retry_after_s or 0.0, self._fleet.lost(index))
            raise
        self._fleet.answered(index)
        return result

    def close(self) -> None:
        """Close the connections."""
        for connection in self._connections:
            connection.close()


def _in_order_of(like: WireTensor, tensor: WireTensor) -> memoryview:
    """The elements of `tensor` as those of `like` lie: a format with names has C order only."""
    if tensor.fortran == like.fortran:
        return tensor.data
    elements = np.frombuffer(tensor.data, f"u{tensor.dtype.itemsize}")
    if tensor.fortran:
        return bytes_of(elements.reshape(tensor.shape[::-1]).transpose().ravel())
    return bytes_of(elements.reshape(tensor.shape).transpose().ravel())
