"""The four dtypes that the operators take, and what their arithmetic can hold. Imports no array library."""

from __future__ import annotations

from dataclasses import dataclass

from service.errors import UnsupportedDtype


@dataclass(frozen=True, slots=True)
class DType:
    """One floating dtype.

    `max` is its largest finite number; `overflow` the smallest magnitude that rounds to infinity.
    `arithmetic` names the dtype in which numbers beside a tensor are kept under `*` and `/`, and in
    which sums accumulate: PyTorch's "opmath".
    """

    name: str
    itemsize: int
    max: float
    overflow: float
    arithmetic: str

    def holds(self, number: float) -> bool:
        """Whether `number` stays finite when it is rounded to this dtype."""
        return abs(number) < self.overflow


_TWO = 2.0

DTYPES: dict[str, DType] = {
    dtype.name: dtype
    for dtype in (
        DType("float16", 2, 65504.0, 65520.0, "float32"),
        DType("bfloat16", 2, _TWO**128 - _TWO**120, _TWO**128 - _TWO**119, "float32"),
        DType("float32", 4, _TWO**128 - _TWO**104, _TWO**128 - _TWO**103, "float32"),
        DType("float64", 8, 1.7976931348623157e308, float("inf"), "float64"),
    )
}

# Half of the smallest subnormal, the largest magnitude that rounds to zero (ties go to even).
ROUNDS_TO_ZERO: dict[str, float] = {"float32": _TWO**-150, "float64": 0.0}


def dtype(name: str) -> DType:
    """The dtype of this name; `UnsupportedDtype` names the four that exist."""
    try:
        return DTYPES[name]
    except KeyError:
        raise UnsupportedDtype(f"dtype {name[:80]!r} is not supported; allowed: {', '.join(DTYPES)}") from None
