"""The workbench of a run: a folder for bytes and programs, the servers that are up, the generator."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType

from benchmarks.exchange import BadAnswer, exchange
from benchmarks.load import Load, LoadFailed, best_generator
from benchmarks.payloads import Payload
from benchmarks.results import Sample
from benchmarks.servers import Server, ServerFailed, kinds

HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: benchmark\r\n\r\n"


class Bench:
    """Starts servers when they are first needed, and keeps them; closing it ends what it started."""

    def __init__(self, *, device: str = "cpu", without: frozenset[str] = frozenset()) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="benchmarks-")
        self._folder = Path(self._temporary.name)
        self._kinds = {name: kind for name, kind in kinds(self._folder, device).items() if name.partition(",")[0] not in without}
        self._servers: dict[str, Server] = {}
        self._broken: dict[str, str] = {}
        self._requests: dict[Payload, Path] = {}
        self._expected: dict[tuple[str, Payload], Path] = {}
        self.generator = best_generator(self._folder)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for server in self._servers.values():
            server.terminate()
        for server in self._servers.values():
            server.stop()
        self._temporary.cleanup()

    def has(self, name: str) -> bool:
        """Whether this machine can run that server, and the run is to have it."""
        return name in self._kinds

    def start_server(self, name: str) -> Server:
        """A server of its own, for the caller to stop."""
        return Server(self._kinds[name], self._folder)

    def server(self, name: str) -> Server:
        """The server that is kept under this name."""
        if name in self._broken:
            raise ServerFailed(self._broken[name])
        if name not in self._servers:
            try:
                self._servers[name] = self.start_server(name)
            except ServerFailed as error:
                self._broken[name] = str(error)
                raise
        return self._servers[name]

    def run(self, server: Server, payload: Payload, *, connections: int, seconds: float) -> Sample:
        """Load a server, and wait for the end. The first time, what it answers is compared with NumPy."""
        return self.start(server, payload, connections=connections, seconds=seconds).wait()

    def start(self, server: Server, payload: Payload, *, connections: int, seconds: float) -> Load:
        """Begin to load a server."""
        request, expected = self._request(payload), self.verify(server, payload)
        return self.generator.start(server.address, request, expected, connections=connections, seconds=seconds)

    def start_healthz(self, server: Server, *, seconds: float, pause_ms: float) -> Load:
        """Begin to ask for /healthz, with a pause between answer and question."""
        path = self._folder / "healthz"
        path.write_bytes(HEALTHZ)
        return self.generator.start(server.address, path, None, connections=1, seconds=seconds, pause_ms=pause_ms)

    def verify(self, server: Server, payload: Payload) -> Path:
        """The file with the answer's body, once its bits have been found right; the generator compares its last answers with it."""
        key = (server.kind.name, payload)
        if key not in self._expected:
            try:
                answer = exchange(server.address, payload.request(), capacity=2 * len(payload.body()) + 65536)
            except (BadAnswer, OSError) as error:
                raise LoadFailed(str(error)) from error
            if server.kind.name.startswith("ceiling"):
                payload.check_echo(answer)
            else:
                payload.check(answer)
            path = self._folder / f"expected-{len(self._expected)}"
            path.write_bytes(answer)
            self._expected[key] = path
        return self._expected[key]

    def _request(self, payload: Payload) -> Path:
        if payload not in self._requests:
            path = self._folder / f"request-{len(self._requests)}"
            path.write_bytes(payload.request())
            self._requests[payload] = path
        return self._requests[payload]
