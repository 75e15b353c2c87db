"""A client of a real server that notes what it asks: for tests that count calls and weigh them."""

from __future__ import annotations

from dataclasses import dataclass, field

import httpx

from service.client import Client


@dataclass(frozen=True)
class Asked:
    """One request: 'quantize' or 'grad', and the bytes of its body."""

    kind: str
    body_bytes: int


@dataclass
class Recorder(httpx.BaseTransport):
    """httpx's own transport, which is handed every request once it is noted."""

    asked: list[Asked] = field(default_factory=list)
    _inner: httpx.HTTPTransport = field(default_factory=httpx.HTTPTransport)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Note the request and send it."""
        self.asked.append(Asked(request.url.path.removeprefix("/"), int(request.headers["content-length"])))
        return self._inner.handle_request(request)

    def close(self) -> None:
        """Close the connections."""
        self._inner.close()

    @property
    def kinds(self) -> list[str]:
        """What was asked since the last `forget`, in order."""
        return [asked.kind for asked in self.asked]

    def forget(self) -> None:
        """Begin anew."""
        self.asked.clear()

    def client(self, url: str) -> Client:
        """A client that sends through this transport."""
        return Client(url, transport=self)
