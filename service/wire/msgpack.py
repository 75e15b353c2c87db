"""The msgpack maps: `{"x": T}`, `{"x": [T, …]}`, `{"x": {name: T, …}}`.

`T` is `{"dtype": "float32", "shape": [2, 3], "data": <bin, little-endian, C order>}`, or the map that
msgpack-numpy writes. The reader is our own because the library copies every `bin`; ours slices the body.
It goes by what is there, never by what is declared: no memory is taken for a length that the body
does not have, and a header that repeats the one before is compared, not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from service.dtypes import DTYPES, DType, dtype
from service.errors import BadTensor, MalformedBody, NotAcceptable, NotAllowed, TooManyTensors, UnsupportedDtype
from service.wire.compact import CompactBundle, document
from service.wire.layout import DESCR_OF, DTYPE_OF_DESCR, MAX_DIMENSIONS, byte_length, in_c_order, swapped
from service.wire.message import Bundle, Message, Style, WireTensor

MEDIA_TYPE = "application/vnd.msgpack"
ALIASES = ("application/msgpack", "application/x-msgpack")
HOLDS_NAMES = True

# Map, list, T, msgpack-numpy's description of a dtype and its entry: the contract needs five levels.
MAX_DEPTH = 16
# What may stand where a part of a tensor is expected: more values than 64 dimensions and the rest never do.
_MAX_VALUES_IN_A_PART = 256
# A body that is refused for what it says (422) is first searched for what no msgpack can be (400), so far.
_MAX_VALUES_CHECKED = 10_000

_PLAIN_KEYS = frozenset({"dtype", "shape", "data"})
_NUMPY_KEYS = frozenset({"nd", "type", "kind", "shape", "data"})


def decode(body: memoryview, _fields: tuple[str, ...], max_tensors: int) -> dict[str, Bundle]:
    """Read the map of the body; the tensors share its memory.

    Raises `MalformedBody` for what no msgpack of tensors can be, `BadTensor` for a value that is well
    formed and no tensor, `UnsupportedDtype`, and `TooManyTensors` from the declared counts. A body with
    several faults is `MalformedBody` if any of them is.
    """
    try:
        return _Reader(body, max_tensors).message()
    except NotAllowed:
        end = _end_of_value(body, 0, _MAX_VALUES_CHECKED)
        if end is not None:
            _check_end(body, end)
        raise


def encode(message: Message) -> list[bytes | memoryview]:
    """The map of the message, in pieces: the tensors' own memory, and what stands between.

    A tensor in Fortran order is copied into C order; msgpack knows no other.
    """
    pieces: list[bytes | memoryview] = []
    between = _head("map", len(message))
    before: WireTensor | None = None
    header = b""
    for field, bundle in message.items():
        between += _text(field)
        if bundle.names is not None:
            _check_names(bundle.names)
            between += _head("map", len(bundle.names))
        elif not bundle.single:
            between += _head("array", len(bundle.tensors))
        for i, tensor in enumerate(bundle.tensors):
            if bundle.names is not None:
                between += _text(bundle.names[i])
            if before is None or tensor.shape != before.shape or tensor.dtype != before.dtype or tensor.style != before.style:
                header = _written_header(tensor.dtype.name, tensor.shape, tensor.style)
                before = tensor
            between += header
            if tensor.data.nbytes:
                pieces += (between, in_c_order(tensor) if tensor.fortran else tensor.data)
                between = b""
    if between:
        pieces.append(between)
    return pieces


def encode_compact(bundle: CompactBundle) -> list[bytes | memoryview]:
    """The maps of a compact answer, in pieces; elements are bins, little-endian, in C order."""
    pieces: list[bytes | memoryview] = []
    between = b""
    for piece in _pieces_of(document(bundle, lambda part: part.data)):
        if isinstance(piece, bytes):
            between += piece
        elif piece.nbytes:
            pieces += (between, piece)
            between = b""
    return [*pieces, between] if between else pieces


# Reading: the messages ------------------------------------------------------------------------------


class _Header(NamedTuple):
    """A tensor's map without its elements: what it says (`tensor` has no data), and the very bytes that say it."""

    tensor: WireTensor
    nbytes: int
    before_data: bytes
    after_data: bytes = b""
    is_swapped: bool = False


