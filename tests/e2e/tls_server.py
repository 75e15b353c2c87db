"""Servers that speak TLS, with certificates that a test has made, and connections to them."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme
from server_process import PATIENCE_S, ServerProcess, Wire

from service.client import Client


@dataclass(frozen=True)
class Authority:
    """Who signs certificates, and those who trust it."""

    ca: trustme.CA
    folder: Path

    @property
    def cert(self) -> Path:
        return self.folder / "cert.pem"

    @property
    def key(self) -> Path:
        return self.folder / "key.pem"

    @property
    def flags(self) -> tuple[str, ...]:
        """The server's flags for a certificate of this authority."""
        return "--tls-cert-file", str(self.cert), "--tls-key-file", str(self.key)

    def issue(self) -> None:
        """Write a new certificate for this machine, and its key."""
        leaf = self.ca.issue_cert("localhost", "127.0.0.1")
        self.key.write_bytes(leaf.private_key_pem.bytes())
        self.cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))

    def trust(self) -> ssl.SSLContext:
        """What a client needs that believes in it."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return context


def authority(folder: Path) -> Authority:
    """A new one, with a certificate for this machine."""
    one = Authority(trustme.CA(), folder)
    one.issue()
    return one


class TlsWire(Wire):
    """One encrypted connection."""

    def __init__(
        self, server: ServerProcess, context: ssl.SSLContext, *, handshake: bool = True, receive_buffer_bytes: int | None = None
    ) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(PATIENCE_S)
        if receive_buffer_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.connect(("127.0.0.1", port_of(server)))
        self._context = context
        self._left = b""
        if handshake:
            self.shake_hands()

    def shake_hands(self) -> None:
        self.socket = self._context.wrap_socket(self.socket, server_hostname="localhost", suppress_ragged_eofs=False)

    @property
    def serial_number(self) -> str:
        """That of the certificate which the server has shown."""
        assert isinstance(self.socket, ssl.SSLSocket)
        certificate = self.socket.getpeercert()
        assert certificate
        return str(certificate["serialNumber"])


def port_of(server: ServerProcess) -> int:
    assert server.address.startswith("https://127.0.0.1:")
    return int(server.address.rpartition(":")[2])


def https_connection(server: ServerProcess, context: ssl.SSLContext) -> http.client.HTTPSConnection:
    """The standard library's client."""
    return http.client.HTTPSConnection("127.0.0.1", port_of(server), context=context, timeout=PATIENCE_S)


@contextmanager
def tls_serving(who: Authority, *flags: str, trust: ssl.SSLContext | None = None) -> Iterator[ServerProcess]:
    """A ready server that must end well, with no traceback and nothing that asyncio complains of."""
    server = ServerProcess(*who.flags, *flags, wait=False)
    try:
        with Client(server.address, verify=trust or who.trust(), trust_env=False) as client:
            client.wait_until_ready(PATIENCE_S)
        yield server
        assert server.stop() == 0, server.lines[-10:]
        assert not [line for line in server.lines if "Traceback" in line or "has no effect" in line], server.lines
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.stop()
