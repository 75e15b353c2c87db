"""Trees of inputs for jobs, and what NumPy makes of them: nothing here knows the service.

All values are finite or infinite: which bits a NaN keeps is not promised.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Formula = Callable[[Array], Array]

DTYPES = tuple(np.dtype(dtype) for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))
SUFFIXES = (".npy", ".npz", ".safetensors")
FOLDER = ".stequant"

_SAFETENSORS_NAMES = dict(zip(DTYPES, ("F16", "BF16", "F32", "F64"), strict=True))
_SAFETENSORS_DTYPES = {name: dtype for dtype, name in _SAFETENSORS_NAMES.items()}
_METADATA = {"made_by": "a test", "note": "kept as it is"}


# Inputs --------------------------------------------------------------------------------------------------


def values(random: np.random.Generator, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """Most of them within a few units of zero, where quantizers do something; with infinities and both zeros."""
    x = random.standard_normal(math.prod(shape), dtype=np.float32) * np.float32(1.5)
    x[::97], x[1::193], x[2::389], x[3::389] = 0.0, -0.0, np.inf, -np.inf
    return x.astype(dtype).reshape(shape)


def shape_of(elements: int, random: np.random.Generator) -> tuple[int, ...]:
    """About so many elements, in one to three dimensions."""
    match random.integers(3):
        case 0:
            return (elements,)
        case 1:
            return (max(1, elements // 8), 8)
        case _:
            return (2, max(1, elements // 6), 3)


def write_npy(path: Path, *arrays: Array) -> None:
    """Arrays back to back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for array in arrays:
            np.save(file, array)


def write_npz(path: Path, *, compressed: bool, **arrays: Array) -> None:
    """A member for each array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (np.savez_compressed if compressed else np.savez)(path, **arrays)


def write_safetensors(path: Path, **arrays: Array) -> None:
    """The format written out: the length of the header, the header padded with blanks, the tensors end to end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header: dict[str, object] = {"__metadata__": _METADATA}
    at = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": _SAFETENSORS_NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            file.write(array.tobytes())


def write_tree(root: Path, *, files: int, largest_bytes: int, seed: int = 0) -> list[Path]:
    """Files of every format, dtype, order and rank in nested folders, their sizes log-uniform up to `largest_bytes`."""
    random = np.random.default_rng(seed)
    paths = []
    for number in range(files):
        folder = root / ("", "a", "a/b", "c")[number % 4]
        dtype = DTYPES[number % len(DTYPES)]
        elements = int(math.exp(random.uniform(0, math.log(largest_bytes)))) // dtype.itemsize + 1
        paths.append(_write_one(folder / f"{number:04}", number, random, elements, dtype))
    return paths


def _write_one(stem: Path, number: int, random: np.random.Generator, elements: int, dtype: np.dtype[Any]) -> Path:
    def some(share: float = 1.0) -> Array:
        return values(random, shape_of(max(1, int(elements * share)), random), dtype)

    match number % 9:
        case 0:
            write_npz(path := stem.with_suffix(".npz"), compressed=False, first=some(0.5), second=np.asfortranarray(some(0.5)))
        case 1:
            write_npz(path := stem.with_suffix(".npz"), compressed=True, one=some(), none=np.empty((0, 3), dtype))
        case 2:
            other = values(random, (3, 5), np.dtype(np.float32))
            write_safetensors(
                path := stem.with_suffix(".safetensors"), w=some(0.7), empty=np.empty((0,), dtype), b=some(0.3), c=other
            )
        case 3:
            write_npy(path := stem.with_suffix(".npy"), np.asfortranarray(some()))
        case 4:
            write_npy(path := stem.with_suffix(".npy"), values(random, (), dtype))
        case 5:
            write_npy(path := stem.with_suffix(".npy"), np.empty((3, 0, 2), dtype))
        case 6:
            write_npy(path := stem.with_suffix(".npy"), some(0.5), values(random, (7,), np.dtype(np.float64)), some(0.5))
        case _:
            write_npy(path := stem.with_suffix(".npy"), some())
    return path


def write_gradients(source: Path, grads: Path, seed: int = 1) -> None:
    """For each file of a tree one of the same structure under the same path."""
    random = np.random.default_rng(seed)
    for path in inputs(source):
        target = grads / path.relative_to(source)
        arrays = {
            name: np.asarray(values(random, array.shape, array.dtype), order="F" if _is_fortran(array) else "C")
            for name, array in read(path).items()
        }
        match path.suffix:
            case ".npy":
                write_npy(target, *arrays.values())
            case ".npz":
                write_npz(target, compressed=False, **arrays)
            case _:
                write_safetensors(target, **arrays)


