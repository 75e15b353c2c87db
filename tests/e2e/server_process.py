"""A real `stequant serve` process, and connections that send exactly the bytes a test wants."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
# Long enough for a machine that others use too; nothing waits for its end.
PATIENCE_S = 30.0

Result = TypeVar("Result")


def eventually(probe: Callable[[], Result | None], what: str, patience_s: float = PATIENCE_S) -> Result:
    """The first result that is neither None nor False; fails the test when there is none in time."""
    end = time.monotonic() + patience_s
    while True:
        result = probe()
        if result is not None and result is not False:
            return result
        assert time.monotonic() < end, f"not within {patience_s} s: {what}"
        time.sleep(0.02)


def environment(given: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's variables without those that would set the server up, and `given`."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("STEQUANT_", "PROMETHEUS_"))}
    return own | dict(given or {})


def command(*arguments: str) -> list[str]:
    """The command line of `stequant`, run from the source tree."""
    return [sys.executable, "-m", "service", *arguments]


class ServerProcess:
    """`stequant serve` on a free port (or where its flags say), started and ready."""

    def __init__(self, *flags: str, variables: Mapping[str, str] | None = None, wait: bool = True) -> None:
        place = () if "--uds" in flags or "--port" in flags else ("--port", "0")
        self.process = subprocess.Popen(
            command("serve", "--device", "cpu", *place, *flags),
            cwd=ROOT,
            env=environment(variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.address = eventually(self._address, "the line that says where the server listens")
        if wait:
            eventually(self._is_ready, "/readyz says yes")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def _address(self) -> str | None:
        lines = list(self.lines)
        assert self.process.poll() is None, f"the server ended: {lines}"
        found = (re.search(r"serves on (\S+?)[\s\"]", line + " ") for line in lines)
        return next((match[1] for match in found if match), None)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, f"the server ended: {self.lines}"
        try:
            with Wire(self) as wire:
                return wire.ask(get("/readyz")).status == 200
        except OSError:
            return False

    @property
    def pid(self) -> int:
        """The process that was started."""
        return self.process.pid

    @property
    def url(self) -> str:
        """The base URL of a server on a port."""
        assert self.address.startswith("http://127.0.0.1:")
        return self.address

    @property
    def port(self) -> int:
        """The port."""
        return int(self.url.rpartition(":")[2])

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over all labels that were not given."""
        with Wire(self) as wire:
            text = wire.ask(get("/metrics")).body.decode()
        return sum(
            one.value
            for family in text_string_to_metric_families(text)
            for one in family.samples
            if one.name == name and set(labels.items()) <= set(one.labels.items())
        )

    def stop(self, sig: int = signal.SIGTERM) -> int:
        """Send the signal, and wait for the end; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            status = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the server did not end: {self.lines[-5:]}") from None
        self._reader.join(PATIENCE_S)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


@contextmanager
def serving(*flags: str, variables: Mapping[str, str] | None = None) -> Iterator[ServerProcess]:
    """A server that is stopped in the end, and must then end well and have logged no traceback."""
    server = ServerProcess(*flags, variables=variables)
    try:
        yield server
    finally:
        status = server.stop()
    assert status == 0, server.lines[-10:]
    assert not [line for line in server.lines if "Traceback" in line or '"traceback"' in line], server.lines


# Connections ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """One answer as it stood on the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The code of a problem document, which is checked."""
        assert self.headers["content-type"] == "application/problem+json", self
        document = json.loads(self.body)
        assert document["status"] == self.status
        assert document["detail"]
        code: str = document["code"]
        return code


class Wire:
    """One connection."""

    def __init__(self, server: ServerProcess, *, timeout_s: float = PATIENCE_S, receive_buffer_bytes: int | None = None) -> None:
        family = socket.AF_UNIX if server.address.startswith("unix:") else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.settimeout(timeout_s)
        if receive_buffer_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        try:
            if family == socket.AF_UNIX:
                self.socket.connect(server.address.removeprefix("unix:"))
            else:
                self.socket.connect(("127.0.0.1", server.port))
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            self.socket.close()
            raise
        self._left = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.socket.close()

    def send(self, data: bytes | memoryview) -> None:
        """Send all of it."""
        self.socket.sendall(data)

    def send_until_refused(self, data: bytes) -> None:
        """Send what the other side takes; it may have closed meanwhile."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def ask(self, request: bytes, *, head_only: bool = False) -> Answer:
        """One request, one answer."""
        self.send(request)
        return self.read(head_only=head_only)

    def read(self, *, head_only: bool = False) -> Answer:
        """The next answer, interim ones included. `head_only`: of a HEAD request."""
        while b"\r\n\r\n" not in self._left:
            self._more()
        head, _, self._left = self._left.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        version, status, _ = status_line.split(" ", 2)
        assert version == "HTTP/1.1"
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        assert len(headers) == len(lines), lines
        if status == "100" or head_only:
            return Answer(int(status), headers, b"")
        assert "transfer-encoding" not in headers, "answers are never chunked"
        length = int(headers["content-length"])
        if len(self._left) < length:
            body = bytearray(length)
            body[: len(self._left)] = self._left
            view, filled, self._left = memoryview(body), len(self._left), b""
            while filled < length:
                count = self.socket.recv_into(view[filled:])
                assert count, f"the answer ended after {filled} of {length} bytes"
                filled += count
            return Answer(int(status), headers, bytes(body))
        body_bytes, self._left = self._left[:length], self._left[length:]
        return Answer(int(status), headers, body_bytes)

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError(f"the connection ended after {self._left[:200]!r}")
        self._left += data

    def is_closed(self, patience_s: float = PATIENCE_S) -> bool:
        """Whether the other side closes in time, without another byte. A reset counts."""
        assert not self._left, self._left[:200]
        readable, _, _ = select.select([self.socket], [], [], patience_s)
        if not readable:
            return False
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def is_silent(self, patience_s: float) -> bool:
        """Whether nothing comes for a while."""
        return not self._left and not select.select([self.socket], [], [], patience_s)[0]

    def half_close(self) -> None:
        """Say that no more will be sent."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Vanish without a word."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()


def get(path: str, *lines: str, method: str = "GET", version: str = "1.1", host: str | None = "a") -> bytes:
    """A request without a body."""
    own = [] if host is None else [f"Host: {host}"]
    return "\r\n".join([f"{method} {path} HTTP/{version}", *own, *lines, "", ""]).encode("latin-1")


def post(
    body: bytes,
    query: str = "op=round",
    *lines: str,
    path: str = "/quantize",
    media_type: str | None = "application/x-npy",
    version: str = "1.1",
    chunks: Iterable[bytes] | None = None,
    length: int | None = None,
) -> bytes:
    """A request with a body: announced by its length, or in `chunks`."""
    own = ["Host: a"]
    if media_type is not None:
        own.append(f"Content-Type: {media_type}")
    own.append("Transfer-Encoding: chunked" if chunks is not None else f"Content-Length: {len(body) if length is None else length}")
    head = "\r\n".join([f"POST {path}?{query} HTTP/{version}", *own, *lines, "", ""]).encode("latin-1")
    if chunks is not None:
        body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks if chunk) + b"0\r\n\r\n"
    return head + body


def http_connection(server: ServerProcess) -> http.client.HTTPConnection:
    """The standard library's client."""
    return http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
