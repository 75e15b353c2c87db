"""What is compared with what: the cells of the tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.payloads import CLAMP, Payload
from benchmarks.units import KIB, MIB, size_name

SIZES = (4 * KIB, 64 * KIB, MIB, 16 * MIB, 64 * MIB)
CONNECTIONS = (1, 8)

# Groups of comparisons, as results and report call them.
QUANTIZE = "quantize"
GRAD = "grad"
WORKERS = "two workers"
UNIX = "Unix socket"
MANY = "many tensors"
CLAMP_GRAD = "gradient of clamp"

# Rows of a comparison.
CEILING, CEILING_C, NAIVE, OURS = "ceiling", "ceiling (C)", "naive", "ours"
OURS_MSGPACK, NAIVE_MSGPACK = "ours, msgpack", "naive, msgpack"
OURS_TWO = "ours, two workers"
OURS_UNIX, CEILING_UNIX, CEILING_C_UNIX = "ours, Unix socket", "ceiling, Unix socket", "ceiling (C), Unix socket"
ONE_TENSOR, THOUSAND_TENSORS = "1 tensor", "1 000 tensors"


@dataclass(frozen=True)
class Contender:
    """One row of a comparison: what is sent to which server."""

    label: str
    server: str
    payload: Payload


@dataclass(frozen=True)
class Comparison:
    """Contenders that are measured in turns, under the same number of connections."""

    group: str
    size_bytes: int
    connections: int
    contenders: tuple[Contender, ...]

    @property
    def name(self) -> str:
        """What `--only` looks in and the progress lines show."""
        return f"{self.group}, {size_name(self.size_bytes)}, {self.connections} connection{'s' if self.connections > 1 else ''}"

    @property
    def seconds(self) -> float:
        """How long a cell lasts: long enough for several requests on each connection."""
        return 0.3 if self.size_bytes <= MIB else 0.5 if self.size_bytes <= 16 * MIB else 0.8


def comparisons(sizes: Sequence[int] = SIZES) -> list[Comparison]:
    """Every comparison whose tensors are of one of these sizes, in the order in which they are made."""
    made = [*_quantize(), *_grad(), *_workers(), *_unix(), *_many(), *_clamp()]
    return [comparison for comparison in made if comparison.size_bytes in sizes or comparison.group == MANY]


def _quantize() -> Iterator[Comparison]:
    for size in SIZES:
        npy, msgpack = Payload("quantize", "npy", size), Payload("quantize", "msgpack", size)
        rows = [
            Contender(CEILING, "ceiling", npy),
            Contender(CEILING_C, "ceiling (C)", npy),
            Contender(NAIVE, "naive", npy),
            Contender(OURS, "ours", npy),
            Contender(OURS_MSGPACK, "ours", msgpack),
        ]
        for connections in CONNECTIONS:
            # Eight connections that send 64 MiB to the naive service take seconds a round; once is enough.
            more = [Contender(NAIVE_MSGPACK, "naive", msgpack)] if connections == 1 else []
            yield Comparison(QUANTIZE, size, connections, (*rows, *more))


def _grad() -> Iterator[Comparison]:
    for size in SIZES:
        npy, msgpack = Payload("grad", "npy", size), Payload("grad", "msgpack", size)
        rows = (
            Contender(CEILING, "ceiling", npy),
            Contender(CEILING_C, "ceiling (C)", npy),
            Contender(OURS, "ours", npy),
            Contender(OURS_MSGPACK, "ours", msgpack),
        )
        for connections in CONNECTIONS:
            yield Comparison(GRAD, size, connections, rows)


def _workers() -> Iterator[Comparison]:
    for size in (64 * KIB, MIB, 64 * MIB):
        npy = Payload("quantize", "npy", size)
        rows = (
            Contender(CEILING, "ceiling", npy),
            Contender(CEILING_C, "ceiling (C)", npy),
            Contender(OURS, "ours", npy),
            Contender(OURS_TWO, "ours, two workers", npy),
        )
        yield Comparison(WORKERS, size, 8, rows)


def _unix() -> Iterator[Comparison]:
    npy = Payload("quantize", "npy", MIB)
    names = (CEILING, CEILING_C, OURS, CEILING_UNIX, CEILING_C_UNIX, OURS_UNIX)
    yield Comparison(UNIX, MIB, 8, tuple(Contender(name, name, npy) for name in names))


def _many() -> Iterator[Comparison]:
    one = Payload("quantize", "msgpack", 4 * MIB)
    thousand = Payload("quantize", "msgpack", 1000 * 4 * KIB, tensors=1000)
    rows = (Contender(ONE_TENSOR, "ours", one), Contender(THOUSAND_TENSORS, "ours", thousand))
    yield Comparison(MANY, 4 * MIB, 1, rows)


def _clamp() -> Iterator[Comparison]:
    npy = Payload("grad", "npy", MIB, query=CLAMP)
    rows = (
        Contender(CEILING, "ceiling", npy),
        Contender(CEILING_C, "ceiling (C)", npy),
        Contender(NAIVE, "naive", npy),
        Contender(OURS, "ours", npy),
    )
    for connections in CONNECTIONS:
        yield Comparison(CLAMP_GRAD, MIB, connections, rows)
