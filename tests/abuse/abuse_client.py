"""Run a case against a real server: every answer, and what becomes of the connection afterwards."""

from __future__ import annotations

import time
from typing import NamedTuple

from abuse_case import Case
from server_process import Answer, ServerProcess, Wire, get

# Codes after which nobody can say where the next request would begin.
_ENDS_THE_CONNECTION = ("bad_framing", "uri_too_long", "headers_too_large", "request_timeout")


class Outcome(NamedTuple):
    """What came back, how long after the last byte was sent, and what happened to the connection."""

    answers: list[str]
    first_answer_s: float
    end: str


def outcome(server: ServerProcess, case: Case) -> Outcome:
    """Send the case's bytes, read as many answers as it expects, then see that the connection is in order."""
    with Wire(server) as wire:
        wire.send_until_refused(case.request)
        sent = time.perf_counter()
        if case.ends:
            wire.half_close()
        answers: list[Answer] = []
        first_answer_s = 0.0
        for _ in case.expected:
            answers.append(wire.read())
            first_answer_s = first_answer_s or time.perf_counter() - sent
        return Outcome([told(answer) for answer in answers], first_answer_s, _end(wire, case, answers))


def told(answer: Answer) -> str:
    """The status, and the code of a problem."""
    return f"{answer.status} {answer.code}" if answer.status >= 400 else str(answer.status)


def _end(wire: Wire, case: Case, answers: list[Answer]) -> str:
    """`closed` or `open`, as it must be; else what is wrong."""
    last = answers[-1] if answers else None
    if last is None or case.ends or last.headers.get("connection") == "close":
        return "closed" if wire.is_closed() else "open, and should be closed"
    if last.status >= 400 and last.code in _ENDS_THE_CONNECTION:
        return f"open after {last.code}, which leaves the end of the request in doubt"
    # If a byte of the case were still taken for a part of a request, this would not be answered as it is.
    probe = wire.ask(get("/healthz"))
    return "open" if (probe.status, probe.body) == (200, b'{"status":"ok"}') else f"out of step: {probe}"
