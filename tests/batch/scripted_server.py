"""A server that rounds, and fails as a test tells it to: a real one on a port or a Unix socket, of the standard library."""

from __future__ import annotations

import io
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Asked:
    """A request as it came; `number` counts them from 0, `probe` says that no body was sent yet."""

    number: int
    path: str
    length: int
    probe: bool
    headers: dict[str, str]


@dataclass(frozen=True)
class Problem:
    """A problem document."""

    status: int
    code: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Drop:
    """Close the connection after so many bytes of the answer's body; None: before its head."""

    after_bytes: int | None = None


@dataclass(frozen=True)
class Raw:
    """A body in place of the right one."""

    body: bytes
    content_type: str = "application/x-npy"


Script = Callable[[Asked], Problem | Drop | Raw | None]


def as_it_should(_: Asked) -> None:
    """Answer well."""


class ScriptedServer:
    """What it was asked, and how it answers: as `script` says, or with the rounded array where that says None."""

    def __init__(self, script: Script = as_it_should) -> None:
        self.script = script
        self.asked: list[Asked] = []
        self.lock = threading.Lock()
        self.most_at_once = 0
        self.at_once = 0
        self.url = ""

    @property
    def chunks(self) -> list[Asked]:
        """The requests that brought a body."""
        return [asked for asked in self.asked if not asked.probe]


@contextmanager
def scripted(script: Script = as_it_should, uds: Path | None = None) -> Iterator[ScriptedServer]:
    """A server, until the end of the block."""
    scripted_server = ScriptedServer(script)

    class Handler(_Handler):
        server_state = scripted_server

    base = socketserver.ThreadingTCPServer if uds is None else socketserver.ThreadingUnixStreamServer
    server = base(("127.0.0.1", 0) if uds is None else str(uds), Handler)  # type: ignore[arg-type]
    server.daemon_threads = True
    server.block_on_close = False
    if uds is None:
        scripted_server.url = f"http://127.0.0.1:{server.server_address[1]!s}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield scripted_server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: ScriptedServer

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def address_string(self) -> str:
        """A Unix socket has none."""
        return "peer"

    def handle_expect_100(self) -> bool:
        """Decide before the body comes."""
        asked = self._note(probe=True)
        decided = self.server_state.script(asked)
        if decided is None:
            self.send_response_only(100)
            self.end_headers()
            self.close_connection = True
            return False
        self._answer(decided, b"")
        return False

    def do_POST(self) -> None:
        """Round what is in the body."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = self._note(probe=False)
        with self.server_state.lock:
            self.server_state.at_once += 1
            self.server_state.most_at_once = max(self.server_state.most_at_once, self.server_state.at_once)
        try:
            decided = self.server_state.script(asked)
            stream = io.BytesIO()
            np.save(stream, np.rint(np.load(io.BytesIO(body))))
        finally:
            with self.server_state.lock:
                self.server_state.at_once -= 1
        self._answer(decided, stream.getvalue())

    def _note(self, *, probe: bool) -> Asked:
        with self.server_state.lock:
            number = len(self.server_state.asked)
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(number, self.path, int(self.headers["Content-Length"]), probe, headers)
            self.server_state.asked.append(asked)
        return asked

    def _answer(self, decided: Problem | Drop | Raw | None, body: bytes) -> None:
        match decided:
            case Drop(None):
                self.close_connection = True
            case Drop(after_bytes):
                self._head(200, "application/x-npy", len(body), {})
                self.wfile.write(body[:after_bytes])
                self.close_connection = True
            case Problem(status, code, headers):
                problem = json.dumps({"title": "scripted", "status": status, "detail": f"scripted {code}", "code": code}).encode()
                self._head(status, "application/problem+json", len(problem), headers)
                self.wfile.write(problem)
            case Raw(other, content_type):
                self._head(200, content_type, len(other), {})
                self.wfile.write(other)
            case None:
                self._head(200, "application/x-npy", len(body), {})
                self.wfile.write(body)

    def _head(self, status: int, content_type: str, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
