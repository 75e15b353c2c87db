"""The engine on a CUDA device: against the two copies it cannot avoid, and small calls with and without coalescing.

Everything takes the engine as an argument; `run` gives it that of the first CUDA device.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence

import torch

from benchmarks.bench import Bench
from benchmarks.cells import CEILING, NAIVE, OURS, QUANTIZE, SIZES, comparisons
from benchmarks.machine import describe_machine
from benchmarks.measure import measure
from benchmarks.report import cell_name, machine_section, rate_cell, table
from benchmarks.results import CopyTime, GpuResults, Measured, SmallCalls
from benchmarks.stats import median, ratio
from benchmarks.units import KIB, MIB, rate_in_words, size_name
from service.call import Call
from service.device.buffers import Pool
from service.device.devices import Device, choose
from service.device.engine import Engine
from service.dtypes import DTYPES
from service.errors import DeviceFault
from service.ops import Expression, parse
from service.wire.message import Bundle, WireTensor

EXPRESSIONS = ("k_bit_quantize(k=4)", "clamp(min_value=0, max_value=1) | k_bit_quantize(k=4)")
ENGINE_SIZES = (64 * KIB, MIB, 16 * MIB, 64 * MIB)
ENGINE_ROUNDS = 21
# Calls at once, as many as connections might be open, and what each sends.
CALLERS = (1, 8, 64, 256)
SMALL_BYTES = 4 * KIB
SMALL_S = 1.0
# At once in the engine, for the rate of large calls that overlap.
IN_FLIGHT = 6


class NoDevice(Exception):
    """There is no CUDA device to measure."""


def run(bench: Bench, *, rounds: int, quick: bool, say: Callable[[str], None]) -> GpuResults:
    """Everything, on the first CUDA device; `NoDevice` where there is none."""
    try:
        device = choose("cuda")
    except DeviceFault as error:
        raise NoDevice(str(error)) from error
    engine = Engine(device)
    engine.warm_up()
    sizes = ENGINE_SIZES[:2] if quick else ENGINE_SIZES
    copies = list(engine_times(engine, EXPRESSIONS, sizes, rounds=ENGINE_ROUNDS, say=say))
    small = list(small_calls(engine, CALLERS, rounds=rounds, seconds=SMALL_S / 4 if quick else SMALL_S, say=say))
    engine.close()
    return GpuResults(
        machine={"device": f"{device.name}, {device.reason.partition(': ')[2]}", **describe_machine()},
        settings={"rounds": str(rounds), "dtype": "float32"},
        copies=copies,
        small_calls=small,
        over_http=list(over_http(bench, rounds=rounds, quick=quick, say=say)),
    )


def engine_times(
    engine: Engine, expressions: Sequence[str], sizes: Sequence[int], *, rounds: int, say: Callable[[str], None]
) -> Iterator[CopyTime]:
    """Each expression on each size in memory as the server receives into; and the copies there and back, in turns."""
    for text in expressions:
        for size_bytes in sizes:
            body = Pool(engine.device.allocate).take(size_bytes)
            call = _call(parse(text), body)
            engine_s, copies_s, overlapped_s = [], [], []
            for index in range(-1, rounds):  # the first round warms up
                alone = _seconds(lambda call=call: engine.run(call))
                copies = _seconds(lambda body=body: _there_and_back(engine.device, body))
                overlapped = _overlapped(engine, parse(text), size_bytes)
                if index >= 0:
                    engine_s.append(alone)
                    copies_s.append(copies)
                    overlapped_s.append(overlapped)
            measured = CopyTime(
                expression=text, size_bytes=size_bytes, seconds=engine_s, copies_s=copies_s, overlapped_s=overlapped_s
            )
            say(f"{text}, {size_name(size_bytes)}: {ratio(engine_s, copies_s):.2f} × the copies")
            yield measured


def _there_and_back(device: Device, body: memoryview) -> None:
    host = torch.frombuffer(body, dtype=torch.float32)
    device.lower(device.lift(host), host)
    device.synchronize()


def _overlapped(engine: Engine, expression: Expression, size_bytes: int) -> float:
    """Seconds for each of several calls that are in the engine at once."""
    pool = Pool(engine.device.allocate)
    calls = [_call(expression, pool.take(size_bytes)) for _ in range(IN_FLIGHT)]

    async def all_at_once() -> None:
        await asyncio.gather(*(engine.submit(lambda call=call: engine.run(call)) for call in calls))

    return _seconds(lambda: asyncio.run(all_at_once())) / IN_FLIGHT


def small_calls(
    engine: Engine, callers: Sequence[int], *, rounds: int, seconds: float, say: Callable[[str], None]
) -> Iterator[SmallCalls]:
    """Calls of 4 KiB by so many callers at once, each sending the next when it has its answer."""
    expression = parse(EXPRESSIONS[1])
    for count in callers:
        together, apart = [], []
        for _ in range(rounds):
            together.append(_rate(lambda call: engine.compute(call), expression, count, seconds))
            apart.append(_rate(lambda call: engine.submit(lambda: engine.run(call)), expression, count, seconds))
        rates = f"{rate_in_words(median(together))}/s together, {rate_in_words(median(apart))}/s each alone"
        say(f"{count} callers of {size_name(SMALL_BYTES)}: {rates}")
        yield SmallCalls(callers=count, size_bytes=SMALL_BYTES, together=together, apart=apart)


def _rate(answer: Callable[[Call], Awaitable[object]], expression: Expression, callers: int, seconds: float) -> float:
    async def caller(until: float) -> int:
        call = _call(expression, memoryview(bytearray(SMALL_BYTES)))
        done = 0
        while time.perf_counter() < until:
            await answer(call)
            done += 1
        return done

    async def all_callers() -> float:
        began = time.perf_counter()
        done = sum(await asyncio.gather(*(caller(began + seconds) for _ in range(callers))))
        return done / (time.perf_counter() - began)

    return asyncio.run(all_callers())


def over_http(bench: Bench, *, rounds: int, quick: bool, say: Callable[[str], None]) -> Iterator[Measured]:
    """The server on the device, beside the ceiling and the naive service."""
    for comparison in comparisons(SIZES[:3] if quick else SIZES):
        if comparison.group == QUANTIZE:
            measured = measure(bench, comparison, rounds=rounds)
            say(f"{comparison.name}: {rate_cell(measured, OURS)}/s, ceiling {rate_cell(measured, CEILING)}/s")
            yield measured


def _call(expression: Expression, body: memoryview) -> Call:
    dtype = DTYPES["float32"]
    return Call("quantize", expression, Bundle.of(WireTensor(dtype, (body.nbytes // dtype.itemsize,), body)))


def _seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def write(results: GpuResults) -> str:
    """GPU.md."""
    copies = [
        [
            f"`{one.expression}`, {size_name(one.size_bytes)}",
            f"{median(one.seconds) * 1e3:.3g}",
            f"{median(one.copies_s) * 1e3:.3g}",
            f"{ratio(one.seconds, one.copies_s):.2f}",
            f"{ratio(one.overlapped_s, one.copies_s):.2f}",
        ]
        for one in results.copies
    ]
    small = [
        [
            str(one.callers),
            rate_in_words(median(one.together)),
            rate_in_words(median(one.apart)),
            f"{ratio(one.together, one.apart):.2f}",
        ]
        for one in results.small_calls
    ]
    http = [
        [cell_name(one), *(rate_cell(one, label) for label in (CEILING, NAIVE, OURS)), *_ratios(one)] for one in results.over_http
    ]
    return (
        "\n\n".join(
            [
                "# Results on a GPU",
                "Generated by `python -m benchmarks report`; do not edit. What is measured, and how: `README.md` beside this file.",
                machine_section(results.machine, results.settings),
                "## The engine against two copies of the same bytes",
                f"Page-locked memory; medians. Wanted from 1 MiB up: at most 1.2. *Overlapped*: each of {IN_FLIGHT} calls at once.",
                table(["expression, bytes", "engine, ms", "copies, ms", "ratio", "overlapped, ratio"], copies),
                f"## Calls of {size_name(SMALL_BYTES)}",
                table(["callers", "coalesced, calls/s", "each alone, calls/s", "ratio"], small),
                "## Over HTTP",
                "Requests/s of `/quantize` with npy, by payload and connections.",
                table(["payload, connections", CEILING, NAIVE, OURS, "to the ceiling", "to the naive"], http),
            ]
        )
        + "\n"
    )


def _ratios(measured: Measured) -> list[str]:
    values = [measured.ratio(OURS, to) for to in (CEILING, NAIVE)]
    return ["–" if value is None else f"{value:.2f}" for value in values]
