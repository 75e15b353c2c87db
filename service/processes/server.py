"""Serving in one process: uvicorn with our protocol class, our way to stop, and what is read again on SIGHUP."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import ssl
import time
import weakref
from types import FrameType

import uvicorn

from service import __version__
from service.app import create_app
from service.core import Core
from service.device.devices import Device
from service.errors import DeviceFault
from service.logs import configure, log
from service.processes.errors import CannotServe, DeviceHasFailed
from service.processes.heartbeat import Heart
from service.processes.signals import RETIRE, Hangups
from service.processes.sockets import BACKLOG, address_of
from service.processes.tls import make_context, renew_certificate
from service.settings import Settings
from service.tracing.export import exported
from service.transport import Connection, EncryptedConnection
from service.transport.shared import forget_heads

_GC_THRESHOLD = 50_000
# How often a server that stops looks after connections that were accepted only just before.
_LAST_LOOKS_S = 0.05
# How long it waits for TLS handshakes that have begun; silent connections, too, seem to be in one.
_LAST_HANDSHAKES_S = 1.0
# How long a TLS connection waits for the other side's goodbye before it is closed without.
_TLS_GOODBYE_S = 2.0


def serve(
    settings: Settings,
    sock: socket.socket,
    *,
    worker: int | None = None,
    heart: Heart | None = None,
    device: Device | None = None,
) -> None:
    """Serve on a listening socket until told to stop; returns when everything in flight was answered.

    `worker` is the number of this process where several share the socket, and `heart` then beats for the supervisor.
    `device` is another one than the settings name. Raises `CannotServe` when the settings cannot be met, and
    `DeviceHasFailed` at the end when that was why it has stopped.
    """
    configure(settings.log_level, settings.log_format)
    hangups = Hangups()
    context = make_context(settings)
    with exported() as tracer_provider:
        try:
            app = create_app(settings, worker=worker or 0, device=device, tracer_provider=tracer_provider)
        except (DeviceFault, OSError, ValueError) as error:
            raise CannotServe(str(error)) from error
        core: Core = app.state.core
        if worker is None:
            log.info("stequant %s serves on %s", __version__, address_of(sock, encrypted=context is not None))
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
        )
        _Server(config, core, context, hangups, heart).run(sockets=[sock])
    if (fault := core.engine.fault) is not None:
        raise DeviceHasFailed(fault.detail)
    log.info("stopped")


class _Server(uvicorn.Server):
    """uvicorn's server with our way to listen and to stop: not ready at once, closed after the drain delay, exit status 0."""

    def __init__(
        self, config: uvicorn.Config, core: Core, context: ssl.SSLContext | None, hangups: Hangups, heart: Heart | None
    ) -> None:
        super().__init__(config)
        self._core = core
        self._context = context
        self._hangups = hangups
        self._heart = heart
        self._stop_at = float("inf")
        self._encrypted: weakref.WeakSet[EncryptedConnection] = weakref.WeakSet()
        if heart is not None:
            signal.signal(RETIRE, self._retire)

    # Signals ------------------------------------------------------------------------------------------

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins to drain, the second ends at once."""
        if sig == signal.SIGINT and self._heart is not None:
            return  # Ctrl-C reaches every process of a terminal; the supervisor tells its workers what to do
        # uvicorn remembers the signal and raises it again at its end, which would make the exit status that of the signal.
        if self._core.draining:
            self.force_exit = self.should_exit = True
        self._core.draining = True
        self._stop_at = time.monotonic() + self._core.settings.drain_delay_s

    def _retire(self, _sig: int, _frame: FrameType | None) -> None:
        """Another worker has taken over: end as after SIGTERM, while the service stays ready."""
        self.should_exit = True

    def _hang_up(self) -> None:
        if self._heart is None and self._hangups.terminal_has_gone():
            self.handle_exit(signal.SIGHUP, None)
        else:
            self._reload()

    def _reload(self) -> None:
        """Read keys and certificate again; what cannot be read stays as it was."""
        settings = self._core.settings
        if settings.api_keys_file is not None:
            try:
                self._core.keys.reload()
                # Heads that came before are not checked again, and a key stands in them.
                forget_heads(self.lifespan.state)
                log.info("the keys of %s were read again: %d", settings.api_keys_file, len(self._core.keys))
            except (OSError, ValueError) as error:
                log.error("%s; the keys that were read before stay in force", error)
        if self._context is not None:
            try:
                renew_certificate(self._context, settings)
                log.info("the certificate of %s was read again", settings.tls_cert_file)
            except CannotServe as error:
                log.error("%s; the certificate that was read before stays in force", error)

    # The course of a server's life ----------------------------------------------------------------------

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the device and listen; then take everything that was imported out of the garbage collector's rounds."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise CannotServe("the device could not be opened; the lines above say why")
        self.servers = [await self._listen(sock) for sock in sockets or ()]
        self.started = True
        # torch alone brings half a million objects that live for ever, and a call with many tensors makes thousands
        # that are gone at its end: rounds are made rarer and shorter.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD)

    async def _listen(self, sock: socket.socket) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        if self._context is None:
            return await loop.create_server(self._accept, sock=sock, backlog=BACKLOG)
        # The reason not to leave this to uvicorn: its handshakes may take a minute, and its goodbyes half of one.
        return await loop.create_server(
            self._accept_encrypted,
            sock=sock,
            backlog=BACKLOG,
            ssl=self._context,
            ssl_handshake_timeout=self._core.settings.header_timeout_s,
            ssl_shutdown_timeout=_TLS_GOODBYE_S,
        )

    def _accept(self) -> Connection:
        return Connection(self.config, self.server_state, self.lifespan.state)

    def _accept_encrypted(self) -> EncryptedConnection:
        """A connection whose handshake is next; only then does uvicorn know of it."""
        connection = EncryptedConnection(self.config, self.server_state, self.lifespan.state)
        self._encrypted.add(connection)
        return connection

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second, by the event loop."""
        if self._heart is not None:
            self._heart.beat()
        if self._hangups.take():
            self._hang_up()
        if self._core.engine.fault is not None and not self._core.draining:
            # Everything that was in flight has been answered 503; another process may do better.
            self._core.draining = True
            self._stop_at = time.monotonic() + self._core.settings.drain_delay_s
        if time.monotonic() >= self._stop_at:
            self.should_exit = True
        # With several workers another one may be asked for the metrics of all.
        self._core.publish()
        self._core.pool.trim()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let what is in flight end, then close the device; uvicorn leaves that out when it is told to hurry."""
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()
        # Other workers go on telling what this one has counted.
        self._core.publish()

    async def _wait_tasks_to_complete(self) -> None:
        """Wait for all connections, also for those that had been accepted, but not begun, when uvicorn told them to end."""
        told = set(self.server_state.connections)
        handshakes_end = time.monotonic() + _LAST_HANDSHAKES_S
        while not self.force_exit and (
            self.server_state.connections or (time.monotonic() < handshakes_end and self._are_shaking_hands())
        ):
            for connection in self.server_state.connections - told:
                connection.shutdown()
                told.add(connection)
            if self._heart is not None:
                self._heart.beat()
            await asyncio.sleep(_LAST_LOOKS_S)
        await super()._wait_tasks_to_complete()

    def _are_shaking_hands(self) -> bool:
        return any(not connection.has_begun for connection in self._encrypted)
