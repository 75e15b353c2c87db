"""A request's head: what can be checked before a byte of the body is read.

Nothing here knows how the head came in; the ASGI application and the protocol class give the same
values to the same functions, so that limits and errors are written once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from service.errors import (
    BadExpression,
    BadFraming,
    BadParameter,
    LengthRequired,
    MissingParameter,
    RepeatedParameter,
    RequestError,
    UnknownParameter,
    UnsupportedMediaType,
)
from service.ops import Expression, parse
from service.ops.base import REGISTRY
from service.ops.codes import Output
from service.ops.expression import build, is_bare_name, operator_class, parse_value
from service.ops.parameters import Value

# Of these a request has one at most; two would let a proxy and this server read different requests.
_SINGLE = (b"host", b"content-type", b"content-length", b"content-encoding", b"authorization", b"x-request-timeout")
_LISTS = (b"accept", b"transfer-encoding")
_LONGEST_TIMEOUT_S = 86_400
# A name, an IPv4 address or an IPv6 address in brackets, and a port; empty where the caller knows no name (RFC 9110, 7.2).
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
_OUTPUT = "output"
_WANTED = frozenset((*_SINGLE, *_LISTS))


class Head(NamedTuple):
    """Method, path, query and headers of a request, as the wire had them."""

    method: str
    path: str
    query: bytes
    headers: Sequence[tuple[bytes, bytes]]
    http_version: str = "1.1"


class Fields(NamedTuple):
    """The header fields that the service looks at; a list header is joined, an absent one is None."""

    host: str | None = None
    content_type: str | None = None
    content_length: int | None = None
    content_encoding: str | None = None
    authorization: str | None = None
    accept: str | None = None
    transfer_encoding: str | None = None
    x_request_timeout: str | None = None


def fields(head: Head) -> Fields:
    """The header fields of a head; `BadFraming` for what HTTP/1.1 forbids."""
    found: dict[bytes, bytes] = {}
    for name, value in head.headers:
        if name not in _WANTED:
            continue
        if name in found:
            if name in _SINGLE:
                raise BadFraming(f"the request has more than one {name.decode()!r} header; allowed: one")
            value = found[name] + b", " + value
        found[name] = value
    host = found.get(b"host")
    if host is None:
        if head.http_version == "1.1":
            raise BadFraming("the request has no 'Host' header; HTTP/1.1 needs exactly one")
    elif not _HOST.fullmatch(host.strip()):
        raise BadFraming(f"'Host' is {host.decode('latin-1')[:80]!r}; allowed: a name or an address, and a port")
    values = {name.decode().replace("-", "_"): value.decode("latin-1").strip() for name, value in found.items()}
    return Fields(**{**values, "content_length": _length(values.get("content_length"))})  # type: ignore[arg-type]


def _length(text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise BadFraming(f"'Content-Length' is {text[:40]!r}; allowed: digits")
    return int(text)


def timeout_s(found: Fields) -> float | None:
    """The seconds that the caller gives the service for its answer."""
    text = found.x_request_timeout
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,6})?", text) or not 0 < float(text) <= _LONGEST_TIMEOUT_S:
        raise RequestError(f"'X-Request-Timeout' is {text[:40]!r}; allowed: seconds, more than 0, at most {_LONGEST_TIMEOUT_S}")
    return float(text)


def check_encoding(found: Fields) -> None:
    """The body must come as it is: neither compressed nor in an unknown transfer coding."""
    if found.content_encoding and found.content_encoding.lower() != "identity":
        raise UnsupportedMediaType(f"'Content-Encoding' is {found.content_encoding[:40]!r}; allowed: identity, or none")
    if found.transfer_encoding and found.transfer_encoding.lower() != "chunked":
        raise BadFraming(f"'Transfer-Encoding' is {found.transfer_encoding[:40]!r}; allowed: chunked")


def check_length_is_announced(head: Head, found: Fields) -> None:
    """A body is needed, so its length must be known or it must come in chunks."""
    if found.content_length is None and found.transfer_encoding is None and head.http_version.startswith("1."):
        raise LengthRequired("the request has neither 'Content-Length' nor 'Transfer-Encoding: chunked', and a body is needed")


@lru_cache(maxsize=1024)
def parse_query(query: bytes) -> Expression:
    """The expression that a query string asks for: `op=` and, for a bare name, the parameters beside it; `output=` aside.

    Raises the errors of `service.ops.parse`, and `UnknownParameter`, `RepeatedParameter` and
    `MissingParameter` for what stands beside `op`.
    """
    pairs = _pairs(query)
    ops = [value for key, value in pairs if key == "op"]
    if not ops:
        raise MissingParameter(f"the query has no 'op'; it names an operator ({', '.join(REGISTRY)}) or a chain of them")
    if len(ops) > 1:
        raise RepeatedParameter("'op' stands in the query more than once; allowed: once")
    beside = [(key, value) for key, value in pairs if key not in ("op", _OUTPUT)]
    if is_bare_name(ops[0]):
        name = ops[0].strip()
        known = operator_class(name).parameters()
        return build(name, keywords=[(key, parameter_value(key, value) if key in known else value) for key, value in beside])
    expression = parse(ops[0])
    if beside:
        raise UnknownParameter(f"{beside[0][0][:80]!r} stands beside an expression; its parameters belong inside the parentheses")
    return expression


@lru_cache(maxsize=1024)
def parse_output(query: bytes, allowed: tuple[Output, ...]) -> Output:
    """The form of the answer that a query string asks for with `output=`; the first one where it says nothing."""
    asked = [value for key, value in _pairs(query) if key == _OUTPUT]
    if len(asked) > 1:
        raise RepeatedParameter(f"{_OUTPUT!r} stands in the query more than once; allowed: once")
    for output in allowed:
        if not asked or asked[0] == output:
            return output
    raise BadParameter(f"{_OUTPUT!r} is {asked[0][:80]!r}; allowed: {', '.join(allowed)}")


def parameter_value(key: str, text: str) -> Value:
    """A parameter's value as text says it; `BadExpression` names the parameter."""
    try:
        return parse_value(text)
    except BadExpression as error:
        raise BadExpression(f"parameter {key!r} is {text[:80]!r}: {error.detail.partition('; example')[0]}") from None


def _pairs(query: bytes) -> list[tuple[str, str]]:
    # A plus is a blank in a query string, but in "1e+5", as Python prints it, it can only be a sign.
    query = re.sub(rb"(?<=[0-9][eE])\+(?=[0-9])", b"%2B", query)
    items = (item.partition(b"=") for item in query.split(b"&") if item)
    return [(_decoded(key), _decoded(value)) for key, _, value in items]


def _decoded(text: bytes) -> str:
    try:
        return unquote_to_bytes(text.replace(b"+", b" ")).decode("utf-8")
    except UnicodeDecodeError:
        raise BadExpression(f"the query holds {text[:40]!r}, which is not percent-encoded UTF-8") from None


def header_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Headers as they stand on the wire."""
    return b"".join(b"%b: %b\r\n" % pair for pair in headers)
