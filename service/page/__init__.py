"""The page at `/`: files of this package, read once, and the headers under which a browser may use them.

The page is plain HTML, CSS and ES modules, served as they are. Every URL in it is relative, so that it
works under any path that a proxy puts in front of the service.
"""

from __future__ import annotations

import hashlib
import importlib.resources
from functools import lru_cache
from typing import NamedTuple

INDEX = "index.html"

_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

# Nothing from elsewhere, nothing written into the document: what a file or an answer says cannot become a script.
_POLICY = "; ".join(
    (
        "default-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "object-src 'none'",
        "require-trusted-types-for 'script'",
    )
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    # Kept, but asked for again each time: a new version is seen at once, and an old one costs a 304.
    "cache-control": "no-cache",
}


class File(NamedTuple):
    """A file of the page; `headers` are all that its answer has, but for its length."""

    body: bytes
    headers: dict[str, str]

    @property
    def etag(self) -> str:
        """A strong validator: it changes with the bytes."""
        return self.headers["etag"]

    def is_known(self, if_none_match: str | None) -> bool:
        """Whether the caller has these bytes already, by what its `If-None-Match` lists."""
        listed = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
        return self.etag in listed or "*" in listed


@lru_cache(maxsize=1)
def files() -> dict[str, File]:
    """Every file of the page by its name."""
    package = importlib.resources.files(__name__)
    found = {entry.name: entry.read_bytes() for entry in package.iterdir() if _media_type(entry.name) is not None}
    return {name: _file(name, body) for name, body in sorted(found.items())}


def _file(name: str, body: bytes) -> File:
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return File(body, {"content-type": _media_type(name) or "", "etag": etag, **_HEADERS})


def _media_type(name: str) -> str | None:
    return next((media_type for ending, media_type in _MEDIA_TYPES.items() if name.endswith(ending)), None)
