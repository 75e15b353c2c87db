"""Named tensors in a `.safetensors` file: a JSON header, then the tensors' elements end to end.

`x`, `grad_output`, `y` and `grad_x` stand for one tensor under their own names, for several as `x.<name>`;
tensor parameters under their names. A list has the names `x.0`, `x.1`, …; one without tensors leaves nothing
in the file. The reader is our own because the library copies every tensor, takes a header of 100 MB, and
lets a key stand twice; what it refuses, this refuses too. `__metadata__` is checked and ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from service.dtypes import DTYPES, DType
from service.errors import MalformedBody, StructureMismatch, TooManyTensors, UnsupportedDtype
from service.wire.compact import CompactBundle
from service.wire.layout import byte_length, in_c_order
from service.wire.message import Bundle, Message, WireTensor

MEDIA_TYPE = "application/vnd.safetensors"
ALIASES = ()
HOLDS_NAMES = True

# A quarter of a KiB for each of 16 384 tensors; as many bytes of JSON as the JSON format takes by default.
MAX_HEADER_BYTES = 4 * 2**20
# Headers of one or two tensors, which come again and again; larger ones are read anew each time.
MAX_CACHED_HEADER_BYTES = 512

DTYPE_OF_TAG: dict[str, DType] = {
    "F16": DTYPES["float16"],
    "BF16": DTYPES["bfloat16"],
    "F32": DTYPES["float32"],
    "F64": DTYPES["float64"],
}
TAG_OF: dict[str, str] = {dtype.name: tag for tag, dtype in DTYPE_OF_TAG.items()} | {
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
}

_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_PARTS = {"dtype", "shape", "data_offsets"}


class Entry(NamedTuple):
    """What a header says of one tensor: its elements are the bytes from `start` to `stop` behind the header."""

    name: str
    tag: str
    shape: tuple[int, ...]
    start: int
    stop: int


class File(NamedTuple):
    """A file's header, read and found to fit its length: the tensors as they lie, and where the first one starts."""

    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]
    data_start: int


