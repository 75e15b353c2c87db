"""`.npz`: a zip archive of `.npy` files.

Members may be compressed, and then no byte of them can be found without reading all before it. So they are written
out end to end before anything is computed, which also checks the archive's own sums, and the results are packed last.
"""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from service.batch.errors import BadInput
from service.batch.formats.base import Input
from service.batch.formats.npy import HEADER_WINDOW_BYTES, arrays, target_of
from service.batch.layout import Layout, Slot, Target

_PIECE_BYTES = 2**20
_SUFFIX = ".npy"
# The earliest time a zip archive can hold, as np.savez writes it: equal results are equal files.
_DATE = (1980, 1, 1, 0, 0, 0)
_PERMISSIONS = 0o600 << 16


class Npz:
    """Members keep their names, their order, and whether they are compressed."""

    is_packed = True

    def layout(self, source: Input) -> Layout:
        """The array of each member, as it lies when the members lie end to end."""
        slots = []
        names = []
        at = 0
        with _archive(source) as archive:
            for member in _members(archive):
                slots.append(_array(archive, member, at))
                names.append(member.filename.removesuffix(_SUFFIX))
                at += member.file_size
        return Layout(tuple(slots), at, tuple(names))

    def target(self, source: Input, layout: Layout) -> Target:
        """The same members, each with the header that NumPy writes, end to end."""
        return target_of(layout)

    def unpack(self, source: Input, into: Path) -> None:
        """Write the members end to end; their sums are checked on the way."""
        with _archive(source) as archive, into.open("wb") as out:
            for member in _members(archive):
                with archive.open(member) as packed:
                    shutil.copyfileobj(packed, out, _PIECE_BYTES)

    def pack(self, source: Input, results: Path, target: Target, into: Path) -> None:
        """Write the archive."""
        stops = [*(literal.start for literal in target.literals[1:]), target.nbytes]
        with _archive(source) as like, zipfile.ZipFile(into, "w") as archive, results.open("rb") as unpacked:
            for member, literal, stop in zip(_members(like), target.literals, stops, strict=True):
                info = zipfile.ZipInfo(member.filename, _DATE)
                info.compress_type = member.compress_type
                info.external_attr = _PERMISSIONS
                with archive.open(info, "w", force_zip64=True) as packed:
                    _copy(unpacked, packed, stop - literal.start)


@contextmanager
def _archive(source: Input) -> Iterator[zipfile.ZipFile]:
    """The archive, open; what is wrong with it, also while it is read, as `BadInput`."""
    try:
        with source.stream() as stream, zipfile.ZipFile(stream) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise BadInput(f"is not an archive that can be read: {error}") from error


def _members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    members = archive.infolist()
    names = {member.filename for member in members}
    if len(names) != len(members):
        raise BadInput("has two members of one name")
    for name in names:
        if not name.endswith(_SUFFIX):
            raise BadInput(f"has a member {name[:80]!r}; allowed: names that end in {_SUFFIX}")
    return members


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, at: int) -> Slot:
    """The one array of a member whose first byte is byte `at`."""
    with archive.open(member) as packed:
        beginning = packed.read(HEADER_WINDOW_BYTES)
    found = list(arrays(lambda start, nbytes: beginning[start - at : start - at + nbytes], at, at + member.file_size))
    if len(found) != 1:
        raise BadInput(f"member {member.filename[:80]!r} holds {len(found)} arrays; allowed: 1")
    return found[0]


def _copy(source: IO[bytes], target: IO[bytes], nbytes: int) -> None:
    while nbytes:
        piece = source.read(min(_PIECE_BYTES, nbytes))
        target.write(piece)
        nbytes -= len(piece)
