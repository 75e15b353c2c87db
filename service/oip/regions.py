"""Shared memory of POSIX by name: which objects callers may name, and the regions they have registered.

A region is a name for a range of an object, no more: nothing is mapped and no descriptor is kept. Every use opens
the object, looks at its size and copies with `pread` and `pwrite`. A mapping of an object that its owner truncates
ends the process with SIGBUS at the next access; a read just comes back short.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from service.errors import BadRegion

# Where Linux keeps the objects of shm_open(3).
OBJECTS = Path("/dev/shm")
MAX_REGIONS = 1024
# A file name, which is neither "." nor "..", maybe after one slash.
_KEY = re.compile(r"/?(?!\.{1,2}$)[ -.0-~]{1,255}")


class Range(NamedTuple):
    """Bytes of a region, as a call names them."""

    region: str
    offset: int
    byte_size: int


class Region(NamedTuple):
    """A name for `byte_size` bytes of the object `key`, from `offset` on."""

    name: str
    key: str
    offset: int
    byte_size: int


class Bytes(NamedTuple):
    """A range of an object: where bytes are read from or written to."""

    key: str
    offset: int
    byte_size: int

    def read(self, into: memoryview) -> None:
        """Fill `into`; `BadRegion` when the object has become shorter."""
        with _opened(self.key, os.O_RDONLY) as descriptor:
            done = 0
            while done < into.nbytes:
                nbytes = os.preadv(descriptor, [into[done:]], self.offset + done)
                if not nbytes:
                    raise BadRegion(f"the shared memory {self.key!r} has become shorter since it was registered")
                done += nbytes

    def write(self, data: memoryview) -> None:
        """Write `data`; `BadRegion` when the object has become shorter."""
        with _opened(self.key, os.O_RDWR) as descriptor:
            # Between this look and the last write an object can still shrink; it is then as long again as what is written.
            _check_size(self.key, descriptor, self.offset + data.nbytes)
            done = 0
            while done < data.nbytes:
                done += os.pwrite(descriptor, data[done:], self.offset + done)


class Regions:
    """The regions that callers have registered, of objects whose names match one of `patterns`."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = [pattern.removeprefix("/") for pattern in patterns]
        self._regions: dict[str, Region] = {}

    @property
    def are_offered(self) -> bool:
        """Whether there is any object that may be registered."""
        return bool(self._patterns)

    def register(self, region: Region) -> None:
        """Remember a region; `BadRegion` where its object is not allowed, not there or too short, or its name is taken."""
        if region.name in self._regions:
            raise BadRegion(f"a region {region.name[:80]!r} is registered already; unregister it first")
        if len(self._regions) >= MAX_REGIONS:
            raise BadRegion(f"{len(self._regions)} regions are registered; allowed: {MAX_REGIONS}")
        self._check_key(region.key)
        with _opened(region.key, os.O_RDONLY) as descriptor:
            _check_size(region.key, descriptor, region.offset + region.byte_size)
        self._regions[region.name] = region

    def _check_key(self, key: str) -> None:
        if not _KEY.fullmatch(key):
            raise BadRegion(f"{key[:80]!r} is no name of shared memory; allowed: ASCII without '/', but for one before it")
        if not any(fnmatchcase(key.removeprefix("/"), pattern) for pattern in self._patterns):
            raise BadRegion(f"the shared memory {key[:80]!r} may not be used; the server's shared_memory_names say which may")

    def unregister(self, name: str | None = None) -> None:
        """Forget a region, or all; one that is not there is forgotten already."""
        if name is None:
            self._regions.clear()
        else:
            self._regions.pop(name, None)

    def status(self, name: str | None = None) -> list[Region]:
        """The region of this name, or all of them."""
        return list(self._regions.values()) if name is None else [self._find(name)]

    def _find(self, name: str) -> Region:
        try:
            return self._regions[name]
        except KeyError:
            raise BadRegion(f"no region {name[:80]!r} is registered") from None

    def locate(self, part: Range) -> Bytes:
        """Where the bytes of a range lie; `BadRegion` when they are not all within a registered region."""
        region = self._find(part.region)
        if part.offset + part.byte_size > region.byte_size:
            raise BadRegion(
                f"bytes {part.offset} to {part.offset + part.byte_size} are outside the region {part.region!r}, "
                f"which has {region.byte_size}"
            )
        return Bytes(region.key, region.offset + part.offset, part.byte_size)

    def locate_for(self, part: Range, nbytes: int) -> Bytes:
        """Where `nbytes` are to be written; `BadRegion` when the range has no room for them."""
        if nbytes > part.byte_size:
            raise BadRegion(f"an output of {nbytes} bytes does not fit into the {part.byte_size} of region {part.region[:80]!r}")
        return self.locate(part)


@contextmanager
def _opened(key: str, mode: int) -> Iterator[int]:
    try:
        descriptor = os.open(OBJECTS / key.removeprefix("/"), mode | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise BadRegion(f"the shared memory {key!r} cannot be opened: {error.strerror}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _check_size(key: str, descriptor: int, needed_bytes: int) -> None:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise BadRegion(f"{key!r} is no shared memory")
    if found.st_size < needed_bytes:
        raise BadRegion(f"the shared memory {key!r} has {found.st_size} bytes; the call needs {needed_bytes}")
