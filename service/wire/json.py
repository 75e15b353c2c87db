"""The msgpack maps as JSON, for small bodies: the one format in which elements are text.

`T` is `{"dtype", "shape", "data": flat list}`, or nested lists of numbers, which are always one float32
tensor (a bare number is 0-d); non-finite numbers are the strings "NaN", "Infinity" and "-Infinity".
Where a tensor stands alone, `[]` is a list of no tensors; under a name, it is a tensor of shape (0,).

Numbers are read as float64 and then rounded to the dtype, ties to even; one too large for the dtype
becomes infinite, as NumPy does it. `-0` keeps its sign. What is written reads back as the same values:
each element is the shortest decimal of the float64 that equals it.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np

from service.dtypes import DTYPES, DType, dtype
from service.errors import BadTensor, MalformedBody, NotAcceptable, RequestError, TooManyTensors
from service.wire import json_lists
from service.wire.compact import CompactBundle, CompactPart, document
from service.wire.json_lists import Limits, NumberList
from service.wire.json_numbers import NON_FINITE, floats
from service.wire.layout import DESCR_OF, MAX_DIMENSIONS, byte_length, bytes_of, in_c_order
from service.wire.message import Bundle, Message, WireTensor

MEDIA_TYPE = "application/json"
ALIASES = ()
HOLDS_NAMES = True

# What json.loads makes of a body, and json.dumps takes.
Value = dict[str, "Value"] | list["Value"] | NumberList | str | int | float | bool | None

_NEGATIVE_ZERO = re.compile(r"-0(?![\d.eE])")
# Shorter bodies are read faster by the standard library alone.
_SHORT_BYTES = 16 * 1024
# Fields without tensors, and other members that nobody needs.
_SURPLUS_KEYS = 1024
_COMPACT = (",", ":")
_ELEMENTS_AT_ONCE = 2**14
_TENSOR_KEYS = frozenset({"dtype", "shape", "data"})
_NESTED_DTYPE = DTYPES["float32"]


def decode(body: memoryview, _fields: tuple[str, ...], max_tensors: int) -> dict[str, Bundle]:
    """Read the map of the body.

    Raises `MalformedBody` for what RFC 8259 does not allow, duplicate keys, and data that contradict
    their shape; `BadTensor` for values that are no tensor; `UnsupportedDtype`; `TooManyTensors`.
    """
    # Maps: the message, one of names for each field, and each tensor. Keys: a tensor's name and its own three.
    document = parsed(body, limits=Limits(maps=1 + 2 * max_tensors, keys=_SURPLUS_KEYS + 4 * max_tensors))
    if not isinstance(document, dict):
        raise BadTensor(f"the body must be a map of names to tensors, not {_kind(document)}")
    message: dict[str, Bundle] = {}
    left = max_tensors
    for field, value in document.items():
        tensors = _declared(value)
        left -= tensors
        if left < 0:
            raise TooManyTensors(f"with {field[:80]!r} the body holds more than {max_tensors} tensors")
        message[field] = _bundle(value, field[:80])
    return message


def encode(message: Message) -> list[bytes | memoryview]:
    """The map of the message, as one piece."""
    return [_map_text(message, map(_bundle_text, message.values())).encode("ascii")]


def encode_compact(bundle: CompactBundle) -> list[bytes | memoryview]:
    """The maps of a compact answer, as one piece; elements are flat lists of numbers in C order."""
    return [json.dumps(document(bundle, _numbers_of), separators=_COMPACT, allow_nan=False).encode("ascii")]


# Reading --------------------------------------------------------------------------------------------


def _no_constant(literal: str) -> float:
    raise ValueError(f"{literal} is not JSON; non-finite numbers are the strings {', '.join(NON_FINITE)}")


def parsed(body: memoryview, constant: Callable[[str], float] = _no_constant, *, limits: Limits | None = None) -> Value:
    """What the text says; `MalformedBody` for what RFC 8259 does not allow, and for duplicate keys.

    `constant` says what `NaN`, `Infinity` and `-Infinity` are, which are not JSON. `TooManyTensors` beyond the
    limits, before the rest is read: a million empty maps, which are 3 MB, take half a second. Long lists are
    `NumberList`s where they are values of maps in a body that is not short.
    """
    try:
        text = str(body, "utf-8")
        with _not_collecting():
            if body.nbytes <= _SHORT_BYTES:
                return _standard(text, constant, None if limits is None else limits.maps)
            document: Value = json_lists.loads(bytes(body), constant, _standard, limits)
            return document
    except RequestError:
        raise
    except RecursionError:
        raise MalformedBody("the body is nested too deeply") from None
    except ValueError as error:  # of json, of the UTF-8 codec, of int() for too many digits, and ours
        raise MalformedBody(f"the body is not valid JSON: {str(error)[:200]}") from None


def _standard(text: str, constant: Callable[[str], float], most_maps: int | None = None) -> Value:
    """What the standard library reads."""
    # Only where `-0` stands does an int need a look of ours, which takes longer than reading it.
    read_int = _integer if _NEGATIVE_ZERO.search(text) else None
    read_map = _map if most_maps is None else _at_most(most_maps)
    document: Value = json.loads(text, object_pairs_hook=read_map, parse_constant=constant, parse_int=read_int)
    return document


@contextmanager
def _not_collecting() -> Iterator[None]:
    """Without looks for garbage, of which reading makes none: a million lists are read in half the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _at_most(most_maps: int) -> Callable[[list[tuple[str, Value]]], dict[str, Value]]:
    """`_map` for so many maps."""
    left = most_maps

    def counted_map(pairs: list[tuple[str, Value]]) -> dict[str, Value]:
        nonlocal left
        left -= 1
        if left < 0:
            raise TooManyTensors(f"the body holds more than {most_maps} maps, which are more than its tensors may need")
        return _map(pairs)

    return counted_map