class Part(NamedTuple):
    """One tensor to be written: its name, NumPy's name for its dtype, its shape, its elements in C order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def decode(body: memoryview, fields: tuple[str, ...], max_tensors: int) -> dict[str, Bundle]:
    """Read the tensors of a file; they share the body's memory. `fields` are those that may hold several.

    The names of a field are in the order in which their data lie. Raises `MalformedBody` for what is no such
    file, `UnsupportedDtype` for a tensor of another dtype, `StructureMismatch` for a field that holds one
    tensor and several, `TooManyTensors`.
    """
    file = read_file(body, max_tensors)
    message: dict[str, Bundle] = {}
    several: dict[str, list[tuple[str, WireTensor]]] = {}
    for entry in file.entries:
        tensor = _tensor(entry, body[file.data_start + entry.start : file.data_start + entry.stop])
        field, dot, name = _split(entry.name, fields)
        if dot:
            several.setdefault(field, []).append((name, tensor))
        else:
            message[field] = Bundle.of(tensor)
    for field, named in several.items():
        if field in message:
            raise StructureMismatch(
                f"the file holds both {field!r} and {f'{field}.{named[0][0]}'[:80]!r}; allowed: one or the other"
            )
        message[field] = Bundle(tuple(tensor for _, tensor in named), tuple(name for name, _ in named))
    return message


def encode(message: Message) -> list[bytes | memoryview]:
    """The file of a message, in pieces: its header, then the tensors' own memory.

    A tensor in Fortran order is copied into C order; the format knows no other.
    """
    return write_file(_parts(message), {})


def encode_compact(bundle: CompactBundle) -> list[bytes | memoryview]:
    """The file of a compact answer: `y.codes`, `y.exceptions.index`, `y.exceptions.value`, and how to decode in `__metadata__`."""
    parts: list[Part] = []
    metadata: dict[str, str] = {}
    called = names(bundle.field, bundle.names, len(bundle.tensors), single=bundle.single)
    for name, tensor in zip(called, bundle.tensors, strict=True):
        metadata[name] = json.dumps(tensor.description(), separators=(",", ":"))
        parts += (Part(f"{name}.{part.name}", part.dtype, part.shape, part.data) for part in tensor.parts())
    return write_file(parts, metadata)


def read_file(body: memoryview, max_tensors: int) -> File:
    """Read a header, and check it against the length of the body."""
    if len(body) < _LENGTH_BYTES:
        raise MalformedBody(f"the body has {len(body)} bytes; a safetensors file starts with the length of its header, in 8")
    length = int.from_bytes(body[:_LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise MalformedBody(f"the header is said to have {length} bytes; at most {MAX_HEADER_BYTES} are read")
    data_start = _LENGTH_BYTES + length
    if data_start > len(body):
        raise MalformedBody(f"the header is said to have {length} bytes; {len(body) - _LENGTH_BYTES} follow")
    read = _read_header if length <= MAX_CACHED_HEADER_BYTES else _read_header.__wrapped__
    try:
        entries, metadata = read(bytes(body[_LENGTH_BYTES:data_start]), max_tensors)
    except _BadHeader as error:
        raise MalformedBody(f"the header is not one of safetensors: {error}") from None
    end = entries[-1].stop if entries else 0
    if end != len(body) - data_start:
        raise MalformedBody(f"the tensors end {end} bytes behind the header; {len(body) - data_start} bytes follow it")
    return File(entries, metadata, data_start)


def write_file(parts: Iterable[Part], metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """A file, in pieces. The widest elements come first, so that all are aligned to their size."""
    ordered = sorted(parts, key=_item_bytes, reverse=True)
    described = tuple((one.name, one.dtype, one.shape, one.data.nbytes) for one in ordered)
    is_short = not metadata and len(described) == 1 and len(described[0][0]) <= MAX_CACHED_HEADER_BYTES
    write = _written_header if is_short else _written_header.__wrapped__
    return [write(described, tuple(metadata.items())), *(one.data for one in ordered if one.data.nbytes)]


# Reading --------------------------------------------------------------------------------------------


class _BadHeader(Exception):
    """The header is not what it should be; `str()` says why."""


@lru_cache(maxsize=1024)
def _read_header(encoded: bytes, max_tensors: int) -> tuple[tuple[Entry, ...], Mapping[str, str]]:
    document = _document(encoded)
    metadata = _metadata(document.pop(_METADATA, {}))
    if len(document) > max_tensors:
        raise TooManyTensors(f"the file holds {len(document)} tensors; at most {max_tensors} are allowed")
    entries = sorted((_entry(name, value) for name, value in document.items()), key=lambda entry: (entry.start, entry.stop))
    at = 0
    for entry in entries:
        if entry.start != at:
            raise _BadHeader(f"the data of {entry.name[:80]!r} start at {entry.start}; those before end at {at}")
        at = entry.stop
    for entry in entries:
        _check_length(entry)
    return tuple(entries), metadata


def _document(encoded: bytes) -> dict[str, Any]:
    if not encoded.startswith(b"{"):
        raise _BadHeader(f"it starts with {encoded[:1]!r} instead of b'{{'")
    try:
        document: dict[str, Any] = json.loads(
            encoded.decode("utf-8"), object_pairs_hook=_map, parse_int=_natural, parse_float=_no_number, parse_constant=_no_number
        )
    except RecursionError:
        raise _BadHeader("it is nested too deeply") from None
    except ValueError as error:  # of json, of the UTF-8 codec, of int() for too many digits, and ours
        raise _BadHeader(str(error)[:200]) from None
    return document


def _map(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} stands twice in one map")
    for text in (*entries, *(value for value in entries.values() if isinstance(value, str))):
        # Half of a surrogate pair, which JSON can write as an escape, is no text in any other format.
        text.encode("utf-8")
    return entries


def _natural(literal: str) -> int:
    if literal.startswith("-"):
        raise ValueError(f"{literal[:40]} is not allowed; a length is an int of at least 0")
    return int(literal)


def _no_number(literal: str) -> float:
    raise ValueError(f"{literal[:40]} is not allowed; a length is an int of at least 0")


def _metadata(value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _BadHeader(f"{_METADATA!r} must be a map of strings to strings")
    return value


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or value.keys() != _PARTS:
        raise _BadHeader(f"{name[:80]!r} must be a map with just the keys {', '.join(sorted(_PARTS))}")
    tag, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(tag, str):
        raise _BadHeader(f"'dtype' of {name[:80]!r} must be a string")
    if not _is_row_of_ints(shape) or not _is_row_of_ints(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _BadHeader(f"'shape' and 'data_offsets' of {name[:80]!r} must be lists of ints, the second of a start and a stop")
    return Entry(name, tag, tuple(shape), *offsets)


def _is_row_of_ints(value: Any) -> bool:
    # `type`, not `isinstance`: true is no dimension.
    return isinstance(value, list) and all(type(item) is int for item in value)


def _check_length(entry: Entry) -> None:
    dtype = DTYPE_OF_TAG.get(entry.tag)
    # What is refused for its dtype or was written by this module needs no look at its length here.
    if dtype is not None and byte_length(entry.shape, dtype) != entry.stop - entry.start:
        raise _BadHeader(
            f"{entry.name[:80]!r} has {entry.stop - entry.start} bytes; {entry.tag} of shape {list(entry.shape)} "
            f"has {byte_length(entry.shape, dtype)}"
        )


def _tensor(entry: Entry, data: memoryview) -> WireTensor:
    try:
        dtype = DTYPE_OF_TAG[entry.tag]
    except KeyError:
        raise UnsupportedDtype(
            f"the tensor {entry.name[:80]!r} of dtype {entry.tag[:80]!r} is not supported; allowed: {', '.join(DTYPE_OF_TAG)}"
        ) from None
    return WireTensor(dtype, entry.shape, data)


def _split(name: str, fields: Sequence[str]) -> tuple[str, str, str]:
    """A tensor's name as its field, a dot where one follows, and its name in the field."""
    field, dot, rest = name.partition(".")
    return (field, dot, rest) if field in fields else (name, "", "")


# Writing --------------------------------------------------------------------------------------------


def _parts(message: Message) -> Iterator[Part]:
    for field, bundle in message.items():
        for name, tensor in zip(names(field, bundle.names, len(bundle.tensors), single=bundle.single), bundle.tensors, strict=True):
            yield Part(name, tensor.dtype.name, tensor.shape, in_c_order(tensor))


def names(field: str, own: Sequence[str] | None, count: int, *, single: bool) -> list[str]:
    """What the tensors of a bundle are called in a file: `x`, or `x.0`, `x.1`, …, or `x.<name>`."""
    return [field] if single else [f"{field}.{name}" for name in (range(count) if own is None else own)]


@lru_cache(maxsize=1024)
def _written_header(parts: tuple[tuple[str, str, tuple[int, ...], int], ...], metadata: tuple[tuple[str, str], ...]) -> bytes:
    """The length and the header, as the library writes them: without blanks, but those that fill up to a multiple of 8."""
    document: dict[str, object] = {_METADATA: dict(metadata)} if metadata else {}
    at = 0
    for name, dtype, shape, nbytes in parts:
        document[name] = {"dtype": TAG_OF[dtype], "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _item_bytes(part: Part) -> int:
    return DTYPES[part.dtype].itemsize if part.dtype in DTYPES else np.dtype(part.dtype).itemsize
