"""Traces: a span of OpenTelemetry for each request, where someone collects them, and nothing at all where nobody does.

`choice` decides that once, at the start; `spans` makes the spans; `export` sends them where `OTEL_*` variables say.
"""
