"""What a run beside the peers leaves behind."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from benchmarks.results import HttpResults


class PeerNote(BaseModel):
    """A peer as it was measured, or the reason why it was not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    package: str
    version: str
    tensors: str
    rows: list[str]  # as documented first; behind it, where there is one, the tuned one
    missing: str = ""


class PeerResults(HttpResults):
    """A run of `python -m benchmarks peers`."""

    peers: list[PeerNote]

    @property
    def documented(self) -> list[str]:
        """The rows of the peers as their documentation has them, whether measured or not."""
        return [peer.rows[0] for peer in self.peers]

    @property
    def rows(self) -> list[str]:
        """All rows of the peers."""
        return [row for peer in self.peers for row in peer.rows]
