"""Why a server does not start."""

from __future__ import annotations


class CannotServe(Exception):
    """The server cannot start; the message is one line for a person."""
