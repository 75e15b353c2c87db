"""Long lists of numbers, cut out of JSON text: they are read without an object for each of their numbers and lists.

Reading a mebibyte of `[1],[2],` makes half a million objects, and no other thread runs meanwhile. In the outline of
the text, a list of the shape (2, 3) is just the bytes `[[1,1,1],[1,1,1]]`: a list whose outline is not that of the
shape with which it begins is ragged, or no JSON. What is left, the maps and their short values, goes to the standard
library, with `-Infinity` in place of each list.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import BadTensor, MalformedBody, TooManyTensors
from service.wire.json_numbers import Bytes, Floats, NoValue, Positions
from service.wire.json_text import Outline, Text, malformed, outlined
from service.wire.layout import MAX_DIMENSIONS

# In bytes of the outline. The shape of a tensor, which is a list of ints, is never so long.
_LONG = 160
# Numbers beside maps, in the same list, go to the standard library up to this size. They are never a tensor.
_MOST_LOOSE = 256 * 1024
# About where the standard library gives up, too.
_MOST_NESTED = 1000
_STAND_IN = b"-Infinity"
_TOO_DEEP = b"[" * (MAX_DIMENSIONS + 1)

_SIGNS = "[],1{}:"
_CLASS = bytes(_SIGNS.find(chr(i)) + 1 for i in range(256))
_DEEPER = np.zeros(256, np.int32)
_DEEPER[list(b"[]{}")] = 1, -1, 1, -1
# What may follow what; a pair of classes is one byte.
_MAY_FOLLOW = {"[": "[]1{", "]": ",]}", ",": "[1{", "1": ",]}:", "{": "1}", "}": ",]}", ":": "[1{"}
_FIT = {8 * _CLASS[ord(one)] + _CLASS[ord(other)] for one, others in _MAY_FOLLOW.items() for other in others}
_IS_MISFIT = bytes(pair not in _FIT for pair in range(256))

# Reads text, and asks what `NaN`, `Infinity` and `-Infinity` are.
Standard = Callable[[str, Callable[[str], Any]], Any]


class NumberList:
    """A long list of `length` entries: a tensor of `values` in `shape`, if no `stray` is among them.

    A stray is a value that is no number: its place, and what it is. The shape is None where the list is ragged, or
    begins with more lists within lists than there are dimensions.
    """

    __slots__ = ("is_too_deep", "length", "shape", "stray", "values")

    def __init__(self, shape: tuple[int, ...] | None, length: int, *, is_too_deep: bool = False) -> None:
        self.shape = shape
        self.length = length
        self.is_too_deep = is_too_deep
        self.values: Floats = np.empty(0)
        self.stray: tuple[int, Any] | None = None


class Limits(NamedTuple):
    """How many maps, and keys in all maps, a document may have."""

    maps: int
    keys: int


class _Cut(NamedTuple):
    """A list, where it stands in the outline, and which scalars are in it."""

    found: NumberList
    begin: int
    end: int
    first: int
    last: int


def loads(body: bytes, constant: Callable[[str], float], standard: Standard, limits: Limits | None) -> Any:
    """What the text says, as `standard` reads it, with a `NumberList` for each long list that is a map's value.

    `MalformedBody` for what is no JSON, `TooManyTensors` beyond the limits, `BadTensor` for maps in a list with
    hundreds of kilobytes of numbers.
    """
    outline, reader = outlined(Text.of(body))
    if limits is not None:
        _check(outline.signs, limits)
    cuts = list(_cuts(outline))
    try:
        scalars = reader.scalars([(cut.first, cut.last) for cut in cuts], constant)
    except NoValue as error:
        raise malformed(str(error), outline.text.place(error.place)) from None
    for number, (found, _, _, first, last) in enumerate(cuts):
        found.values = scalars.values[first:last]
        if number in scalars.strays:
            place, value = scalars.strays[number]
            found.stray = place - first, value
    return _with_stand_ins(outline, cuts, constant, standard)


def _check(signs: bytes, limits: Limits) -> None:
    for what, sign, most in (("maps", b"{", limits.maps), ("keys", b":", limits.keys)):
        if signs.count(sign) > most:
            if _depth(signs).max() > _MOST_NESTED:
                raise MalformedBody("the body is nested too deeply")
            raise TooManyTensors(f"the body holds more than {most} {what}, which are more than its tensors may need")


def _depth(signs: bytes) -> NDArray[np.int32]:
    """In how many lists and maps each byte of an outline stands."""
    return np.cumsum(_DEEPER[np.frombuffer(signs, np.uint8)], dtype=np.int32)


# The lists ----------------------------------------------------------------------------------------------


def _cuts(outline: Outline) -> Iterator[_Cut]:
    """The long lists that stand at the beginning, or behind a colon."""
    signs = outline.signs
    array = np.frombuffer(signs, np.uint8)
    marks = np.flatnonzero((array == ord("{")) | (array == ord("}")) | (array == ord(":")))
    bounds = np.concatenate([[-1], marks, [len(signs)]])
    loose: list[tuple[int, int]] = []
    scalars = counted = 0
    for gap in np.flatnonzero(np.diff(bounds) > _LONG).tolist():
        begin, end = int(bounds[gap]) + 1, int(bounds[gap + 1])
        close = max(signs.rfind(b"]", begin, end) + 1, begin)
        is_value = begin == 0 or signs[begin - 1] == ord(":")
        found = _number_list(signs[begin:close]) if is_value and signs[begin] == ord("[") else None
        if found is None:
            loose.append((begin, end))
            continue
        first = scalars + signs.count(b"1", counted, begin)
        scalars = first + signs.count(b"1", begin, close)
        counted = close
        yield _Cut(found, begin, close, first, scalars)
    if sum(end - begin for begin, end in loose) > _MOST_LOOSE:
        raise _refusal(outline, loose)


def _number_list(signs: bytes) -> NumberList | None:
    """The list of this outline; None where it is no JSON, or ends elsewhere."""
    shape = _shape(signs)
    if shape is not None:
        return NumberList(shape, shape[0])
    array = np.frombuffer(signs, np.uint8)
    depth = _depth(signs)
    if len(_misfits(array)) or not len(depth) or depth[-1] != 0 or depth[:-1].min() < 1:
        return None
    length = int(np.count_nonzero((depth == 1) & (array == ord(",")))) + 1
    return NumberList(None, length, is_too_deep=signs.startswith(_TOO_DEEP))


def _shape(signs: bytes) -> tuple[int, ...] | None:
    """The shape of a list; None where it has none, or too many dimensions."""
    lengths = None if signs.startswith(_TOO_DEEP) else _first_lengths(signs)
    if not lengths:
        return None
    expected = b"1"
    for length in lengths:
        if length * len(expected) > len(signs):
            return None
        expected = b"[" + ((expected + b",") * length)[:-1] + b"]"
    return tuple(reversed(lengths)) if expected == signs else None


def _first_lengths(signs: bytes) -> list[int] | None:
    """How many entries the first innermost list has, the list that holds it, and so on outwards."""
    depth = len(signs) - len(signs.lstrip(b"["))
    lengths: list[int] = []
    end = -1
    for level in range(1, depth + 1):
        entry_end, end = end, signs.find(b"]" * level, max(end, 0))
        if end < 0:
            return None
        if end == entry_end:
            # Its first entry is its last.
            lengths.append(1)
            continue
        # Up to here no list of this level is closed, so that each run of brackets closes one entry.
        entry = b"]" * (level - 1) or b"1"
        lengths.append(signs.count(entry, 0, end + level - 1))
    return lengths


def _misfits(signs: Bytes) -> Positions:
    """Where a byte of an outline stands behind one that it must not follow."""
    classes = np.frombuffer(signs.tobytes().translate(_CLASS), np.uint8)
    pairs = (classes[:-1] << np.uint8(3)) | classes[1:]
    return np.flatnonzero(np.frombuffer(pairs.tobytes().translate(_IS_MISFIT), np.bool_)) + 1


# What is left -------------------------------------------------------------------------------------------


def _with_stand_ins(outline: Outline, cuts: Sequence[_Cut], constant: Callable[[str], float], standard: Standard) -> Any:
    """What the standard library reads, each list in the place of the constant that stands in for it."""
    text = outline.text
    pieces: list[bytes] = []
    starts: list[int] = []
    lists: list[NumberList | None] = []
    bounds = outline.places([at for cut in cuts for at in (cut.begin, cut.end - 1)])
    kept = zip([0, *(end + 1 for end in bounds[1::2])], [*bounds[::2], len(text.text)], strict=True)
    for (begin, end), cut in zip(kept, [*cuts, None], strict=True):
        # Constants are asked for in the order of the text; those that the body holds itself are among them.
        lists += [None] * text.plain[begin:end].tobytes().count(_STAND_IN)
        pieces.append(text.text[begin:end].tobytes())
        starts.append(begin)
        if cut is not None:
            lists.append(cut.found)
    in_order = iter(lists)

    def stood_in(literal: str) -> Any:
        found = next(in_order) if literal == _STAND_IN.decode() else None
        return constant(literal) if found is None else found

    try:
        return standard(_STAND_IN.join(pieces).decode("utf-8"), stood_in)
    except json.JSONDecodeError as error:
        offset = len(error.doc[: error.pos].encode())
        offsets = [0, *accumulate(len(piece) + len(_STAND_IN) for piece in pieces)]
        piece = bisect_right(offsets, offset, hi=len(pieces)) - 1
        raise malformed(error.msg, text.place(starts[piece] + min(offset - offsets[piece], len(pieces[piece])))) from None


def _refusal(outline: Outline, loose: Sequence[tuple[int, int]]) -> MalformedBody | BadTensor:
    """Why a body is refused that holds so many values elsewhere than in lists of numbers."""
    signs = np.frombuffer(outline.signs, np.uint8)
    for begin, end in loose:
        before = max(begin - 1, 0)
        misfits = _misfits(signs[before : end + 1])
        if len(misfits):
            return malformed("Expecting another sign", outline.text.place(outline.place(before + int(misfits[0]))))
        if not _is_beside_maps(outline.signs, begin, end):
            return malformed("Expecting the end of a list or a map", outline.text.place(outline.place(begin)))
    return BadTensor(f"the body has maps and more than {_MOST_LOOSE // 2} other values in one list; such a list is no tensor")


def _is_beside_maps(signs: bytes, begin: int, end: int) -> bool:
    """Whether these values stand in a list with a map before or behind them."""
    if signs[begin - 1 : begin] == b"}":
        return _is_entry(signs, begin - 1)
    return signs[end : end + 1] == b"{" and int(_depth(signs[begin:end]).min()) > 0


def _is_entry(signs: bytes, close: int) -> bool:
    """Whether the map that is closed here is an entry of a list."""
    array = np.frombuffer(signs, np.uint8)[: close + 1]
    braces = np.flatnonzero((array == ord("{")) | (array == ord("}")))[::-1]
    # Backwards from the brace that closes the map to the one that opens it.
    opens = braces[np.cumsum(-_DEEPER[array[braces]]) == 0]
    return len(opens) > 0 and signs[opens[0] - 1 : opens[0]] in (b"[", b",")