class _Reader:
    """Reads one body from its first byte to its last; `at` is the next byte."""

    def __init__(self, body: memoryview, max_tensors: int) -> None:
        self.body = body
        self.at = 0
        self.max_tensors = max_tensors
        self.tensors_declared = 0

    def message(self) -> dict[str, Bundle]:
        kind, count, self.at = _value_at(self.body, 0)
        if kind != "map":
            raise BadTensor(f"the body must be a map of names to tensors, not {_article(kind)}")
        if count > self.max_tensors:
            raise TooManyTensors(f"the body is a map of {count} entries; at most {self.max_tensors} tensors are allowed")
        message: dict[str, Bundle] = {}
        for _ in range(count):
            field = self.name()
            if field in message:
                raise MalformedBody(f"the key {field[:80]!r} stands twice in the map of the body")
            message[field] = self.bundle(field)
        _check_end(self.body, self.at)
        return message

    def bundle(self, field: str) -> Bundle:
        kind, count, after = _value_at(self.body, self.at)
        if kind == "array":
            self.declare(count, field)
            self.at = after
            return Bundle(self.tensors(count, field))
        if kind == "map" and self.known_header() is None and self.parts(count, after) is None:
            self.declare(count, field)
            self.at = after
            return self.by_name(count, field)
        self.declare(1, field)
        return Bundle(self.tensors(1, field), single=True)

    def by_name(self, count: int, field: str) -> Bundle:
        tensors: dict[str, WireTensor] = {}
        for _ in range(count):
            name = self.name()
            if name in tensors:
                raise MalformedBody(f"the key {name[:80]!r} stands twice in {field[:80]!r}")
            tensors[name] = self.tensors(1, field)[0]
        return Bundle(tuple(tensors.values()), names=tuple(tensors))

    def declare(self, count: int, field: str) -> None:
        """Count tensors before any of them is read."""
        self.tensors_declared += count
        if self.tensors_declared > self.max_tensors:
            raise TooManyTensors(
                f"with {field[:80]!r} the body holds {self.tensors_declared} tensors; at most {self.max_tensors} are allowed"
            )

    def name(self) -> str:
        kind, length, after = _value_at(self.body, self.at)
        if kind != "str":
            raise BadTensor(f"the key at byte {self.at} must be a str, not {_article(kind)}")
        self.at = after + length
        return _decoded(self.body, after, self.at)

    def tensors(self, count: int, field: str) -> tuple[WireTensor, ...]:
        """The next tensors. One with the very header of the one before costs a comparison."""
        tensors: list[WireTensor] = []
        body = self.body
        while len(tensors) < count:
            header = self.known_header() or self.header(field)
            tensor, nbytes, before_data, after_data, is_swapped = header
            like = tensor.like
            at = self.at
            while len(tensors) < count and body[at : at + len(before_data)].tobytes() == before_data:
                start = at + len(before_data)
                stop = start + nbytes
                at = stop + len(after_data)
                if at > len(body) or (after_data and body[stop:at].tobytes() != after_data):
                    break
                data = body[start:stop]
                tensors.append(like(swapped(data, tensor.dtype) if is_swapped else data))
                self.at = at
        return tuple(tensors)

    def known_header(self) -> _Header | None:
        """The header at hand if it is one as `encode` writes it, its data in the body; else None."""
        match = _USUAL_HEADER.match(self.body, self.at)
        if match is None:
            return None
        header = _usual_header(match[0])
        return header if header is not None and match.end() + header.nbytes <= len(self.body) else None

    def header(self, field: str) -> _Header:
        """The header at hand, read with care: any order of its keys, any spelling of its ints, any error."""
        kind, count, after = _value_at(self.body, self.at)
        if kind != "map":
            raise BadTensor(f"{field[:80]!r}: at byte {self.at} stands {_article(kind)} where a tensor is expected")
        parts = self.parts(count, after)
        if parts is None:
            raise BadTensor(
                f"{field[:80]!r}: the map at byte {self.at} is not a tensor; its keys must be {', '.join(sorted(_PLAIN_KEYS))}, "
                f"or those of msgpack-numpy: {', '.join(sorted(_NUMPY_KEYS))}"
            )
        plain = len(parts.at) == len(_PLAIN_KEYS)
        shape, _ = _shape_at(self.body, parts.at["shape"])
        start, stop = self.span(parts.at["data"], "data", ("bin",))
        read_dtype, is_swapped = (self.plain_dtype if plain else self.numpy_dtype)(parts.at)
        nbytes = byte_length(shape, read_dtype)
        if stop - start != nbytes:
            raise MalformedBody(
                f"{field[:80]!r}: the data at byte {start} have {stop - start} bytes; "
                f"{read_dtype.name} of shape {list(shape)} has {nbytes}"
            )
        style: Style = "plain" if plain else "msgpack_numpy"
        tensor = WireTensor(read_dtype, shape, memoryview(b""), style=style)
        return _Header(tensor, nbytes, self.body[self.at : start].tobytes(), self.body[stop : parts.end].tobytes(), is_swapped)

    # The parts of a tensor: where they are, then what they say.

    def parts(self, count: int, after: int) -> _Parts | None:
        """Where the values of a tensor's keys start, if the map with these entries is a tensor."""
        keys = {len(_PLAIN_KEYS): _PLAIN_KEYS, len(_NUMPY_KEYS): _NUMPY_KEYS}.get(count)
        if keys is None:
            return None
        found: dict[str, int] = {}
        at = after
        for _ in range(count):
            kind, length, start = _value_at(self.body, at)
            # Plain tensors have str keys; msgpack-numpy writes bin.
            if kind != "str" and not (kind == "bin" and keys is _NUMPY_KEYS):
                return None
            at = start + length
            try:
                key = _decoded(self.body, start, at)
            except MalformedBody:
                if kind == "bin":
                    return None
                raise
            if key not in keys or key in found:
                return None
            found[key] = at
            end = _end_of_value(self.body, at, _MAX_VALUES_IN_A_PART)
            if end is None:
                raise BadTensor(f"the value of {key!r} at byte {at} holds too much for a part of a tensor")
            at = end
        return _Parts(found, at)

    def span(self, at: int, key: str, kinds: tuple[str, ...]) -> tuple[int, int]:
        """Where the bytes of a str or bin start and stop."""
        kind, length, start = _value_at(self.body, at)
        if kind not in kinds:
            raise MalformedBody(f"{key!r} at byte {at} must be {' or '.join(map(_article, kinds))}, not {_article(kind)}")
        return start, start + length

    def text(self, at: int, key: str, kinds: tuple[str, ...] = ("str",)) -> str:
        return _decoded(self.body, *self.span(at, key, kinds))

    def plain_dtype(self, at: dict[str, int]) -> tuple[DType, bool]:
        return dtype(self.text(at["dtype"], "dtype")), False

    def numpy_dtype(self, at: dict[str, int]) -> tuple[DType, bool]:
        """The dtype of a msgpack-numpy map, and whether its bytes are swapped.

        `type` is text, but for arrays of kind V, bfloat16 among them: `[["", "<V2"]]`.
        """
        kind, is_array, _ = _value_at(self.body, at["nd"])
        if kind != "bool" or not is_array:
            raise MalformedBody(f"'nd' at byte {at['nd']} must be true")
        array_kind = self.text(at["kind"], "kind", ("bin", "str"))
        type_at = at["type"]
        if array_kind == "V":
            type_at = self.only_field(type_at)
        if _value_at(self.body, type_at)[0] not in ("bin", "str"):
            raise UnsupportedDtype(f"the structured dtype at byte {type_at} is not supported; allowed: {', '.join(DTYPE_OF_DESCR)}")
        descr = self.text(type_at, "type", ("bin", "str"))
        if array_kind not in ("", "V") or descr not in DTYPE_OF_DESCR:
            raise UnsupportedDtype(
                f"an array of type {descr[:80]!r} and kind {array_kind[:80]!r} is not supported; "
                f"allowed types: {', '.join(DTYPE_OF_DESCR)}"
            )
        read_dtype, is_swapped = DTYPE_OF_DESCR[descr]
        if array_kind == "V" and read_dtype.name != "bfloat16":
            raise UnsupportedDtype(f"an array of type {descr!r} is not of kind 'V'; of that kind only bfloat16 is supported")
        return read_dtype, is_swapped

    def only_field(self, at: int) -> int:
        """Where the type in `[["", type]]` is; `at` itself where something else stands."""
        kind, fields, field_at = _value_at(self.body, at)
        if kind != "array" or fields != 1:
            return at
        kind, length, name_at = _value_at(self.body, field_at)
        if kind != "array" or length != 2:
            return at
        kind, length, name_start = _value_at(self.body, name_at)
        return name_start if kind in ("bin", "str") and length == 0 else at


