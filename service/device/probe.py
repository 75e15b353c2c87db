"""Whether a device still computes right, asked of the device itself: known values, and the bits they must give."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable
from concurrent.futures import Future

from service.call import Call
from service.device.lanes import Lanes
from service.device.outcomes import settle
from service.dtypes import DTYPES
from service.errors import DeviceFault
from service.ops import parse
from service.wire.message import Bundle, Message, WireTensor

# For so long an answer counts: probes may come from several sides, many times a second.
PROBE_EVERY_S = 1.0
# A device that has not answered by then is not ready, if not yet failed.
PROBE_WITHIN_S = 1.0

# Codes 0 to 15 of the four bit grid, from values a quarter of a step away. Each y is n / 15 rounded once: a
# multiplication by the reciprocal, or a step left out, shows in some of them.
_EXPRESSION = parse("clamp(min_value=0, max_value=1) | k_bit_quantize(k=4)")
_X = struct.pack("<16f", *((n + 0.25) / 15 for n in range(16)))
_Y = struct.pack("<16f", *(n / 15 for n in range(16)))


def known_call() -> Call:
    """A call whose answer is known, over memory of its own."""
    return Call("quantize", _EXPRESSION, Bundle.of(WireTensor(DTYPES["float32"], (16,), memoryview(bytearray(_X)))))


def is_right(answer: Message) -> bool:
    """Whether this is the answer to the known call, bit for bit."""
    return bytes(answer["y"].tensors[0].data) == _Y


class Probe:
    """Asks a device by `ask`, at most once a second; on a lane of its own where it cannot be asked in place.

    The lane is there for the probe alone: it waits behind no call, and if it hangs, no call waits behind it.
    """

    def __init__(self, name: str, ask: Callable[[], DeviceFault | None], lane: Lanes | None) -> None:
        self._name = name
        self._ask = ask
        self._lane = lane
        self._asked_at = float("-inf")
        self._asked: Future[DeviceFault | None] = Future()
        self._asked.set_result(None)

    async def result(self) -> DeviceFault | None:
        """Why the device must not be used now; None when it gave the right bits a moment ago."""
        if self._asked.done() and time.monotonic() - self._asked_at >= PROBE_EVERY_S:
            self._begin()
        if not self._asked.done():
            await asyncio.wait([asyncio.wrap_future(self._asked)], timeout=PROBE_WITHIN_S)
        if not self._asked.done():
            return DeviceFault(f"{self._name} has not answered a probe within {PROBE_WITHIN_S:g} s")
        return self._asked.result()

    def _begin(self) -> None:
        self._asked_at = time.monotonic()
        asked = self._asked = Future()
        if self._lane is None:
            settle(asked, self._ask)
        else:
            self._lane.put(lambda: settle(asked, self._ask))
