"""The log: one line for each request, as text for people or as JSON for machines, on standard error."""

from __future__ import annotations

import json
import logging
import logging.config
import sys
import time
from typing import Any

from service.metrics import Exchange
from service.sink import LineHandler

access = logging.getLogger("stequant.access")
log = logging.getLogger("stequant")


def configure(level: str, log_format: str) -> None:
    """Set the process's logging up; called by `stequant serve`, never on import."""
    logging.config.dictConfig(logging_config(level, log_format))


def logging_config(level: str, log_format: str) -> dict[str, Any]:
    """The logging configuration, also for uvicorn's own loggers."""
    formatter = JsonLines if log_format == "json" else TextLines
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": formatter}},
        "handlers": {"stderr": _handler()},
        "loggers": {
            "stequant": {"handlers": ["stderr"], "level": level.upper(), "propagate": False},
            # uvicorn tells each step of its start at level info; our own two lines say what matters.
            "uvicorn": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
        },
    }


def _handler() -> dict[str, Any]:
    """What writes to standard error; where that was closed, its number may be that of anything."""
    if sys.stderr is None:
        return {"class": "logging.NullHandler"}
    return {"()": LineHandler, "formatter": "line", "descriptor": sys.stderr.fileno()}


def dropped_lines() -> int:
    """How many lines could not be written so far."""
    return sum(handler.dropped_lines for handler in log.handlers if isinstance(handler, LineHandler))


def is_heard() -> bool:
    """Whether anyone listens to exchanges."""
    return access.isEnabledFor(logging.INFO)


def log_exchange(exchange: Exchange) -> None:
    """Log one exchange, if anyone listens."""
    if is_heard():
        access.info("", extra={"exchange": exchange})


class TextLines(logging.Formatter):
    """`2026-01-31T12:00:00 INFO POST /quantize 200 npy k_bit_quantize 4096 -> 4224 bytes 0.4 ms 9f3b2c1d-1a`."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as one line."""
        exchange: Exchange | None = getattr(record, "exchange", None)
        return _one_line(
            f"{_time(record)} {record.levelname} {record.getMessage() if exchange is None else _text(exchange)}"
        ) + _trace(self, record)


class JsonLines(logging.Formatter):
    """`{"time": …, "level": "info", "method": "POST", "path": "/quantize", "status": 200, …}`."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as one JSON object."""
        exchange: Exchange | None = getattr(record, "exchange", None)
        document: dict[str, Any] = {"time": _time(record), "level": record.levelname.lower()}
        if exchange is None:
            document |= {"message": record.getMessage()}
        else:
            document |= _fields(exchange)
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document)


def _fields(exchange: Exchange) -> dict[str, object]:
    """What there is to say of an exchange; of its stages, their seconds."""
    fields = {name: value for name, value in exchange._asdict().items() if value not in ("", None)}
    fields["request_id"] = exchange.request_id.decode("latin-1")
    if exchange.stages is not None:
        fields["stages"] = {f"{name}_s": round(seconds, 6) for name, seconds in exchange.stages._asdict().items()}
    return fields


def _text(exchange: Exchange) -> str:
    words = (
        exchange.method,
        exchange.path,
        str(exchange.status),
        exchange.format,
        exchange.operator,
        exchange.code,
        f"{exchange.received_bytes} -> {exchange.sent_bytes} bytes",
        f"{exchange.duration_s * 1e3:.1f} ms",
        exchange.trace_id,
        exchange.request_id.decode("latin-1"),
    )
    return " ".join(word for word in words if word)


def _one_line(text: str) -> str:
    """Without control characters, so that no request can forge a line."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return "\n" + formatter.formatException(record.exc_info) if record.exc_info else ""


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