# The header that `encode` writes, for up to 15 dimensions below 2**32. Each alternative starts with bytes of its
# own, so that there is one way to match; whether the bytes agree with each other is left to `_usual_header`.
_USUAL_HEADER = re.compile(
    rb"\x83\xa5dtype(?P<dtype>[\xa0-\xbf][a-z0-9]{1,31})\xa5shape"
    rb"(?P<shape>[\x90-\x9f](?:[\x00-\x7f]|\xcc.|\xcd..|\xce.{4}){0,15})"
    rb"\xa4data(?P<data>\xc4.|\xc5..|\xc6.{4})",
    re.DOTALL,
)


@lru_cache(maxsize=1024)
def _usual_header(encoded: bytes) -> _Header | None:
    """What a match of `_USUAL_HEADER` says; None if it contradicts itself: read with care, it tells where."""
    match = _USUAL_HEADER.fullmatch(encoded)
    assert match is not None
    name, shape_bytes, data = match["dtype"], memoryview(match["shape"]), match["data"]
    read_dtype = DTYPES.get(name[1:].decode("ascii"))
    if read_dtype is None or name[0] != 0xA0 + len(name) - 1:
        return None
    try:
        shape, end = _shape_at(shape_bytes, 0)
        nbytes = byte_length(shape, read_dtype)
    except MalformedBody:
        return None
    if end != len(shape_bytes) or int.from_bytes(data[1:], "big") != nbytes:
        return None
    return _Header(WireTensor(read_dtype, shape, memoryview(b"")), nbytes, encoded)


