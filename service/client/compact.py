"""Compact answers in the caller's hands: codes, packed codes and masks, decoded by NumPy alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from service.client import decoding
from service.client.errors import ProtocolError
from service.client.tensors import Array, Sent, send
from service.errors import DtypeMismatch, RequestError, ShapeMismatch
from service.ops import Operator, parse
from service.wire import safetensors
from service.wire.compact import packed_bytes
from service.wire.layout import bytes_of
from service.wire.message import WireTensor

Integers: TypeAlias = npt.NDArray[Any]
# What takes part in unpacking one code, at most: a byte for each of its bits, up to 32.
_BLOCK_CODES = 2**18


@dataclass(frozen=True, slots=True, eq=False)
class Exceptions:
    """The positions, flat in C order, where no code stands for a value; and the values there, as unsigned words."""

    positions: Integers
    words: Integers


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """The integers of a quantized tensor.

    `codes` has the tensor's shape, and the smallest integer dtype that holds them; where that is signed, its smallest
    integer stands for the code -0.0. `operator` makes values of them; `dtype` is theirs. `decode()` gives the very bits
    of `output="values"`, as what the caller had passed: an array, or a tensor on its device.
    """

    codes: Integers
    dtype: str
    operator: Operator
    _exceptions: Exceptions = field(repr=False)
    _like: Sent = field(repr=False)
    _tensors: Mapping[str, WireTensor] = field(default_factory=dict, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        shape: tuple[int, ...] = self.codes.shape
        return shape

    @property
    def nbytes(self) -> int:
        """The bytes of the codes and the exceptions."""
        return self.codes.nbytes + self._exceptions.positions.nbytes + self._exceptions.words.nbytes

    def decode(self) -> Array:
        """The values."""
        dtype = self._like.wire.dtype
        data = decoding.values(self.operator, self.codes, dtype, self._tensors)
        words = np.frombuffer(data, f"<u{dtype.itemsize}")
        words[self._exceptions.positions] = self._exceptions.words
        return self._like.kind.restore(WireTensor(dtype, self.shape, data))


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """The integers of a quantized tensor of this shape, `bits` bits each, as `unpack` reads them.

    See `Codes` for `dtype`, `operator` and `decode()`.
    """

    packed: npt.NDArray[np.uint8]
    bits: int
    shape: tuple[int, ...]
    dtype: str
    operator: Operator
    _exceptions: Exceptions = field(repr=False)
    _like: Sent = field(repr=False)
    _tensors: Mapping[str, WireTensor] = field(default_factory=dict, repr=False)

    @property
    def nbytes(self) -> int:
        """The bytes of the codes and the exceptions."""
        return self.packed.nbytes + self._exceptions.positions.nbytes + self._exceptions.words.nbytes

    def codes(self) -> Integers:
        """The integers, in the tensor's shape and the smallest unsigned dtype for so many bits."""
        return unpack(self.packed, self.bits, math.prod(self.shape)).reshape(self.shape)

    def decode(self) -> Array:
        """The values."""
        return Codes(self.codes(), self.dtype, self.operator, self._exceptions, self._like, self._tensors).decode()


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """Where a gradient passes: one bit an element of a tensor of this shape and dtype, the lowest bit of a byte first."""

    packed: npt.NDArray[np.uint8]
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """The bytes of the mask."""
        return int(self.packed.nbytes)

    def array(self) -> npt.NDArray[np.bool_]:
        """The mask as an array of booleans."""
        return unpack(self.packed, 1, math.prod(self.shape)).astype(np.bool_).reshape(self.shape)

    def apply(self, grad_output: Array) -> Array:
        """`grad_x`: `grad_output` where it passes, 0 elsewhere. Raises `ShapeMismatch` and `DtypeMismatch`."""
        sent = send(grad_output, "grad_output")
        if sent.wire.shape != self.shape:
            raise ShapeMismatch(f"'grad_output' has shape {sent.wire.shape}, the mask is of shape {self.shape}")
        if sent.wire.dtype.name != self.dtype:
            raise DtypeMismatch(f"'grad_output' has dtype {sent.wire.dtype.name}, the mask is of dtype {self.dtype}")
        order: Any = "F" if sent.wire.fortran else "C"
        words = np.frombuffer(sent.wire.data, f"<u{sent.wire.dtype.itemsize}").reshape(self.shape, order=order)
        passed = np.ascontiguousarray(np.where(self.array(), words, words.dtype.type(0)))
        return sent.kind.restore(WireTensor(sent.wire.dtype, self.shape, bytes_of(passed)))


