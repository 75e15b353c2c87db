"""The .npy stream: arrays back to back, as repeated `np.save` to one file writes them.

Reads versions 1.0, 2.0 and 3.0, either byte order, C or Fortran order; writes the bytes that NumPy 2
writes. Arrays have no names: the caller says which fields take turns (`x`, or `x` and `grad_output`).
Headers are read by a scanner of their own, which knows the literals that headers consist of and
nothing else: nothing is evaluated, nothing is unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from service.dtypes import DType
from service.errors import MalformedBody, NotAcceptable, OddArrayCount, StructureMismatch, TooManyTensors, UnsupportedDtype
from service.wire.compact import CompactBundle
from service.wire.layout import DESCR_OF, DTYPE_OF_DESCR, MAX_DIMENSIONS, byte_length, swapped
from service.wire.message import Bundle, Message, WireTensor

MEDIA_TYPE = "application/x-npy"
ALIASES = ("application/vnd.numpy",)
HOLDS_NAMES = False

# NumPy's own bound for headers that it does not trust.
MAX_HEADER_BYTES = 10_000
# The headers of usual shapes have 128 bytes; larger ones are read anew each time, so that the cache stays small.
MAX_CACHED_HEADER_BYTES = 256

_MAGIC = b"\x93NUMPY"
# Magic and version, as an array starts: the major version, and how many bytes the header's length has.
_OPENINGS = {_MAGIC + b"\x01\x00": (1, 2), _MAGIC + b"\x02\x00": (2, 4), _MAGIC + b"\x03\x00": (3, 4)}
# The messages that arrays without names can be: one of these fields alone, or these two in turn.
_ALONE = ({"x"}, {"y"}, {"grad_x"})
_PAIR = ("x", "grad_output")


class Header(NamedTuple):
    """What a header says: `nbytes` of data follow it."""

    dtype: DType
    swapped: bool
    fortran: bool
    shape: tuple[int, ...]
    nbytes: int


def decode(body: memoryview, fields: tuple[str, ...], max_tensors: int) -> dict[str, Bundle]:
    """Read the arrays of a stream, in order, as `fields` in turn; the tensors share the body's memory.

    Raises `MalformedBody` for bytes that are no such stream, `UnsupportedDtype` for an array of anything
    but the four floating dtypes, `OddArrayCount` where the last field goes without, `TooManyTensors`.
    """
    if not body:
        raise MalformedBody("the body is empty; an npy body holds at least one array")
    tensors: list[WireTensor] = []
    at = 0
    read = b""
    while at < len(body):
        if len(tensors) == max_tensors:
            raise TooManyTensors(f"the body holds more than {max_tensors} arrays")
        # Arrays in one stream often have one header: compared with the one before, it is not read again.
        again = body[at : at + len(read)].tobytes() == read if tensors else False
        if again:
            start = at + len(read)
        else:
            header, start = _header_at(body, at)
            read = body[at:start].tobytes()
        at = start + header.nbytes
        if at > len(body):
            raise MalformedBody(
                f"the header before byte {start} promises {header.nbytes} bytes of data; {len(body) - start} follow"
            )
        data = swapped(body[start:at], header.dtype) if header.swapped else body[start:at]
        tensors.append(tensors[-1].like(data) if again else WireTensor(header.dtype, header.shape, data, header.fortran))
    turns = len(fields)
    if len(tensors) % turns:
        raise OddArrayCount(f"the body holds {len(tensors)} arrays; they must come in turn as {', '.join(fields)}")
    single = len(tensors) == turns
    return {field: Bundle(tuple(tensors[turn::turns]), single=single) for turn, field in enumerate(fields)}


def encode(message: Message) -> list[bytes | memoryview]:
    """The arrays of the message, back to back, `x` and `grad_output` in turn; names are dropped.

    Raises `NotAcceptable` for a message with other fields: npy has no place for their names.
    """
    if set(message) not in (*_ALONE, set(_PAIR)):
        # Imported here: the other formats are named only to help the caller along.
        from service.wire import json, msgpack

        raise NotAcceptable(
            f"npy cannot hold tensor parameters or their gradients (the message has {', '.join(message)}); "
            f"{msgpack.MEDIA_TYPE} and {json.MEDIA_TYPE} can"
        )
    pieces: list[bytes | memoryview] = []
    for tensor in _in_turn(message):
        pieces.append(_written_header(tensor.dtype.name, tensor.shape, tensor.fortran))
        if tensor.data.nbytes:
            pieces.append(tensor.data)
    return pieces


def encode_compact(bundle: CompactBundle) -> list[bytes | memoryview]:
    """The codes, or the bytes of packed ones or of a mask, as arrays back to back; names are dropped.

    Raises `NotAcceptable` for codes with exceptions: npy has no place for them.
    """
    pieces: list[bytes | memoryview] = []
    for tensor in bundle.tensors:
        if tensor.exceptions.count:
            raise NotAcceptable(
                f"npy cannot hold the {tensor.exceptions.count} elements that no code stands for (NaN, infinities, -0.0, values "
                "outside); msgpack, JSON and safetensors can, or ask for output=values"
            )
        elements = next(tensor.parts())
        pieces.append(_header_text(np.dtype(elements.dtype).str, elements.shape, fortran=False))
        if elements.data.nbytes:
            pieces.append(elements.data)
    return pieces


def _in_turn(message: Message) -> Iterator[WireTensor]:
    if len(message) == 1:
        (bundle,) = message.values()
        yield from bundle.tensors
        return
    xs, grads = (message[field].tensors for field in _PAIR)
    if len(xs) != len(grads):
        raise StructureMismatch(f"'x' holds {len(xs)} tensors, 'grad_output' {len(grads)}; npy holds them in pairs")
    for pair in zip(xs, grads, strict=True):
        yield from pair


@lru_cache(maxsize=1024)
def _written_header(dtype_name: str, shape: tuple[int, ...], fortran: bool) -> bytes:
    """The bytes before the data of one of the four dtypes."""
    return _header_text(DESCR_OF[dtype_name], shape, fortran=fortran)


def _header_text(descr: str, shape: tuple[int, ...], *, fortran: bool) -> bytes:
    """The bytes before the data, exactly as `numpy.lib.format` writes them (version 1.0)."""
    text = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
    if shape:
        # NumPy leaves room for the growing dimension to become as long as 8 * 2**64 - 1.
        text += " " * (21 - len(repr(shape[-1 if fortran else 0])))
    start = len(_MAGIC) + 4
    # At least one blank, then a newline that ends on a multiple of 64.
    padding = 64 - (start + len(text) + 1) % 64
    length = len(text) + padding + 1
    return b"%b\x01\x00%b%b%b\n" % (_MAGIC, length.to_bytes(2, "little"), text.encode("ascii"), b" " * padding)


def _header_at(body: memoryview, at: int) -> tuple[Header, int]:
    """The header that starts at this byte, and where its data start."""
    opening = bytes(body[at : at + 8])
    try:
        version, width = _OPENINGS[opening]
    except KeyError:
        raise MalformedBody(_wrong_opening(opening, at)) from None
    text_at = at + 8 + width
    start = text_at + int.from_bytes(body[at + 8 : text_at], "little")
    if text_at > len(body) or start > len(body):
        raise MalformedBody(f"the header that starts at byte {at} goes on beyond the end of the body, byte {len(body)}")
    if start - text_at > MAX_HEADER_BYTES:
        raise MalformedBody(f"the header at byte {at} has {start - text_at} bytes; at most {MAX_HEADER_BYTES} are read")
    read = _read_header if start - text_at <= MAX_CACHED_HEADER_BYTES else _read_header.__wrapped__
    try:
        return read(bytes(body[text_at:start]), version), start
    except _BadHeader as error:
        raise MalformedBody(f"the header at byte {at} is not one that NumPy writes: {error}") from None


def _wrong_opening(opening: bytes, at: int) -> str:
    if not opening.startswith(_MAGIC):
        return f"no array starts at byte {at}: expected {_MAGIC!r}, got {opening[: len(_MAGIC)]!r}"
    if len(opening) < 8:
        return f"the array that starts at byte {at} ends within its version"
    return f"npy version {opening[6]}.{opening[7]} at byte {at + 6}; there are 1.0, 2.0 and 3.0"


# The header's text: a dictionary of literals ---------------------------------------------------------

_TOKEN = re.compile(
    r"""[ \t\f\r\n]*+(?:
        (?P<string>'(?:[^'\\\r\n]|\\[^\r\n])*+'|"(?:[^"\\\r\n]|\\[^\r\n])*+")
      | (?P<int>0++|[1-9][0-9]*+)(?:[ \t]*+(?P<long>L))?(?!\w)
      | (?P<name>[A-Za-z]++)(?!\w)
      | (?P<mark>[]{}()[:,])
      | (?P<end>\Z))""",
    re.ASCII | re.VERBOSE,
)
# 2**63 - 1, the largest dimension, has 19 digits; longer ones never become an int.
_MAX_DIGITS = 19
_BRACKETS = {"(": ")", "[": "]", "{": "}"}
# Within braces blanks and line ends are alike. Behind them, blanks that no line end follows indent a line for Python.
_DICTIONARY = re.compile(r"[ \t]*+\{.*\}(?:(?:[ \t]*+[\r\n])++|[ \t]*+)", re.DOTALL)


class _BadHeader(Exception):
    """The text is not the dictionary that it should be; `str()` says why."""


@lru_cache(maxsize=1024)
def _read_header(encoded: bytes, version: int) -> Header:
    """The header's text, read: the same few texts come again and again."""
    try:
        text = encoded.decode("utf-8" if version == 3 else "latin-1")
    except UnicodeDecodeError as error:
        raise _BadHeader(f"version 3.0 is UTF-8, {error}") from None
    return _Scanner(text, long_ints=version < 3).header()


