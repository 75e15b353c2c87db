"""Trees of files for the tests of batch, and the command run in this process."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save

from service.cli import main

Array = npt.NDArray[Any]

DONE, BAD, USAGE, GAVE_UP = 0, 1, 2, 3
DTYPES: dict[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}


def numbers(shape: int | tuple[int, ...], dtype: str = "float32", seed: int = 0) -> Array:
    """Numbers around [-2, 2], with ties, both zeros, infinities and a NaN among them where there is room."""
    x = np.random.default_rng(seed).uniform(-2, 2, shape)
    special = [0.5, -0.0, 1.5, np.inf, -np.inf, np.nan, 2.5, 0.0]
    flat = x.reshape(-1)
    if flat.size > 2 * len(special):
        flat[: len(special)] = special
    return x.astype(DTYPES[dtype])


def npy(*arrays: Array) -> bytes:
    """The bytes of a .npy file, as NumPy writes them."""
    stream = io.BytesIO()
    for array in arrays:
        np.save(stream, array)
    return stream.getvalue()


def npz(arrays: Mapping[str, Array], *, compressed: bool = False) -> bytes:
    """The bytes of a .npz file, as NumPy writes them."""
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return stream.getvalue()


def safetensors(arrays: Mapping[str, Array], metadata: dict[str, str] | None = None) -> bytes:
    """The bytes of a .safetensors file, as its own library writes them."""
    data: bytes = save(dict(arrays), metadata)
    return data


def write(root: Path, files: Mapping[str, bytes]) -> Path:
    """Files below a folder."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def outputs(dest: Path) -> dict[str, bytes]:
    """Every output below DEST."""
    if not dest.exists():
        return {}
    return {
        path.relative_to(dest).as_posix(): path.read_bytes()
        for path in sorted(dest.rglob("*"))
        if path.is_file() and ".stequant" not in path.parts
    }


def members(data: bytes) -> dict[str, bytes]:
    """The members of an archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


@dataclass(frozen=True)
class Ended:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        """The object that --json prints."""
        (line,) = self.out.splitlines()
        summary: dict[str, Any] = json.loads(line)
        return summary

    @property
    def sent(self) -> int:
        """How many chunks were computed."""
        return int(self.summary["chunks"]["sent"])


class Batch:
    """`stequant batch`, run in this process, one call after the other."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *place: str) -> None:
        self._capsys = capsys
        self.place = place

    def __call__(self, *arguments: object, op: str | None = "round") -> Ended:
        """Run it; the expression is added."""
        self._capsys.readouterr()
        words = ["batch", *map(str, arguments), *self.place, *([] if op is None else ["--op", op])]
        try:
            code = main(words)
        except SystemExit as end:  # argparse ends so
            code = int(end.code or 0)
        written = self._capsys.readouterr()
        return Ended(code, written.out, written.err)

    def json(self, *arguments: object, op: str = "round") -> Ended:
        """Run it for its summary."""
        return self(*arguments, "--json", "--quiet", op=op)


def quantized(source: Path, folder: Path, op: str, extra: Iterable[str] = ()) -> bytes:
    """What `stequant quantize` writes for one .npy file."""
    out = folder / "quantized.npy"
    assert main(["quantize", str(source), str(out), "--op", op, *extra]) == 0
    return out.read_bytes()


def carried(source: Path, grad: Path, folder: Path, op: str, extra: Iterable[str] = ()) -> bytes:
    """What `stequant grad` writes for one pair of .npy files."""
    out = folder / "carried.npy"
    assert main(["grad", str(source), str(grad), str(out), "--op", op, *extra]) == 0
    return out.read_bytes()


def later(path: Path, seconds: float) -> None:
    """Move the time of a file."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + int(seconds * 1e9)))
