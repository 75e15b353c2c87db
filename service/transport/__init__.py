"""The protocol class that uvicorn runs: bodies straight from the socket into the tensors' memory."""

from service.transport.connection import Connection

__all__ = ["Connection"]
