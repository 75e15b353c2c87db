"""Large calls beside others are moved by threads: the same bits, deadlines and ends as on the loop."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from http_bodies import MSGPACK, encode, npy
from server_process import ServerProcess, Wire, eventually, get, post, serving
from tls_server import TlsWire, authority, tls_serving

MIB = 2**20
HAULED_BYTES = 384 * 1024
PIECE_BYTES = 256 * 1024
CHAIN = "op=clamp(0,1)|k_bit_quantize(4)"
SMALL = npy(torch.tensor([0.6, -0.4]))
X = torch.linspace(-1, 2, MIB)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving("--body-idle-timeout-s", "2", "--write-timeout-s", "2") as running:
        yield running


@contextmanager
def crowd(server: ServerProcess) -> Iterator[None]:
    """Another call in flight, whose body does not come to its end meanwhile."""
    with Wire(server) as other:
        other.send(post(SMALL)[:-1])
        eventually(lambda: server.metric("stequant_in_flight_bytes") > 0, "the other call is in flight")
        stop = threading.Event()

        def keep() -> None:
            # A head without its end has 5 s, a body without its last byte 2: begin again before.
            while not stop.wait(0.5):
                other.send(SMALL[-1:])
                assert other.read().status == 200
                other.send(post(SMALL)[:-1])

        keeper = threading.Thread(target=keep)
        keeper.start()
        try:
            yield
        finally:
            stop.set()
            keeper.join()


@contextmanager
def hauled(server: ServerProcess) -> Iterator[None]:
    """Beside another call; asserts that threads had something to do."""
    before = server.metric("stequant_hauls_total")
    with crowd(server):
        yield
    assert server.metric("stequant_hauls_total") > before


def quantized(x: torch.Tensor) -> bytes:
    return npy(torch.round(x.clamp(0, 1) * 15) / 15)


# Bits ----------------------------------------------------------------------------------------------------

EDGES = sorted(
    {
        (whole + offset) // 4
        for whole in (HAULED_BYTES, PIECE_BYTES * 2, MIB, 2 * MIB, 4 * MIB)
        for offset in (-132, -128, -124, -4, 0, 4)
    }
)


def test_bodies_of_every_size_around_a_boundary(server: ServerProcess) -> None:
    with hauled(server), Wire(server) as wire:
        for count in EDGES * 2:  # the second time the head is known, and a shortcut
            x = torch.linspace(-1, 2, count)
            assert wire.ask(post(npy(x), CHAIN)).body == quantized(x), count


@pytest.mark.parametrize("step", [1000, 70_001, 300_007])
def test_bodies_in_pieces(server: ServerProcess, step: int) -> None:
    x = X[: 200_000 if step < 5000 else MIB]
    request = post(npy(x), CHAIN)
    with hauled(server), Wire(server) as wire:
        for _ in range(2):
            for at in range(0, len(request), step):
                wire.send(request[at : at + step])
            assert wire.ask(get("/healthz")).body == quantized(x)
            assert wire.read().status == 200
            wire.ask(post(npy(x), CHAIN))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("form", ["npy", "msgpack", "safetensors"])
def test_gradients_and_values_in_every_format(server: ServerProcess, form: str, dtype: torch.dtype) -> None:
    from http_bodies import MEDIA_TYPES

    x = X.to(dtype)
    grad_output = x.flip(0).contiguous()
    values, gradient = {"x": x}, {"x": x, "grad_output": grad_output}
    expected_gradient = torch.where((x >= 0) & (x <= 1), grad_output, torch.zeros((), dtype=dtype))
    with hauled(server), Wire(server) as wire:
        for _ in range(2):
            answer = wire.ask(post(encode_as(form, values), "op=clamp(0,1)", media_type=MEDIA_TYPES[form]))
            assert answer.body == encode_as(form, {"y": x.clamp(0, 1)})
            answer = wire.ask(post(encode_as(form, gradient), "op=clamp(0,1)", path="/grad", media_type=MEDIA_TYPES[form]))
            assert same_numbers(answer.body, encode_as(form, {"grad_x": expected_gradient}), dtype)


def encode_as(form: str, message: dict[str, torch.Tensor]) -> bytes:
    return npy(*message.values()) if form == "npy" else encode(form, message)


def same_numbers(one: bytes, other: bytes, dtype: torch.dtype) -> bool:
    """Equal, but for the sign of zeros, of which a masked gradient may have either."""
    if len(one) != len(other):
        return False
    bits = {2: np.uint16, 4: np.uint32, 8: np.uint64}[dtype.itemsize]
    count = X.numel() * dtype.itemsize
    one_bits, other_bits = (np.frombuffer(data[-count:], bits) for data in (one, other))
    sign = bits(1 << (8 * dtype.itemsize - 1))
    zeros = (one_bits & ~sign == 0) & (other_bits & ~sign == 0)
    return one[:-count] == other[:-count] and bool((zeros | (one_bits == other_bits)).all())


def test_a_reduction_is_computed_on_a_lane_and_its_answer_moved_by_a_thread(server: ServerProcess) -> None:
    expected = npy((X - X.min()) / ((X.max() + 1e-5) - X.min()))
    with hauled(server), Wire(server) as wire:
        for _ in range(2):
            assert wire.ask(post(npy(X), "op=clamp_by_linear")).body == expected


def test_an_answer_of_thousands_of_pieces(server: ServerProcess) -> None:
    xs = [torch.linspace(-1, n, 400) for n in range(1500)]
    body = encode("msgpack", {"x": xs})
    with hauled(server), Wire(server) as wire:
        answer = wire.ask(post(body, "op=round", media_type=MSGPACK))
    found = msgpack.unpackb(answer.body)["y"]
    assert [one["data"] for one in found] == [x.round().numpy().tobytes() for x in xs]


def test_many_at_once_each_get_their_own(server: ServerProcess) -> None:
    before = server.metric("stequant_hauls_total")

    def calls(number: int) -> None:
        x = torch.linspace(-number - 1, number + 2, MIB + 1000 * number)
        request, expected = post(npy(x), "op=round"), npy(x.round())
        with Wire(server) as wire:
            for _ in range(8):
                assert wire.ask(request).body == expected
                assert wire.ask(post(SMALL)).status == 200

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(calls, range(8)))
    assert server.metric("stequant_hauls_total") > before
    assert server.metric("stequant_in_flight_bytes") == 0


def test_a_broken_body_is_refused_and_the_connection_goes_on(server: ServerProcess) -> None:
    with hauled(server), Wire(server) as wire:
        for _ in range(2):
            assert wire.ask(post(b"x" * 2 * MIB, CHAIN)).code == "malformed_body"
            assert wire.ask(post(npy(X), CHAIN)).body == quantized(X)


def test_requests_behind_one_another(server: ServerProcess) -> None:
    with hauled(server), Wire(server) as wire:
        sender = threading.Thread(target=wire.send, args=((post(npy(X), CHAIN) + post(SMALL)) * 3,))
        sender.start()
        for _ in range(3):
            assert wire.read().body == quantized(X)
            assert wire.read().body == npy(torch.tensor([1.0, -0.0]))
        sender.join()


def test_a_single_call_is_left_to_the_loop(server: ServerProcess) -> None:
    before = server.metric("stequant_hauls_total")
    with Wire(server) as wire:
        assert wire.ask(post(npy(X), CHAIN)).body == quantized(X)
    assert server.metric("stequant_hauls_total") == before


# Callers who are slow, deaf or gone ------------------------------------------------------------------------


def test_a_body_that_stops_has_its_deadline(server: ServerProcess) -> None:
    with hauled(server), Wire(server) as wire:
        wire.send(post(npy(X), CHAIN)[: 2 * MIB])
        answer = wire.read()
        assert (answer.status, answer.code) == (408, "request_timeout")


def test_a_body_that_rests_is_received_to_its_end(server: ServerProcess) -> None:
    request = post(npy(X), CHAIN)
    with hauled(server), Wire(server) as wire, Wire(server) as other:
        for start in range(0, len(request), MIB):
            wire.send(request[start : start + MIB])
            assert other.ask(get("/healthz")).status == 200
        assert wire.read().body == quantized(X)


def test_a_reader_that_takes_nothing_is_cut_and_keeps_no_thread(server: ServerProcess) -> None:
    cut = server.metric("stequant_cut_connections_total", reason="slow_reader")
    body = npy(torch.linspace(-1, 2, 8 * MIB))
    with crowd(server), Wire(server, receive_buffer_bytes=4096) as deaf, Wire(server) as wire:
        deaf.send(post(body, CHAIN))
        for _ in range(3):
            assert wire.ask(post(npy(X), CHAIN)).body == quantized(X)
        eventually(lambda: server.metric("stequant_cut_connections_total", reason="slow_reader") > cut, "the deaf one is cut")
    eventually(lambda: server.metric("stequant_in_flight_bytes") == 0, "nothing is left of it")


@pytest.mark.parametrize("vanish", [Wire.reset, Wire.half_close], ids=["reset", "half close"])
@pytest.mark.parametrize("sent_bytes", [HAULED_BYTES, 2 * MIB, 4 * MIB - 1])
def test_who_goes_in_the_middle_of_a_body_leaves_nothing(
    server: ServerProcess, vanish: Callable[[Wire], None], sent_bytes: int
) -> None:
    with crowd(server), Wire(server) as wire:
        wire.send(post(npy(X), CHAIN)[:sent_bytes])
        vanish(wire)
    eventually(lambda: server.metric("stequant_in_flight_bytes") == 0, "its memory is given back")


def test_who_goes_in_the_middle_of_an_answer_leaves_nothing(server: ServerProcess) -> None:
    with crowd(server):
        for _ in range(5):
            with Wire(server) as wire:
                wire.send(post(npy(torch.linspace(-1, 2, 8 * MIB)), CHAIN))
                wire.socket.recv(1000)
                wire.reset()
    eventually(lambda: server.metric("stequant_in_flight_bytes") == 0, "its memory is given back")


def test_who_says_that_no_more_comes_is_still_answered(server: ServerProcess) -> None:
    with hauled(server), Wire(server) as wire:
        wire.send(post(npy(X), CHAIN))
        wire.half_close()
        assert wire.read().body == quantized(X)
        assert wire.is_closed()


def test_descriptors_are_given_back(server: ServerProcess) -> None:
    def descriptors() -> int:
        return len(os.listdir(f"/proc/{server.pid}/fd"))

    with Wire(server) as wire:
        wire.ask(post(SMALL))
        before = descriptors()
    with hauled(server):
        for _ in range(20):
            with Wire(server) as wire:
                assert wire.ask(post(npy(X), CHAIN)).status == 200
    eventually(lambda: descriptors() <= before, "connections are closed with all they had")


def test_a_unix_socket_is_hauled_too(tmp_path: Path) -> None:
    with serving("--uds", f"{tmp_path}/socket") as server, hauled(server), Wire(server) as wire:
        for _ in range(3):
            assert wire.ask(post(npy(X), CHAIN)).body == quantized(X)


def test_what_is_encrypted_is_left_to_the_loop(tmp_path: Path) -> None:
    """A thread would take ciphertext for elements."""
    who = authority(tmp_path)
    with tls_serving(who) as server:

        def calls(number: int) -> None:
            x = torch.linspace(-number - 1, number + 2, MIB)
            request, expected = (
                post(npy(x), "op=clamp_by_linear|round"),
                npy(((x - x.min()) / ((x.max() + 1e-5) - x.min())).round()),
            )
            with TlsWire(server, who.trust()) as wire:
                for _ in range(4):
                    assert wire.ask(request).body == expected
                    assert wire.ask(post(npy(x), "op=round")).body == npy(x.round())

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(calls, range(4)))
        with TlsWire(server, who.trust()) as wire:
            assert b"stequant_hauls_total 0.0" in wire.ask(get("/metrics")).body


def test_a_connection_whose_last_answer_a_thread_has_sent_is_closed(server: ServerProcess) -> None:
    with hauled(server), Wire(server) as wire:
        assert wire.ask(post(npy(X), CHAIN, "Connection: close")).body == quantized(X)
        assert wire.is_closed(5)


def test_a_server_that_stops_answers_what_its_threads_have() -> None:
    with serving() as server:
        started = threading.Barrier(5)

        def call() -> bool:
            with Wire(server) as wire:
                wire.send(post(npy(X), CHAIN)[:-MIB])
                if started.wait() == 0:  # a second signal would end it at once
                    server.process.terminate()
                wire.send(post(npy(X), CHAIN)[-MIB:])
                return wire.read().body == quantized(X)

        with ThreadPoolExecutor(5) as pool:
            assert all(pool.map(lambda _: call(), range(5)))


# The socket ------------------------------------------------------------------------------------------------


def test_the_kernel_keeps_little_for_a_caller_on_the_same_host() -> None:
    from service.transport.nearby import shorten_if_near

    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as near:
        accepted, _ = listener.accept()
        with accepted:
            untouched = near.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            shorten_if_near(accepted)
            # Linux doubles what it is told, for its own bookkeeping.
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == MIB
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == MIB != untouched


def test_a_caller_far_away_keeps_what_the_kernel_gives() -> None:
    from service.transport.nearby import shorten_if_near

    class Far(socket.socket):
        def getsockopt(self, level: int, option: int, size: int = 0) -> bytes:  # type: ignore[override]
            return bytes(68) + (2000).to_bytes(4, "little")

        def setsockopt(self, *_: object) -> None:  # type: ignore[override]
            raise AssertionError("its buffers were changed")

    with Far(socket.AF_INET, socket.SOCK_STREAM) as far:
        shorten_if_near(far)
