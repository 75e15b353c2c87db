"""The run beside the peers: installed, measured in turns with ours, and their memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks import experiments
from benchmarks.cells import CONNECTIONS, OURS, SIZES, Comparison, Contender
from benchmarks.load import LoadFailed
from benchmarks.machine import describe_machine
from benchmarks.measure import measure
from benchmarks.over_http import QUICK_PACE, QUICK_ROUNDS, QUICK_SIZES
from benchmarks.payloads import Payload, WrongBits
from benchmarks.peers.bench import PeerBench
from benchmarks.peers.catalogue import PEERS, Peer
from benchmarks.peers.install import NotInstalled, install
from benchmarks.peers.results import PeerNote, PeerResults
from benchmarks.results import Measured, MemoryUse
from benchmarks.servers import ServerFailed
from benchmarks.stats import median
from benchmarks.units import rate_in_words

GROUP = "peers"


def run(*, rounds: int, quick: bool, only: str, without: Sequence[str], device: str, say: Callable[[str], None]) -> PeerResults:
    """Ours and every peer; `only` names a peer, or a part of a cell's name. `quick` leaves out the largest size and memory."""
    peers, cell = selected(only, without)
    environments: dict[Peer, Path] = {}
    missing: dict[str, str] = {}
    for peer in peers:
        try:
            environments[peer] = install(peer, say)
        except NotInstalled as error:
            missing[peer.name] = f"not installed: {error}"
            say(f"FAILED {peer.name}: {missing[peer.name]}")
    with PeerBench(environments, device=device, without=frozenset(without)) as bench:
        this = _Run(bench, rounds=min(rounds, QUICK_ROUNDS) if quick else rounds, quick=quick, say=say)
        machine = describe_machine()
        memory = list(this.memory([OURS, *(name for peer in environments for name in peer.names)])) if not (quick or cell) else []
        measured = list(this.comparisons(environments, cell))
    missing |= {name: why for name, why in not_started(measured).items() if name not in missing}
    return PeerResults(
        machine=machine,
        settings={
            "rounds": str(this.rounds),
            "load generator": bench.generator.name,
            "device of ours": device,
            "order": "servers in turns within a cell, each round begins with another one",
        },
        comparisons=measured,
        memory=memory,
        bytes_in_flight=experiments.BYTES_IN_FLIGHT,
        failures=this.failures,
        peers=[
            PeerNote(
                name=peer.name,
                package=peer.package,
                version=peer.version,
                tensors=peer.tensors,
                rows=peer.names,
                missing=missing.get(peer.name, ""),
            )
            for peer in peers
        ],
    )


def selected(only: str, without: Sequence[str]) -> tuple[list[Peer], str]:
    """The peers of a run, and what the names of its cells must hold."""
    named = [peer for peer in PEERS if only and peer.name.lower() == only.lower()]
    return [peer for peer in named or PEERS if peer.name not in without], "" if named else only


def comparisons(peers: Sequence[Peer], sizes: Sequence[int]) -> list[Comparison]:
    """Every cell: a size and a number of connections, ours first."""
    names = [OURS, *(name for peer in peers for name in peer.names)]
    return [
        Comparison(
            GROUP,
            size,
            connections,
            tuple(Contender(name, name, Payload("quantize", "npy", size)) for name in names),
        )
        for size in sizes
        for connections in CONNECTIONS
    ]


def not_started(measured: Sequence[Measured]) -> dict[str, str]:
    """What those said that were not measured in any cell."""
    missing: dict[str, str] = {}
    for label in {label for one in measured for label in one.rows} - {OURS}:
        if not any(one.has(label) for one in measured):
            missing[label] = next(failure for one in measured if label in one.rows for failure in one.rows[label].failures)
    return missing


class _Run:
    def __init__(self, bench: PeerBench, *, rounds: int, quick: bool, say: Callable[[str], None]) -> None:
        self.bench, self.rounds, self.say = bench, rounds, say
        self.sizes, self.pace = (QUICK_SIZES, QUICK_PACE) if quick else (SIZES, 1.0)
        self.failures: list[str] = []

    def memory(self, names: Sequence[str]) -> Iterator[MemoryUse]:
        for name in names:
            if not self.bench.has(name):
                continue
            try:
                used = experiments.memory(self.bench, name)
            except (LoadFailed, ServerFailed, WrongBits) as error:
                self.fail(f"memory of {name}: {error}")
                continue
            self.say(f"memory of {name}: idle {used.idle_bytes >> 20}, peak {used.peak_bytes >> 20} MiB")
            yield used

    def comparisons(self, peers: Mapping[Peer, Path], cell: str) -> Iterator[Measured]:
        for comparison in comparisons(list(peers), self.sizes):
            if cell not in comparison.name:
                continue
            measured = measure(self.bench, comparison, rounds=self.rounds, pace=self.pace)
            rates = [f"{label} {rate_in_words(median(row.rates))}/s" for label, row in measured.rows.items() if row.samples]
            self.say(f"{comparison.name}: {', '.join(rates) or 'nothing'}")
            for label, row in measured.rows.items():
                for failure in dict.fromkeys(row.failures):
                    self.fail(f"{comparison.name}, {label}: {failure} ({row.failures.count(failure)} of {self.rounds} rounds)")
            yield measured

    def fail(self, message: str) -> None:
        self.say(f"FAILED {message}")
        self.failures.append(message)
