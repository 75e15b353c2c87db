"""The servers that are compared: how each is started, when it is ready, how it is ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks import native
from benchmarks.exchange import BadAnswer, exchange
from benchmarks.processes import tree

ROOT = Path(__file__).parent.parent
READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 45.0  # the service may drain for 30 s
POLL_EVERY_S = 0.02
# Eight connections that each send two operands of 64 MiB are 1 GiB in flight; the comparison is not about that limit.
MAX_IN_FLIGHT_BYTES = 2 << 30


class ServerFailed(Exception):
    """A server did not come up."""


@dataclass(frozen=True)
class Kind:
    """A way to start a server on an address."""

    name: str
    command: Callable[[str], list[str]]
    ready_path: str = "/healthz"
    unix: bool = False


def kinds(folder: Path, device: str) -> dict[str, Kind]:
    """All servers by name; without a C compiler those in C are missing."""
    python = sys.executable

    def ours(*flags: str) -> Callable[[str], list[str]]:
        limits = ["--max-in-flight-bytes", str(MAX_IN_FLIGHT_BYTES), "--device", device, "--log-level", "warning"]
        return lambda address: [python, "-m", "service", "serve", *_where(address), *limits, *flags]

    def ceiling(address: str) -> list[str]:
        return [python, "-m", "benchmarks.ceiling", address]

    def naive(address: str) -> list[str]:
        # Eight warm-up calls of 64 MiB take longer than uvicorn's keep-alive of 5 s: the first connections would be closed.
        flags = ["--log-level", "warning", "--timeout-keep-alive", "65"]
        return [python, "-m", "uvicorn", "benchmarks.naive:app", *_where(address), *flags]

    found = [
        Kind("ceiling", ceiling),
        Kind("ceiling, Unix socket", ceiling, unix=True),
        Kind("naive", naive),
        Kind("ours", ours("--workers", "1"), "/readyz"),
        Kind("ours, two workers", ours("--workers", "2"), "/readyz"),
        Kind("ours, Unix socket", ours("--workers", "1"), "/readyz", unix=True),
    ]
    if (binary := native.build("echo", folder)) is not None:
        found += [
            Kind("ceiling (C)", lambda address: [str(binary), address]),
            Kind("ceiling (C), Unix socket", lambda address: [str(binary), address], unix=True),
        ]
    return {kind.name: kind for kind in found}


class Server:
    """A server that was started here, and is ended here."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind = kind
        self.address = f"unix:{folder / _socket_name(kind.name)}" if kind.unix else f"127.0.0.1:{_free_port()}"
        self._log = (folder / f"{_socket_name(kind.name)}.log").open("w+b")
        begin = time.perf_counter()
        self._process = subprocess.Popen(
            kind.command(self.address), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._log
        )
        try:
            self._wait_until_ready(begin + READY_TIMEOUT_S)
        except ServerFailed:
            self.stop()
            raise
        self.start_up_s = time.perf_counter() - begin

    @property
    def pid(self) -> int:
        """The process that was started; workers are below it."""
        return self._process.pid

    def terminate(self) -> None:
        """Ask it to end."""
        with suppress(ProcessLookupError):
            self._process.terminate()

    def stop(self) -> None:
        """Ask it to end, and see that it and what it started does."""
        processes = tree(self.pid) if self._process.poll() is None else []
        self.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            for pid in processes:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()

    def _wait_until_ready(self, deadline: float) -> None:
        request = f"GET {self.kind.ready_path} HTTP/1.1\r\nHost: benchmark\r\n\r\n".encode()
        while True:
            try:
                exchange(self.address, request, capacity=65536)
            except (BadAnswer, OSError) as error:
                if self._process.poll() is not None or time.perf_counter() > deadline:
                    raise ServerFailed(f"{self.kind.name} is not ready: {error}; {self._last_words()}") from error
                time.sleep(POLL_EVERY_S)
            else:
                return

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return " / ".join(lines[-3:]) or "nothing on stderr"


def _where(address: str) -> list[str]:
    if address.startswith("unix:"):
        return ["--uds", address.removeprefix("unix:")]
    host, _, port = address.rpartition(":")
    return ["--host", host, "--port", port]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _socket_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)
