"""What the codecs' tests share: golden files, arrays and tensors of the wire, and strategies for them."""

from __future__ import annotations

import runpy
from pathlib import Path

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.dtypes import DTYPES
from service.wire.message import Bundle, Message, Style, WireTensor

GOLDEN = Path(__file__).parent.parent / "golden"
ARRAYS: dict[str, np.ndarray] = runpy.run_path(str(GOLDEN / "make_golden.py"))["arrays"]()

NUMPY_DTYPES = {name: np.dtype(getattr(ml_dtypes, name, None) or name) for name in DTYPES}


def golden(name: str) -> memoryview:
    """The bytes of a golden file."""
    return memoryview((GOLDEN / name).read_bytes())


def little_endian(array: np.ndarray) -> np.ndarray:
    """The same values in little-endian memory."""
    return array.astype(array.dtype.newbyteorder("<"))


def wire_tensor(array: np.ndarray, style: Style = "plain") -> WireTensor:
    """A tensor of the wire over a copy of the array: in Fortran order where the array has no other."""
    fortran = not array.flags.c_contiguous and array.flags.f_contiguous
    data = little_endian(array).tobytes(order="F" if fortran else "C")
    return WireTensor(DTYPES[array.dtype.name], array.shape, memoryview(data), fortran, style)


def array_of(tensor: WireTensor) -> np.ndarray:
    """The array that a tensor of the wire is."""
    flat = np.frombuffer(tensor.data, np.uint8).copy().view(NUMPY_DTYPES[tensor.dtype.name])
    return flat.reshape(tensor.shape, order="F" if tensor.fortran else "C")


def assert_is(tensor: WireTensor, array: np.ndarray) -> None:
    """Dtype, shape and every bit of the tensor are those of the array, whatever the order of either."""
    assert (tensor.dtype.name, tensor.shape) == (array.dtype.name, array.shape)
    assert array_of(tensor).tobytes() == little_endian(array).tobytes()


def content(message: Message) -> dict[str, tuple[object, ...]]:
    """A message as values that can be compared: all but where its bytes lie."""
    return {field: (bundle.names, bundle.single, *map(_content, bundle.tensors)) for field, bundle in message.items()}


def _content(tensor: WireTensor) -> tuple[object, ...]:
    return tensor.dtype.name, tensor.shape, tensor.fortran, tensor.style, tensor.data.tobytes()


@st.composite
def arrays(draw: st.DrawFn, dtypes: tuple[str, ...] = tuple(DTYPES), max_dims: int = 4, *, finite: bool = False) -> np.ndarray:
    """Arrays of any of the dtypes and any bits, NaN payloads included, empty and 0-d ones too."""
    dtype = NUMPY_DTYPES[draw(st.sampled_from(dtypes))]
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=max_dims, min_side=0, max_side=3))
    words = draw(hnp.arrays(f"u{dtype.itemsize}", shape))
    array = words.view(dtype)
    return np.where(np.isfinite(array), array, np.ones((), dtype)) if finite else array


def tensors(styles: tuple[Style, ...] = ("plain",)) -> st.SearchStrategy[WireTensor]:
    """Tensors in C order."""
    return st.builds(wire_tensor, arrays(), st.sampled_from(styles))


def bundles(tensor: st.SearchStrategy[WireTensor]) -> st.SearchStrategy[Bundle]:
    """Single tensors, lists and maps of names; the names are never those of a tensor's own map."""
    named = st.dictionaries(st.text(max_size=5).filter(lambda name: name not in ("shape", "data")), tensor, max_size=4)
    return st.one_of(
        st.builds(Bundle.of, tensor),
        st.builds(lambda items: Bundle(tuple(items)), st.lists(tensor, max_size=4)),
        st.builds(lambda items: Bundle(tuple(items.values()), names=tuple(items)), named),
    )


def messages(tensor: st.SearchStrategy[WireTensor]) -> st.SearchStrategy[Message]:
    """Messages of a few fields."""
    return st.dictionaries(st.text(max_size=40), bundles(tensor), max_size=3)
