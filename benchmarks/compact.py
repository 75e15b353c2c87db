"""Compact answers beside values: the same body to the same server, in turns, one connection; requests a second.

Over a bare socket, and through `service.client`, which hands out codes as they came: decoding is the caller's.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from benchmarks.exchange import Connection
from benchmarks.payloads import SEED, WrongBits
from benchmarks.servers import Server, kinds
from benchmarks.stats import median, ratio, spread
from benchmarks.units import MIB, size_name
from service.client import Client

EXPRESSION = "clamp(0,1)|k_bit_quantize(4)"
BITS = 4
SIZES_BYTES = (MIB, 16 * MIB, 64 * MIB)
QUICK_SIZES_BYTES = (64 * MIB,)
# Enough calls for a round to take a second or so.
BYTES_A_ROUND = 512 * MIB
HEAD_ROOM_BYTES = 4096

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Form:
    """A form of the answer: what asks for it, and the elements that NumPy says it holds."""

    name: str
    target: str
    expected: Callable[[Array], NDArray[np.uint8 | np.float32]]


def _values(x: Array) -> Array:
    return np.rint(np.clip(x, np.float32(0), np.float32(1)) * np.float32(15)) / np.float32(15)


def _codes(x: Array) -> NDArray[np.uint8]:
    return np.rint(np.clip(x, np.float32(0), np.float32(1)) * np.float32(15)).astype(np.uint8)


def _packed(x: Array) -> NDArray[np.uint8]:
    bits = np.unpackbits(_codes(x)[:, None], axis=1, count=BITS, bitorder="little")
    return np.packbits(bits.reshape(-1), bitorder="little")


def _mask(x: Array) -> NDArray[np.uint8]:
    return np.packbits((x >= 0) & (x <= 1), bitorder="little")


_OP = f"op={quote(EXPRESSION)}"
FORMS = (
    Form("values", f"/quantize?{_OP}", _values),
    Form("codes", f"/quantize?{_OP}&output=codes", _codes),
    Form("packed", f"/quantize?{_OP}&output=packed", _packed),
    Form("mask", f"/grad?{_OP}&output=mask", _mask),
)


@dataclass
class Rates:
    """Requests a second of each form, round by round, for one size of the body."""

    size_bytes: int
    way: str
    rates: dict[str, list[float]] = field(default_factory=dict)
    answer_bytes: dict[str, int] = field(default_factory=dict)

    def as_text(self) -> str:
        """For people."""
        values = self.rates["values"]
        return "\n".join(
            f"{size_name(self.size_bytes):>7}  {self.way:<6}  {name:<7} {median(rates):8.1f}/s  "
            f"{ratio(rates, values):5.2f} × values  "
            f"answer {self.answer_bytes[name]:>9} bytes  (spread {spread(rates):.0%} of {len(rates)} rounds)"
            for name, rates in self.rates.items()
        )


def run(sizes_bytes: Sequence[int], *, rounds: int, device: str, say: Callable[[str], None]) -> list[Rates]:
    """All forms in turns against one server, at each size. Raises `WrongBits` for an answer that NumPy does not give."""
    results = []
    with TemporaryDirectory(prefix="stequant-compact-") as name:
        folder = Path(name)
        server = Server(kinds(folder, device)["ours"], folder)
        try:
            for size_bytes in sizes_bytes:
                x = np.random.default_rng(SEED).random(size_bytes // 4, dtype=np.float32) * np.float32(2) - np.float32(0.5)
                results += [over_socket(server.address, x, rounds), through_client(server.address, x, rounds)]
                say(size_name(size_bytes))
        finally:
            server.stop()
    return results


def over_socket(address: str, x: Array, rounds: int) -> Rates:
    """Requests made beforehand, answers left as they are."""
    requests = {form.name: _request(form.target, x) for form in FORMS}
    with Connection(address, x.nbytes + HEAD_ROOM_BYTES) as connection:
        sizes = {form.name: _check(form, connection.exchange(requests[form.name]), x) for form in FORMS}
        calls = {name: partial(connection.exchange, request) for name, request in requests.items()}
        return Rates(x.nbytes, "socket", in_turns(calls, x.nbytes, rounds), sizes)


def through_client(address: str, x: Array, rounds: int) -> Rates:
    """Calls of the client; what they give is not decoded, but for a check of its bits."""
    with Client(f"http://{address}") as client:
        calls: dict[str, Callable[[], Any]] = {
            "values": partial(client.quantize, EXPRESSION, x),
            "codes": partial(client.quantize, EXPRESSION, x, output="codes"),
            "packed": partial(client.quantize, EXPRESSION, x, output="packed"),
            "mask": partial(client.grad, EXPRESSION, x, output="mask"),
        }
        values = calls["values"]()
        for name in ("codes", "packed"):
            if calls[name]().decode().tobytes() != values.tobytes():
                raise WrongBits(f"{name}: decoded they are not the values")
        sizes = {name: call().nbytes for name, call in calls.items()}
        return Rates(x.nbytes, "client", in_turns(calls, x.nbytes, rounds), sizes)


def in_turns(calls: Mapping[str, Callable[[], object]], size_bytes: int, rounds: int) -> dict[str, list[float]]:
    """Calls a second of each, round by round; every round begins with another one."""
    names = list(calls)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            rates[name].append(_rate(calls[name], max(4, BYTES_A_ROUND // size_bytes)))
    return rates


def _rate(call: Callable[[], object], times: int) -> float:
    call()
    begin = time.perf_counter()
    for _ in range(times):
        call()
    return times / (time.perf_counter() - begin)


def _check(form: Form, answer: memoryview, x: Array) -> int:
    """The length of the answer, when its bits are right."""
    got, wanted = np.load(io.BytesIO(answer)), form.expected(x)
    if got.dtype != wanted.dtype or got.tobytes() != wanted.tobytes():
        raise WrongBits(f"{form.name}: not what NumPy computes")
    return len(answer)


def _request(target: str, x: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, x)
    body = file.getvalue()
    head = (
        f"POST {target} HTTP/1.1\r\nHost: benchmark\r\nContent-Type: application/x-npy\r\n"
        f"Accept: application/x-npy\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
