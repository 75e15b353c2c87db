"""The protocol class that uvicorn runs: bodies straight from the socket into the tensors' memory."""

from service.transport.connection import Connection
from service.transport.encrypted import EncryptedConnection

__all__ = ["Connection", "EncryptedConnection"]
