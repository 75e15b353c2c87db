"""The targets; a new decoder brings a check, its seeds and a line here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import fuzz_formats
import fuzz_oip
import fuzz_requests
import fuzz_seeds

CORPUS = Path(__file__).parent / "corpus"


class Target(NamedTuple):
    """What is fuzzed: `check` takes any bytes and raises for a finding only."""

    name: str
    check: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    words: list[bytes]

    @property
    def corpus(self) -> Path:
        """Where interesting inputs are kept, one a file."""
        return CORPUS / self.name

    def inputs(self) -> list[bytes]:
        """The seeds, then the kept inputs in the order of their names."""
        kept = sorted(self.corpus.iterdir()) if self.corpus.is_dir() else []
        return [*self.seeds(), *(path.read_bytes() for path in kept)]


TARGETS = {
    target.name: target
    for target in (
        Target("npy", fuzz_formats.check_npy, fuzz_seeds.npy, fuzz_seeds.NPY_WORDS),
        Target("msgpack", fuzz_formats.check_msgpack, fuzz_seeds.messages, fuzz_seeds.MSGPACK_WORDS),
        Target("json", fuzz_formats.check_json, fuzz_seeds.documents, fuzz_seeds.JSON_WORDS),
        Target("safetensors", fuzz_formats.check_safetensors, fuzz_seeds.files, fuzz_seeds.FILE_WORDS),
        Target("oip", fuzz_oip.check_oip, fuzz_seeds.calls, fuzz_seeds.CALL_WORDS),
        Target("expression", fuzz_requests.check_expression, fuzz_seeds.expressions, fuzz_seeds.OP_WORDS),
        Target("query", fuzz_requests.check_query, fuzz_seeds.queries, fuzz_seeds.QUERY_WORDS),
        Target("head", fuzz_requests.check_head, fuzz_seeds.heads, fuzz_seeds.HEAD_WORDS),
    )
}