def _map(pairs: list[tuple[str, Value]]) -> dict[str, Value]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} stands twice in one map")
    for key in entries:
        # Half of a surrogate pair, which JSON can write as an escape, is no text in any other format.
        key.encode("utf-8")
    return entries


def _integer(literal: str) -> int | float:
    return -0.0 if literal == "-0" else int(literal)


def _is_tensor(value: Value) -> bool:
    return isinstance(value, dict) and value.keys() == _TENSOR_KEYS


def _declared(value: Value) -> int:
    """How many tensors a bundle holds, without looking at them."""
    if isinstance(value, dict) and not _is_tensor(value):
        return len(value)
    if isinstance(value, list) and (not value or isinstance(value[0], dict)):
        return len(value)
    return 1


def _bundle(value: Value, where: str) -> Bundle:
    if isinstance(value, dict) and not _is_tensor(value):
        return Bundle(tuple(_tensor(item, f"{where}.{name[:80]}") for name, item in value.items()), names=tuple(value))
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return Bundle(tuple(_plain_tensor(item, f"{where}[{i}]") for i, item in enumerate(value)))
    if value == []:
        return Bundle(())
    return Bundle.of(_tensor(value, where))


def _tensor(value: Value, where: str) -> WireTensor:
    return _plain_tensor(value, where) if isinstance(value, dict) else _nested_tensor(value, where)


def _plain_tensor(value: Value, where: str) -> WireTensor:
    if not isinstance(value, dict) or not _is_tensor(value):
        raise BadTensor(f"{where} must be a map of exactly {', '.join(sorted(_TENSOR_KEYS))}, not {_kind(value)}")
    name, shape, data = value["dtype"], value["shape"], value["data"]
    if not isinstance(name, str):
        raise MalformedBody(f"{where}.dtype must be a string, not {_kind(name)}")
    dimensions = shape_of(shape, f"{where}.shape")
    if not isinstance(data, list | NumberList):
        raise MalformedBody(f"{where}.data must be a flat list of numbers, not {_kind(data)}")
    tensor_dtype = dtype(name)
    expected = byte_length(dimensions, tensor_dtype) // tensor_dtype.itemsize
    length = len(data) if isinstance(data, list) else data.length
    if length != expected:
        raise MalformedBody(f"{where}.data has {length} elements; shape {list(dimensions)} has {expected}")
    if isinstance(data, NumberList) and data.shape != (length,):
        raise BadTensor(f"{where}.data must be a flat list of numbers, not one of lists")
    return WireTensor(tensor_dtype, dimensions, rounded(numbers(data, lambda i: f"{where}.data[{i}]"), tensor_dtype))


