"""What the service counts, for Prometheus."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import prometheus_client
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

MEDIA_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


_MOST_PENDING = 256


class Stages(NamedTuple):
    """How long each stage of a call took, in seconds: receiving its body, waiting for the device, the work, sending the answer."""

    read: float
    queue: float
    compute: float
    write: float


class Histogram(prometheus_client.Histogram):
    """A histogram that takes many observations at once, for the price of a few."""

    def observe_all(self, values: Sequence[float] | npt.NDArray[np.float64]) -> None:
        """Observe every value. `observe` takes a lock or two for each, a microsecond and more."""
        counts = np.bincount(np.searchsorted(self._upper_bounds, values))
        for bucket in counts.nonzero()[0]:
            self._buckets[bucket].inc(int(counts[bucket]))
        self._sum.inc(float(np.sum(values)))


class Children(NamedTuple):
    """The counters and histograms of exchanges with the same labels; those of stages show only where there were any."""

    counters: tuple[Counter, ...]
    received_bytes: Counter
    sent_bytes: Counter
    seconds: Histogram
    stages: Callable[[], tuple[Histogram, ...]]


class Tally:
    """What was counted of exchanges with the same labels: at once in lists, in the metrics when there are many or someone looks.

    Four counters take a lock and a lookup each, together a tenth of a small call. Counting is done
    on the event loop only.
    """

    __slots__ = ("_children", "_received_bytes", "_seconds", "_sent_bytes", "_stages")

    def __init__(self, children: Children) -> None:
        self._children = children
        self._clear()

    def add(self, received_bytes: int, sent_bytes: int, seconds: float, stages: tuple[float, float, float, float] | None) -> None:
        """Count one exchange; the seconds of its `Stages` where it had any."""
        self._received_bytes += received_bytes
        self._sent_bytes += sent_bytes
        self._seconds.append(seconds)
        if stages is not None:
            self._stages.append(stages)
        if len(self._seconds) >= _MOST_PENDING:
            self.flush()

    def flush(self) -> None:
        """Bring what was counted into the metrics."""
        if not self._seconds:
            return
        children = self._children
        for counter in children.counters:
            counter.inc(len(self._seconds))
        children.received_bytes.inc(self._received_bytes)
        children.sent_bytes.inc(self._sent_bytes)
        children.seconds.observe_all(self._seconds)
        if self._stages:
            for histogram, seconds in zip(children.stages(), np.array(self._stages).T, strict=True):
                histogram.observe_all(seconds)
        self._clear()

    def _clear(self) -> None:
        self._received_bytes = self._sent_bytes = 0
        self._seconds: list[float] = []
        self._stages: list[tuple[float, float, float, float]] = []


class Follower:
    """A counter that keeps up with a number which is counted elsewhere, where it costs less."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._seen = 0

    def follow(self, total: int) -> None:
        """Bring the counter to the number's value now."""
        self._counter.inc(total - self._seen)
        self._seen = total


class Exchange(NamedTuple):
    """One request and its answer, as the log and the metrics see them. All labels are of bounded sets."""

    method: str
    path: str
    route: str
    status: int
    received_bytes: int
    sent_bytes: int
    duration_s: float
    request_id: bytes
    operator: str = ""
    format: str = ""
    code: str = ""
    stages: Stages | None = None
    trace_id: str = ""


