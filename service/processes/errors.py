"""Why a server does not start, or does not go on."""

from __future__ import annotations


class CannotServe(Exception):
    """The server cannot start; the message is one line for a person."""


# The exit status of a server whose device has failed (EX_SOFTWARE): started again, it may be well.
DEVICE_FAILED = 70


class DeviceHasFailed(Exception):
    """The server has ended because its device cannot be used any more; the message is one line for a person."""
