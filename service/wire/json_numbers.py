"""The scalars of JSON text as float64, millions at once: a number that is short and plain never becomes an object.

Each number is the float64 that is nearest to it, as `float()` reads it, and `-0` keeps its sign.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

Bytes = NDArray[np.uint8]
Positions = NDArray[np.intp]
Floats = NDArray[np.float64]

# Ints below 10**15 and the powers of ten up to there are float64s, so that one division rounds once, as it should.
_MOST_DIGITS = 15
_POWERS = 10.0 ** np.arange(_MOST_DIGITS + 1)
_NUMBERS = {float, int}
_ZERO, _POINT, _MINUS, _COMMA = b"0.-,"


class Scalars(NamedTuple):
    """The values of scalars, NaN for those that are no numbers; `strays` has the first of these in each range.

    A stray is the place of such a scalar, and what it is, under the number of the range.
    """

    values: Floats
    strays: Mapping[int, tuple[int, Any]]


class NoValue(ValueError):
    """A scalar that is no JSON value: where it begins, and why."""

    def __init__(self, place: int, why: str) -> None:
        super().__init__(why)
        self.place = place


class Reader:
    """Reads the scalars of a text that has no blanks, from its beginning on, some thousand at a time.

    `plain` is the text with every string painted over. No scalar holds a bracket, brace, comma or colon but in
    a string, and each is followed by one of them, or by the end.
    """

    def __init__(self, text: Bytes, plain: Bytes) -> None:
        self._text = text
        self._plain = plain
        self._values = [np.empty(0)]
        self._rest: list[_Rest] = []
        self._count = 0

    def add(self, starts: Positions, ends: Positions) -> None:
        """Read the scalars that come next, as far as they are plain decimals."""
        values, are_known = decimals(self._plain, starts, ends)
        self._values.append(values)
        if not are_known.all():
            rest = np.flatnonzero(~are_known)
            values[rest], are_named = named(self._text, starts[rest], ends[rest])
            rest = rest[~are_named]
            self._rest.append(_Rest(rest + self._count, starts[rest], ends[rest]))
        self._count += len(values)

    def scalars(self, ranges: Sequence[tuple[int, int]], constant: Callable[[str], float]) -> Scalars:
        """The values in these ranges, which ascend; `NoValue` for one that is none, or that `constant` does not take."""
        values = np.concatenate(self._values)
        strays: dict[int, tuple[int, Any]] = {}
        bounds = np.array(ranges, np.intp).reshape(-1)
        for rest in self._rest:
            some = rest.within(bounds)
            if not len(some.places):
                continue
            found = _found(self._text, some, constant)
            first, last = (np.searchsorted(bounds, some.places[[0, -1]], "right") // 2).tolist()
            if first == last and first in strays:
                # Of this range no more needs to be known.
                continue
            if str in set(map(type, found)) and not NON_FINITE.keys().isdisjoint(found):
                found = list(map(NON_FINITE.get, found, found))
            for i in [i for i, value in enumerate(found) if type(value) not in _NUMBERS]:
                place = int(some.places[i])
                strays.setdefault(bisect_right(bounds, place) // 2, (place, found[i]))
                found[i] = math.nan
            values[some.places] = floats(found)
        return Scalars(values, strays)


class _Rest(NamedTuple):
    """Scalars that are no plain decimals: which they are, and where they begin and end."""

    places: Positions
    starts: Positions
    ends: Positions

    def within(self, bounds: Positions) -> _Rest:
        """Those in the ranges between the first two bounds, the next two, and so on."""
        chosen = np.searchsorted(bounds, self.places, "right") % 2 == 1
        return _Rest(self.places[chosen], self.starts[chosen], self.ends[chosen])


# Plain decimals -------------------------------------------------------------------------------------------


def decimals(text: Bytes, starts: Positions, ends: Positions) -> tuple[Floats, NDArray[np.bool_]]:
    """The numbers that these scalars are, and which are known: those of up to 15 digits without an exponent.

    Nothing is known of any other scalar, nor of what is no number at all.
    """
    if not len(starts):
        return np.empty(0), np.empty(0, np.bool_)
    begin = starts[0]
    text, starts, ends = text[begin : ends[-1]], starts - begin, ends - begin
    is_digit = (text - np.uint8(_ZERO)) < 10
    digits_before = _counts_before(is_digit)
    digits = digits_before[ends] - digits_before[starts]
    is_negative = text[starts] == _MINUS
    heads = np.minimum(starts + is_negative, len(text) - 1)
    points, decimal_places = _points(text, starts, ends, digits_before)
    has_leading_zero = (text[heads] == _ZERO) & (digits - decimal_places > 1)
    known = is_digit[heads] & ~has_leading_zero & (digits <= _MOST_DIGITS) & (digits + points + is_negative == ends - starts)
    known &= (points == 0) | ((points == 1) & (decimal_places > 0))
    values = np.zeros(len(starts))
    at = np.flatnonzero(is_digit)
    if known.all():
        values = _whole(text, at, digits)
    elif known.any():
        values[known] = _whole(text, at[np.repeat(known, digits)], digits[known])
    if points.any():
        values[known] /= _POWERS[decimal_places[known]]
    np.negative(values, out=values, where=is_negative)
    return values, known


def _counts_before(is_one: NDArray[np.bool_]) -> Positions:
    """How many of these there are before each place."""
    before = np.zeros(len(is_one) + 1, np.intp)
    np.cumsum(is_one, out=before[1:])
    return before


def _points(text: Bytes, starts: Positions, ends: Positions, digits_before: Positions) -> tuple[Positions, Positions]:
    """How many points each scalar has, and how many digits follow the first."""
    is_point = text == _POINT
    at = np.flatnonzero(is_point)
    if not len(at):
        none = np.zeros(len(starts), np.intp)
        return none, none
    before = _counts_before(is_point)
    firsts = before[starts]
    points = before[ends] - firsts
    digits_before_point = digits_before[at].take(firsts, mode="clip")
    return points, np.where(points > 0, digits_before[ends] - digits_before_point, 0)


def _whole(text: Bytes, at: Positions, counts: Positions) -> Floats:
    """Numbers without their points, of so many digits each: the sum of digits times powers of ten, all of it exact."""
    figures = text[at] - np.uint8(_ZERO)
    if len(figures) == len(counts):
        return figures.astype(np.float64)
    stops = np.cumsum(counts)
    places = np.repeat(stops, counts) - np.arange(1, len(figures) + 1)
    return np.add.reduceat(figures * _POWERS[places], stops - counts)


def named(text: Bytes, starts: Positions, ends: Positions) -> tuple[Floats, NDArray[np.bool_]]:
    """The numbers that are strings in JSON, and which of these scalars they are, where no escape is in them."""
    values = np.full(len(starts), np.nan)
    known = np.zeros(len(starts), np.bool_)
    sizes = ends - starts
    for name, value in NON_FINITE.items():
        word = f'"{name}"'.encode()
        these = np.flatnonzero(sizes == len(word))
        for i, sign in enumerate(word):
            these = these[text[starts[these] + i] == sign]
        values[these] = value
        known[these] = True
    return values, known


# All others -----------------------------------------------------------------------------------------------


def _found(text: Bytes, some: _Rest, constant: Callable[[str], float]) -> list[Any]:
    """What the library reads; pydantic's is the faster one, the standard one has the last word."""
    # Each with the byte behind it.
    sizes = some.ends - some.starts + 1
    offsets = np.cumsum(sizes) - sizes
    written = _written(text, some, sizes, offsets)
    try:
        values: list[Any] = from_json(written, allow_inf_nan=False)
    except ValueError:
        try:
            values = json.loads(written, parse_constant=constant)
        except json.JSONDecodeError as error:
            at = len(error.doc[: error.pos].encode()) - 1
            wrong = max(int(np.searchsorted(offsets, at, "right")) - 1, 0)
            raise NoValue(int(some.starts[wrong]), error.msg) from None
        except ValueError as error:  # of int(), for too many digits, and of the constant
            raise NoValue(int(some.starts[0]), str(error)) from None
    if len(values) != len(sizes):
        raise NoValue(int(some.starts[0]), "Expecting one value")
    return values


def _written(text: Bytes, some: _Rest, sizes: Positions, offsets: Positions) -> bytes:
    """A list of these scalars. Behind each stands a byte that becomes a comma."""
    at = np.repeat(some.starts - offsets, sizes) + np.arange(int(sizes.sum()))
    # The last may end with the text.
    written = text.take(at, mode="clip")
    written[offsets + sizes - 1] = _COMMA
    return b"[" + written[:-1].tobytes() + b"]"


def floats(values: Sequence[float]) -> Floats:
    """Floats and ints as float64, those beyond it as infinities."""
    with suppress(OverflowError):
        return np.array(values, np.float64)
    return np.array([_float(value) for value in values], np.float64)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