def shape_of(value: Value, where: str) -> tuple[int, ...]:
    """The dimensions that a list says; `MalformedBody` for anything else."""
    if isinstance(value, NumberList):
        raise MalformedBody(f"{where} must be a list of at most {MAX_DIMENSIONS} ints of at least 0; it has {value.length} entries")
    shape = value if isinstance(value, list) else [None]
    # `type`, not `isinstance`: true is no dimension.
    dimensions = tuple(dimension for dimension in shape if type(dimension) is int and dimension >= 0)
    if len(dimensions) < len(shape):
        raise MalformedBody(f"{where} must be a list of ints of at least 0")
    return dimensions


def _nested_tensor(value: Value, where: str) -> WireTensor:
    """The one tensor that nested lists are."""
    shape, values = flattened(value, where)
    read = numbers(values, lambda i: f"{where}{_index(i, shape)}")
    return WireTensor(_NESTED_DTYPE, shape, rounded(read, _NESTED_DTYPE), style="nested")


def flattened(value: Value, where: str) -> tuple[tuple[int, ...], Sequence[Any] | NumberList]:
    """Shape and entries of nested lists: level by level, all entries are lists of one length, or none is a list.

    Raises `BadTensor` for ragged lists, `MalformedBody` for more dimensions than there can be.
    """
    if isinstance(value, NumberList):
        return _known_shape(value, where), value
    shape: list[int] = []
    level: Sequence[Any] = [value]
    while level and all(type(item) is list for item in level):
        lengths = set(map(len, level))
        if len(lengths) > 1:
            raise BadTensor(f"{where} is ragged: in dimension {len(shape)} its lists have {min(lengths)} to {max(lengths)} entries")
        if len(shape) == MAX_DIMENSIONS:
            raise _too_deep(where)
        shape += lengths
        level = list(chain.from_iterable(level))
    if list in set(map(type, level)):
        raise BadTensor(f"{where} is ragged: in dimension {len(shape)} there are lists beside other values")
    return tuple(shape), level


def _known_shape(value: NumberList, where: str) -> tuple[int, ...]:
    if value.is_too_deep:
        raise _too_deep(where)
    if value.shape is None:
        raise BadTensor(f"{where} is ragged: it has lists of different lengths in one dimension, or lists beside other values")
    return value.shape


def _too_deep(where: str) -> MalformedBody:
    return MalformedBody(f"{where} is nested deeper than the {MAX_DIMENSIONS} dimensions that are possible")


def numbers(values: Sequence[Any] | NumberList, where: Callable[[int], str]) -> np.ndarray[Any, Any]:
    """The values as float64; `where` names the one that is no number."""
    if isinstance(values, NumberList):
        if values.stray is not None:
            place, value = values.stray
            _number(value, where, place)
        return values.values
    if set(map(type, values)) <= {float, int}:
        return floats(values)
    return floats([_number(value, where, i) for i, value in enumerate(values)])


def _number(value: Value, where: Callable[[int], str], i: int) -> float:
    if type(value) is float or type(value) is int:
        return value
    if isinstance(value, str) and value in NON_FINITE:
        return NON_FINITE[value]
    raise BadTensor(f"{where(i)} must be a number or one of the strings {', '.join(NON_FINITE)}, not {_kind(value)}")


