"""Running the service: sockets, uvicorn, signals. What `stequant serve` calls."""

from __future__ import annotations

import gc
import os
import signal
import socket
import stat
import time
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from service import __version__
from service.app import create_app
from service.core import Core
from service.errors import DeviceFault
from service.logs import configure, log
from service.settings import Settings
from service.transport import Connection

_BACKLOG = 2048
_GC_THRESHOLD = 50_000


class CannotServe(Exception):
    """The server cannot start; the message is one line for a person."""


def listen(settings: Settings) -> socket.socket:
    """The listening socket that the settings ask for; `CannotServe` says why there is none."""
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
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def address_of(sock: socket.socket) -> str:
    """The address as a person writes it."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"http://{host}:{name[1]}"


def serve(settings: Settings, sock: socket.socket, worker: int | None = None) -> None:
    """Serve on a listening socket until SIGTERM or SIGINT; returns when everything in flight was answered.

    `worker` is the number of this process where several share the socket.
    """
    configure(settings.log_level, settings.log_format)
    try:
        app = create_app(settings, worker=worker or 0)
    except (DeviceFault, OSError, ValueError) as error:
        raise CannotServe(str(error)) from error
    core: Core = app.state.core
    if worker is None:
        log.info("stequant %s serves on %s", __version__, address_of(sock))
    log.info("device %s: %s", core.engine.device.name, core.engine.device.reason)
    config = uvicorn.Config(
        app,
        http=Connection,  # type: ignore[arg-type]  # a BufferedProtocol, which uvicorn's annotation does not foresee
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=settings.grace_s,  # type: ignore[arg-type]  # asyncio takes a float
        backlog=_BACKLOG,
    )
    _Server(config, core).run(sockets=[sock])
    log.info("stopped")


class _Server(uvicorn.Server):
    """uvicorn's server with our way to stop: not ready at once, closed after the drain delay, exit status 0."""

    def __init__(self, config: uvicorn.Config, core: Core) -> None:
        super().__init__(config)
        self._core = core
        self._stop_at = float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins to drain, the second ends at once."""
        # uvicorn remembers the signal and raises it again at its end, which would make the exit status that of the signal.
        if self._core.draining:
            self.force_exit = self.should_exit = True
        self._core.draining = True
        self._stop_at = time.monotonic() + self._core.settings.drain_delay_s

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        if time.monotonic() >= self._stop_at:
            self.should_exit = True
        # With several workers another one may be asked for the metrics of all.
        self._core.publish()
        self._core.pool.trim()
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the device; then take everything that was imported out of the garbage collector's rounds."""
        await super().startup(sockets)
        # torch alone brings half a million objects that live for ever, and a call with many tensors makes thousands
        # that are gone at its end: rounds are made rarer and shorter.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let what is in flight end, then close the device; uvicorn leaves that out when it is told to hurry."""
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()


def run(settings: Settings) -> None:
    """Serve with as many workers as the settings say."""
    sock = listen(settings)
    try:
        if settings.workers == 1:
            serve(settings, sock)
        else:
            from service.workers import supervise

            supervise(settings, sock)
    finally:
        sock.close()
        if settings.uds is not None:
            settings.uds.unlink(missing_ok=True)


def end_with_parent() -> None:
    """Ask Linux to end this process when its parent ends, however that happens."""
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() == 1:
        raise SystemExit(0)
