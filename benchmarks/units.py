"""Sizes and rates in words."""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB


def size_name(size_bytes: int) -> str:
    """`4 KiB`, `64 MiB`."""
    unit, name = (MIB, "MiB") if size_bytes >= MIB else (KIB, "KiB")
    return f"{size_bytes / unit:.4g} {name}"


def rate_in_words(per_s: float) -> str:
    """A rate with as many digits as can be trusted: `12 967`, `20.5`."""
    return f"{per_s:,.0f}".replace(",", " ") if per_s >= 100 else f"{per_s:.3g}"
