"""What a failure of the system under a job means for the job."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

from service.batch.errors import BadUsage, BatchError, GaveUp

_FULL = (errno.ENOSPC, errno.EDQUOT)


def explained(failure: BaseException, dest: Path) -> BaseException:
    """A failure of the disk under DEST, or of memory, as something to be put right before the job goes on; others as they are."""
    match failure:
        case BatchError():
            return failure
        case sqlite3.Error():
            return GaveUp(f"cannot write the journal in {dest}: {failure}")
        case OSError():
            return GaveUp(f"cannot write in {dest}: {failure.strerror or failure}")
        case MemoryError():
            return GaveUp("memory is exhausted; choose a smaller --chunk-bytes or --concurrency")
    return failure


def unusable(error: OSError, dest: Path) -> BatchError:
    """Why a DEST could not be set up: a full disk may be emptied, anything else is wrong usage."""
    kind = GaveUp if error.errno in _FULL else BadUsage
    return kind(f"DEST {str(dest)!r} cannot be written: {error.strerror or error}")
