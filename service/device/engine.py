"""The engine: owns a device and the threads that wait for it, and answers calls.

Callers give it a `Call` and get a `Message`. When the device fails, everything that waits is answered
`DeviceFault` at once, and so is everything that comes later: the process has to be started again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from service.call import Call, Kind
from service.device import coalescing, probe, tiles
from service.device.arriving import Arriving, arriving
from service.device.compute import compute, overwrite
from service.device.condense import condense
from service.device.devices import Device
from service.device.faults import is_sticky
from service.device.gathering import Tile
from service.device.health import Health
from service.device.lanes import Lanes
from service.device.outcomes import Outcomes, deliver, settle, waiter
from service.dtypes import DTYPES
from service.errors import DeviceFault, Draining
from service.ops import REGISTRY, Expression, parse
from service.ops.catalogue import example
from service.wire.compact import CompactBundle
from service.wire.message import Bundle, Message, WireTensor

Result = TypeVar("Result")

# The largest body takes a device well under a second.
DEVICE_TIMEOUT_S = 60.0


class Engine:
    """Runs calls on one device.

    A call that keeps the device for more than `device_timeout_s` is taken for a device that hangs; the
    CPU is not watched, as it does not hang and may need long.
    """

    def __init__(self, device: Device, *, device_timeout_s: float = DEVICE_TIMEOUT_S) -> None:
        self.device = device
        self._health = Health(device.name, None if device.computes_in_place else device_timeout_s)
        self._outcomes = Outcomes()
        self._health.on_failure(lambda fault: self._outcomes.fail(DeviceFault, fault.detail))
        self._lanes = Lanes("device", device.lanes, self._enter_lane)
        self._queue = coalescing.Queue()
        self._probe_lane = None if device.small_calls_are_instant else Lanes("device-probe", 1, self._enter_lane)
        self._probe = probe.Probe(device.name, self._ask_known_call, self._probe_lane)

    @property
    def fault(self) -> DeviceFault | None:
        """Why the device has failed; None while it has not."""
        return self._health.fault

    @property
    def coalesced_calls(self) -> int:
        """How many calls were computed together with others, so far."""
        return self._queue.coalesced_calls

    def on_failure(self, callback: Callable[[DeviceFault], None]) -> None:
        """Call `callback` when the device fails, once, on the thread that notices; at once if it has failed already."""
        self._health.on_failure(callback)

    async def probe(self) -> DeviceFault | None:
        """Why no call should be sent to the device now; None when it gave known bits within the last second."""
        return self.fault or await self._probe.result()

    def warm_up(self) -> None:
        """Run every operator once in every dtype: the first call of anything is slow."""
        # More threads than one fight over shared cores (ten times slower in the tail); workers use the other cores.
        torch.set_num_threads(1)
        for name in REGISTRY:
            expression = parse(example(name))
            for dtype in DTYPES.values():
                for kind in ("quantize", "grad"):
                    x, grad_output = (
                        Bundle.of(WireTensor(dtype, (4,), memoryview(bytearray(4 * dtype.itemsize)))) for _ in range(2)
                    )
                    self.run(Call(kind, expression, x, grad_output if kind == "grad" else None))

    async def submit(self, work: Callable[[], Result]) -> Result:
        """Run `work`, which calls `run`, on a lane of the device."""
        return await waiter(self._begun(work))

    async def compute(self, call: Call) -> Message:
        """`run` on a lane of the device, together with the calls like it that wait there as well."""
        return await waiter(self._queued(call))

    def close(self) -> None:
        """Let go of the threads, after the work that they have begun; what has not begun is answered `Draining`."""
        for lanes in (self._lanes, self._probe_lane):
            if lanes is not None:
                lanes.close(given_up=lambda: self.fault is not None)
        self._outcomes.fail(Draining, "the service is stopping")
        self._health.close()

    def run(self, call: Call) -> Message:
        """Compute a call, and wait for it.

        Raises `OutOfMemory` when the device has no room for it, `DeviceFault` when the device failed.
        """
        return self._done(compute, call)

    def condense(self, call: Call) -> CompactBundle:
        """`run` for a call that asks for a compact answer; `NotRepresentable` where its data have none."""
        return self._done(condense, call)

    def arriving(self, call: Call) -> Arriving | None:
        """How to compute a call while its last operand arrives, by `step`; None where that is not possible."""
        return arriving(self.device, call)

    def step(self, one: Arriving, start: int, stop: int) -> None:
        """Compute these elements of a call that arrives; raises what `run` does."""
        with self._health:
            one.step(start, stop)

    def run_in_place(self, expression: Expression, elements: Tensor) -> None:
        """Overwrite 1-d host elements with `expression(elements)`; for elementwise expressions without tensors."""
        if self.device.computes_in_place:
            # The hottest path of all: entering a context would be a twentieth of it.
            try:
                tiles.forward(self.device, expression, elements, {})
            except Exception as error:
                self._health.judge(error)
                raise
            return
        with self._health:
            try:
                tiles.forward(self.device, expression, elements, {})
                self.device.synchronize()
            except BaseException as error:
                self._end_copies(error)
                raise

    def differentiate_in_place(self, expression: Expression, x: Tensor | None, grad_output: Tensor) -> None:
        """Overwrite 1-d host elements with the gradients of `expression` at `x`; where the device computes in place."""
        with self._health:
            tiles.backward(self.device, expression, x, grad_output)

    def overwrite(
        self, kind: Kind, expression: Expression, dtype: str, cut: Iterable[Tile], operands: Sequence[Sequence[memoryview]]
    ) -> None:
        """Overwrite the tensors of the last operand with the answer; where the device computes in place."""
        with self._health:
            overwrite(self.device, kind, expression, dtype, cut, operands)

    # Wherever work can fail, no frame that is below it may keep its outcome: see `settle`.

    def _begun(self, work: Callable[[], Result]) -> Future[Result]:
        outcome: Future[Result] = self._outcomes.open()
        self._lanes.put(partial(settle, outcome, work))
        return outcome

    def _queued(self, call: Call) -> Future[Message]:
        outcome: Future[Message] = self._outcomes.open()
        self._queue.add(call, outcome)
        self._lanes.put(self._compute_oldest)
        return outcome

    def _done(self, work: Callable[[Device, Call], Result], call: Call) -> Result:
        with self._health:
            try:
                return work(self.device, call)
            except BaseException as error:
                self._end_copies(error)
                raise

    def _end_copies(self, error: BaseException) -> None:
        """After an error, wait until nothing is written any more into the operands, whose memory is used again.

        A device that has failed might never say so; but then no call comes any more that could use it.
        """
        if not is_sticky(error):
            self.device.synchronize()

    def _enter_lane(self) -> None:
        try:
            with self._health:
                self.device.enter_lane()
        except Exception as error:
            self._health.fail(f"cannot be used by a thread: {error}")

    def _compute_oldest(self) -> None:
        """Answer the call that has waited longest, and those like it; there is none left where it went with another."""
        waiting = self._queue.take()
        if len(waiting) > 1 and self._compute_together(waiting):
            return
        while waiting:
            one = waiting.pop(0)
            settle(one.outcome, partial(self.run, one.call))
            del one

    def _compute_together(self, waiting: Sequence[coalescing.Waiting]) -> bool:
        """Answer these calls as one; false where that fails, which says nothing about each of them alone."""
        calls = [one.call for one in waiting]
        try:
            answers = coalescing.split(self.run(coalescing.merge(calls)), calls)
        except Exception:
            return False
        for one, answer in zip(waiting, answers, strict=True):
            deliver(one.outcome.set_result, answer)
        return True

    def _ask_known_call(self) -> DeviceFault | None:
        try:
            if not probe.is_right(self.run(probe.known_call())):
                self._health.fail("gave wrong bits for known values")
        except DeviceFault as error:
            return error
        return self.fault
