"""The kinds of files a job reads and writes: where their tensors lie, and what their outputs will be.

A format never holds a tensor in memory: it reads headers, and says at which bytes elements begin.
"""

from __future__ import annotations

from pathlib import PurePath

from service.batch.formats import npy, npz, safetensors
from service.batch.formats.base import Format, Input

_FORMATS: dict[str, Format] = {".npy": npy.Npy(), ".npz": npz.Npz(), ".safetensors": safetensors.Safetensors()}

SUFFIXES = tuple(_FORMATS)

__all__ = ["SUFFIXES", "Format", "Input", "format_of"]


def format_of(path: str) -> Format:
    """The format of a file, by its suffix, which is one of `SUFFIXES`."""
    return _FORMATS[PurePath(path).suffix.lower()]
