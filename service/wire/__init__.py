"""The wire formats: which there are, and which one a request and its answer are written in.

A format is one module with `MEDIA_TYPE`, `ALIASES`, `HOLDS_NAMES`, `decode`, `encode` and `encode_compact`, and one line below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

from service.errors import NotAcceptable, UnsupportedMediaType
from service.wire import json, msgpack, npy, safetensors
from service.wire.compact import CompactBundle
from service.wire.message import Bundle, Message, WireTensor

__all__ = [
    "BY_MEDIA_TYPE",
    "FORMATS",
    "Bundle",
    "Format",
    "Message",
    "WireTensor",
    "negotiate",
    "of_content_type",
    "parse_content_type",
]


@dataclass(frozen=True, eq=False)
class Format:
    """One wire format.

    `decode(body, fields, max_tensors)` reads a message: `fields` says what the arrays of a format
    without names are, in turn. `encode(message)` writes one, in pieces, `encode_compact(bundle)` a compact
    answer. `holds_names` says whether it has a place for the names of tensor parameters and their gradients.
    """

    name: str
    media_type: str
    aliases: tuple[str, ...]
    decode: Callable[[memoryview, tuple[str, ...], int], dict[str, Bundle]]
    encode: Callable[[Message], list[bytes | memoryview]]
    encode_compact: Callable[[CompactBundle], list[bytes | memoryview]]
    holds_names: bool

    @property
    def media_types(self) -> tuple[str, ...]:
        """The canonical media type, then its aliases."""
        return (self.media_type, *self.aliases)


def _format(codec: ModuleType) -> Format:
    name = codec.__name__.rpartition(".")[2]
    return Format(name, codec.MEDIA_TYPE, codec.ALIASES, codec.decode, codec.encode, codec.encode_compact, codec.HOLDS_NAMES)


FORMATS: dict[str, Format] = {
    "npy": _format(npy),
    "msgpack": _format(msgpack),
    "json": _format(json),
    "safetensors": _format(safetensors),
}

BY_MEDIA_TYPE: dict[str, Format] = {media_type: form for form in FORMATS.values() for media_type in form.media_types}

# A format to answer in, and the name by which to call it.
Choice = tuple[Format, str]


def parse_content_type(value: str) -> str:
    """The media type that a `Content-Type` names: in lower case, without its parameters."""
    return value.partition(";")[0].strip().lower()


def of_content_type(content_type: str | None) -> Format:
    """The format of a body with this `Content-Type`."""
    media_type = parse_content_type(content_type or "")
    try:
        return BY_MEDIA_TYPE[media_type]
    except KeyError:
        got = f"Content-Type {media_type[:80]!r} is not read" if media_type else "Content-Type is missing"
        raise UnsupportedMediaType(f"{got}; allowed: {', '.join(BY_MEDIA_TYPE)} (curl: -H 'Content-Type: …')") from None


def negotiate(accept: str | None, request_format: Format) -> tuple[Choice, ...]:
    """The formats that `Accept` allows for the answer, best first.

    The greater quality comes first; at equal quality the format of the request, then the order of
    `Accept`. (What browsers' libraries send by default, `application/json, text/plain, */*`, is no wish
    for JSON.) A format is called by its canonical media type, or by the alias that `Accept` names.
    Parameters other than `q` are ignored, and so are items that are no media range; an absent `Accept`,
    an empty one and `*/*` are the same. Raises `NotAcceptable` if nothing is left.

    >>> [media_type for _, media_type in negotiate("application/json;q=0.5, application/msgpack", FORMATS["npy"])]
    ['application/msgpack', 'application/json']
    """
    if accept is None or not accept.strip():
        accept = "*/*"
    ranges = _media_ranges(accept)
    ranked: list[tuple[float, bool, int, Choice]] = []
    for form in (request_format, *(form for form in FORMATS.values() if form is not request_format)):
        for media_type in form.media_types:
            # The most specific range decides; wildcards stand for the canonical names only.
            wildcards = ("application/*", "*/*") if media_type == form.media_type else ()
            named = next((name for name in (media_type, *wildcards) if name in ranges), None)
            if named is not None and ranges[named].quality > 0:
                quality, position = ranges[named]
                ranked.append((-quality, form is not request_format, position, (form, media_type)))
    if not ranked:
        raise NotAcceptable(f"no media type in Accept ({accept[:200]!r}) is offered; offered: {', '.join(BY_MEDIA_TYPE)}")
    ranked.sort(key=lambda rank: rank[:3])
    return tuple(choice for *_, choice in ranked)


class _Range(NamedTuple):
    """What `Accept` says of one media range: how welcome it is, and which item said so."""

    quality: float
    position: int


_RANGES = frozenset({*BY_MEDIA_TYPE, "application/*", "*/*"})


def _media_ranges(accept: str) -> dict[str, _Range]:
    """The ranges that concern us; where one is given twice, the first counts."""
    ranges: dict[str, _Range] = {}
    for position, item in enumerate(accept.split(",")):
        media_range, *parameters = item.split(";")
        name = media_range.strip().lower()
        if name in _RANGES and name not in ranges:
            ranges[name] = _Range(_quality(parameters), position)
    return ranges


def _quality(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                quality = float(value)
            except ValueError:
                return 1.0
            return quality if 0 <= quality <= 1 else 1.0
    return 1.0
