"""mosec: the web server in Rust, one worker.

What was chosen, and why:

* Raw bytes in and out (`deserialize` and `serialize` overridden, as the documentation shows for other formats). mosec
  hands over a bytearray, which becomes the tensor's memory; the answer is a view of the result.
* One stage, for between stages tensors would be pickled. No batching: the operator gains nothing by it.
* Limits on size and time raised from 10 MiB and 3 s, which calls of 64 MiB would meet.
"""

from __future__ import annotations

from typing import Any

from mosec import Server, Worker


class KBitQuantize(Worker):
    """bytearray -> tensor -> tensor -> view."""

    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        """Load torch in the worker only."""
        super().__init__()
        from benchmarks.peers import arithmetic

        self.arithmetic = arithmetic

    def deserialize(self, data: bytes) -> Any:
        """View the bytes as numbers."""
        return self.arithmetic.from_bytes(data)

    def forward(self, data: Any) -> Any:
        """Quantize."""
        return self.arithmetic.quantize(data)

    def serialize(self, data: Any) -> memoryview:
        """View the numbers as bytes."""
        return self.arithmetic.to_bytes(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(KBitQuantize, num=1, max_batch_size=1)
    server.run()
