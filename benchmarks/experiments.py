"""What is not a comparison of rates: memory, small calls beside large ones, the generator itself."""

from __future__ import annotations

import time

from benchmarks.bench import Bench
from benchmarks.payloads import Payload
from benchmarks.processes import PeakMemory, resident_bytes
from benchmarks.results import GeneratorCheck, MemoryUse, MixedLoad
from benchmarks.units import KIB, MIB

SMALL, LARGE = Payload("quantize", "npy", 4 * KIB), Payload("quantize", "npy", 64 * MIB)

MEMORY_CONNECTIONS = 8
BYTES_IN_FLIGHT = MEMORY_CONNECTIONS * LARGE.size_bytes
MEMORY_LOAD_S = 1.5
SETTLE_S = 0.5  # before idle memory is read
FALL_BACK_S = 12.0  # between the end of the load and the last reading: servers may keep buffers for some seconds

LARGE_CONNECTIONS = 4
HEALTHZ_PAUSE_MS = 5.0
LARGE_LEAD_S = 0.5  # large calls are under way before the small ones begin
SMALL_S = 1.0
LARGE_MARGIN_S = 1.0  # large calls outlast small ones that finish late


def memory(bench: Bench, name: str) -> MemoryUse:
    """A fresh server: start-up time, then memory idle, at its peak under large calls, and some seconds after."""
    server = bench.start_server(name)
    try:
        time.sleep(SETTLE_S)
        idle = resident_bytes(server.pid)
        with PeakMemory(server.pid) as watched:
            bench.run(server, LARGE, connections=MEMORY_CONNECTIONS, seconds=MEMORY_LOAD_S)
        time.sleep(FALL_BACK_S)
        after = resident_bytes(server.pid)
    finally:
        server.stop()
    return MemoryUse(
        server=name,
        start_up_s=server.start_up_s,
        idle_bytes=idle,
        peak_bytes=watched.peak_bytes,
        after_bytes=after,
        after_s=FALL_BACK_S,
    )


def mixed_load(bench: Bench, name: str, *, rounds: int) -> MixedLoad:
    """Small calls on one connection and /healthz on another: alone, then while four connections send large ones."""
    server = bench.server(name)
    alone, loaded, healthz = [], [], []
    for _ in range(rounds):
        alone.append(_small_calls(bench, name)[0])
        large_s = LARGE_LEAD_S + SMALL_S + LARGE_MARGIN_S
        large = bench.start(server, LARGE, connections=LARGE_CONNECTIONS, seconds=large_s)
        time.sleep(LARGE_LEAD_S)
        small_us, healthz_us = _small_calls(bench, name)
        large.wait()
        loaded.append(small_us)
        healthz.append(healthz_us)
    return MixedLoad(server=name, alone_p99_us=alone, loaded_p99_us=loaded, healthz_max_us=healthz)


def check_generator(bench: Bench, *, connections: int, rounds: int, seconds: float) -> GeneratorCheck:
    """Whether two generators get more out of the fastest server there is than one does."""
    server = bench.server("ceiling (C)" if bench.has("ceiling (C)") else "ceiling")
    one, two = [], []
    for _ in range(rounds):
        one.append(bench.run(server, SMALL, connections=connections, seconds=seconds).rate)
        halves = [bench.start(server, SMALL, connections=connections // 2, seconds=seconds) for _ in range(2)]
        two.append(sum(half.wait().rate for half in halves))
    return GeneratorCheck(connections=connections, one=one, two=two)


def _small_calls(bench: Bench, name: str) -> tuple[float, float]:
    """p99 of small calls and the longest answer of /healthz, in microseconds."""
    server = bench.server(name)
    health = bench.start_healthz(server, seconds=SMALL_S, pause_ms=HEALTHZ_PAUSE_MS)
    small = bench.run(server, SMALL, connections=1, seconds=SMALL_S)
    return small.latency_us["p99"], health.wait().latency_us["max"]
