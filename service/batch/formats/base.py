"""What a job needs of a format."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

from service.batch.errors import BadInput
from service.batch.layout import Layout, Target


class Input:
    """A file that is read at any place, by any number of threads at once."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            # A pipe that is called x.npy would otherwise be waited for.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise BadInput(f"cannot be opened: {error.strerror}") from error
        self.nbytes = os.fstat(self._descriptor).st_size

    def read(self, start: int, nbytes: int) -> bytes:
        """At most `nbytes`, from byte `start` on: fewer only at the end of the file."""
        try:
            return os.pread(self._descriptor, nbytes, start)
        except OSError as error:
            raise BadInput(f"cannot be read: {error.strerror}") from error

    def read_into(self, start: int, room: memoryview) -> None:
        """Fill `room` from byte `start` on; `BadInput` where the file ends before."""
        filled = 0
        while filled < len(room):
            try:
                count = os.preadv(self._descriptor, [room[filled:]], start + filled)
            except OSError as error:
                raise BadInput(f"cannot be read: {error.strerror}") from error
            if not count:
                raise BadInput(f"ended after {start + filled} bytes while it was being read; it had {self.nbytes}")
            filled += count

    def stream(self) -> BinaryIO:
        """The same file as a stream of its own."""
        return open(os.dup(self._descriptor), "rb")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Format(Protocol):
    """One kind of file.

    A format that `is_packed` keeps its tensors in members of an archive. The job works on the members laid end to
    end: `layout` and `target` speak of these, `unpack` writes them, and `pack` makes an archive of the results.
    """

    is_packed: bool

    def layout(self, source: Input) -> Layout:
        """Where the tensors are, from headers alone; `BadInput`, or one of `service.errors`, for what is no such file."""

    def target(self, source: Input, layout: Layout) -> Target:
        """Where the results go, and the headers around them."""

    def unpack(self, source: Input, into: Path) -> None:
        """Write the members of an archive end to end; `BadInput` where one is not what the archive says."""

    def pack(self, source: Input, results: Path, target: Target, into: Path) -> None:
        """Write the archive of the results, with the members that the source has."""


class Plain:
    """What the formats share whose tensors lie in the file as they are: there is nothing to unpack."""

    is_packed = False

    def unpack(self, source: Input, into: Path) -> None:
        """Never asked for."""
        raise AssertionError("not an archive")

    def pack(self, source: Input, results: Path, target: Target, into: Path) -> None:
        """Never asked for."""
        raise AssertionError("not an archive")