class _Parts(NamedTuple):
    """Where the values of a tensor's map are, by key, and where the map ends."""

    at: dict[str, int]
    end: int


# Reading: the values --------------------------------------------------------------------------------


class _Code(NamedTuple):
    """What the first byte of a value says.

    The value's number (an int, a count, a length) is `base` plus the int in the next `width` bytes.
    """

    kind: str
    base: int
    width: int


def _codes() -> list[_Code]:
    """The table of first bytes, as https://github.com/msgpack/msgpack/blob/master/spec.md gives it."""
    codes = [_Code("int", byte, 0) for byte in range(0x80)]
    codes += [_Code("map", count, 0) for count in range(16)]
    codes += [_Code("array", count, 0) for count in range(16)]
    codes += [_Code("str", length, 0) for length in range(32)]
    codes += [_Code("nil", 0, 0), _Code("reserved", 0, 0), _Code("bool", 0, 0), _Code("bool", 1, 0)]
    codes += [_Code("bin", 0, width) for width in (1, 2, 4)]
    codes += [_Code("ext", 1, width) for width in (1, 2, 4)]  # an ext has one byte more than its length: its type
    codes += [_Code("float", length, 0) for length in (4, 8)]
    codes += [_Code("int", 0, width) for width in (1, 2, 4, 8)]
    codes += [_Code("signed", 0, width) for width in (1, 2, 4, 8)]
    codes += [_Code("ext", 1 + length, 0) for length in (1, 2, 4, 8, 16)]
    codes += [_Code("str", 0, width) for width in (1, 2, 4)]
    codes += [_Code("array", 0, width) for width in (2, 4)]
    codes += [_Code("map", 0, width) for width in (2, 4)]
    codes += [_Code("int", byte - 256, 0) for byte in range(0xE0, 0x100)]
    return codes


