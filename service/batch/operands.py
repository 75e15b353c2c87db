"""An input of a file in work, as one piece in which its tensors have places."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from service.batch.checksums import Sum, checksum, filled, joined, sum_of
from service.batch.errors import BadInput
from service.batch.formats import Format, Input
from service.batch.journal import Origin
from service.batch.rooms import Room


class Operand:
    """A source, or its gradient: open, and unpacked to `spool` where it is an archive."""

    def __init__(self, origin: Origin, form: Format, spool: Path) -> None:
        self.origin = origin
        self.source = Input(origin.path)
        self._form = form
        self._spool = spool
        self._unpacked: Input | None = None

    def unpack(self) -> None:
        """Make the tensors readable."""
        if self._form.is_packed:
            self._form.unpack(self.source, self._spool)
            self._unpacked = Input(str(self._spool))

    def read(self, start: int, nbytes: int, itemsize: int, room: Room, *, swapped: bool) -> tuple[memoryview, Sum]:
        """Elements from byte `start` on, little-endian, in `room`; and the sum of what was read."""
        elements = room.elements(nbytes)
        source = self._unpacked or self.source
        found = filled(elements, lambda offset, piece: source.read_into(start + offset, piece))
        if swapped:
            np.frombuffer(elements, f"u{itemsize}").byteswap(inplace=True)
        return elements, found

    def sum(self, known: Iterable[tuple[int, Sum]]) -> Sum:
        """The sum of the whole file, given those of what was read, by first bytes in order; headers are read again."""
        if self._form.is_packed:
            return sum_of(Path(self.origin.path))
        return joined(_with_gaps(self.source, known))

    def check_unchanged(self) -> None:
        """`BadInput` where the file is not the one any more that was found."""
        try:
            status = os.stat(self.origin.path)
        except OSError as error:
            raise BadInput(f"{self.origin.path} was there and is not any more: {error.strerror}") from error
        if (status.st_size, status.st_mtime_ns) != (self.origin.nbytes, self.origin.mtime_ns):
            raise BadInput(f"{self.origin.path} changed while it was being read; run the job again")

    def close(self) -> None:
        """Close the file, and remove what was unpacked."""
        self.source.close()
        if self._unpacked is not None:
            self._unpacked.close()
        if self._form.is_packed:
            with suppress(FileNotFoundError):
                self._spool.unlink()


def _with_gaps(file: Input, known: Iterable[tuple[int, Sum]]) -> Iterator[Sum]:
    at = 0
    for start, one in known:
        yield checksum(file.read(at, start - at))
        yield one
        at = start + one.nbytes
    yield checksum(file.read(at, file.nbytes - at))
