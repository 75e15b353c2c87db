"""Trusted hosts: the names under which the service answers, against pages that reach it under a name of their own."""

from __future__ import annotations

import re
from collections.abc import Iterable

from service.errors import UntrustedHost

# They tell nothing, and who asks often knows no more than an address.
PROBE_PATHS = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})

# A name, an IPv4 address, or an IPv6 address in brackets; then maybe a port.
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]*)?")


class TrustedHosts:
    """Names that `Host` may have: whole ones, and `*.example.org` for every name below it; None means any.

    Letters of both cases are alike, and the port does not matter.
    """

    def __init__(self, names: Iterable[str] | None) -> None:
        self._are_checked = names is not None
        given = [name.lower() for name in names or ()]
        self._names = frozenset(name for name in given if not name.startswith("*"))
        self._endings = tuple(name.removeprefix("*") for name in given if name.startswith("*"))

    def check(self, path: str, host: str | None) -> None:
        """`UntrustedHost` unless the name in `Host` is one of them, or the path is that of a probe."""
        if not self._are_checked or path in PROBE_PATHS:
            return
        parts = _HOST.fullmatch(host or "")
        name = "" if parts is None else parts[1].lower()
        if name not in self._names and not name.endswith(self._endings):
            raise UntrustedHost(f"'Host' is {(host or '')[:80]!r}, which is none of the names that this server answers to")