def unpack(packed: npt.NDArray[np.uint8], bits: int, count: int) -> Integers:
    """The first `count` codes of `bits` bits each, 1-d: code i has the bits from i * bits on, the lowest bit of a byte first.

    Raises `ValueError` for bits that are not 1 to 32, and where the bytes are not as many as the codes take.

    >>> unpack(np.array([0x21, 0x43], np.uint8), 4, 4)
    array([1, 2, 3, 4], dtype=uint8)
    """
    if not 1 <= bits <= 32:
        raise ValueError(f"bits is {bits}; allowed: 1 to 32")
    if count < 0 or packed.nbytes != packed_bytes(count, bits):
        raise ValueError(f"{count} codes of {bits} bits have {packed_bytes(max(count, 0), bits)} bytes, got {packed.nbytes}")
    dtype = np.dtype("u1" if bits <= 8 else "<u2" if bits <= 16 else "<u4")
    if bits in (8, 16, 32):
        return packed.view(dtype).copy()
    return _unpacked_words(packed, bits, count) if 8 % bits == 0 else _unpacked_bits(packed, bits, count, dtype)


def _unpacked_words(packed: npt.NDArray[np.uint8], bits: int, count: int) -> Integers:
    """Codes of which whole numbers lie in a byte."""
    codes = np.empty((packed.size, 8 // bits), np.uint8)
    for position in range(8 // bits):
        np.bitwise_and(packed >> np.uint8(position * bits), np.uint8(2**bits - 1), out=codes[:, position])
    return codes.reshape(-1)[:count]


def _unpacked_bits(packed: npt.NDArray[np.uint8], bits: int, count: int, dtype: np.dtype[Any]) -> Integers:
    """Codes of any width, bit by bit."""
    codes = np.empty(count, dtype)
    step_bytes = _BLOCK_CODES * bits // 8
    for start, at in zip(range(0, count, _BLOCK_CODES), range(0, packed.nbytes, step_bytes), strict=True):
        block = codes[start : start + _BLOCK_CODES]
        stream = np.unpackbits(packed[at : at + step_bytes], count=len(block) * bits, bitorder="little")
        wide = np.packbits(stream.reshape(-1, bits), axis=1, bitorder="little")
        # As many bytes for each code as the bits take: three have to become four.
        filled = np.zeros((len(block), dtype.itemsize), np.uint8)
        filled[:, : wide.shape[1]] = wide
        block[:] = filled.view(dtype)[:, 0]
    return codes


# Reading an answer ------------------------------------------------------------------------------------


class Answered:
    """A compact answer as a file of tensors, taken apart."""

    def __init__(self, body: memoryview, max_tensors: int) -> None:
        try:
            self._file = safetensors.read_file(body, max_tensors)
        except RequestError as error:
            raise ProtocolError(f"the answer cannot be read as safetensors: {error.detail}") from error
        self._body = body
        self._entries = {entry.name: entry for entry in self._file.entries}

    def codes(self, name: str, sent: Sent, tensors: Mapping[str, WireTensor]) -> Codes:
        """The codes of the tensor that is called so."""
        described = self._described(name, sent)
        codes = self._part(f"{name}.codes", described.get("code_dtype"))
        if codes.size != math.prod(sent.wire.shape):
            raise ProtocolError(f"{name!r} has {codes.size} codes, expected {math.prod(sent.wire.shape)}")
        return Codes(
            codes.reshape(sent.wire.shape),
            sent.wire.dtype.name,
            _operator(described),
            self._exceptions(name, sent),
            _without_elements(sent),
            tensors,
        )

    def packed(self, name: str, sent: Sent, tensors: Mapping[str, WireTensor]) -> Packed:
        """The packed codes of the tensor that is called so."""
        described = self._described(name, sent)
        bits = described.get("bits")
        if not isinstance(bits, int) or not 1 <= bits <= 32:
            raise ProtocolError(f"{name!r} has codes of {bits!r} bits")
        packed = self._stream(f"{name}.packed", bits, sent)
        return Packed(
            packed,
            bits,
            sent.wire.shape,
            sent.wire.dtype.name,
            _operator(described),
            self._exceptions(name, sent),
            _without_elements(sent),
            tensors,
        )

    def mask(self, name: str, sent: Sent) -> Mask:
        """The mask of the tensor that is called so."""
        self._described(name, sent)
        return Mask(self._stream(f"{name}.mask", 1, sent), sent.wire.shape, sent.wire.dtype.name)

    def _described(self, name: str, sent: Sent) -> dict[str, object]:
        try:
            described = json.loads(self._file.metadata[name])
        except (KeyError, ValueError, RecursionError) as error:
            raise ProtocolError(f"the answer does not describe {name!r}") from error
        wanted = {"dtype": sent.wire.dtype.name, "shape": list(sent.wire.shape)}
        got = {key: described.get(key) for key in wanted} if isinstance(described, dict) else described
        if got != wanted:
            raise ProtocolError(f"{name!r} is described as {str(got)[:200]}, expected {wanted}")
        return dict(described)

    def _part(self, name: str, dtype: object) -> Integers:
        entry = self._entries.get(name)
        if entry is None or entry.tag != safetensors.TAG_OF.get(str(dtype)):
            raise ProtocolError(f"the answer holds no {name!r} of dtype {dtype}")
        data = self._body[self._file.data_start + entry.start : self._file.data_start + entry.stop]
        width = {"float16": "u2", "bfloat16": "u2", "float32": "u4", "float64": "u8"}.get(str(dtype), str(dtype))
        try:
            return np.frombuffer(data, np.dtype(width).newbyteorder("<"))
        except ValueError as error:
            raise ProtocolError(f"{name!r} has {len(data)} bytes, which are no {dtype}") from error

    def _stream(self, name: str, bits: int, sent: Sent) -> npt.NDArray[np.uint8]:
        stream = self._part(name, "uint8")
        expected = packed_bytes(math.prod(sent.wire.shape), bits)
        if stream.nbytes != expected:
            raise ProtocolError(f"{name!r} has {stream.nbytes} bytes, expected {expected}")
        return stream

    def _exceptions(self, name: str, sent: Sent) -> Exceptions:
        size = math.prod(sent.wire.shape)
        positions = self._part(f"{name}.exceptions.index", "uint32" if size <= 2**32 else "uint64")
        words = self._part(f"{name}.exceptions.value", sent.wire.dtype.name)
        if len(positions) != len(words) or (len(positions) and int(positions.max()) >= size):
            raise ProtocolError(f"the exceptions of {name!r} do not fit a tensor of {size} elements")
        return Exceptions(positions, words)


def _without_elements(sent: Sent) -> Sent:
    """What a result is given back as; the caller's memory is not kept for it."""
    return Sent(sent.wire.like(memoryview(b"")), sent.kind)


def _operator(described: Mapping[str, object]) -> Operator:
    try:
        (operator,) = parse(str(described.get("operator"))).operators
    except ValueError as error:
        raise ProtocolError(f"the answer names an operator that cannot be read: {error}") from error
    return operator