class _Scanner:
    """Reads one header: `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`, keys in any order."""

    def __init__(self, text: str, *, long_ints: bool) -> None:
        self.text = text
        self.long_ints = long_ints  # Python 2 wrote `10L`
        self.at = 0
        self.kind = self.value = ""
        self.advance()

    def advance(self) -> str:
        """Move to the next token; the value of the one before."""
        value = self.value
        token = _TOKEN.match(self.text, self.at)
        if token is None or (token["long"] and not self.long_ints):
            raise _BadHeader(f"unexpected {self.text[self.at : self.at + 20]!r} at character {self.at}")
        self.kind = next(kind for kind in ("string", "int", "name", "mark", "end") if token[kind] is not None)
        self.value = token[self.kind]
        self.at = token.end()
        return value

    def expect(self, mark: str) -> None:
        if self.kind != "mark" or self.value != mark:
            raise _BadHeader(f"expected {mark!r} before character {self.at}, got {self.value[:20]!r}")
        self.advance()

    def take(self, mark: str) -> bool:
        """Whether this mark was here; then it is behind us."""
        here = self.kind == "mark" and self.value == mark
        if here:
            self.advance()
        return here

    def header(self) -> Header:
        descr: str | None = None
        fortran: bool | None = None
        shape: tuple[int, ...] | None = None
        if not _DICTIONARY.fullmatch(self.text):
            raise _BadHeader("it is not a dictionary in braces, followed by blanks or by whole lines of blanks")
        self.expect("{")
        while not self.take("}"):
            key = self.string()
            self.expect(":")
            if key == "descr" and descr is None:
                descr = self.descr()
            elif key == "fortran_order" and fortran is None:
                fortran = self.boolean()
            elif key == "shape" and shape is None:
                shape = self.shape()
            else:
                raise _BadHeader(f"key {key[:80]!r} is given twice, or not one of 'descr', 'fortran_order', 'shape'")
            if not self.take(","):
                self.expect("}")
                break
        if self.kind != "end":
            raise _BadHeader(f"{self.value[:20]!r} follows the dictionary")
        if descr is None or fortran is None or shape is None:
            raise _BadHeader("it lacks one of 'descr', 'fortran_order', 'shape'")
        if descr not in DTYPE_OF_DESCR:
            raise UnsupportedDtype(f"an array of dtype {descr[:80]!r} is not supported; allowed: {', '.join(DTYPE_OF_DESCR)}")
        dtype, is_swapped = DTYPE_OF_DESCR[descr]
        return Header(dtype, is_swapped, fortran, shape, byte_length(shape, dtype))

    def string(self) -> str:
        if self.kind != "string":
            raise _BadHeader(f"expected a string before character {self.at}, got {self.value[:20]!r}")
        return self.advance()[1:-1]

    def boolean(self) -> bool:
        if self.kind != "name" or self.value not in ("True", "False"):
            raise _BadHeader(f"'fortran_order' must be True or False, not {self.value[:20]!r}")
        return self.advance() == "True"

    def shape(self) -> tuple[int, ...]:
        self.expect("(")
        dimensions: list[int] = []
        while not self.take(")"):
            if self.kind != "int" or len(self.value) > _MAX_DIGITS:
                raise _BadHeader(f"a dimension must be an int of at most {_MAX_DIGITS} digits, not {self.value[:20]!r}")
            if len(dimensions) == MAX_DIMENSIONS:
                raise _BadHeader(f"the shape has more than {MAX_DIMENSIONS} dimensions")
            dimensions.append(int(self.advance()))
            if not self.take(","):
                if len(dimensions) == 1:
                    raise _BadHeader("the shape is not a tuple: a single dimension is written with a comma")
                self.expect(")")
                break
        return tuple(dimensions)

    def descr(self) -> str:
        """The dtype's description; that of a structured one is skipped and given as its text."""
        if self.kind == "string":
            return self.string()
        start = self.at - len(self.value)
        if self.kind != "mark" or self.value not in "([":
            raise _BadHeader(f"'descr' must be a string or a list, not {self.value[:20]!r}")
        closing: list[str] = []
        while True:
            if self.kind == "end":
                raise _BadHeader("the brackets of 'descr' are not closed")
            if self.kind == "mark" and self.value in _BRACKETS:
                closing.append(_BRACKETS[self.value])
            elif self.kind == "mark" and self.value in _BRACKETS.values() and self.value != closing.pop():
                raise _BadHeader("the brackets of 'descr' do not match")
            end = self.at
            self.advance()
            if not closing:
                return self.text[start:end]