_CODES = _codes()
# How many bytes the body must still have for each one that the number of a value counts.
_BYTES_EACH = {"str": 1, "bin": 1, "ext": 1, "float": 1, "array": 1, "map": 2}


def _value_at(body: memoryview, at: int) -> tuple[str, int, int]:
    """The kind of the value at this byte, its number, and where its number ends.

    The number is that of an int, the count of an array or map, the length of what follows otherwise.
    What is counted fits into the body, or `MalformedBody` is raised.
    """
    if at >= len(body):
        raise MalformedBody(f"the body ends at byte {at}, where a value should start")
    kind, number, width = _CODES[body[at]]
    after = at + 1 + width
    if width:
        if after > len(body):
            raise MalformedBody(f"the body ends within the value that starts at byte {at}")
        number += int.from_bytes(body[at + 1 : after], "big", signed=kind == "signed")
    if kind in _BYTES_EACH:
        if number * _BYTES_EACH[kind] > len(body) - after:
            raise MalformedBody(f"the {kind} at byte {at} announces {number}; only {len(body) - after} bytes follow")
    elif kind == "signed":
        kind = "int"
    elif kind == "reserved":
        raise MalformedBody(f"byte {at} is 0xc1, which starts no msgpack value")
    return kind, number, after


def _end_of_value(body: memoryview, at: int, max_values: int) -> int | None:
    """Where the value at this byte ends; None if it holds more than `max_values`.

    Raises `MalformedBody` for bytes that are no msgpack, for invalid UTF-8, duplicate keys, and nesting
    deeper than `MAX_DEPTH`. Takes no more stack or memory than the values it passes.
    """
    # One entry for each container that is open: how many values are left in it, and its keys if it is a map.
    open_: list[tuple[int, set[str | bytes] | None]] = []
    for _ in range(max_values):
        kind, number, after = _value_at(body, at)
        end = after + (0 if kind in ("int", "bool", "nil", "array", "map") else number)
        text = _decoded(body, after, end) if kind == "str" else None
        if open_:
            left, keys = open_.pop()
            if keys is not None and left % 2 == 0:
                key = body[at:end].tobytes() if text is None else text
                if key in keys and kind not in ("array", "map"):
                    raise MalformedBody(f"the key at byte {at} stands twice in its map")
                keys.add(key)
            open_.append((left - 1, keys))
        if kind in ("array", "map"):
            if len(open_) == MAX_DEPTH:
                raise MalformedBody(f"the {kind} at byte {at} is nested deeper than {MAX_DEPTH} levels")
            open_.append((number, None) if kind == "array" else (2 * number, set()))
        at = end
        while open_ and open_[-1][0] == 0:
            open_.pop()
        if not open_:
            return at
    return None


def _shape_at(body: memoryview, at: int) -> tuple[tuple[int, ...], int]:
    """The shape at this byte, and where it ends."""
    kind, count, after = _value_at(body, at)
    if kind != "array":
        raise MalformedBody(f"'shape' at byte {at} must be an array of ints, not {_article(kind)}")
    if count > MAX_DIMENSIONS:
        raise MalformedBody(f"'shape' at byte {at} has {count} dimensions; at most {MAX_DIMENSIONS} are possible")
    dimensions = []
    for _ in range(count):
        kind, dimension, end = _value_at(body, after)
        if kind != "int" or dimension < 0:
            raise MalformedBody(f"the dimension at byte {after} must be an int of at least 0")
        dimensions.append(dimension)
        after = end
    return tuple(dimensions), after


