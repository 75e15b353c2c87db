"""The bounds of `thresholds`, held against results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from benchmarks import cells, thresholds
from benchmarks.results import HttpResults, OperatorResults
from benchmarks.stats import median, ratio
from benchmarks.units import MIB, size_name


@dataclass(frozen=True)
class Bound:
    """One sentence of what has to be reached, and what was."""

    claim: str
    value: float
    limit: float
    sense: Literal["at least", "at most"]
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.value >= self.limit if self.sense == "at least" else self.value <= self.limit

    def cells(self) -> tuple[str, str, str, str]:
        """Its line in the table."""
        return (
            self.claim,
            f"{self.value:.3g}{self.unit}",
            f"{self.sense} {self.limit:.3g}{self.unit}",
            "yes" if self.met else "**no**",
        )


def http_bounds(results: HttpResults) -> Iterator[Bound]:
    """Every bound for which there is a measurement."""
    yield from _quantize(results)
    yield from _msgpack_and_grad(results)
    yield from _one_comparison_each(results)
    yield from _memory(results)
    yield from _mixed(results)


def operator_bounds(results: OperatorResults) -> Iterator[Bound]:
    """The bounds of the operators alone; every shape of `w` and `b` is held to the same one."""
    for time in results.operators:
        limit = thresholds.OPERATOR_OF_MEMCPY.get(time.expression.partition(", w and b")[0])
        if limit and (time.size_bytes, time.dtype) == (thresholds.OPERATOR_SIZE_BYTES, thresholds.OPERATOR_DTYPE):
            claim = f"`{time.expression}`, {time.dtype}, {size_name(time.size_bytes)}, to a memcpy"
            yield Bound(claim, time.times_memcpy, limit, "at most")


def _quantize(results: HttpResults) -> Iterator[Bound]:
    for size in cells.SIZES:
        for connections in cells.CONNECTIONS:
            measured = results.find(cells.QUANTIZE, size, connections)
            if measured is None:
                continue
            where = f"`/quantize` npy, {size_name(size)}, {connections} conn."
            for to, limits in (
                (cells.CEILING, thresholds.OF_CEILING),
                (cells.CEILING_C, thresholds.OF_CEILING),
                (cells.NAIVE, thresholds.OF_NAIVE),
            ):
                value = measured.ratio(cells.OURS, to)
                if value is not None:
                    yield Bound(f"{where}, to the {to}", value, limits[connections][size], "at least")


def _msgpack_and_grad(results: HttpResults) -> Iterator[Bound]:
    for measured in results.comparisons:
        where = f"{size_name(measured.size_bytes)}, {measured.connections} conn."
        if measured.group == cells.QUANTIZE and measured.size_bytes >= thresholds.MSGPACK_FROM_BYTES:
            value = measured.ratio(cells.OURS_MSGPACK, cells.OURS)
            if value is not None:
                yield Bound(f"`/quantize` msgpack to npy, {where}", value, thresholds.MSGPACK_OF_NPY, "at least")
        if measured.group == cells.GRAD and measured.size_bytes >= thresholds.GRAD_FROM_BYTES:
            for to in (cells.CEILING, cells.CEILING_C):
                value = measured.ratio(cells.OURS, to)
                if value is not None:
                    yield Bound(f"`/grad` npy, {where}, to the {to}", value, thresholds.GRAD_OF_CEILING, "at least")


def _one_comparison_each(results: HttpResults) -> Iterator[Bound]:
    for measured in results.comparisons:
        size = size_name(measured.size_bytes)
        if measured.group == cells.WORKERS:
            for to, limits in (
                (cells.OURS, thresholds.TWO_WORKERS_OF_ONE),
                (cells.CEILING, thresholds.TWO_WORKERS_OF_CEILING),
                (cells.CEILING_C, thresholds.TWO_WORKERS_OF_CEILING),
            ):
                value, limit = measured.ratio(cells.OURS_TWO, to), limits.get(measured.size_bytes)
                if value is not None and limit is not None:
                    yield Bound(f"two workers, {size}, 8 conn., to {_one_worker(to)}", value, limit, "at least")
        if measured.group == cells.UNIX and (value := measured.ratio(cells.OURS_UNIX, cells.OURS)) is not None:
            yield Bound(f"Unix socket to TCP, {size}, 8 conn.", value, thresholds.UNIX_OF_TCP, "at least")
        if measured.group == cells.MANY and measured.has(cells.ONE_TENSOR) and measured.has(cells.THOUSAND_TENSORS):
            many, one = measured.rows[cells.THOUSAND_TENSORS], measured.rows[cells.ONE_TENSOR]
            value = ratio(many.megabytes_per_s, one.megabytes_per_s)
            yield Bound("1 000 tensors of 4 KiB to one of 4 MiB, msgpack, MB/s", value, thresholds.MANY_OF_ONE, "at least")


def _memory(results: HttpResults) -> Iterator[Bound]:
    for used in results.memory:
        if used.server != "ours":
            continue
        limit = used.idle_bytes + thresholds.PEAK_OF_BYTES_IN_FLIGHT * results.bytes_in_flight
        yield Bound(
            "peak memory under 8 × 64 MiB: idle + 1.3 × the bytes in flight", used.peak_bytes / MIB, limit / MIB, "at most", " MiB"
        )
        kept = (used.after_bytes - used.idle_bytes) / max(1, used.peak_bytes - used.idle_bytes)
        yield Bound("memory kept afterwards, of what the load added", kept, thresholds.AFTER_OF_PEAK, "at most")


def _mixed(results: HttpResults) -> Iterator[Bound]:
    for mixed in results.mixed:
        if mixed.server != "ours":
            continue
        slower = ratio(mixed.loaded_p99_us, mixed.alone_p99_us)
        yield Bound("p99 of 4 KiB calls beside 4 × 64 MiB, to alone", slower, thresholds.LOADED_P99_OF_ALONE, "at most")
        longest_ms, limit_ms = median(mixed.healthz_max_us) / 1e3, thresholds.HEALTHZ_US / 1e3
        yield Bound("longest answer of `/healthz` meanwhile", longest_ms, limit_ms, "at most", " ms")


def _one_worker(label: str) -> str:
    return "one" if label == cells.OURS else f"the {label}"
