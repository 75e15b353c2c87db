"""Shared memory objects as a caller makes them; without the resource tracker, which would look after them in its own way."""

from __future__ import annotations

import mmap
import os
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

OBJECTS = Path("/dev/shm")


class SharedObject:
    """A new object of a size, mapped here, with a name that the tests' servers allow."""

    def __init__(self, nbytes: int, prefix: str = "stequant-test-") -> None:
        self.key = f"/{prefix}{uuid.uuid4().hex}"
        self.path = OBJECTS / self.key[1:]
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(self._descriptor, nbytes)
        self.memory = mmap.mmap(self._descriptor, nbytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.memory.close()
        os.close(self._descriptor)
        self.path.unlink(missing_ok=True)

    def truncate(self, nbytes: int) -> None:
        """Make it shorter, or longer, than what is registered."""
        os.ftruncate(self._descriptor, nbytes)

    @property
    def nbytes(self) -> int:
        """How long it is now."""
        return os.fstat(self._descriptor).st_size