def rounded(numbers: np.ndarray[Any, Any], to: DType) -> memoryview:
    """The bytes of float64 numbers, rounded to the dtype."""
    with np.errstate(over="ignore", invalid="ignore"):
        if to.name != "bfloat16":
            return bytes_of(numbers.astype(DESCR_OF[to.name]))
        singles = numbers.astype("<f4")
    # bfloat16 is the upper half of a float32. Half of its last place, less one where it is even, rounds ties to even.
    words = singles.view("<u4")
    # The one NaN that JSON has, 0x7FC00000, stays NaN.
    words = (words + np.uint32(0x7FFF) + ((words >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return bytes_of(words.astype("<u2"))


def _index(i: int, shape: tuple[int, ...]) -> str:
    """The position of the i-th element, as one would write it: `[1][0]`."""
    indices: list[int] = []
    for dimension in reversed(shape):
        i, index = divmod(i, dimension)
        indices.insert(0, index)
    return "".join(f"[{index}]" for index in indices)


def _kind(value: Value) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return f"the string {value[:80]!r}"
    return {dict: "a map", list: "a list", NumberList: "a list", int: "a number", float: "a number"}[type(value)]


# Writing --------------------------------------------------------------------------------------------


def _bundle_text(bundle: Bundle) -> str:
    if bundle.names is not None:
        if frozenset(bundle.names) == _TENSOR_KEYS:
            raise NotAcceptable(
                f"JSON cannot hold tensors under just the names {', '.join(bundle.names)}: such a map is one tensor"
            )
        return _map_text(bundle.names, map(_tensor_text, bundle.tensors))
    if bundle.single:
        (tensor,) = bundle.tensors
        # Alone, `[]` would be read as a list of no tensors.
        return _plain_text(tensor) if tensor.shape == (0,) else _tensor_text(tensor)
    # A list of nested lists would be read as one tensor.
    return f"[{','.join(map(_plain_text, bundle.tensors))}]"


def _map_text(keys: Iterable[str], values: Iterable[str]) -> str:
    return "{" + ",".join(f"{json.dumps(key)}:{value}" for key, value in zip(keys, values, strict=True)) + "}"


def _tensor_text(tensor: WireTensor) -> str:
    # Nested lists have no place for a dtype, nor for a dimension inside one that is empty.
    if tensor.style != "nested" or tensor.dtype != _NESTED_DTYPE or 0 in tensor.shape[:-1]:
        return _plain_text(tensor)
    return _lists_text(array_of(tensor).reshape(tensor.shape))


def _plain_text(tensor: WireTensor) -> str:
    values = (f'"{tensor.dtype.name}"', json.dumps(tensor.shape, separators=_COMPACT), _lists_text(array_of(tensor)))
    return _map_text(("dtype", "shape", "data"), values)


def _lists_text(array: np.ndarray[Any, Any]) -> str:
    """The elements in lists of this shape, some thousand at a time: other threads get their turn in between.

    Within a portion nothing may release the interpreter, as NumPy does for longer arrays: a thread that waits asks for it
    after 5 ms of waiting, and begins to wait again whenever it was free for a moment. (Seen: 250 ms.)
    """
    return _text_in_portions(_named(array))


def _text_in_portions(array: np.ndarray[Any, Any]) -> str:
    if array.size <= _ELEMENTS_AT_ONCE:
        return json.dumps(array.tolist(), separators=_COMPACT, allow_nan=False)
    entry_size = array.size // len(array)
    if entry_size > _ELEMENTS_AT_ONCE:
        return f"[{','.join(map(_text_in_portions, array))}]"
    step = _ELEMENTS_AT_ONCE // entry_size
    return f"[{','.join(_text_in_portions(array[i : i + step])[1:-1] for i in range(0, len(array), step))}]"


def array_of(tensor: WireTensor) -> np.ndarray[Any, Any]:
    """The elements in C order, 1-d; those of bfloat16 as the float32 that equal them."""
    data = in_c_order(tensor)
    if tensor.dtype.name == "bfloat16":
        return (np.frombuffer(data, "<u2").astype("<u4") << np.uint32(16)).view("<f4")
    return np.frombuffer(data, DESCR_OF[tensor.dtype.name])


def _named(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The elements, or where some are not finite: as Python numbers, those as strings."""
    if np.isfinite(array).all():
        return array
    elements = array.astype(object)
    elements[np.isnan(array)] = "NaN"
    elements[array == np.inf] = "Infinity"
    elements[array == -np.inf] = "-Infinity"
    return elements


def _numbers_of(part: CompactPart) -> Value:
    if part.dtype in DTYPES:
        values: Value = _named(array_of(WireTensor(DTYPES[part.dtype], part.shape, part.data))).tolist()
        return values
    integers: Value = np.frombuffer(part.data, part.dtype).tolist()
    return integers
