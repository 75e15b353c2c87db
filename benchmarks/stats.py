"""The few numbers that a list of measurements is reduced to."""

from __future__ import annotations

import math
from collections.abc import Sequence


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two in the middle."""
    if not values:
        raise ValueError("the median of no values")
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median over median: the reader of a table of medians finds the same number."""
    return median(numerators) / median(denominators)


def spread(values: Sequence[float]) -> float:
    """Distance between the extremes, in medians: how far a single round can be trusted."""
    return (max(values) - min(values)) / median(values)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed (nearest rank)."""
    if not values:
        raise ValueError("a percentile of no values")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
