"""A device beside the host, as CUDA is, whose memory is other memory of the CPU; it fails as it is told.

What a thread asks for is done in that order, as in a stream, and copies back as late as that allows: whoever looks
before `synchronize` sees old bytes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from service.device.buffers import Room, pageable

# Nothing in these tests takes so long unless it hangs.
SOON_S = 20.0


class ScriptedDevice:
    """An implementation of `Device`.

    `errors` are raised by the next lifts, one each (None: no error). Tensors of more than `room_bytes` do not fit.
    While it is `held`, threads hang in `synchronize`, if nobody lets them go for `hang_s`.
    """

    name = "scripted:0"
    reason = "test"
    computes_in_place = False
    small_calls_are_instant = False

    def __init__(
        self,
        *,
        lanes: int = 1,
        tile_bytes: int = 2**20,
        least_tile_bytes: int = 4096,
        room_bytes: int = 2**40,
        hang_s: float = SOON_S,
    ) -> None:
        self.lanes = lanes
        self.tile_bytes = tile_bytes
        self.least_tile_bytes = least_tile_bytes
        self.room_bytes = room_bytes
        self.hang_s = hang_s
        self.errors: deque[Exception | None] = deque()
        self.errors_on_entering: deque[Exception] = deque()
        self.spoils_bits = False
        self.lifted_bytes: list[int] = []
        self.releases = 0
        self.synchronized = 0
        self.lane_threads: set[str] = set()
        self._pending = threading.local()
        self._may_go = threading.Event()
        self._may_go.set()
        self._hanging = threading.Semaphore(0)

    @contextmanager
    def held(self) -> Iterator[Callable[[int], None]]:
        """Let threads hang until the end of the block; what it gives waits until so many of them do."""
        self._may_go.clear()
        try:
            yield self._wait_until_hanging
        finally:
            self._may_go.set()

    def _wait_until_hanging(self, threads: int = 1) -> None:
        for _ in range(threads):
            assert self._hanging.acquire(timeout=SOON_S), "no thread came to synchronize"

    @property
    def pending(self) -> list[tuple[Tensor, Tensor]]:
        """What the calling thread has lowered and not yet synchronized."""
        if not hasattr(self._pending, "copies"):
            self._pending.copies = []
        copies: list[tuple[Tensor, Tensor]] = self._pending.copies
        return copies

    def enter_lane(self) -> None:
        if self.errors_on_entering:
            raise self.errors_on_entering.popleft()
        self.lane_threads.add(threading.current_thread().name)

    def allocate(self, nbytes: int) -> Room:
        return pageable(nbytes)

    def lift(self, host: Tensor) -> Tensor:
        if self.errors and (error := self.errors.popleft()) is not None:
            raise error
        if host.nbytes > self.room_bytes:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {host.nbytes} bytes")
        self.lifted_bytes.append(host.nbytes)
        self._copy_back()
        return host.clone()

    def lower(self, result: Tensor, host: Tensor) -> None:
        assert result.shape == host.shape
        self.pending.append((result.clone(), host))

    def release(self) -> None:
        self.releases += 1

    def synchronize(self) -> None:
        if not self._may_go.is_set():
            self._hanging.release()
            assert self._may_go.wait(self.hang_s)
        self.synchronized += 1
        self._copy_back()

    def _copy_back(self) -> None:
        for result, host in self.pending:
            host.copy_(result)
            if self.spoils_bits and host.numel():
                host.view(-1)[-1] = torch.nextafter(host.view(-1)[-1], torch.tensor(9, dtype=host.dtype))
        self.pending.clear()

    def memory(self) -> dict[str, int]:
        return {"allocated": 0}
