"""NumPy arrays and torch tensors as described bytes, and bytes as what the caller passed in.

No element is touched where none has to be: the bytes on the wire are the caller's own memory when that is
contiguous and little-endian, and a result is a view of the memory into which the answer was received.
torch is used when a caller passes a torch tensor, which he cannot without having imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from service.dtypes import DTYPES, DType
from service.errors import UnsupportedDtype
from service.wire.layout import bytes_of
from service.wire.message import WireTensor

if TYPE_CHECKING:
    import torch

Array: TypeAlias = "npt.NDArray[Any] | torch.Tensor"
Tensors: TypeAlias = "Array | Sequence[Array] | Mapping[str, Array]"


class Kind(Protocol):
    """What a tensor was before it became bytes, and what its result becomes again."""

    def restore(self, tensor: WireTensor) -> Array:
        """The array or tensor of these bytes; it shares their memory where that is aligned."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A tensor of a call: its bytes, and what its result is given back as."""

    wire: WireTensor
    kind: Kind


def send(value: Array, label: str) -> Sent:
    """The bytes of an array or a tensor; a message calls it `label`.

    Memory in Fortran order stays as it lies; the format decides what becomes of it.
    Raises `TypeError` for what is neither an array nor a tensor, `UnsupportedDtype` for all but the four dtypes.
    """
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        return Sent(_wire(array, _supported(array.dtype.name, label)), NumPyKind(array.dtype))
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        if value.layout is not torch.strided:
            raise TypeError(f"{label} is a {value.layout} tensor; allowed: dense ones, see .to_dense()")
        dtype = _supported(str(value.dtype).removeprefix("torch."), label)
        here = value.detach().cpu().resolve_neg()
        # NumPy knows no bfloat16: its bits travel as integers.
        bits = here.view(torch.int16) if dtype.name == "bfloat16" else here
        return Sent(_wire(bits.numpy(), dtype), TorchKind(value.dtype, value.device))
    raise TypeError(
        f"{label} is of type {type(value).__name__}; allowed: a NumPy array, a torch tensor, a list or a dict of them "
        "(numbers become an array with numpy.asarray(numbers, dtype='float32'))"
    )


@dataclass(frozen=True, slots=True)
class NumPyKind:
    """An array of this dtype: NumPy's own, or the bfloat16 of ml_dtypes."""

    dtype: np.dtype[Any]

    def restore(self, tensor: WireTensor) -> npt.NDArray[Any]:
        """The array, writable and little-endian."""
        return _array(tensor, self.dtype.newbyteorder("<"))


@dataclass(frozen=True, slots=True)
class TorchKind:
    """A tensor of this dtype on this device."""

    dtype: torch.dtype
    device: torch.device

    def restore(self, tensor: WireTensor) -> torch.Tensor:
        """The tensor; on the CPU it shares the memory of the bytes."""
        import torch

        storage = np.dtype("<i2" if tensor.dtype.name == "bfloat16" else tensor.dtype.name)
        return torch.from_numpy(_array(tensor, storage)).view(self.dtype).to(self.device)


def _supported(name: str, label: str) -> DType:
    if name not in DTYPES:
        raise UnsupportedDtype(f"{label} has dtype {name!r}; allowed: {', '.join(DTYPES)}")
    return DTYPES[name]


def _wire(array: npt.NDArray[Any], dtype: DType) -> WireTensor:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    fortran = little.flags.f_contiguous and not little.flags.c_contiguous
    return WireTensor(dtype, array.shape, bytes_of(little.T if fortran else np.ascontiguousarray(little)), fortran)


def _array(tensor: WireTensor, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    order: Any = "F" if tensor.fortran else "C"
    array: npt.NDArray[Any] = np.ndarray(tensor.shape, dtype, buffer=tensor.data, order=order)
    # msgpack puts tensors at any offset. torch and compiled code expect elements at multiples of their size.
    return array if array.flags.aligned else array.copy(order="K")
