"""Clients of every kind for a server that must outlive them: good, bad, slow and disconnecting ones."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from http_bodies import JSON, MSGPACK, encode, npy
from server_process import Answer, ServerProcess, Wire, get, post

from service.transport import reaper

# What a server is told so that slow clients meet their end within a second or two.
HASTE = (
    *("--header-timeout-s", "1"),
    *("--body-idle-timeout-s", "1"),
    *("--write-timeout-s", "1"),
    *("--keep-alive-s", "5"),
    *("--max-body-bytes", str(16 * 2**20)),
    *("--max-in-flight-bytes", str(64 * 2**20)),
)
LATEST_S = 20.0 + reaper.INTERVAL_S
MEDIUM = torch.linspace(-9, 9, 2**18)
LARGE = torch.linspace(-9, 9, 2**20)
FEW = torch.tensor([0.6, -0.4, 7.5])

# Requests whose answers are known: to the bit, or at least their status.
GOOD: Sequence[tuple[bytes, bytes | None]] = (
    (post(npy(FEW)), npy(FEW.round())),
    (post(npy(MEDIUM)), npy(MEDIUM.round())),
    (post(npy(LARGE)), npy(LARGE.round())),
    (post(npy(FEW), chunks=[npy(FEW)]), npy(FEW.round())),
    (post(npy(MEDIUM, MEDIUM), "op=clamp(min_value=-1,max_value=1)", path="/grad"), npy(MEDIUM.where(MEDIUM.abs() <= 1, 0))),
    (post(encode("msgpack", {"x": [FEW, MEDIUM]}), "op=round", media_type=MSGPACK), None),
    (post(encode("json", {"x": FEW}), "op=k_bit_quantize&k=4", media_type=JSON), None),
    (get("/healthz"), None),
    (get("/readyz"), None),
    (get("/metrics"), None),
    (get("/operators"), None),
    (get("/openapi.json"), None),
)
# Requests that are refused, each with the status it gets.
BAD: Sequence[tuple[bytes, int]] = (
    (post(npy(FEW), "op=nothing"), 422),
    (post(npy(FEW), "op=k_bit_quantize&k=1000000000"), 422),
    (post(b"x" * 200), 400),
    (post(npy(MEDIUM)[:-1]), 400),
    (post(npy(FEW), media_type="text/plain"), 415),
    (post(b"", length=2**40), 413),
    (post(b'{"x": [[1], [2, 3]]}', media_type=JSON), 422),
    (post(b"\xdd\xff\xff\xff\xff", media_type=MSGPACK), 400),
    (get("/nothing"), 404),
    (get("/quantize"), 405),
    (get("/healthz", host=None), 400),
    (get("/healthz", "X: " + "y" * 20_000), 431),
    (b"what is this\r\n\r\n", 400),
)


class Crowd:
    """What the clients have seen: how often each of them came to its end, and everything that should not have been."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.rounds: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.stop = threading.Event()

    def live(self, kind: str, play: Callable[[ServerProcess, random.Random], None], seed: int, pause_s: float) -> None:
        """Play one client again and again."""
        chance = random.Random(seed)
        while not self.stop.wait(pause_s * 2 * chance.random()):
            try:
                play(self.server, chance)
            except Exception as error:
                self.wrong.append(f"{kind}: {error!r}")
            self.rounds[kind] += 1


def good(server: ServerProcess, chance: random.Random) -> None:
    """A kept connection, and on it calls whose answers are checked."""
    with Wire(server) as wire:
        for _ in range(20):
            request, expected = chance.choice(GOOD)
            answer = wire.ask(request)
            assert answer.status == 200, (request[:80], answer)
            assert expected is None or answer.body == expected, request[:80]
            time.sleep(0.02 * chance.random())


def bad(server: ServerProcess, chance: random.Random) -> None:
    """A request that is refused, and must get the status that says why."""
    request, status = chance.choice(BAD)
    answer = _refused(server, request)
    assert answer.status == status, (request[:80], answer)


def _refused(server: ServerProcess, request: bytes) -> Answer:
    with Wire(server) as wire:
        wire.send_until_refused(request)
        return wire.read()


def slow_head(server: ServerProcess, chance: random.Random) -> None:
    """Headers a byte at a time; they are not awaited for ever."""
    with Wire(server) as wire:
        _dribble(wire, itertools.cycle(b"POST /quantize HTTP/1.1\r\nX: "))


def slow_body(server: ServerProcess, chance: random.Random) -> None:
    """A body of which a little comes, and then nothing."""
    request = post(npy(chance.choice((FEW, LARGE))))
    with Wire(server) as wire:
        wire.send(request[: -chance.randint(1, 100)])
        assert wire.read().status == 408
        assert wire.is_closed(LATEST_S)


def _dribble(wire: Wire, data: Iterator[int]) -> None:
    end = time.monotonic() + LATEST_S
    while wire.is_silent(0.1):
        assert time.monotonic() < end, "nobody ended a slow head"
        with suppress(BrokenPipeError, ConnectionResetError):
            wire.send(bytes([next(data)]))
    with suppress(ConnectionError):
        assert wire.read().status in (400, 408)


def slow_reader(server: ServerProcess, chance: random.Random) -> None:
    """A caller who asks and does not read; its connection is reset."""
    with Wire(server, receive_buffer_bytes=4096) as wire:
        wire.send(post(npy(LARGE)))
        time.sleep(1 + 2 * chance.random())


def silent(server: ServerProcess, chance: random.Random) -> None:
    """A connection on which nothing ever comes."""
    with Wire(server) as wire:
        assert wire.is_closed(LATEST_S)


def disconnecting(server: ServerProcess, chance: random.Random) -> None:
    """A caller who vanishes, at any byte of a request or behind it."""
    request, _ = chance.choice(GOOD)
    with Wire(server) as wire:
        wire.send(request[: chance.randint(1, len(request))])
        if chance.random() < 0.5:
            time.sleep(0.05 * chance.random())
        if chance.random() < 0.5:
            wire.reset()


CLIENTS: dict[str, tuple[Callable[[ServerProcess, random.Random], None], int, float]] = {
    "good": (good, 4, 0.02),
    "bad": (bad, 2, 0.05),
    "slow head": (slow_head, 2, 0.1),
    "slow body": (slow_body, 3, 0.1),
    "slow reader": (slow_reader, 2, 0.1),
    "silent": (silent, 3, 0.1),
    "disconnecting": (disconnecting, 2, 0.05),
}


@contextmanager
def crowd(server: ServerProcess) -> Iterator[Crowd]:
    """Clients of every kind, until the block ends; how many of each, and how long they pause, stands in `CLIENTS`."""
    one = Crowd(server)
    threads = [
        threading.Thread(target=one.live, args=(kind, play, hash((kind, index)), pause_s))
        for kind, (play, count, pause_s) in CLIENTS.items()
        for index in range(count)
    ]
    for thread in threads:
        thread.start()
    try:
        yield one
    finally:
        one.stop.set()
        for thread in threads:
            thread.join(2 * LATEST_S)
    assert not any(thread.is_alive() for thread in threads)
