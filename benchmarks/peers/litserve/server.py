"""LitServe: one API server, one inference worker.

What was chosen, and why:

* The body is the tensor. LitServe documents JSON and multipart; but its routes are FastAPI's, so that `request` may be
  a dependency that reads the body, which spares the multipart parser.
  (Annotated as plain bytes it would be slower: LitServe formats every request for a debug line that is never written.)
* `fast_queue=True`, as the documentation advises for speed: answers come back over ZeroMQ instead of a managed queue.
* No batching: the operator gains nothing by it, and waiting for a batch costs.
* No deadline, for eight calls of 64 MiB wait for one another.
* There is no tuned way: the queues between the processes, not the operator, take the time.

Annotations are evaluated here, for LitServe hands them to FastAPI as they are.
"""

import argparse
import signal
from dataclasses import dataclass, field
from typing import Annotated, Any

import litserve
from fastapi import Depends, Request, Response


@dataclass
class Body:
    """The bytes of a request, whose printed form is short."""

    data: bytes = field(repr=False)


async def read(request: Request) -> Body:
    """Receive the whole body."""
    return Body(await request.body())


class KBitQuantize(litserve.LitAPI):
    """bytes -> tensor -> tensor -> bytes."""

    def setup(self, device: str) -> None:
        """Load torch in the worker only."""
        from benchmarks.peers import arithmetic

        self.arithmetic = arithmetic

    def decode_request(self, request: Annotated[Body, Depends(read)]) -> Any:
        """View the bytes as numbers."""
        return self.arithmetic.from_bytes(request.data)

    def predict(self, x: Any) -> Any:
        """Quantize."""
        return self.arithmetic.quantize(x)

    def encode_response(self, output: Any) -> Response:
        """Answer with bytes; a view would not pass between processes."""
        return Response(bytes(self.arithmetic.to_bytes(output)), media_type="application/octet-stream")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    # LitServe ends its processes on an interrupt only.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = litserve.LitServer(KBitQuantize(), accelerator="cpu", devices=1, workers_per_device=1, timeout=False, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=parser.parse_args().port,
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
        timeout_keep_alive=65,
    )
