"""What the service counts, for Prometheus."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

MEDIA_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class Exchange(NamedTuple):
    """One request and its answer, as the log and the metrics see them. All labels are of bounded sets."""

    method: str
    path: str
    route: str
    status: int
    received_bytes: int
    sent_bytes: int
    duration_s: float
    operator: str = ""
    format: str = ""
    code: str = ""


_Series = tuple[Callable[[], None], Callable[[float], None], Callable[[float], None], Callable[[float], None]]


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
        self.in_flight_bytes = Gauge(
            "stequant_in_flight_bytes", "Bytes of bodies in flight", registry=self.registry, multiprocess_mode="livesum"
        )
        # Looking a set of labels up takes a lock and a tuple of strings; the sets are few.
        self._series = lru_cache(maxsize=4096)(self._find_series)

    def count(self, exchange: Exchange) -> None:
        """Count one exchange."""
        count, received, sent, seconds = self._series(exchange.route, exchange.operator, exchange.format, exchange.status)
        count()
        if exchange.code:
            self._errors.labels(exchange.code).inc()
        received(exchange.received_bytes)
        sent(exchange.sent_bytes)
        seconds(exchange.duration_s)

    def _find_series(self, route: str, operator: str, format_name: str, status: int) -> _Series:
        return (
            self._requests.labels(route, operator, format_name, status).inc,
            self._received.labels(route).inc,
            self._sent.labels(route).inc,
            self._seconds.labels(route).observe,
        )

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format; summed over the workers where there are several."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
