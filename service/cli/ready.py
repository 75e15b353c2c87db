"""`stequant ready`: whether a server takes calls, for health checks and for what has to wait for a server.

It is run every few seconds for as long as a container lives, so it imports neither NumPy nor the client:
the status of one answer is all there is to read.
"""

from __future__ import annotations

import argparse
import http.client
import os
import socket
import ssl
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from service.cli.operators import Commands

NAME = "ready"
READY, USAGE, NOT_READY, INTERRUPTED = 0, 2, 3, 130

# A server that lives answers /readyz within milliseconds.
ANSWER_TIMEOUT_S = 5.0
POLL_S = 0.2
_WILDCARDS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
_DESCRIPTION = """\
Ask a server whether it takes calls, and wait until it does. Without --url and --uds, the server asked is the one that
`stequant serve` would be with the same variables: STEQUANT_UDS, or STEQUANT_HOST and STEQUANT_PORT, by https where there
is STEQUANT_TLS_CERT_FILE.
"""
_EPILOG = "exit status: 0 ready; 2 wrong usage; 3 not ready in time. A key is taken from the variable STEQUANT_API_KEY."


class Misuse(ValueError):
    """An address or a key that no server can have."""


@dataclass(frozen=True)
class Place:
    """Where a server listens: `name` is for people, `path` is in front of its own paths."""

    name: str
    path: str
    connect: Callable[[float], http.client.HTTPConnection]


def add_command(commands: Commands) -> None:
    """Add the command to the command line."""
    _describe(
        commands.add_parser(NAME, help="ask whether a server is ready, and wait for it", description=_DESCRIPTION, epilog=_EPILOG)
    )


def main(arguments: Sequence[str]) -> int:
    """Run the command alone, without what the others import; returns its exit status."""
    parser = argparse.ArgumentParser(prog=f"stequant {NAME}", description=_DESCRIPTION, epilog=_EPILOG)
    _describe(parser)
    try:
        return _run(parser.parse_args(arguments))
    except KeyboardInterrupt:
        return INTERRUPTED


def _describe(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help="the server's address")
    where.add_argument("--uds", metavar="PATH", help="the server's Unix socket")
    parser.add_argument("--timeout", metavar="S", type=_seconds, default=0.0, help="wait for S seconds; 0 asks once (default 0)")
    parser.set_defaults(run=_run)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not seconds >= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds >= 0")
    return seconds


def _run(options: argparse.Namespace) -> int:
    try:
        place = _place(options.url, options.uds, os.environ)
        headers = _headers(os.environ)
    except Misuse as error:
        return _say(str(error), USAGE)
    end = time.monotonic() + options.timeout
    while (reason := _reason(place, headers)) is not None:
        if time.monotonic() + POLL_S >= end:
            return _say(f"{place.name} is not ready: {reason}", NOT_READY)
        time.sleep(POLL_S)
    return READY


def _say(line: str, status: int) -> int:
    print(f"stequant: {line}", file=sys.stderr)
    return status


def _place(url: str | None, uds: str | None, environment: Mapping[str, str]) -> Place:
    """The place that the options name, else that of a server with these variables."""
    if url is not None:
        return _at_url(url)
    socket_path = uds or environment.get("STEQUANT_UDS")
    if socket_path:
        return Place(f"unix:{socket_path}", "", lambda timeout_s: _UnixConnection(socket_path, timeout_s))
    host, port = environment.get("STEQUANT_HOST", ""), environment.get("STEQUANT_PORT") or "8000"
    host = _WILDCARDS.get(host, host)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if environment.get("STEQUANT_TLS_CERT_FILE"):
        return _at_url(f"https://{address}", _any_certificate())
    return _at_url(f"http://{address}")


def _any_certificate() -> ssl.SSLContext:
    """For a server that is asked by its own variables: its certificate has the name by which others call it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _at_url(url: str, context: ssl.SSLContext | None = None) -> Place:
    """The place with this address; https is verified as usual where there is no `context`."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise Misuse(f"the address {url!r} cannot be read: {error}") from error
    if parts.scheme not in ("http", "https") or not host or parts.username is not None or parts.query or parts.fragment:
        raise Misuse(f"the address is {url!r}; allowed: http:// or https://, a host, a port and a path")
    if port == 0:
        raise Misuse(f"the address is {url!r}; port 0 is no port that a server can be asked on")

    def connect(timeout_s: float) -> http.client.HTTPConnection:
        if parts.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)
        return http.client.HTTPConnection(host, port, timeout=timeout_s)

    return Place(url, parts.path.rstrip("/"), connect)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _headers(environment: Mapping[str, str]) -> dict[str, str]:
    key = environment.get("STEQUANT_API_KEY")
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise Misuse("STEQUANT_API_KEY has blanks, control characters or letters outside ASCII")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _reason(place: Place, headers: Mapping[str, str]) -> str | None:
    """Why the server does not take calls; None where it does."""
    connection = place.connect(ANSWER_TIMEOUT_S)
    try:
        connection.request("GET", f"{place.path}/readyz", headers=dict(headers))
        answer = connection.getresponse()
        return None if answer.status == http.client.OK else f"it answers {answer.status} {answer.reason}"
    except OSError as error:
        return error.strerror or str(error)
    except http.client.HTTPException as error:
        return f"it does not speak HTTP ({type(error).__name__})"
    finally:
        connection.close()
