"""A server under those who never finish, and under more than it can hold."""

from __future__ import annotations

import resource
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from http_bodies import npy
from server_process import ServerProcess, Wire, get, post, serving

MIB = 2**20
SMALL = npy(torch.tensor([0.6, -0.4]))
HEADER_TIMEOUT_S = 5.0


def resident_bytes(server: ServerProcess) -> int:
    """What the server's process has in memory."""
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@contextmanager
def many_files(count: int) -> Iterator[None]:
    """Room for this many open files, here and in processes started meanwhile; the test is skipped where there is none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"a process may open {hard} files here; this needs {count}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def half_open(server: ServerProcess, count: int) -> Iterator[list[socket.socket]]:
    """Connections of which each has sent the beginning of a request."""
    with ExitStack() as stack:
        connections = []
        for index in range(count):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
            one.sendall(post(SMALL)[: index % 60])
            connections.append(one)
        yield connections


def ended(connections: list[socket.socket], within_s: float) -> int:
    """How many of the connections the server has ended in time."""
    poll = select.poll()
    waiting = {one.fileno(): one for one in connections}
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    end = time.monotonic() + within_s
    while waiting and (left_s := end - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(left_s * 1000):
            try:
                data = waiting[descriptor].recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                poll.unregister(descriptor)
                del waiting[descriptor]
    return len(connections) - len(waiting)


@pytest.mark.slow
def test_ten_thousand_half_open_connections_are_ended_and_nobody_else_notices() -> None:
    count = 10_000
    with many_files(count + 500), serving("--header-timeout-s", str(HEADER_TIMEOUT_S)) as server:
        with Wire(server) as wire:
            assert wire.ask(post(SMALL)).status == 200
        idle = resident_bytes(server)
        with half_open(server, count) as connections:
            latencies_s = []
            with Wire(server) as wire:
                for _ in range(50):
                    start = time.perf_counter()
                    assert wire.ask(post(SMALL)).status == 200
                    latencies_s.append(time.perf_counter() - start)
            grown = resident_bytes(server) - idle
            closed = ended(connections, HEADER_TIMEOUT_S + 10)
        print(f"grown by {grown / MIB:.0f} MiB, median of good calls {sorted(latencies_s)[25] * 1e3:.1f} ms")
        assert closed == count
        assert grown < 150 * MIB
        assert sorted(latencies_s)[25] < 0.1
        with Wire(server) as wire:
            assert wire.ask(get("/readyz")).status == 200


@pytest.mark.slow
def test_more_large_calls_than_fit_are_refused_or_answered_and_never_lost() -> None:
    """64 callers with 64 MiB each would need 4 GiB; what the server holds stays within its budget."""
    callers, body = 64, npy(torch.zeros(16 * MIB))
    budget = 4 * len(body)
    with serving("--max-in-flight-bytes", str(budget), "--max-body-bytes", str(len(body))) as server:
        idle, peak = resident_bytes(server), 0
        statuses: Counter[int] = Counter()

        def call() -> None:
            request = post(body)
            for _ in range(200):
                with Wire(server, timeout_s=120) as wire:
                    wire.send_until_refused(request)
                    answer = wire.read()
                statuses[answer.status] += 1
                if answer.status != 429:
                    return
                assert int(answer.headers["retry-after"]) >= 1
                time.sleep(0.05)

        threads = [threading.Thread(target=call) for _ in range(callers)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            peak = max(peak, resident_bytes(server))
            time.sleep(0.02)
        for thread in threads:
            thread.join()
        assert statuses[200] == callers
        assert statuses.keys() <= {200, 429}
        assert peak - idle < 2 * budget, f"grown by {(peak - idle) / MIB:.0f} MiB"