class Metrics:
    """The metrics of one application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("route", "operator", "format", "status")
        self._requests = Counter("stequant_requests", "Requests answered", labels, registry=self.registry)
        self._errors = Counter("stequant_errors", "Requests answered with an error, by its code", ("code",), registry=self.registry)
        self._received = Counter("stequant_received_bytes", "Bytes of request bodies", ("route",), registry=self.registry)
        self._sent = Counter("stequant_sent_bytes", "Bytes of answers' bodies", ("route",), registry=self.registry)
        self._seconds = Histogram(
            "stequant_request_seconds",
            "Time from the head of a request to its answer",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._stages = Histogram(
            "stequant_stage_seconds",
            "Time that a stage of a call took: read, queue, compute, write",
            ("route", "stage"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.build_info = Gauge(
            "stequant_build_info",
            "Always 1; the labels say what runs, and on which device",
            ("version", "python", "torch", "device"),
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.in_flight_bytes = self._gauge("in_flight_bytes", "Bytes of bodies in flight")
        self.in_flight_limit_bytes = self._gauge("in_flight_limit_bytes", "Bytes of bodies that may be in flight")
        self.pool_bytes = self._gauge("pool_bytes", "Bytes of buffers that are kept for the next bodies")
        self.ready = self._gauge("ready", "Processes that take calls")
        self.device_memory_bytes = self._gauge("device_memory_bytes", "Memory of the device, as it reports it", ("kind",))
        self.connections = self._gauge("connections", "Connections")
        self._cut = Counter(
            "stequant_cut_connections",
            "Connections and requests that were ended for what the other side did, by reason",
            ("reason",),
            registry=self.registry,
        )
        self.hauls = Counter(
            "stequant_hauls", "Times a large call was left to a thread, as others were in flight", registry=self.registry
        )
        self.coalesced_calls = self._follower("coalesced_calls", "Calls computed together with others that waited at the same time")
        self.repeated_calls = self._follower(
            "repeated_calls", "Calls that differed in nothing but their data from one before, answered in the memory they came in"
        )
        self.dropped_lines = self._follower("log_lines_dropped", "Lines of the log that could not be written at once")
        self._tallies: dict[tuple[str, str, str, int, str], Tally] = {}

    def _gauge(self, name: str, description: str, labels: Sequence[str] = ()) -> Gauge:
        """A gauge whose values in several workers add up."""
        return Gauge(f"stequant_{name}", description, labels, registry=self.registry, multiprocess_mode="livesum")

    def _follower(self, name: str, description: str) -> Follower:
        return Follower(Counter(f"stequant_{name}", description, registry=self.registry))

    def count(self, exchange: Exchange) -> None:
        """Count one exchange."""
        self.tally(exchange).add(exchange.received_bytes, exchange.sent_bytes, exchange.duration_s, exchange.stages)

    def tally(self, exchange: Exchange) -> Tally:
        """Where exchanges with the labels of this one are counted."""
        labels = (exchange.route, exchange.operator, exchange.format, exchange.status, exchange.code)
        tally = self._tallies.get(labels)
        if tally is None:
            tally = self._tallies[labels] = Tally(self._children(*labels))
        return tally

    def _children(self, route: str, operator: str, format_name: str, status: int, code: str) -> Children:
        counted = self._requests.labels(route, operator, format_name, str(status))
        return Children(
            (counted, self._errors.labels(code)) if code else (counted,),
            self._received.labels(route),
            self._sent.labels(route),
            self._seconds.labels(route),
            lambda: tuple(self._stages.labels(route, stage) for stage in Stages._fields),
        )

    def cut(self, reason: str) -> None:
        """Count a connection that the server ended."""
        self._cut.labels(reason).inc()

    def flush(self) -> None:
        """Bring what was counted into the metrics. Several workers do so now and then, for each other's sake."""
        for tally in self._tallies.values():
            tally.flush()

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format; summed over the workers where there are several."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        _AllWorkers(registry)
        return generate_latest(registry)


class _AllWorkers(MultiProcessCollector):
    """The sums over the files of all workers.

    A worker makes its files empty and gives them a size just after. What comes between the two, or the end of a worker
    there, must not take the metrics of all: https://github.com/prometheus/client_python/issues/1199.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)  # type: ignore[no-untyped-call]

    def collect(self) -> Iterable[Metric]:
        """Read those files that have something in them."""
        files = [str(file) for file in Path(self._path).glob("*.db") if _size(file)]
        return self.merge(files)  # type: ignore[no-any-return, no-untyped-call]


def _size(file: Path) -> int:
    with suppress(FileNotFoundError):  # those of a worker that has ended are removed
        return file.stat().st_size
    return 0