def _check_end(body: memoryview, end: int) -> None:
    if end != len(body):
        raise MalformedBody(f"the map of the body ends at byte {end}; {len(body) - end} bytes follow")


def _decoded(body: memoryview, start: int, stop: int) -> str:
    try:
        return str(body[start:stop], "utf-8")
    except UnicodeDecodeError as error:
        raise MalformedBody(f"the text at byte {start} is not UTF-8: {error.reason}") from None


def _article(kind: str) -> str:
    return {"nil": "nil", "int": "an int", "array": "an array", "ext": "an ext"}.get(kind, f"a {kind}")


# Writing ---------------------------------------------------------------------------------------------

# For each kind: the byte and the largest number of its short form, and those of its long forms by width.
_SHORT = {"map": (0x80, 15), "array": (0x90, 15), "str": (0xA0, 31), "int": (0x00, 0x7F)}
_LONG = {
    "map": {2: 0xDE, 4: 0xDF},
    "array": {2: 0xDC, 4: 0xDD},
    "str": {1: 0xD9, 2: 0xDA, 4: 0xDB},
    "bin": {1: 0xC4, 2: 0xC5, 4: 0xC6},
    "int": {1: 0xCC, 2: 0xCD, 4: 0xCE, 8: 0xCF},
}
_TRUE = b"\xc3"


def _head(kind: str, number: int) -> bytes:
    """The start of a value in its smallest form: as the msgpack library writes it."""
    code, largest = _SHORT.get(kind, (0, -1))
    if number <= largest:
        return bytes((code | number,))
    for width, code in _LONG[kind].items():
        if number < 256**width:
            return bytes((code,)) + number.to_bytes(width, "big")
    raise NotAcceptable(f"msgpack cannot hold a {kind} of {number}")


def _pieces_of(value: object) -> Iterator[bytes | memoryview]:
    """A map, list, text, int or bin, as it is written."""
    match value:
        case dict():
            yield _head("map", len(value))
            for key, item in value.items():
                yield _text(key)
                yield from _pieces_of(item)
        case list():
            yield _head("array", len(value))
            for item in value:
                yield from _pieces_of(item)
        case str():
            yield _text(value)
        case int():
            yield _head("int", value)
        case memoryview():
            yield _head("bin", value.nbytes)
            yield value


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8")
    return _head("str", len(encoded)) + encoded


def _bin(content: bytes) -> bytes:
    return _head("bin", len(content)) + content


@lru_cache(maxsize=1024)
def _written_header(dtype_name: str, shape: tuple[int, ...], style: Style) -> bytes:
    """All of a tensor's map but its elements, which end it."""
    dimensions = _head("array", len(shape)) + b"".join(_head("int", dimension) for dimension in shape)
    start_of_data = _head("bin", byte_length(shape, dtype(dtype_name)))
    if style != "msgpack_numpy":
        parts = (_head("map", 3), _text("dtype"), _text(dtype_name), _text("shape"), dimensions, _text("data"), start_of_data)
        return b"".join(parts)
    descr, kind = _text(DESCR_OF[dtype_name]), b""
    if dtype_name == "bfloat16":
        # Arrays of kind V, as those of ml_dtypes are, are described as structured with one nameless field.
        descr, kind = _head("array", 1) + _head("array", 2) + _text("") + descr, b"V"
    parts = (_head("map", 5), _bin(b"nd"), _TRUE, _bin(b"type"), descr, _bin(b"kind"), _bin(kind))
    return b"".join((*parts, _bin(b"shape"), dimensions, _bin(b"data"), start_of_data))


def _check_names(names: tuple[str, ...]) -> None:
    if len(names) in (len(_PLAIN_KEYS), len(_NUMPY_KEYS)) and frozenset(names) in (_PLAIN_KEYS, _NUMPY_KEYS):
        raise NotAcceptable(f"msgpack cannot hold tensors under just the names {', '.join(names)}: such a map is one tensor")
