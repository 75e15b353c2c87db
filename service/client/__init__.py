"""The HTTP client: `Client` and `AsyncClient`; NumPy in, NumPy out, torch in, torch out.

The errors are those of `service.errors`, raised again by their code, and three of the client's own.
"""

from service.client.asynchronous import AsyncClient
from service.client.blocking import Client
from service.client.compact import Codes, Mask, Packed, unpack
from service.client.errors import ConnectionFailed, ProtocolError, TimedOut
from service.client.retries import RetryPolicy

__all__ = [
    "AsyncClient",
    "Client",
    "Codes",
    "ConnectionFailed",
    "Mask",
    "Packed",
    "ProtocolError",
    "RetryPolicy",
    "TimedOut",
    "unpack",
]
