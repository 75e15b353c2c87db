"""Whether there are traces: decided once, from what is installed and who collects them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from service.tracing.spans import Spans


def spans_for(provider: TracerProvider | None, *, scheme: str) -> Spans | None:
    """What makes spans by this provider, or by the one that the process has set; None where there is none."""
    if find_spec("opentelemetry") is None:
        return None
    from opentelemetry import trace

    from service.tracing.spans import Spans

    provider = provider if provider is not None else trace.get_tracer_provider()
    # What there is before anyone sets one, and what is set to say that none is wanted.
    if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
        return None
    return Spans(provider, scheme=scheme)
