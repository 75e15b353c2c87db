"""The run over HTTP: every comparison and every experiment, into one result."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks import experiments
from benchmarks.bench import Bench
from benchmarks.cells import SIZES, comparisons
from benchmarks.load import LoadFailed
from benchmarks.machine import describe_machine
from benchmarks.measure import measure
from benchmarks.payloads import WrongBits
from benchmarks.results import GeneratorCheck, HttpResults, Measured, MemoryUse, MixedLoad
from benchmarks.servers import ServerFailed
from benchmarks.stats import median
from benchmarks.units import KIB, MIB, rate_in_words

QUICK_SIZES = (4 * KIB, MIB, 16 * MIB)
# Of the seconds of each cell: a full run stays under ten minutes.
FULL_PACE = 0.85
QUICK_PACE, QUICK_ROUNDS = 0.5, 1
MEMORY_SERVERS = ("ceiling", "naive", "ours", "ours, two workers")
MIXED_SERVERS = ("ceiling (C)", "naive", "ours")
GENERATOR_CONNECTIONS = 8


def run(bench: Bench, *, rounds: int, quick: bool, only: str, device: str, say: Callable[[str], None]) -> HttpResults:
    """Everything whose name holds `only`; `quick` leaves out the largest size and most of the time."""
    return _Run(bench, rounds=min(rounds, QUICK_ROUNDS) if quick else rounds, quick=quick, only=only, say=say).results(device)


class _Run:
    def __init__(self, bench: Bench, *, rounds: int, quick: bool, only: str, say: Callable[[str], None]) -> None:
        self.bench, self.rounds, self.quick, self.only, self.say = bench, rounds, quick, only, say
        self.pace = QUICK_PACE if quick else FULL_PACE
        self.failures: list[str] = []

    def results(self, device: str) -> HttpResults:
        machine = describe_machine()
        memory = list(self.memory())  # first: nothing else of ours is in memory yet
        measured = list(self.comparisons())
        mixed = list(self.mixed())
        generator = self.generator()
        settings = {
            "rounds": str(self.rounds),
            "load generator": self.bench.generator.name,
            "device": device,
            "order": "servers in turns within a comparison, each round begins with another one",
        }
        return HttpResults(
            machine=machine,
            settings=settings,
            comparisons=measured,
            memory=memory,
            bytes_in_flight=experiments.BYTES_IN_FLIGHT,
            mixed=mixed,
            generator=generator,
            failures=self.failures,
        )

    def comparisons(self) -> Iterator[Measured]:
        for comparison in comparisons(QUICK_SIZES if self.quick else SIZES):
            if self.only not in comparison.name:
                continue
            measured = measure(self.bench, comparison, rounds=self.rounds, pace=self.pace)
            rates = ", ".join(
                f"{label} {rate_in_words(median(row.rates))}/s" for label, row in measured.rows.items() if row.samples
            )
            self.say(f"{comparison.name}: {rates or 'nothing'}")
            for label, row in measured.rows.items():
                for failure in dict.fromkeys(row.failures):
                    self.fail(f"{comparison.name}, {label}: {failure} ({row.failures.count(failure)} of {self.rounds} rounds)")
            yield measured

    def memory(self) -> Iterator[MemoryUse]:
        for name in self.servers("memory", MEMORY_SERVERS):
            try:
                used = experiments.memory(self.bench, name)
            except (LoadFailed, ServerFailed, WrongBits) as error:
                self.fail(f"memory of {name}: {error}")
                continue
            self.say(
                f"memory of {name}: idle {used.idle_bytes >> 20}, peak {used.peak_bytes >> 20}, after {used.after_bytes >> 20} MiB"
            )
            yield used

    def mixed(self) -> Iterator[MixedLoad]:
        for name in self.servers("mixed load", MIXED_SERVERS):
            try:
                mixed = experiments.mixed_load(self.bench, name, rounds=self.rounds)
            except (LoadFailed, ServerFailed, WrongBits) as error:
                self.fail(f"mixed load on {name}: {error}")
                continue
            p99 = f"{median(mixed.alone_p99_us):.0f} µs alone, {median(mixed.loaded_p99_us):.0f} µs"
            self.say(f"mixed load on {name}: p99 {p99}, /healthz at most {median(mixed.healthz_max_us):.0f} µs")
            yield mixed

    def generator(self) -> GeneratorCheck | None:
        if self.only not in "generator":
            return None
        seconds = self.pace
        try:
            check = experiments.check_generator(self.bench, connections=GENERATOR_CONNECTIONS, rounds=self.rounds, seconds=seconds)
        except (LoadFailed, ServerFailed, WrongBits) as error:
            self.fail(f"generator: {error}")
            return None
        self.say(f"generator: one {rate_in_words(median(check.one))}/s, two {rate_in_words(median(check.two))}/s")
        return check

    def servers(self, experiment: str, wanted: tuple[str, ...]) -> list[str]:
        if self.only not in experiment:
            return []
        if self.quick:
            wanted = ("ours",) if self.bench.has("ours") else ("naive",)
        return [name for name in wanted if self.bench.has(name)]

    def fail(self, message: str) -> None:
        self.say(f"FAILED {message}")
        self.failures.append(message)
