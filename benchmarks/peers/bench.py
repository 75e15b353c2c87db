"""The workbench with the peers on it, and each spoken to in its own form."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.exchange import BadAnswer, exchange
from benchmarks.load import Load
from benchmarks.payloads import Payload
from benchmarks.peers.catalogue import Peer
from benchmarks.processes import tree
from benchmarks.servers import Kind, Server, ServerFailed
from benchmarks.units import KIB

FIRST = Payload("quantize", "npy", 4 * KIB)


class PeerServer(Server):
    """Up once it has answered a call, for some say that they are ready before their workers are; ended with all its workers."""

    def __init__(self, kind: Kind, folder: Path, first_request: bytes) -> None:
        self._first_request = first_request
        self._processes: set[int] = set()
        super().__init__(kind, folder)

    def terminate(self) -> None:
        """Ask it to end, and remember what it had started."""
        self._processes |= set(tree(self.pid))
        super().terminate()

    def stop(self) -> None:
        """See that it has ended, and end what it left behind."""
        super().stop()
        for pid in self._processes - {self.pid}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _wait_until_ready(self, deadline: float) -> None:
        super()._wait_until_ready(deadline)
        try:
            exchange(self.address, self._first_request, capacity=65536)
        except (BadAnswer, OSError) as error:
            raise ServerFailed(f"{self.kind.name} is ready, but does not answer: {error}; {self._last_words()}") from error


class PeerBench(Bench):
    """Payloads are those of the service; a peer gets their tensor in its own form."""

    def __init__(self, peers: Mapping[Peer, Path], *, device: str, without: frozenset[str]) -> None:
        super().__init__(device=device, without=without)
        self._peers = {name: peer for peer in peers for name in peer.names}
        self._kinds |= {kind.name: kind for peer, environment in peers.items() for kind in peer.kinds(environment)}

    def start_server(self, name: str) -> Server:
        """A server of its own, for the caller to stop."""
        if name not in self._peers:
            return super().start_server(name)
        return PeerServer(self._kinds[name], self._folder, self._peers[name].payload(FIRST).request())

    def start(self, server: Server, payload: Payload, *, connections: int, seconds: float) -> Load:
        """Begin to load a server."""
        peer = self._peers.get(server.kind.name)
        return super().start(server, peer.payload(payload) if peer else payload, connections=connections, seconds=seconds)
