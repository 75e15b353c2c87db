"""How far the numbers of one file lie from those of another: in blocks, so that neither need fit in memory.

Everything is computed in float64. NaN and infinities are counted, and left out of all else: a pair of
numbers is compared where both are finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from service.errors import ShapeMismatch, StructureMismatch
from service.wire.message import WireTensor

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

# Blocks that stay in cache while they are read a dozen times. At 2**20 it took up to 1.3 times as long.
BLOCK_ELEMENTS = 2**16
# A tensor with more different values than float16 has is not quantized, and its values need not be counted.
MAX_LEVELS = 2**16
BINS = 20


@dataclass
class Extent:
    """The least and the greatest of some finite numbers; `low > high` where there are none."""

    low: float = math.inf
    high: float = -math.inf

    def add(self, values: Floats) -> None:
        """Count these in."""
        if values.size:
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    @property
    def is_empty(self) -> bool:
        """Whether nothing was counted."""
        return self.low > self.high


@dataclass
class Side:
    """What one file holds: its odd numbers counted, its finite ones described."""

    nan: int = 0
    infinite: int = 0
    extent: Extent = field(default_factory=Extent)

    def add(self, values: Floats) -> npt.NDArray[np.bool_]:
        """Count these in; where they are finite."""
        finite: npt.NDArray[np.bool_] = np.isfinite(values)
        odd = values.size - int(np.count_nonzero(finite))
        if odd:
            nan = int(np.count_nonzero(np.isnan(values)))
            self.nan += nan
            self.infinite += odd - nan
        self.extent.add(values if not odd else values[finite])
        return finite


@dataclass
class Comparison:
    """What is known of `error`, the numbers of `output` minus those of `input`.

    `levels` are the different values of `output`, ascending; None where there are more than `MAX_LEVELS`.
    `counts` are the errors in each of `BINS` bins of equal width from the least to the greatest.
    """

    elements: int = 0
    compared: int = 0
    input: Side = field(default_factory=Side)
    output: Side = field(default_factory=Side)
    error: Extent = field(default_factory=Extent)
    sum_of_errors: float = 0.0
    sum_of_squared_errors: float = 0.0
    sum_of_squares: float = 0.0
    levels: Floats | None = field(default_factory=lambda: np.empty(0))
    counts: Counts = field(default_factory=lambda: np.zeros(BINS, np.int64))

    @property
    def max_abs_error(self) -> float:
        """The largest error; NaN where nothing was compared."""
        return math.nan if self.error.is_empty else max(abs(self.error.low), abs(self.error.high))

    @property
    def mean_error(self) -> float:
        """The mean of the errors; NaN where nothing was compared."""
        return self.sum_of_errors / self.compared if self.compared else math.nan

    @property
    def mean_squared_error(self) -> float:
        """The mean of the squared errors; NaN where nothing was compared."""
        return self.sum_of_squared_errors / self.compared if self.compared else math.nan

    @property
    def snr_db(self) -> float:
        """`10 log10(sum(input²) / sum(error²))`: infinite without error, NaN where both are 0."""
        signal, noise = self.sum_of_squares, self.sum_of_squared_errors
        if noise == 0:
            return math.inf if signal else math.nan
        return 10 * (math.log10(signal) - math.log10(noise)) if signal else -math.inf

    @property
    def edges(self) -> Floats:
        """The bounds of the bins, one more than there are bins; none where all errors are one, or one is infinite."""
        low, high = self.error.low, self.error.high
        return np.linspace(low, high, BINS + 1) if 0 < high - low < math.inf else np.empty(0)


def compare(inputs: Sequence[WireTensor], outputs: Sequence[WireTensor]) -> Comparison:
    """Compare arrays in turn; raises `StructureMismatch` and `ShapeMismatch` where they do not correspond."""
    if len(inputs) != len(outputs):
        raise StructureMismatch(f"IN holds {len(inputs)} arrays, OUT {len(outputs)}")
    for index, (one, other) in enumerate(zip(inputs, outputs, strict=True)):
        if one.shape != other.shape:
            raise ShapeMismatch(f"array {index} of OUT has shape {other.shape}, that of IN {one.shape}")
    found = Comparison()
    # Squares of the largest float64 numbers, and differences of them, are infinite: so be it.
    with np.errstate(over="ignore", invalid="ignore"):
        for x, y in _blocks(inputs, outputs):
            _add(found, x, y)
        if (edges := found.edges).size:
            for x, y in _blocks(inputs, outputs):
                found.counts += np.histogram(_finite(y - x), edges)[0]
    return found


def _add(found: Comparison, x: Floats, y: Floats) -> None:
    both = found.input.add(x) & found.output.add(y)
    if found.levels is not None:
        levels = np.union1d(found.levels, _finite(y))
        found.levels = levels if levels.size <= MAX_LEVELS else None
    found.elements += x.size
    compared = int(np.count_nonzero(both))
    if compared != x.size:
        x, y = x[both], y[both]
    found.compared += compared
    error = y - x
    found.error.add(error)
    found.sum_of_errors += float(error.sum())
    # Not `error @ error`, for which BLAS starts threads: 2**26 numbers took 7 to 24 s on a busy machine, these 3 to 6 s.
    found.sum_of_squared_errors += float(np.square(error).sum())
    found.sum_of_squares += float(np.square(x).sum())


def _finite(values: Floats) -> Floats:
    return values[np.isfinite(values)]


def _blocks(inputs: Sequence[WireTensor], outputs: Sequence[WireTensor]) -> Iterator[tuple[Floats, Floats]]:
    """The numbers of both, block by block, in one order, whichever each has in memory."""
    for x, y in zip(inputs, outputs, strict=True):
        arrays = _array(x), _array(y)
        widen = _widening(x), _widening(y)
        blocks: Any = np.nditer(
            arrays, ["external_loop", "buffered", "zerosize_ok"], [["readonly"], ["readonly"]], buffersize=BLOCK_ELEMENTS
        )
        for pair in blocks:
            yield widen[0](pair[0]), widen[1](pair[1])


def _array(tensor: WireTensor) -> npt.NDArray[Any]:
    dtype = np.dtype("<u2" if tensor.dtype.name == "bfloat16" else tensor.dtype.name)
    return np.ndarray(tensor.shape, dtype, tensor.data, order="F" if tensor.fortran else "C")


def _widening(tensor: WireTensor) -> Callable[[npt.NDArray[Any]], Floats]:
    if tensor.dtype.name == "bfloat16":
        # The upper half of a float32.
        return lambda block: (block.astype("<u4") << 16).view("<f4").astype(np.float64)
    return lambda block: block.astype(np.float64)