def corrupt(path: Path, number: int) -> str:
    """Spoil a file in the `number`th of several ways; a word that says how."""
    data = path.read_bytes()
    match number % 4:
        case 0:
            path.write_bytes(data[: len(data) - 1 - len(data) // 3])
            return "truncated"
        case 1:
            path.write_bytes(bytes(byte ^ 0xFF for byte in data[:16]) + data[16:])
            return "magic"
        case 2:
            path.write_bytes(b"")
            return "empty"
        case _:
            path.unlink()
            path.symlink_to(path.with_name("nowhere.npy"))
            return "dangling"


# What lies in a tree -------------------------------------------------------------------------------------


def inputs(root: Path) -> list[Path]:
    """The files that a job reads below a folder."""
    return sorted(path for path in root.rglob("*") if path.suffix in SUFFIXES and FOLDER not in path.parts)


def outputs(dest: Path) -> list[Path]:
    """Everything under DEST that is an output, or pretends to be one."""
    return sorted(path for path in dest.rglob("*") if path.is_file() and FOLDER not in path.relative_to(dest).parts)


def digest(dest: Path) -> str:
    """One hash of the outputs: of their paths, and of every byte."""
    whole = hashlib.sha256()
    for path in outputs(dest):
        with path.open("rb") as file:
            whole.update(f"{path.relative_to(dest)}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
    return whole.hexdigest()


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Times and bytes of all files of a folder, so that two can be compared."""
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()}


def read(path: Path) -> dict[str, Array]:
    """The arrays of a file by name, or by number, in the order in which they lie."""
    match path.suffix:
        case ".npy":
            return {str(number): array for number, array in enumerate(_read_npy(path))}
        case ".npz":
            with np.load(path) as archive:
                return {name: _as_bfloat16(archive[name]) for name in archive.files}
        case _:
            return dict(_read_safetensors(path))


def _read_npy(path: Path) -> Iterator[Array]:
    with path.open("rb") as file:
        while file.tell() < path.stat().st_size:
            yield _as_bfloat16(np.load(file))


def _as_bfloat16(array: Array) -> Array:
    """NumPy reads the dtype it cannot name as two bytes without a meaning."""
    return array.view(ml_dtypes.bfloat16) if array.dtype.kind == "V" else array


def _read_safetensors(path: Path) -> Iterator[tuple[str, Array]]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert header.pop("__metadata__") == _METADATA, "the metadata is not what it was"
    for name, one in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = one["data_offsets"]
        elements = data[8 + length + start : 8 + length + stop]
        yield name, np.frombuffer(elements, _SAFETENSORS_DTYPES[one["dtype"]]).reshape(one["shape"])


def _is_fortran(array: Array) -> bool:
    return array.flags.f_contiguous and not array.flags.c_contiguous


# The oracle ----------------------------------------------------------------------------------------------

ELEMENTWISE = "clamp(-1, 1) | k_bit_quantize(4)"
WHOLE = "clamp_by_linear(eps=0.001)"


def elementwise(x: Array) -> Array:
    """`ELEMENTWISE`: float16 and bfloat16 are computed in float32 and rounded after every step."""
    wide, s = _wide(x.dtype), _wide(x.dtype).type(15)
    y = x.astype(wide)
    y = np.where(y < -1, wide.type(-1), np.where(y > 1, wide.type(1), y)).astype(x.dtype)
    y = (y.astype(wide) * s).astype(x.dtype)
    y = np.rint(y.astype(wide)).astype(x.dtype)
    return (y.astype(wide) / s).astype(x.dtype)


def elementwise_gradient(x: Array, grad_output: Array) -> Array:
    """Of `ELEMENTWISE`: the quantizer passes it on, the clamp does within its bounds."""
    inside = (x >= -1) & (x <= 1)
    return np.where(inside, grad_output, grad_output.dtype.type(0))


def whole(x: Array) -> Array:
    """`WHOLE`, for finite `x`: it needs the extremes of the whole tensor."""
    wide = _wide(x.dtype)

    def rounded(value: Any) -> Array:
        return np.asarray(value, wide).astype(x.dtype).astype(wide)

    w = x.astype(wide)
    span = rounded(rounded(w.max() + rounded(0.001)) - w.min())
    return (rounded(w - w.min()) / span).astype(x.dtype)


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def check_output(source: Path, output: Path, formula: Formula = elementwise) -> None:
    """The output of one file is what NumPy computes, bit for bit, in the structure of its source."""
    before, after = read(source), read(output)
    assert list(after) == list(before), output
    for name, x in before.items():
        y, expected = after[name], formula(x)
        assert (y.dtype, y.shape, _is_fortran(y)) == (x.dtype, x.shape, _is_fortran(x)), (output, name)
        assert y.tobytes("A") == expected.astype(x.dtype).tobytes("A"), (output, name)
    if source.suffix == ".npz":
        with zipfile.ZipFile(source) as theirs, zipfile.ZipFile(output) as ours:
            assert [one.compress_type for one in ours.infolist()] == [one.compress_type for one in theirs.infolist()]


def check_tree(source: Path, dest: Path, formula: Formula = elementwise, *, without: Sequence[Path] = ()) -> None:
    """Every input but those `without` has its output, no other has one, and all are right."""
    expected = [path for path in inputs(source) if path not in without]
    assert [path.relative_to(dest) for path in outputs(dest)] == [path.relative_to(source) for path in expected]
    for path in expected:
        check_output(path, dest / path.relative_to(source), formula)


def check_gradients(source: Path, grads: Path, dest: Path) -> None:
    """Every output is the gradient; the sign of zero may differ where none passes."""
    assert [path.relative_to(dest) for path in outputs(dest)] == [path.relative_to(source) for path in inputs(source)]
    for path in inputs(source):
        place = path.relative_to(source)
        got, gradients = read(dest / place), read(grads / place)
        for name, x in read(path).items():
            assert (got[name].dtype, got[name].shape) == (x.dtype, x.shape), (place, name)
            np.testing.assert_array_equal(got[name], elementwise_gradient(x, gradients[name]), str(place))
