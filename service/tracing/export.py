"""Sending spans to a collector, where the usual variables of OpenTelemetry name one.

`OTEL_EXPORTER_OTLP_ENDPOINT`, or the same for traces alone, is the switch. The others (service name, resource
attributes, sampler, headers, time limits) are read by OpenTelemetry itself.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from service import __version__
from service.logs import log

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
# How long a server that stops waits for the last spans to be taken.
_LAST_SPANS_S = 3.0


@contextmanager
def exported(environment: Mapping[str, str] = os.environ) -> Iterator[TracerProvider | None]:
    """A provider whose spans are sent in the background, until the block ends; None where nobody asked for it."""
    if not _is_asked_for(environment):
        yield None
        return
    try:
        provider, close = _provider(environment)
    except ModuleNotFoundError as error:
        log.warning("no traces are sent: %s is not installed; pip install 'stequant[otel]'", error.name)
        yield None
        return
    log.info("traces are sent to %s", next(filter(None, map(environment.get, reversed(_ENDPOINTS)))))
    try:
        yield provider
    finally:
        # A collector that is gone would be tried again for half a minute.
        last = threading.Thread(target=close, daemon=True)
        last.start()
        last.join(_LAST_SPANS_S)


def _is_asked_for(environment: Mapping[str, str]) -> bool:
    named = any(environment.get(name) for name in _ENDPOINTS)
    is_off = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if not named or is_off or environment.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return False
    for name in _PROTOCOLS:
        if protocol := environment.get(name):
            if protocol != _PROTOCOL:
                log.warning("no traces are sent: %s is %r; allowed: %s", name, protocol, _PROTOCOL)
            return protocol == _PROTOCOL
    return True


def _provider(environment: Mapping[str, str]) -> tuple[TracerProvider, Callable[[], None]]:
    """A provider, and what ends it."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    is_named = "OTEL_SERVICE_NAME" in environment or "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    own = {"service.version": __version__} | ({} if is_named else {"service.name": "stequant"})
    provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider, provider.shutdown
