"""What a run leaves behind: measurements as they were taken, read back by the report and the plot."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from benchmarks.stats import median


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sample(_Record):
    """What the load generator saw in one cell of one round."""

    requests: int
    elapsed_s: float
    cpu_s: float  # of the generator itself
    latency_us: dict[str, float]

    @property
    def rate(self) -> float:
        """Requests per second, over all connections."""
        return self.requests / self.elapsed_s


class Row(_Record):
    """One server in one comparison: a sample a round, and what went wrong."""

    size_bytes: int
    samples: list[Sample]
    failures: list[str] = []

    @property
    def rates(self) -> list[float]:
        """Requests per second of each round."""
        return [sample.rate for sample in self.samples]

    @property
    def megabytes_per_s(self) -> list[float]:
        """Tensor bytes per second of each round, in units of 10**6."""
        return [rate * self.size_bytes / 1e6 for rate in self.rates]


class Measured(_Record):
    """One comparison: rows that were measured in turns."""

    group: str
    size_bytes: int
    connections: int
    rows: dict[str, Row]

    def ratio(self, label: str, to: str) -> float | None:
        """Median rate over median rate; None where either was not measured."""
        if not self.has(label) or not self.has(to):
            return None
        return median(self.rows[label].rates) / median(self.rows[to].rates)

    def has(self, label: str) -> bool:
        """Whether there is anything of this row."""
        return label in self.rows and bool(self.rows[label].samples)


class MemoryUse(_Record):
    """A server of its own, from its start until after the load."""

    server: str
    start_up_s: float
    idle_bytes: int
    peak_bytes: int
    after_bytes: int
    after_s: float


class MixedLoad(_Record):
    """Small calls alone, and beside large ones; one value a round, in microseconds."""

    server: str
    alone_p99_us: list[float]
    loaded_p99_us: list[float]
    healthz_max_us: list[float]


class GeneratorCheck(_Record):
    """The ceiling under one generator with all connections, and under two with half of them each: requests/s a round."""

    connections: int
    one: list[float]
    two: list[float]


class HttpResults(_Record):
    """A run of `python -m benchmarks http`."""

    machine: dict[str, str]
    settings: dict[str, str]
    comparisons: list[Measured]
    memory: list[MemoryUse] = []
    bytes_in_flight: int = 0
    mixed: list[MixedLoad] = []
    generator: GeneratorCheck | None = None
    failures: list[str] = []

    def find(self, group: str, size_bytes: int, connections: int) -> Measured | None:
        """The comparison of that group, size and number of connections, if it was made."""
        wanted = (group, size_bytes, connections)
        return next((one for one in self.comparisons if (one.group, one.size_bytes, one.connections) == wanted), None)


class OperatorTime(_Record):
    """One operator over one tensor, and a memcpy of the same bytes in turns with it; seconds of each round."""

    expression: str
    dtype: str
    size_bytes: int
    seconds: list[float]
    memcpy_s: list[float]

    @property
    def times_memcpy(self) -> float:
        """Median over median."""
        return median(self.seconds) / median(self.memcpy_s)


class OperatorResults(_Record):
    """A run of `python -m benchmarks ops`."""

    machine: dict[str, str]
    settings: dict[str, str]
    operators: list[OperatorTime]


class CopyTime(_Record):
    """One call in the engine of a device, the same one among several at once, and only the copies; seconds of each round."""

    expression: str
    size_bytes: int
    seconds: list[float]
    copies_s: list[float]
    overlapped_s: list[float]


class SmallCalls(_Record):
    """Calls/s of each round, by so many callers at once: coalesced, and each alone."""

    callers: int
    size_bytes: int
    together: list[float]
    apart: list[float]


class GpuResults(_Record):
    """A run of `python -m benchmarks gpu`."""

    machine: dict[str, str]
    settings: dict[str, str]
    copies: list[CopyTime]
    small_calls: list[SmallCalls]
    over_http: list[Measured]
