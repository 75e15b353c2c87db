"""BentoML as far as it can be driven: the mounted application is a bare ASGI callable of our own.

The body is received into the memory of the tensor, quantized there and sent from there. No documentation shows this,
and little of BentoML is left in it but the server around it; it is here to show how much that alone costs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import bentoml

from benchmarks.peers.arithmetic import from_bytes, quantize, to_bytes

Message = MutableMapping[str, Any]


async def application(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """Answer a body of float32 with the quantized numbers."""
    length = int(dict(scope["headers"])[b"content-length"])
    body = bytearray(length)
    have, more = 0, True
    while more:
        message = await receive()
        piece, more = message.get("body", b""), message.get("more_body", False)
        body[have : have + len(piece)] = piece
        have += len(piece)
    y = quantize(from_bytes(body))
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % length)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": to_bytes(y)})


@bentoml.asgi_app(application, path="/v1")
@bentoml.service(workers=1, traffic={"timeout": 300}, logging={"access": {"enabled": False}})
class Quantize:
    """The service that the application is mounted in; it has no API of its own."""
