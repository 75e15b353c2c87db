"""JSON text as arrays of bytes: its strings painted over, its blanks left out, and its outline.

The outline has one byte for each bracket, brace, comma and colon, and a `1` for each scalar: that of
`{"x": [-0.5, "NaN"]}` is `{1:[1,1]}`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import MalformedBody
from service.wire.json_numbers import Bytes, Positions, Reader

_QUOTE, _BLANK, _SCALAR = b'" 1'
_SIGN_OF = bytes(i if i in b"[]{}:," else _BLANK if i in b" \t\n\r" else _SCALAR for i in range(256))
# With more of them, strings are painted over all at once.
_MANY_QUOTES = 10_000
# What is needed of one part stays in the processor's cache; other threads get their turn in between.
_PART_BYTES = 2**16


class Text(NamedTuple):
    """A body without its blanks; `plain` has quotes in place of strings, `signs` has ones in place of scalars.

    `kept` says where in the body each byte of the text stood, where that is not the same place.
    """

    text: Bytes
    plain: Bytes
    signs: Bytes
    kept: Positions | None

    @classmethod
    def of(cls, body: bytes) -> Text:
        """The text of a body; `MalformedBody` for a string without an end, and for two scalars side by side."""
        text = np.frombuffer(body, np.uint8)
        plain = _without_strings(body, text)
        signs = np.frombuffer(plain.tobytes().translate(_SIGN_OF), np.uint8)
        is_kept = signs != _BLANK
        if is_kept.all():
            return cls(text, plain, signs, None)
        firsts = _first_of_runs(signs)
        kept = np.flatnonzero(is_kept)
        signs = signs[kept]
        # Without the blank, `1 2` is a number.
        broken = np.flatnonzero(firsts[kept] & ~_first_of_runs(signs))
        if len(broken):
            raise malformed("Expecting ',' delimiter", int(kept[broken[0]]))
        return cls(text[kept], plain[kept], signs, kept)

    def place(self, at: int) -> int:
        """Where a byte of the text stands in the body."""
        if self.kept is None or not len(self.kept):
            return at
        return int(self.kept[at]) if at < len(self.kept) else int(self.kept[-1]) + 1


class Outline(NamedTuple):
    """The outline of a text, and where each part that was looked at begins, in it and in the text."""

    text: Text
    signs: bytes
    parts: Sequence[tuple[int, int]]

    def place(self, at: int) -> int:
        """Where a byte of the outline stands in the text; behind the last, where the text ends."""
        return self.places([at])[0]

    def places(self, ascending: Sequence[int]) -> list[int]:
        """Where these bytes of the outline stand in the text."""
        found: list[int] = []
        outlined, begin, end = 0, 0, 0
        inside: Positions = np.empty(0, np.intp)
        for at in ascending:
            if at - outlined >= len(inside) and end < len(self.text.text):
                part = bisect_right(self.parts, (at, len(self.text.text))) - 1
                outlined, begin = self.parts[part]
                end = self.parts[part + 1][1] if part + 1 < len(self.parts) else len(self.text.text)
                inside = np.flatnonzero(_is_outlined(self.text.signs[begin:end]))
            found.append(begin + int(inside[at - outlined]) if at - outlined < len(inside) else end)
        return found


def malformed(why: str, place: int) -> MalformedBody:
    """The refusal of a body that is no JSON, for what stands at this place."""
    return MalformedBody(f"the body is not valid JSON: {why[:200]}, at byte {place}")


def outlined(text: Text) -> tuple[Outline, Reader]:
    """The outline of a text, and its scalars, read in one go."""
    reader = Reader(text.text, text.plain)
    outline = bytearray()
    parts = [(0, 0)]
    signs = text.signs.tobytes()
    begin = 0
    while begin < len(signs):
        # A part ends behind a comma, so that no scalar is in two.
        end = signs.find(b",", begin + _PART_BYTES) + 1 or len(signs)
        at = np.flatnonzero(_is_outlined(text.signs[begin:end]))
        part = text.signs[begin:end][at]
        scalars = np.flatnonzero(part == _SCALAR)
        # A scalar ends where what stands behind it begins.
        reader.add(begin + at[scalars], begin + np.append(at, end - begin)[scalars + 1])
        outline += part.tobytes()
        parts.append((len(outline), end))
        begin = end
    return Outline(text, bytes(outline), parts), reader


def _is_outlined(signs: Bytes) -> NDArray[np.bool_]:
    """All but the bytes of a scalar behind its first."""
    is_scalar = signs == _SCALAR
    is_outlined = np.ones(len(signs), np.bool_)
    np.logical_not(is_scalar[1:] & is_scalar[:-1], out=is_outlined[1:])
    return is_outlined


def _first_of_runs(signs: Bytes) -> NDArray[np.bool_]:
    """Which bytes are scalars that no scalar stands before."""
    firsts = _is_outlined(signs)
    firsts &= signs == _SCALAR
    return firsts


def _without_strings(body: bytes, text: Bytes) -> Bytes:
    """The text, with quotes in place of all bytes of all strings."""
    if b"\\" in body:
        # From left to right: what is left of the quotes begins or ends a string. Elsewhere a backslash is an error anyway.
        text = np.frombuffer(body.replace(b"\\\\", b"__").replace(b'\\"', b"__"), np.uint8)
    is_quote = text == _QUOTE
    count = np.count_nonzero(is_quote)
    if count % 2:
        raise malformed("Unterminated string", int(np.flatnonzero(is_quote)[-1]))
    plain = text.copy()
    if count > _MANY_QUOTES:
        is_string = np.bitwise_xor.accumulate(is_quote.view(np.uint8)).view(np.bool_)
        np.copyto(plain, np.uint8(_QUOTE), where=is_string)
        return plain
    quotes = np.flatnonzero(is_quote)
    for begin, end in quotes.reshape(-1, 2).tolist():
        plain[begin:end] = _QUOTE
    return plain
