"""Writes the golden files beside this script with the libraries that callers use, not with our code.

Run it with NumPy 2, ml_dtypes, msgpack and msgpack-numpy installed; it says what wrote the files in
`VERSIONS`. The arrays are those of `arrays()`: the tests compare with them.
"""

from __future__ import annotations

import io
from importlib.metadata import version
from pathlib import Path

import ml_dtypes
import msgpack
import msgpack_numpy
import numpy as np

HERE = Path(__file__).parent
VALUES = [0.0, -0.0, 1.5, -2.25, np.inf, -np.inf, np.nan, 0.1, 1e-7, 60000.0, -3.0, 7.0]
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}


def arrays() -> dict[str, np.ndarray]:
    """The arrays of the files, by the name of their file."""
    found: dict[str, np.ndarray] = {}
    for name, dtype in DTYPES.items():
        values = np.array(VALUES).astype(dtype)
        found[f"{name}_c"] = values.reshape(3, 4)
        found[f"{name}_fortran"] = np.asfortranarray(values.reshape(3, 2, 2))
        found[f"{name}_0d"] = values[2:3].reshape(())
        found[f"{name}_empty"] = values[:0].reshape(0, 3)
        if name != "bfloat16":
            found[f"{name}_big_endian"] = values.astype(np.dtype(dtype).newbyteorder(">")).reshape(2, 6)
    return found


def npy(array: np.ndarray, npy_version: tuple[int, int] | None = None) -> bytes:
    """The file that NumPy writes."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=npy_version)
    return stream.getvalue()


def plain(array: np.ndarray) -> dict[str, object]:
    """The contract's own map of a tensor."""
    little = array.astype(array.dtype.newbyteorder("<")) if array.dtype.byteorder == ">" else array
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": little.tobytes()}


def as_msgpack_numpy(array: np.ndarray) -> dict[bytes, object]:
    """What msgpack-numpy makes of an array.

    It cannot export the memory of contiguous bfloat16 (those it writes where it copies, as on macOS): the
    same bytes under a plain two-byte type have the same map but for the type's text.
    """
    if array.dtype != ml_dtypes.bfloat16:
        return dict(msgpack_numpy.encode(array))
    return dict(msgpack_numpy.encode(array.copy(order="C").view("V2"))) | {b"type": array.dtype.descr}


def main() -> None:
    """Write all files."""
    for name, array in arrays().items():
        (HERE / f"{name}.npy").write_bytes(npy(array))
        (HERE / f"{name}.msgpack").write_bytes(msgpack.packb({"x": plain(array)}))
        (HERE / f"{name}.numpy.msgpack").write_bytes(msgpack.packb({"x": as_msgpack_numpy(array)}))
    for npy_version in ((2, 0), (3, 0)):
        (HERE / f"version_{npy_version[0]}.npy").write_bytes(npy(arrays()["float32_c"], npy_version))
    stream = io.BytesIO()
    for array in (arrays()["float32_c"], arrays()["float64_fortran"]):
        np.save(stream, array)
    (HERE / "two.npy").write_bytes(stream.getvalue())
    packages = ("numpy", "ml_dtypes", "msgpack", "msgpack-numpy")
    (HERE / "VERSIONS").write_text("".join(f"{package} {version(package)}\n" for package in packages))


if __name__ == "__main__":
    main()
