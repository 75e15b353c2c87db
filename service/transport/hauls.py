"""What one connection leaves to the threads of `haul`, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from service.core import Core
from service.device.lanes import Lanes
from service.errors import OutOfMemory
from service.transport.cycle import DirectCycle
from service.transport.haul import End, Haul, Ready, Road

# From here on what is left of a body, and an answer, are worth a thread.
HAULED_BYTES = 384 * 1024


class Hauls:
    """The hauls of one connection, one after the other; `look`, `answer` and `ended` are those of `Haul`."""

    def __init__(
        self,
        core: Core,
        threads: Lanes,
        *,
        look: Callable[[DirectCycle], None],
        answer: Callable[[DirectCycle], Ready | None],
        ended: Callable[[Haul, End], None],
    ) -> None:
        self._core = core
        self._threads = threads
        self._look = look
        self._answer = answer
        self._ended = ended
        self._road: Road | None = None

    def are_worth_it(self, transport: asyncio.Transport, cycle: DirectCycle, nbytes: int) -> bool:
        """Whether a thread is to move so many bytes of a call: only while others are in flight, and nothing is encrypted."""
        return (
            nbytes >= HAULED_BYTES
            and self._core.budget.in_flight_bytes > cycle.job.reserved_bytes
            and cycle.is_current
            and cycle.body is not None
            and not transport.is_closing()
            and not transport.get_write_buffer_size()
            and transport.get_extra_info("sslcontext") is None
        )

    def begin(self, transport: asyncio.Transport, cycle: DirectCycle, ready: Ready | None) -> bool:
        """Leave the rest of a body and its answer to the threads, or an answer that is there.

        False where there is neither a descriptor nor a thread left for it: then the loop goes on with it.
        """
        if ready is None and cycle.job.ahead is None and cycle.job.terms is not None:
            cycle.look_bytes = self._core.first_look_bytes(cycle.job.terms, cycle.length, on_loop=False)
        try:
            if self._road is None:
                self._road = Road(transport.get_extra_info("socket"))
            Haul(self._road, cycle, self._threads, look=self._look, answer=self._answer, ended=self._ended).begin(ready)
        except (OSError, OutOfMemory):
            return False
        self._core.metrics.hauls.inc()
        return True

    def end(self) -> None:
        """The connection has gone, and no thread has it."""
        if self._road is not None:
            self._road.close()
            self._road = None
