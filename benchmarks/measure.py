"""Comparisons carried out: contenders in turns, round after round."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.cells import Comparison
from benchmarks.load import LoadFailed
from benchmarks.payloads import WrongBits
from benchmarks.results import Measured, Row, Sample
from benchmarks.servers import ServerFailed


def measure(bench: Bench, comparison: Comparison, *, rounds: int, pace: float = 1.0) -> Measured:
    """Each contender once a round; every round begins with another one. `pace` shortens the cells.

    A contender that fails is asked again in the next round; what it said is kept with its row.
    """
    contenders = [one for one in comparison.contenders if bench.has(one.server)]
    samples: dict[str, list[Sample]] = {one.label: [] for one in contenders}
    failures: dict[str, list[str]] = {one.label: [] for one in contenders}
    for round_index in range(rounds):
        first = round_index % max(1, len(contenders))
        for one in contenders[first:] + contenders[:first]:
            try:
                server = bench.server(one.server)
                sample = bench.run(server, one.payload, connections=comparison.connections, seconds=comparison.seconds * pace)
            except (LoadFailed, ServerFailed, WrongBits) as error:
                failures[one.label].append(str(error))
            else:
                samples[one.label].append(sample)
    rows = {
        one.label: Row(size_bytes=one.payload.size_bytes, samples=samples[one.label], failures=failures[one.label])
        for one in contenders
    }
    return Measured(group=comparison.group, size_bytes=comparison.size_bytes, connections=comparison.connections, rows=rows)
