"""Bearer keys: who may call."""

from __future__ import annotations

import hmac
from pathlib import Path

from service.errors import Unauthorized

# Probes and the pages for people are open; what computes, and what tells how much, is not.
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json"})
OPEN_PREFIX = "/docs/"


class Keys:
    """The keys of a file, one a line; blank lines and lines that begin with `#` are skipped."""

    def __init__(self, file: Path | None) -> None:
        self._keys = None if file is None else _read(file)

    def check(self, path: str, authorization: str | None) -> None:
        """`Unauthorized` unless the path is open, no keys are set, or the bearer key is one of them."""
        if self._keys is None or path in OPEN_PATHS or path.startswith(OPEN_PREFIX):
            return
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorized("the request has no 'Authorization: Bearer <key>' header")
        presented = key.strip().encode("utf-8", "surrogateescape")
        # Every key is compared, each in constant time, so that the time tells nothing about them.
        if sum(hmac.compare_digest(presented, known) for known in self._keys) == 0:
            raise Unauthorized("the bearer key is not known")


def _read(file: Path) -> tuple[bytes, ...]:
    lines = (line.strip() for line in file.read_bytes().splitlines())
    keys = tuple(line for line in lines if line and not line.startswith(b"#"))
    if not keys:
        raise ValueError(f"{file} holds no key; write one a line")
    return keys
