"""Clients that call a server all the time, without a second try, and remember every call that was lost."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from http_bodies import npy
from server_process import eventually

NPY = {"Content-Type": "application/x-npy"}
# One of a few hundred bytes, and one that is worked on beside the event loop.
CALLS = [(npy(x), npy(x.round())) for x in (torch.linspace(-9, 9, 50), torch.linspace(-9, 9, 600_000))]


class Load:
    """What the clients have seen so far."""

    def __init__(self, clients: int) -> None:
        self.answered = [0] * clients
        self.lost: list[str] = []
        self._stop = threading.Event()

    @property
    def total(self) -> int:
        """Calls answered, and rightly."""
        return sum(self.answered)

    def go_on(self, calls: int) -> None:
        """Return when every client was answered this many times more, or as soon as a call was lost."""
        goal = [count + calls for count in self.answered]
        eventually(lambda: bool(self.lost) or all(map(int.__ge__, self.answered, goal)), f"{calls} more calls of each client")

    def stop(self) -> None:
        """Let every client end after its next answer."""
        self._stop.set()

    def run(self, client: int, connect: Callable[[], http.client.HTTPConnection], ends_with_connection: bool) -> None:
        """One client: one connection, which it keeps as long as the server does."""
        x, y = CALLS[client % len(CALLS)]
        connection = connect()
        try:
            while not self._stop.is_set():
                connection.request("POST", "/quantize?op=round", x, NPY)
                response = connection.getresponse()
                if response.read() != y or response.status != 200:
                    self.lost.append(f"client {client}: status {response.status}, or wrong bits")
                    return
                self.answered[client] += 1
                if response.will_close and ends_with_connection:
                    return
        except (OSError, http.client.HTTPException) as error:
            self.lost.append(f"client {client} after {self.answered[client]} calls: {error!r}")
        finally:
            connection.close()


@contextmanager
def steady_load(
    connect: Callable[[], http.client.HTTPConnection], *, clients: int = 8, ends_with_connection: bool = False
) -> Iterator[Load]:
    """Clients that call until the block ends; or, `ends_with_connection`, until they are told that their connection ends.

    Otherwise they then connect again, and go on.
    """
    load = Load(clients)
    threads = [threading.Thread(target=load.run, args=(client, connect, ends_with_connection)) for client in range(clients)]
    for thread in threads:
        thread.start()
    try:
        load.go_on(20)
        yield load
    finally:
        if not ends_with_connection:
            load.stop()
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
