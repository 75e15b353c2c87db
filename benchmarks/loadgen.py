"""The load generator in Python, for machines without a C compiler: one process a connection.

It takes the arguments of `native/loadgen.c` and prints the same JSON object. A Python client costs
about as much as a Python server at 4 KiB: results made with it say so.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection as Pipe
from multiprocessing.synchronize import Barrier
from pathlib import Path
from threading import BrokenBarrierError
from typing import NamedTuple

from benchmarks.exchange import BadAnswer, Connection
from benchmarks.stats import percentile

DEFAULT_ANSWER_BYTES = 65536  # room for an answer of which nothing is expected, such as that of /healthz
START_TIMEOUT_S = 120.0


class Plan(NamedTuple):
    """What every connection does."""

    address: str
    request: bytes
    expected: bytes | None
    seconds: float
    pause_s: float


def drive(plan: Plan, ready: Barrier, results: Pipe) -> None:
    """Send requests on one connection until the time is up; report latencies, the end and the CPU time, or what went wrong."""
    try:
        capacity = len(plan.expected) if plan.expected is not None else DEFAULT_ANSWER_BYTES
        with Connection(plan.address, capacity) as connection:
            _check(connection.exchange(plan.request), plan.expected)
            ready.wait(START_TIMEOUT_S)
            cpu_before_s = time.process_time()
            start = begin = time.perf_counter()
            latencies_us = []
            while True:
                body = connection.exchange(plan.request)
                now = time.perf_counter()
                latencies_us.append((now - begin) * 1e6)
                if plan.pause_s:
                    time.sleep(plan.pause_s)
                begin = time.perf_counter() if plan.pause_s else now
                if begin - start >= plan.seconds:
                    break
            cpu_s = time.process_time() - cpu_before_s
            _check(body, plan.expected)
        results.send((latencies_us, start, now, cpu_s))
    except BrokenBarrierError:
        results.send("another connection failed")
    except (BadAnswer, OSError) as error:
        ready.abort()
        results.send(str(error))


def run(plan: Plan, connections: int) -> dict[str, object]:
    """All connections at once; the object that is printed."""
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(connections)
    pipes, processes = [], []
    for _ in range(connections):
        ours, theirs = context.Pipe(duplex=False)
        processes.append(context.Process(target=drive, args=(plan, ready, theirs)))
        pipes.append(ours)
    for process in processes:
        process.start()
    outcomes = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    if failures := [outcome for outcome in outcomes if isinstance(outcome, str)]:
        raise BadAnswer("; ".join(sorted(set(failures))))
    latencies = [latency for outcome in outcomes for latency in outcome[0]]
    return {
        "requests": len(latencies),
        "elapsed_s": max(outcome[2] for outcome in outcomes) - min(outcome[1] for outcome in outcomes),
        "cpu_s": sum(outcome[3] for outcome in outcomes),
        "latency_us": {
            "mean": sum(latencies) / len(latencies),
            **{name: percentile(latencies, share) for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))},
        },
    }


def _check(body: memoryview, expected: bytes | None) -> None:
    if expected is not None and body != expected:
        raise BadAnswer("the body of an answer is not the expected one")


def main() -> int:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(prog="loadgen")
    parser.add_argument("--address", required=True)
    parser.add_argument("--request", required=True, type=Path)
    parser.add_argument("--expect", type=Path)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--pause-ms", type=float, default=0.0)
    options = parser.parse_args()
    expected = options.expect.read_bytes() if options.expect else None
    plan = Plan(options.address, options.request.read_bytes(), expected, options.seconds, options.pause_ms / 1e3)
    try:
        print(json.dumps(run(plan, options.connections)))
    except BadAnswer as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
