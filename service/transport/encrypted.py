"""Connections under TLS: the same protocol, on a transport that behaves as a plain one does.

The transports of asyncio and uvloop for TLS encrypt all that they are given at once, into memory, and then take
it for sent: an answer of 64 MiB stops the loop for a third of a second, costs 128 MiB, and no deadline watches its
reader. And with a high-water mark of 0 they ask an empty connection to pause. Here they are given a piece at a time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from service.transport.connection import Connection

# What is encrypted before other connections have their turn: a fraction of a millisecond.
_PIECE_BYTES = 256 * 1024


class EncryptedConnection(asyncio.BufferedProtocol):
    """What the event loop talks to while TLS shakes hands, and then: a `Connection`, which is made only when that went well."""

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any]) -> None:
        self._arguments = (config, server_state, app_state)
        self._connection: Connection | None = None
        self._transport: PacedTransport | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the handshake was successful."""
        return self._connection is not None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The handshake has ended well."""
        self._connection = Connection(*self._arguments)
        self._transport = PacedTransport(transport, self._connection)
        self._connection.connection_made(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has gone."""
        if self._transport is not None and self._connection is not None:
            self._transport.lost()
            self._connection.connection_lost(exc)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Memory for what comes next."""
        assert self._connection is not None
        return self._connection.get_buffer(sizehint)  # type: ignore[return-value]  # asyncio says only that it is a buffer

    def buffer_updated(self, nbytes: int) -> None:
        """`nbytes` have come, and are decrypted."""
        assert self._connection is not None
        self._connection.buffer_updated(nbytes)

    def eof_received(self) -> None:
        """The caller has said goodbye. TLS closes both ways then; nothing that is returned here would change that."""
        if self._connection is not None:
            self._connection.eof_received()

    def pause_writing(self) -> None:
        """What was encrypted has not yet left."""
        if self._transport is not None:
            self._transport.wait()

    def resume_writing(self) -> None:
        """What was encrypted has left."""
        if self._transport is not None:
            self._transport.go_on()


class PacedTransport(asyncio.Transport):
    """A transport with a high-water mark of 0, which hands data on to a TLS transport as that one can send it.

    `pause_writing` of the protocol is called as soon as something is kept back, `resume_writing` when all of it has gone.
    """

    def __init__(self, transport: asyncio.Transport, protocol: asyncio.BufferedProtocol) -> None:
        super().__init__()
        # Both are let go of in the end: the TLS transport holds the protocol, and 256 KiB for each connection, and the
        # protocol holds this one. The garbage collector finds such circles, but it is seldom made to look.
        self._transport: asyncio.Transport | None = transport
        self._protocol: asyncio.BufferedProtocol | None = protocol
        self._loop = asyncio.get_running_loop()
        self._kept: deque[memoryview] = deque()
        self._kept_bytes = 0
        self._is_waiting = False
        self._is_scheduled = False
        self._is_closing = False
        self._has_paused_protocol = False
        # Not 0, which the TLS transports take for "always": at 0 bytes, too, they would pause.
        transport.set_write_buffer_limits(high=1)

    # Writing ------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send some bytes; a memoryview is kept as it is until then, and must not change."""
        self.writelines((data,))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Send several pieces."""
        if self._transport is None or self.is_closing():
            return
        for data in list_of_data:
            if data:
                self._kept.append(memoryview(data))
                self._kept_bytes += len(data)
        if not self._is_scheduled:
            self._send()
        if self.get_write_buffer_size() and not self._has_paused_protocol and self._protocol is not None:
            self._has_paused_protocol = True
            self._protocol.pause_writing()

    def _send(self) -> None:
        """Send up to one piece; the next one when this one has left, or in the next round of the loop."""
        left_bytes = _PIECE_BYTES
        while self._transport is not None and self._kept and left_bytes and not self._is_waiting:
            data = self._kept.popleft()
            if len(data) > left_bytes:
                self._kept.appendleft(data[left_bytes:])
                data = data[:left_bytes]
            left_bytes -= len(data)
            self._kept_bytes -= len(data)
            self._transport.write(data)
        if self._kept and not self._is_waiting:
            self._is_scheduled = True
            self._loop.call_soon(self._send_more)

    def _send_more(self) -> None:
        self._is_scheduled = False
        self._send()
        if self._kept:
            return
        if self._is_closing:
            self.close()
        elif self._has_paused_protocol and self._protocol is not None and not self.get_write_buffer_size():
            self._has_paused_protocol = False
            self._protocol.resume_writing()

    def wait(self) -> None:
        """The TLS transport has enough."""
        self._is_waiting = True

    def go_on(self) -> None:
        """The TLS transport takes more."""
        self._is_waiting = False
        if not self._is_scheduled:
            self._send_more()

    def lost(self) -> None:
        """The connection has gone, and what was kept for it."""
        self._transport = self._protocol = None
        self._kept.clear()
        self._kept_bytes = 0

    def get_write_buffer_size(self) -> int:
        """Bytes that have not been handed to the operating system."""
        return self._kept_bytes + (0 if self._transport is None else self._transport.get_write_buffer_size())

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """They are what they are: 0."""

    def can_write_eof(self) -> bool:
        """TLS cannot close one way only."""
        return False

    # The end ------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close, after what was kept has been sent."""
        self._is_closing = True
        if self._transport is not None and not self._kept:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._is_closing = True
        if self._transport is not None:
            self._transport.abort()

    def is_closing(self) -> bool:
        """Whether nothing more can be written."""
        return self._is_closing or self._transport is None or self._transport.is_closing()

    # As the TLS transport has it ------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What is known of the connection."""
        return default if self._transport is None else self._transport.get_extra_info(name, default)

    def is_reading(self) -> bool:
        """Whether data is taken."""
        return self._transport is not None and self._transport.is_reading()

    def pause_reading(self) -> None:
        """Take no more data for now."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take data again."""
        if self._transport is not None:
            self._transport.resume_reading()
