"""What the service has to reach, as multiples: one worker on two cores, servers side by side in one run."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.cells import SIZES
from benchmarks.units import KIB, MIB


def _by_size(*values: float) -> Mapping[int, float]:
    return dict(zip(SIZES, values, strict=True))


# Of the rate of the ceiling and of the naive service, by connections and size; /quantize, npy.
OF_CEILING: Mapping[int, Mapping[int, float]] = {
    1: _by_size(0.50, 0.75, 0.90, 0.95, 0.95),
    8: _by_size(0.30, 0.35, 0.75, 0.90, 0.70),
}
OF_NAIVE: Mapping[int, Mapping[int, float]] = {1: _by_size(3, 2.5, 2, 2.3, 5), 8: _by_size(6, 4, 3, 2.5, 5)}
TWO_WORKERS_OF_CEILING: Mapping[int, float] = {64 * MIB: 0.85}

MSGPACK_OF_NPY, MSGPACK_FROM_BYTES = 0.9, 64 * KIB
GRAD_OF_CEILING, GRAD_FROM_BYTES = 0.85, MIB

TWO_WORKERS_OF_ONE: Mapping[int, float] = {64 * KIB: 1.4, MIB: 1.4}
UNIX_OF_TCP = 1.3
MANY_OF_ONE = 0.5

PEAK_OF_BYTES_IN_FLIGHT = 1.3  # above idle
# "Falls back": at least half of what the load added is given up again.
AFTER_OF_PEAK = 0.5
LOADED_P99_OF_ALONE = 10.0
HEALTHZ_US = 50_000.0

# Times a memcpy of the same bytes; float32, 64 MiB.
OPERATOR_SIZE_BYTES, OPERATOR_DTYPE = 64 * MIB, "float32"
OPERATOR_OF_MEMCPY: Mapping[str, float] = {
    "k_bit_quantize(k=4)": 1.25,
    "clamp(min_value=0, max_value=1)": 1.25,
    "step_quantize(step=0.1)": 1.25,
    "round()": 1.25,
    "clamp(min_value=0, max_value=1) | k_bit_quantize(k=4)": 1.25,
    "affine_k_bit_quantize(k=4, w=w, b=b)": 2.0,
    "clamp_by_linear(eps=1e-05)": 2.5,
}
