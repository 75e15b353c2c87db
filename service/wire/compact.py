"""Compact answers: the integers that a quantizer's values are multiples of, or one bit for each element of a gradient.

`codes` are the integers, in C order. `packed` are the same in `bits` bits each: code i has the bits from
i * bits on, of a stream whose first bit is the lowest of its first byte. A `mask` is packed with one bit each.
What no integer stands for (NaN, infinities, what lies outside) is written apart: flat positions in C order, and
the values there. docs/compact.md has the bytes. Here is what a compact tensor consists of; each codec writes it in its own way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

from service.dtypes import DType

Form = Literal["codes", "packed", "mask"]
# What maps hold: texts, numbers, and elements as each format writes them.
Leaf = TypeVar("Leaf")


class CompactPart(NamedTuple):
    """Elements in C order: what they are called in their tensor, and NumPy's name for their dtype."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview


@dataclass(frozen=True, slots=True)
class Exceptions:
    """The positions that codes say nothing of, ascending, and the values there; `index_dtype` is uint32 or uint64."""

    count: int
    index_dtype: str
    index: memoryview
    value: memoryview


NO_EXCEPTIONS = Exceptions(0, "uint32", memoryview(b""), memoryview(b""))


class CompactTensor(NamedTuple):
    """A tensor of this dtype and shape in a compact form.

    `elements` are of `element_dtype`: integers, or bytes of a stream of bits. `operator` is the one whose
    codes they are, as an expression; a mask has none.
    """

    form: Form
    dtype: DType
    shape: tuple[int, ...]
    elements: memoryview
    element_dtype: str = "uint8"
    bits: int = 1
    operator: str = ""
    exceptions: Exceptions = NO_EXCEPTIONS

    def description(self) -> dict[str, str | int | list[int]]:
        """What a reader must know to decode it, beside its parts."""
        described: dict[str, str | int | list[int]] = {"dtype": self.dtype.name, "shape": list(self.shape)}
        if self.form == "mask":
            return described
        width: dict[str, str | int] = {"code_dtype": self.element_dtype} if self.form == "codes" else {"bits": self.bits}
        return described | {"operator": self.operator} | width

    def parts(self) -> Iterator[CompactPart]:
        """The elements, then the exceptions."""
        shape = self.shape if self.form == "codes" else (self.elements.nbytes,)
        yield CompactPart(self.form, self.element_dtype, shape, self.elements)
        if self.form != "mask":
            of = (self.exceptions.count,)
            yield CompactPart("exceptions.index", self.exceptions.index_dtype, of, self.exceptions.index)
            yield CompactPart("exceptions.value", self.dtype.name, of, self.exceptions.value)


class CompactBundle(NamedTuple):
    """The compact answer to a call: `field` is `y` or `grad_x`; structured as `message.Bundle` is."""

    field: str
    tensors: tuple[CompactTensor, ...]
    names: tuple[str, ...] | None = None
    single: bool = False


def packed_bytes(count: int, bits: int) -> int:
    """How many bytes `count` codes of `bits` bits each are packed into."""
    return -(-count * bits // 8)


def document(bundle: CompactBundle, write: Callable[[CompactPart], Leaf]) -> dict[str, object]:
    """The answer as maps and lists, with the parts as `write` writes them."""
    maps = [_map(tensor, write) for tensor in bundle.tensors]
    if bundle.single:
        return {bundle.field: maps[0]}
    return {bundle.field: maps if bundle.names is None else dict(zip(bundle.names, maps, strict=True))}


def _map(tensor: CompactTensor, write: Callable[[CompactPart], Leaf]) -> dict[str, object]:
    elements, *exceptions = tensor.parts()
    written: dict[str, object] = {**tensor.description(), elements.name: write(elements)}
    if exceptions:
        written["exceptions"] = {part.name.removeprefix("exceptions."): write(part) for part in exceptions}
    return written
