"""The threads that wait for a device, so that the event loop need not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

from service.errors import OutOfMemory

Work = Callable[[], None]

_LOOK_S = 0.1


class Lanes:
    """`count` threads that take work in the order in which it came; each calls `enter` first.

    They are daemons: one that hangs in a device must not keep the process from ending, as those of
    concurrent.futures would. Work must not raise.
    """

    def __init__(self, name: str, count: int, enter: Work) -> None:
        self._name = name
        self._count = count
        self._enter = enter
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def put(self, work: Work) -> None:
        """Have the work done by the next thread that is free. The first time starts the threads.

        Raises `OutOfMemory` where there is none, and none can be started.
        """
        if len(self._threads) < self._count:
            self._start()
        self._queue.put(work)

    @property
    def is_wanted(self) -> bool:
        """Whether work waits for a thread."""
        return not self._queue.empty()

    def close(self, given_up: Callable[[], bool]) -> None:
        """Drop the work that has not begun, and wait for the rest while `given_up` does not say that it is lost."""
        with suppress(Empty):
            while True:
                self._queue.get_nowait()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            while thread.is_alive() and not given_up():
                thread.join(_LOOK_S)

    def _start(self) -> None:
        with self._lock:
            while len(self._threads) < self._count:
                thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # "can't start new thread": no memory for its stack, or too many of them
                    if not self._threads:
                        raise OutOfMemory("the host has no memory left for a thread; try again") from error
                    return  # those that there are do the work; the next call tries again
                self._threads.append(thread)

    def _work(self) -> None:
        self._enter()
        while (work := self._queue.get()) is not None:
            work()
            del work  # it holds a body, which nobody needs while this waits
