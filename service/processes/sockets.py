"""The listening socket: opened once, and inherited by every worker.

One socket, not one for each worker: what has connected and was not accepted waits in its queue, and that
queue outlives any worker. (With SO_REUSEPORT each worker has a queue of its own, which ends with it.)
"""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.processes.errors import CannotServe
from service.settings import Settings

BACKLOG = 2048


@contextmanager
def listening(settings: Settings) -> Iterator[socket.socket]:
    """The socket that the settings ask for; `CannotServe` says why there is none."""
    sock = _listen(settings)
    try:
        yield sock
    finally:
        sock.close()
        if settings.uds is not None:
            settings.uds.unlink(missing_ok=True)


def address_of(sock: socket.socket, *, encrypted: bool) -> str:
    """The address as a person writes it."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{'https' if encrypted else 'http'}://{host}:{name[1]}"


def _listen(settings: Settings) -> socket.socket:
    try:
        return _unix_socket(settings.uds) if settings.uds is not None else _tcp_socket(settings.host, settings.port)
    except OSError as error:
        where = f"{settings.uds}" if settings.uds is not None else f"port {settings.port} of {settings.host}"
        hint = "" if settings.uds is not None else "; choose another with --port or STEQUANT_PORT (make serve PORT=…)"
        raise CannotServe(f"cannot listen on {where}: {error.strerror or error}{hint}") from error


def _tcp_socket(host: str, port: int) -> socket.socket:
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, kind, proto)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return _bound(sock, address)


def _unix_socket(path: Path) -> socket.socket:
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise OSError(None, "a server is listening there")
        path.unlink()  # left behind by a server that was killed
    return _bound(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), str(path))


def _bound(sock: socket.socket, address: Any) -> socket.socket:
    try:
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
