"""Compact answers, computed on a device: codes, packed codes and masks, a tile at a time.

A tile is quantized up to its codes, looked over and written as integers while it is in cache; nothing of the
size of the operand is allocated where the answer fits into the operand's own memory, tile behind tile. Where
nothing bounds the codes, they are computed first, in place, to find the smallest integers that hold them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from service.call import Call
from service.device import memory, tiles
from service.device.compute import parameters
from service.device.devices import Device
from service.device.packing import Scratch, pack, pack_mask
from service.errors import NotRepresentable
from service.ops import Operator
from service.ops.codes import Interval, code_interval, prefix
from service.wire.compact import NO_EXCEPTIONS, CompactBundle, CompactTensor, Exceptions, Form, packed_bytes
from service.wire.layout import in_c_order
from service.wire.message import WireTensor

# Exceptions cost more than the values that they stand for: beyond an eighth of the elements nothing is won.
_EXCEPTIONS_SHARE = 8
# So many are allowed in small tensors too.
_EXCEPTIONS_ALLOWED = 64
# From here on the largest code may be 2**31, which is no int32.
_WIDE_BITS = 31

# The integers of codes, smallest first; where both fit, the unsigned one.
_INTEGERS: dict[str, torch.dtype] = {
    "uint8": torch.uint8,
    "int8": torch.int8,
    "uint16": torch.uint16,
    "int16": torch.int16,
    "uint32": torch.uint32,
    "int32": torch.int32,
    "int64": torch.int64,
}
# As integers, the bits of -0.0 are the smallest there are, and those of NaN and inf larger than those of finite numbers.
_BITS_OF: dict[torch.dtype, torch.dtype] = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


@dataclass(frozen=True, slots=True)
class Container:
    """Where codes are kept: integers from `low` to `high`, `bits` bits each.

    A code is the number that its integer becomes in the tensor's dtype. That may be `high + 1` for `high`
    itself: 2**k - 1 is 2**k in a dtype of fewer digits. `bottom` and `top` are the smallest and the largest code
    that it holds, `top_word` the bits of the latter. Signed integers have one that stands for the code -0.0: the
    smallest of all, which is `low - 1`.
    """

    name: str
    bits: int
    low: int
    high: int
    bottom: float
    top: float
    top_word: int

    @classmethod
    @cache
    def of_integers(cls, name: str, dtype: torch.dtype) -> Container:
        """All integers of a dtype."""
        info = torch.iinfo(_INTEGERS[name])
        top = _as_code(info.max, dtype)
        if not info.min:
            return cls(name, info.bits, 0, info.max, 0.0, top, _word(top, dtype))
        below = torch.nextafter(torch.tensor(top, dtype=dtype), torch.zeros((), dtype=dtype)).item()
        return cls(name, info.bits, info.min + 1, info.max, -(below if top > info.max else top), top, _word(top, dtype))

    @classmethod
    @cache
    def of_bits(cls, bits: int, dtype: torch.dtype) -> Container:
        """Integers to be packed."""
        top = _as_code(2**bits - 1, dtype)
        return cls("uint8", bits, 0, 2**bits - 1, 0.0, top, _word(top, dtype))

    @classmethod
    def smallest(cls, interval: Interval, dtype: torch.dtype) -> Container:
        """The smallest one that holds an interval, a signed one where an end of it is -0.0; the largest where none does."""
        with_sign = any(math.copysign(1.0, end) < 0 for end in interval)
        choices = [cls.of_integers(name, dtype) for name in _INTEGERS if not (with_sign and name.startswith("u"))]
        return next((one for one in choices if one.bottom <= interval.low and interval.high <= one.top), choices[-1])

    @property
    def is_signed(self) -> bool:
        """Whether there are integers below 0."""
        return self.low < 0


class _Found(NamedTuple):
    """Exceptions of one tile, still as tensors: flat positions in the whole, and the codes there."""

    positions: Tensor
    codes: Tensor


class Condenser(NamedTuple):
    """How one tensor is condensed: `write` does it for a tile of the elements, and the element at which that starts."""

    elements: Tensor
    write: Callable[[Tensor, int], None]
    finish: Callable[[], CompactTensor]

    def whole(self, device: Device) -> CompactTensor:
        """All tiles, one after the other."""
        tiles.for_each(device, self.elements, self.write)
        device.synchronize()
        return self.finish()


def condense(device: Device, call: Call) -> CompactBundle:
    """The compact answer to a call. Operands are overwritten.

    Raises `NotRepresentable` where more of the elements are exceptions than is worth it.
    """
    assert call.x is not None
    form = _mask if call.output == "mask" else _codes
    return bundle(call, [form(device, call, tensor).whole(device) for tensor in call.x.tensors])


def condenser(device: Device, call: Call) -> Condenser | None:
    """How the one tensor of a call is condensed without a look at all of it before; None where that is needed.

    The expression is elementwise and names no tensor.
    """
    assert call.x is not None
    (x,) = call.x.tensors
    if call.output == "mask":
        return _mask(device, call, x)
    return None if _known_container(call, memory.TORCH_DTYPES[x.dtype.name]) is None else _codes(device, call, x)


def bundle(call: Call, results: Sequence[CompactTensor]) -> CompactBundle:
    """The answer to a call, whose tensors are these."""
    assert call.x is not None
    return CompactBundle("y" if call.kind == "quantize" else "grad_x", tuple(results), call.x.names, call.x.single)


# Masks ----------------------------------------------------------------------------------------------


def _mask(device: Device, call: Call, x: WireTensor) -> Condenser:
    elements = _elements(x)
    stream = _answer_memory(elements, packed_bytes(x.size, 1))
    scratch = Scratch()

    def write(tile: Tensor, at: int) -> None:
        passes = call.expression.passes(device.lift(tile))
        _write(device, pack_mask(passes, scratch), stream, at // 8)

    return Condenser(elements, write, lambda: CompactTensor("mask", x.dtype, x.shape, memory.data_of(stream)))


# Codes ----------------------------------------------------------------------------------------------


def _codes(device: Device, call: Call, x: WireTensor) -> Condenser:
    elements = _elements(x)
    scratch = Scratch()
    coder = _coder(device, call, elements.view(x.shape))
    container = _known_container(call, elements.dtype)
    if container is None:
        container = _measured(device, elements, coder)
        coder = _as_they_are
    form: Form = "packed" if call.output == "packed" else "codes"
    stream = _answer_memory(elements, packed_bytes(x.size, container.bits))
    found: list[_Found] = []

    def write(tile: Tensor, at: int) -> None:
        codes = coder(device.lift(tile))
        exceptions = _exceptions_among(codes, container)
        here = None if exceptions is None else _Found((exceptions + at).cpu(), codes[exceptions].cpu())
        integers = _integers(codes, container, exceptions, scratch)
        written = pack(integers, container.bits, scratch) if form == "packed" else _narrowed(integers, container, scratch)
        _write(device, written, stream, at * container.bits // 8)
        if here is not None:
            found.append(here)
            _check_worth(found, call, x)

    def finish() -> CompactTensor:
        last = call.expression.operators[-1]
        exceptions = _exceptions(call, last, x, found) if found else NO_EXCEPTIONS
        return CompactTensor(form, x.dtype, x.shape, memory.data_of(stream), container.name, container.bits, str(last), exceptions)

    return Condenser(elements, write, finish)


def _coder(device: Device, call: Call, x: Tensor) -> Callable[[Tensor], Tensor]:
    """What makes codes of a tile of `x`. What comes before the last operator may be done already.

    On the device's own copy of a tile, or on the CPU on `x` itself, they are made in place: less has to stay in cache.
    """
    before, last = prefix(call.expression), call.expression.operators[-1]
    if before is None:
        return lambda tile: last.codes(tile, out=tile)
    tensors = {name: tensor for name, tensor in parameters(call).items() if name in before.tensor_names}
    if not before.elementwise or any(tensor.dim() for tensor in tensors.values()):
        tiles.forward_by_segments(device, before, x, tensors)
        device.synchronize()
        return lambda tile: last.codes(tile, out=tile)
    lifted = {name: device.lift(tensor) for name, tensor in tensors.items()}

    def coder(tile: Tensor) -> Tensor:
        codes = before.forward(tile, lifted, out=tile)
        return last.codes(codes, out=codes)

    return coder


def _as_they_are(codes: Tensor) -> Tensor:
    return codes


def _known_container(call: Call, dtype: torch.dtype) -> Container | None:
    """The container that the expression alone says; None where it depends on the data."""
    if call.output == "packed":
        bits = call.expression.operators[-1].code_bits
        assert bits is not None
        return Container.of_bits(bits, dtype)
    interval = code_interval(call.expression, dtype)
    return None if interval is None else Container.smallest(interval, dtype)


def _measured(device: Device, elements: Tensor, coder: Callable[[Tensor], Tensor]) -> Container:
    """Overwrite the elements with their codes; the smallest container that holds those that an int64 can be."""
    intervals: list[Interval] = []
    signed = False

    def look(tile: Tensor, _: int) -> None:
        nonlocal signed
        codes = coder(device.lift(tile))
        device.lower(codes, tile)
        signed = signed or _has_negative_zero(codes)
        intervals.append(_interval(codes))

    tiles.for_each(device, elements, look)
    device.synchronize()
    low = min(one.low for one in intervals)
    return Container.smallest(Interval(-0.0 if signed and low == 0 else low, max(one.high for one in intervals)), elements.dtype)


def _interval(codes: Tensor) -> Interval:
    """Where those codes lie that an int64 can be, and 0."""
    if codes.numel():
        low, high = (end.item() for end in torch.aminmax(codes))
        if low > -(2.0**63) and high < 2.0**63:  # false for NaN
            return Interval(min(low, 0.0), max(high, 0.0))
    held = codes[codes.abs() < 2.0**63]
    return _interval(held) if held.numel() else Interval(0.0, 0.0)


def _exceptions_among(codes: Tensor, container: Container) -> Tensor | None:
    """The positions of the codes that the container does not hold; None where it holds all."""
    if not codes.numel() or _holds_all(container, codes):
        return None
    held = (codes >= container.bottom).logical_and_(codes <= container.top)
    if not container.is_signed:
        held.logical_and_(_bits(codes) >= 0)
    return held.logical_not_().nonzero().view(-1)


def _holds_all(container: Container, codes: Tensor) -> bool:
    if container.is_signed:
        low, high = torch.aminmax(codes)
        return bool(container.bottom <= low.item() and high.item() <= container.top)  # false for NaN
    # As unsigned words, NaN, infinities and all that is negative, -0.0 too, are larger than what is positive. torch knows
    # no maximum of those, and takes twice as long for both ends of signed ones.
    if codes.is_cpu:
        words = _bits(codes).numpy()
        return bool(words.view(f"u{words.itemsize}").max() <= container.top_word)
    low, high = torch.aminmax(_bits(codes))
    return bool(low.item() >= 0 and high.item() <= container.top_word)


def _integers(codes: Tensor, container: Container, exceptions: Tensor | None, scratch: Scratch) -> Tensor:
    """The integers of the codes; 0 for exceptions. Codes are overwritten."""
    if exceptions is not None:
        codes[exceptions] = 0
    if not container.is_signed and container.bits <= 8 and codes.is_cpu and codes.dtype in (torch.float32, torch.float64):
        # NumPy does in one step, vectorised, what torch does in two: 2.4 ms for 64 MiB instead of 5.
        integers = scratch.take("integers", torch.uint8, codes)
        np.copyto(integers.numpy(), codes.numpy(), casting="unsafe")
        return integers
    wide = torch.int32 if container.bits < _WIDE_BITS else torch.int64
    integers = scratch.take("integers", wide, codes).copy_(codes)
    if container.top > container.high:
        integers.clamp_(max=container.high)
    if container.is_signed and _has_negative_zero(codes):
        integers.masked_fill_(_bits(codes) == _negative_zero(codes.dtype), container.low - 1)
    return integers


def _narrowed(integers: Tensor, container: Container, scratch: Scratch) -> Tensor:
    return scratch.take("narrow", _INTEGERS[container.name], integers).copy_(integers).view(torch.uint8)


def _check_worth(found: Sequence[_Found], call: Call, x: WireTensor) -> None:
    count = sum(one.positions.numel() for one in found)
    allowed = max(x.size // _EXCEPTIONS_SHARE, _EXCEPTIONS_ALLOWED)
    if count > allowed:
        raise NotRepresentable(
            f"more than {allowed} of the {x.size} elements of a tensor are no {call.output} of '{call.expression}' "
            "(NaN, infinities, -0.0, or outside); a clamp(0, 1) before k_bit_quantize keeps them inside, output=values has no limit"
        )


def _exceptions(call: Call, last: Operator, x: WireTensor, found: Sequence[_Found]) -> Exceptions:
    """The exceptions of all tiles, and their values."""
    index = torch.cat([one.positions for one in found])
    tensors = {name: _met(tensor, x.shape, index) for name, tensor in parameters(call).items() if name in last.own_tensor_names}
    value = last.decoded(torch.cat([one.codes for one in found]), tensors)
    is_short = x.size <= 2**32
    positions = index.to(torch.uint32 if is_short else torch.uint64)
    name = "uint32" if is_short else "uint64"
    return Exceptions(index.numel(), name, memory.data_of(positions), memory.data_of(value))


def _met(tensor: Tensor, shape: tuple[int, ...], index: Tensor) -> Tensor:
    """What of a tensor that broadcasts to a shape meets these flat positions."""
    if tensor.numel() == 1:
        return tensor.reshape(1)
    return tensor.expand(shape)[torch.unravel_index(index, shape)]


# Elements -------------------------------------------------------------------------------------------


def _elements(x: WireTensor) -> Tensor:
    """The elements in C order, 1-d, writable."""
    return memory.shared_flat(WireTensor(x.dtype, x.shape, in_c_order(x)))[0]


def _answer_memory(elements: Tensor, nbytes: int) -> Tensor:
    """Memory for the answer: the beginning of the elements' own, where it is long enough.

    What is written for a tile never reaches beyond it then, so that no tile is overwritten before it is read.
    """
    return elements.view(torch.uint8)[:nbytes] if nbytes <= elements.nbytes else torch.empty(nbytes, dtype=torch.uint8)


def _write(device: Device, result: Tensor, stream: Tensor, at: int) -> None:
    device.lower(result, stream[at : at + result.numel()])


def _bits(codes: Tensor) -> Tensor:
    return codes.view(_BITS_OF[codes.dtype])


def _has_negative_zero(codes: Tensor) -> bool:
    return bool(codes.numel()) and _bits(codes).amin().item() == _negative_zero(codes.dtype)


def _negative_zero(dtype: torch.dtype) -> int:
    return torch.iinfo(_BITS_OF[dtype]).min


def _word(code: float, dtype: torch.dtype) -> int:
    return int(_bits(torch.tensor(code, dtype=dtype)).item())


def _as_code(integer: int, dtype: torch.dtype) -> float:
    """The number that an integer becomes in a dtype; the largest below it where that is infinite, or no int64 any more."""
    code = torch.tensor(integer, dtype=torch.int64).to(dtype)
    limit = torch.tensor(2.0**63, dtype=dtype)
    return float(code if code < limit else torch.nextafter(limit, torch.zeros_like(limit)))
