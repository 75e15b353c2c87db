"""A call that fails lets go of its memory at once: nobody waits for the garbage collector to find it."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scripted_device import ScriptedDevice
from wire_tensors import on_wire

from service.call import Call
from service.device.buffers import Pool, Room, no_memory, pageable
from service.device.engine import Engine
from service.device.lanes import Lanes
from service.errors import OutOfMemory
from service.ops import parse
from service.wire.message import Bundle

MIB = 2**20


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Memory comes back by counting references, or not at all."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Memory:
    """What stands for the memory of a call."""


@pytest.mark.usefixtures("no_collector")
def test_work_that_fails_lets_go_of_what_it_holds() -> None:
    seen: list[weakref.ref[Memory]] = []

    def work() -> None:
        memory = Memory()
        seen.append(weakref.ref(memory))
        raise MemoryError(memory)

    async def failing(engine: Engine) -> None:
        try:  # pytest.raises would keep the error
            await engine.submit(work)
        except MemoryError:
            return
        pytest.fail("no error")

    engine = Engine(ScriptedDevice())
    asyncio.run(failing(engine))
    engine.close()
    assert seen[0]() is None


@pytest.mark.usefixtures("no_collector")
def test_a_call_that_fails_lets_go_of_its_tensors() -> None:
    device = ScriptedDevice(room_bytes=16, least_tile_bytes=2**20)
    engine = Engine(device)
    body = np.zeros(MIB, dtype=np.uint8)
    alive = weakref.ref(body)
    x = on_wire(torch.zeros(MIB // 4))._replace(data=memoryview(body))
    call = Call("quantize", parse("round"), Bundle.of(x), None)
    del body, x

    async def failing(call: Call) -> None:
        try:
            await engine.compute(call)
        except OutOfMemory:
            return
        pytest.fail("no error")

    asyncio.run(failing(call))
    engine.close()
    del call
    assert alive() is None


# The pool ---------------------------------------------------------------------------------------------------


class Host:
    """A host with memory for so many bytes."""

    def __init__(self, room_bytes: int) -> None:
        self.left_bytes = room_bytes

    def fresh(self, nbytes: int) -> Room:
        if nbytes > self.left_bytes:
            raise no_memory(f"{nbytes} bytes")
        room = pageable(nbytes)
        self.left_bytes -= nbytes
        weakref.finalize(room, self._back, nbytes)
        return room

    def _back(self, nbytes: int) -> None:
        self.left_bytes += nbytes


def test_what_the_pool_keeps_makes_room_for_a_body_of_another_size() -> None:
    pool = Pool(Host(4 * MIB).fresh)
    pool.give(pool.take(3 * MIB))
    assert pool.take(2 * MIB).nbytes == 2 * MIB
    assert pool.bytes == 0


def test_a_body_that_does_not_fit_beside_others_in_flight_is_refused() -> None:
    pool = Pool(Host(4 * MIB).fresh)
    in_flight = pool.take(3 * MIB)
    with pytest.raises(OutOfMemory, match="the host has no memory left for 2097216 bytes"):
        pool.take(2 * MIB)
    assert in_flight.nbytes == 3 * MIB


@pytest.mark.parametrize("nbytes", [2**60, 2**62])
def test_memory_that_no_host_has_is_out_of_memory(nbytes: int) -> None:
    with pytest.raises(OutOfMemory, match=f"{nbytes} bytes of this body"):
        pageable(nbytes)


# Threads ------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_more_threads() -> Iterator[None]:
    """A stack for which there is no address space stands for a host without memory for a stack."""
    before = threading.stack_size(2**46)
    yield
    threading.stack_size(before)


@pytest.mark.usefixtures("no_more_threads")
def test_a_thread_that_cannot_be_started_is_out_of_memory_and_the_next_call_tries_again() -> None:
    lanes, done = Lanes("test", 1, lambda: None), threading.Event()
    with pytest.raises(OutOfMemory, match="no memory left for a thread"):
        lanes.put(done.set)
    threading.stack_size(0)
    lanes.put(done.set)
    assert done.wait(20)
    lanes.close(given_up=lambda: False)
