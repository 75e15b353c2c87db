"""Several workers: none that dies, wedges or never starts stops the service, and no call is lost when it is told to stop."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

import numpy as np
import pytest
import torch
from http_bodies import npy
from server_process import ServerProcess, Wire, eventually, get, http_connection, post
from steady_load import steady_load
from worker_processes import Starts, is_alive, said, several_workers, workers_of

from service.client import Client
from service.errors import StequantError

# Every one starts processes that import torch, several times.
pytestmark = pytest.mark.slow

SMALL, ROUNDED = npy(torch.tensor([0.6, -0.4])), npy(torch.tensor([1.0, -0.0]))


def replaced(server: ServerProcess, pids: set[int]) -> bool:
    """Whether the service has as many workers as before, none of them among these."""
    now = workers_of(server)
    return len(now) >= len(pids) and not now & pids


# Stopping ------------------------------------------------------------------------------------------------


def stop_under_load(workers: int) -> int:
    """Send SIGTERM to a server that eight clients call, each until it is told that its connection ends; the calls answered."""
    with several_workers(workers=workers) as server:
        with steady_load(lambda: http_connection(server), ends_with_connection=True) as load:
            server.process.send_signal(signal.SIGTERM)
        assert not load.lost
        assert server.stop() == 0
    return load.total


@pytest.mark.parametrize("workers", [1, 2])
def test_no_call_is_lost_when_a_service_under_load_is_told_to_stop(workers: int) -> None:
    assert stop_under_load(workers) >= 8 * 20


@pytest.mark.soak
@pytest.mark.parametrize("workers", [1, 2])
def test_no_call_is_lost_in_twenty_stops(workers: int) -> None:
    calls = sum(stop_under_load(workers) for _ in range(20))
    print(f"{workers} workers: 20 stops under load, {calls} calls, 0 lost")


def test_a_call_that_follows_an_answer_which_was_leaving_at_the_signal_is_not_lost() -> None:
    """The head of that answer had not said that it was the last."""
    large = npy(torch.ones(4 * 2**20))
    with several_workers(workers=1) as server, Wire(server, receive_buffer_bytes=4096) as wire, Wire(server) as idle:
        idle.ask(get("/healthz"))
        wire.send(post(large))
        eventually(lambda: wire.socket.recv(1, socket.MSG_PEEK) == b"H", "the answer has begun")
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: idle.is_closed(0) or None, "idle connections are closed")
        answer = wire.read()
        assert "connection" not in answer.headers
        assert answer.body == large
        last = wire.ask(post(SMALL))
        assert (last.body, last.headers["connection"]) == (ROUNDED, "close")


def test_ctrl_c_in_a_terminal_which_reaches_every_process_lets_calls_in_flight_end() -> None:
    request = post(npy(torch.linspace(-9, 9, 300_000)))
    with several_workers() as server, Wire(server) as wire, Wire(server) as idle:
        idle.ask(get("/healthz"))
        wire.send(request[:-10])
        eventually(lambda: server.metric("stequant_in_flight_bytes") > 0 or None, "the call is in flight")
        for pid in (server.pid, *workers_of(server)):
            os.kill(pid, signal.SIGINT)
        eventually(lambda: idle.is_closed(0) or None, "idle connections are closed")
        wire.send(request[-10:])
        answer = wire.read()
        assert (answer.status, answer.headers["connection"]) == (200, "close")


def test_a_second_signal_to_a_service_ends_all_workers_at_once() -> None:
    request = post(npy(torch.ones(1000)))
    with several_workers() as server, Wire(server) as unfinished, Wire(server) as idle:
        pids = workers_of(server)
        idle.ask(get("/healthz"))
        unfinished.send(request[:-1])  # its grace would be 30 s
        eventually(lambda: server.metric("stequant_in_flight_bytes") > 0 or None, "the call is in flight")
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: idle.is_closed(0) or None, "the first signal was seen")
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 5
        assert not [pid for pid in pids if is_alive(pid)]


# Workers that fail ---------------------------------------------------------------------------------------


def test_a_worker_whose_loop_stands_still_is_replaced_and_large_calls_are_none() -> None:
    with several_workers("--worker-timeout-s", "2") as server:
        before = workers_of(server)
        with Client(server.url, retries=0) as client:
            x = np.random.default_rng(0).random(2**22, dtype=np.float32)
            began = time.monotonic()
            while time.monotonic() - began < 4:
                client.quantize(" | ".join(["clamp_by_linear"] * 16), x)
        assert workers_of(server) == before
        wedged = min(before)
        os.kill(wedged, signal.SIGSTOP)
        eventually(lambda: not is_alive(wedged), "the wedged worker is killed")
        assert said(server, f"(pid {wedged})", "event loop", "2 s")
        eventually(lambda: len(workers_of(server)) == 2, "there are two workers again")
        assert max(before) in workers_of(server)


def test_a_worker_that_does_not_get_ready_is_started_again_ever_more_slowly() -> None:
    server = ServerProcess("--workers", "2", "--worker-start-timeout-s", "0.3", wait=False)
    try:
        for pause in ("0.5 s", "1 s", "2 s"):
            eventually(lambda pause=pause: len(said(server, f"started again in {pause}")) == 2, f"a pause of {pause}")
        assert len(said(server, "was not ready within 0.3 s")) >= 6
    finally:
        assert server.stop() == 0


def test_what_a_dead_worker_has_counted_is_not_lost_and_what_it_was_doing_is_over() -> None:
    with several_workers() as server, Wire(server) as unfinished:
        for _ in range(20):
            with Wire(server) as wire:
                assert wire.ask(post(SMALL)).body == ROUNDED
        counted = {"route": "/quantize", "status": "200"}
        eventually(lambda: server.metric("stequant_requests_total", **counted) == 20, "20 calls are counted")
        unfinished.send(post(npy(torch.ones(100_000)))[:-1])
        eventually(lambda: server.metric("stequant_in_flight_bytes") > 400_000 or None, "a call is in flight")
        before = workers_of(server)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: replaced(server, before), "both workers are replaced")
        assert server.metric("stequant_requests_total", **counted) == 20
        assert server.metric("stequant_in_flight_bytes") == 0


def kill_under_load(kills: int) -> int:
    """kill -9 one worker after the other while clients that try again call; the calls answered, all of them rightly."""
    answered = [0] * 8
    lost: list[str] = []
    stop = threading.Event()

    def calls(number: int, url: str) -> None:
        x = np.random.default_rng(number).normal(0, 9, 250_000 if number % 2 else 100).astype(np.float32)
        expected = np.rint(x).view(np.int32)
        with Client(url) as client:
            while not stop.is_set():
                try:
                    if not np.array_equal(client.quantize("round", x).view(np.int32), expected):
                        lost.append(f"client {number}: wrong bits")
                except StequantError as error:
                    lost.append(f"client {number}: {error!r}")
                answered[number] += 1

    def go_on() -> None:
        goal = sum(answered) + 200
        eventually(lambda: sum(answered) >= goal, "calls are answered")

    with several_workers() as server:
        starts = Starts(server)
        threads = [threading.Thread(target=calls, args=(number, server.url)) for number in range(8)]
        for thread in threads:
            thread.start()
        for kill in range(kills):
            starts.reach(2 + kill)
            go_on()
            pid = sorted(workers_of(server))[kill % 2]
            os.kill(pid, signal.SIGKILL)
            eventually(lambda pid=pid: not is_alive(pid), "it is dead")
        go_on()
        stop.set()
        for thread in threads:
            thread.join(60)
    assert not lost
    return sum(answered)


def test_a_killed_worker_costs_a_client_that_tries_again_nothing() -> None:
    assert kill_under_load(1) >= 400


@pytest.mark.soak
def test_twenty_killed_workers_cost_a_client_that_tries_again_nothing() -> None:
    # In four services, because the pauses before a new worker get longer and longer.
    calls = sum(kill_under_load(5) for _ in range(4))
    print(f"20 workers killed under load, {calls} calls, 0 lost, 0 wrong")
