"""What Linux says of a process: memory, descriptors, threads; and the trend of such figures."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import NamedTuple

import numpy as np

MIB = 2**20


class Figures(NamedTuple):
    """One look at a process, `at_s` on any clock."""

    at_s: float
    resident_bytes: int
    descriptors: int
    threads: int


def look_at(pid: int, at_s: float) -> Figures:
    """How much the process holds now."""
    process = Path("/proc") / str(pid)
    pages = int((process / "statm").read_text().split()[1])
    return Figures(
        at_s, pages * resource.getpagesize(), len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))
    )


def slope_per_s(times_s: list[float], values: list[float]) -> float:
    """How much a figure grows in a second, by least squares."""
    return float(np.polyfit(np.array(times_s) - times_s[0], values, 1)[0])
