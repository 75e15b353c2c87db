"""Elementwise expressions by NumPy, whose dispatch costs a fraction of PyTorch's.

Of the time of three PyTorch operations `k_bit_quantize` of float32 takes 0.4 at 4 KiB, 0.55 at 64 KiB, and 0.9 over 64 MiB,
both in tiles of 1 MiB. float16 and bfloat16 are left to PyTorch, as NumPy computes
the one slowly and does not have the other.

PyTorch stays the definition: an expression is computed here only after its kernel gave PyTorch's bits for values chosen
to tell any two implementations apart. (NumPy's `clip`, for one, keeps a -0.0 that meets a bound of 0, but nowhere says so.)
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from service.ops.base import Expression

Array = npt.NDArray[Any]
# Overwrites a 1-d array with the values of an expression.
Kernel = Callable[[Array], None]

# So much goes through all steps before what follows: it stays in cache between them.
_TILE_BYTES = 2**20
DTYPES = ("float32", "float64")

# Bit patterns are tried in this number, besides the values that matter most.
_RANDOM_PATTERNS = 2000


@lru_cache(maxsize=256)
def kernel(expression: Expression, dtype_name: str) -> Kernel | None:
    """The kernel of an expression for arrays of a dtype; None where there is none that gives PyTorch's bits."""
    if dtype_name not in DTYPES:
        return None
    dtype = np.dtype(dtype_name)
    steps = [operator.vectorized(dtype) for operator in expression.operators]
    if not all(steps):
        return None

    tile_elements = _TILE_BYTES // dtype.itemsize

    def pass_over(x: Array) -> None:
        if x.size <= tile_elements:
            for step in steps:
                step(x)  # type: ignore[misc]
            return
        for start in range(0, x.size, tile_elements):
            pass_over(x[start : start + tile_elements])

    def run(x: Array) -> None:
        quietly(pass_over, x)

    return run if _gives_the_bits_of(expression, run, dtype) else None


def _quietly() -> Callable[[Kernel, Array], None]:
    """How to run a kernel to which overflow and NaN are no news.

    Since NumPy 2 its error state belongs to the context, and a copy of a quiet one costs 0.1 µs; `np.errstate` takes 0.9,
    a quarter of the work on 4 KiB.
    """
    if np.lib.NumpyVersion(np.__version__) < "2.0.0":

        def quietly(kernel: Kernel, x: Array) -> None:
            with np.errstate(all="ignore"):
                kernel(x)

        return quietly
    quiet = Context()
    quiet.run(np.seterr, all="ignore")
    return lambda kernel, x: quiet.copy().run(kernel, x)


quietly = _quietly()


def _gives_the_bits_of(expression: Expression, run: Kernel, dtype: np.dtype[Any]) -> bool:
    import torch

    x = telling_values(expression, dtype)
    with torch.inference_mode():
        expected = expression.forward(torch.from_numpy(x.copy())).numpy()
    run(x)
    unsigned = f"u{dtype.itemsize}"
    same = x.view(unsigned) == expected.view(unsigned)
    return bool((same | (np.isnan(x) & np.isnan(expected))).all())


def telling_values(expression: Expression, dtype: np.dtype[Any]) -> Array:
    """Zeros, infinities, NaN, subnormals, the expression's own numbers and their neighbours, ties, and patterns of all kinds."""
    numbers = [float(value) for operator in expression.operators for value in operator.model_dump().values()]
    limits = np.finfo(dtype)
    special = [0.0, np.inf, np.nan, limits.tiny, limits.smallest_subnormal, limits.max, 0.5, 1.5, 2.5, 1.0, *numbers]
    with np.errstate(all="ignore"):
        points = np.array(special, dtype)
        points = np.concatenate([points, np.nextafter(points, dtype.type(np.inf)), np.nextafter(points, dtype.type(-np.inf))])
        grid = np.linspace(-2, 2, 257, dtype=dtype)
    patterns = np.random.default_rng(0).integers(0, 256, _RANDOM_PATTERNS * dtype.itemsize, np.uint8).view(dtype)
    return np.concatenate([points, -points, grid, patterns])
