"""Sizes and times as people read and write them."""

from __future__ import annotations

import re

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_FACTORS = {"": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_size(text: str) -> int:
    """A number of bytes, plain or in KiB, MiB or GiB; `ValueError` for anything else.

    >>> parse_size("16MiB")
    16777216
    """
    match = re.fullmatch(r"([0-9]{1,15}) *([kmg]ib)?", text.strip(), re.ASCII | re.IGNORECASE)
    nbytes = 0 if match is None else int(match[1]) * _FACTORS[(match[2] or "").lower()]
    if not nbytes:
        raise ValueError(f"{text!r} is not a size; allowed: a number of bytes above 0, or of KiB, MiB or GiB, such as 16MiB")
    return nbytes


def size(nbytes: float) -> str:
    """A number of bytes for people: three digits and a unit.

    >>> size(1536)
    '1.50 KiB'
    """
    power = 0
    while nbytes >= 1000 and power < len(_UNITS) - 1:
        nbytes /= 1024
        power += 1
    if power == 0:
        return f"{nbytes:.0f} B"
    digits = 2 if nbytes < 9.995 else 1 if nbytes < 99.95 else 0
    return f"{nbytes:.{digits}f} {_UNITS[power]}"


def duration(seconds: float) -> str:
    """A time for people: hours, minutes and seconds.

    >>> duration(3725)
    '1:02:05'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
