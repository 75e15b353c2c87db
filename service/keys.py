"""Bearer keys: who may call."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from service.errors import Unauthorized

# Probes and the pages for people are open; what computes, and what tells how much, is not.
OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json"})
OPEN_PREFIXES = ("/docs/", "/page/")
METRICS_PATH = "/metrics"


class Keys:
    """The keys of a file, one a line; blank lines and lines that begin with `#` are skipped.

    Without a file everyone may call. Raises `OSError` for a file that cannot be read, and `ValueError` for
    one without a key or with one that no caller could send; both name the file, neither shows a key.
    """

    def __init__(self, file: Path | None, *, metrics_are_open: bool = False) -> None:
        self._file = file
        self._open_paths = OPEN_PATHS | {METRICS_PATH} if metrics_are_open else OPEN_PATHS
        self._digests = () if file is None else _read(file)

    def reload(self) -> None:
        """Read the file again: keys that are gone from it are refused from now on. After an error the old ones hold."""
        if self._file is not None:
            self._digests = _read(self._file)

    def __len__(self) -> int:
        return len(self._digests)

    def check(self, path: str, authorization: str | None) -> None:
        """`Unauthorized` unless the path is open, there is no file, or the bearer key is one of those in it."""
        if self._file is None or path in self._open_paths or path.startswith(OPEN_PREFIXES):
            return
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorized("the request has no 'Authorization: Bearer <key>' header")
        presented = _digest(key.strip().encode("utf-8", "surrogateescape"))
        # All keys are compared, each in constant time and as digests, which are equally long: the time tells nothing of them.
        if sum(hmac.compare_digest(presented, known) for known in self._digests) == 0:
            raise Unauthorized("the bearer key is not known")


def _read(file: Path) -> tuple[bytes, ...]:
    keys = {}
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        key = line.strip()
        if key and not key.startswith(b"#"):
            keys[number] = key
    if not keys:
        raise ValueError(f"{file} holds no key; write one a line")
    for number, key in keys.items():
        if not all(0x21 <= byte <= 0x7E for byte in key):
            raise ValueError(f"line {number} of {file} is no key; allowed: printable ASCII without blanks, one key a line")
    return tuple(map(_digest, keys.values()))


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
