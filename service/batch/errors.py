"""How a job can end before all is done; `str()` is the line that a person reads."""

from __future__ import annotations


class BatchError(Exception):
    """Base of what ends a job, or a file of it."""


class BadUsage(BatchError):
    """What was asked for cannot be done as it was asked: nothing was started, or nothing more will be."""


class BadInput(BatchError):
    """One file cannot be processed; the others can."""


class GaveUp(BatchError):
    """The job cannot go on now. What is done stays done: the same command goes on later."""


class Locked(GaveUp):
    """Another job works on this DEST."""


class Stopped(BatchError):
    """The job was asked to stop; what was not begun is left for the next run."""
