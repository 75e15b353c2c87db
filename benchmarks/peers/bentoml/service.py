"""BentoML: one worker, an ASGI application mounted in the service, as the documentation shows it.

What was chosen, and why:

* A mounted application instead of `@bentoml.api`: tensors would travel as JSON or multipart there.
* Starlette instead of the documentation's FastAPI: the same `await request.body()`, and less in front of it.
* uvloop and httptools, which BentoML does not install by itself, but uvicorn takes where they are found.
* No access log. Metrics as BentoML has them, as ours are on as well.
"""

from __future__ import annotations

import bentoml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.peers.arithmetic import from_bytes, quantize, to_bytes


async def answer(request: Request) -> Response:
    """Quantize the body."""
    y = quantize(from_bytes(await request.body()))
    return Response(to_bytes(y), media_type="application/octet-stream")


@bentoml.asgi_app(Starlette(routes=[Route("/quantize", answer, methods=["POST"])]), path="/v1")
@bentoml.service(workers=1, traffic={"timeout": 300}, logging={"access": {"enabled": False}})
class Quantize:
    """The service that the application is mounted in; it has no API of its own."""
