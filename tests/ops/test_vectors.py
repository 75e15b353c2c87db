"""The kernels for small arrays give the bits of the PyTorch expression."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from service.ops import REGISTRY, Expression, parse, vectors
from service.ops.catalogue import example

EXPRESSIONS = [
    *(example(name) for name in REGISTRY),
    "clamp(min_value=-0.0, max_value=0.0)",
    "clamp(min_value=0, max_value=0)",
    "clamp(min_value=-inf, max_value=-0.5)",
    "clamp(min_value=0.1, max_value=inf)",
    "step_quantize(step=0.1)",
    "step_quantize(step=1e-40)",
    "step_quantize(step=3e38)",
    *(f"k_bit_quantize(k={k})" for k in (1, 2, 3, 8, 16, 24, 25, 33, 64, 127)),
    "clamp(min_value=0, max_value=1) | k_bit_quantize(k=4)",
    "clamp(min_value=-1, max_value=1) | step_quantize(step=0.125) | floor | ceil",
]


def patterns(dtype: np.dtype, seed: int, count: int = 200_000) -> np.ndarray:
    """Bit patterns of all kinds, and numbers of the sizes that quantizers meet."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, count * dtype.itemsize, np.uint8).view(dtype)
    return np.concatenate([raw, rng.normal(0, 2, count).astype(dtype), rng.integers(-64, 64, count).astype(dtype) / dtype.type(2)])


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    unsigned = f"u{one.itemsize}"
    return bool(((one.view(unsigned) == other.view(unsigned)) | (np.isnan(one) & np.isnan(other))).all())


@pytest.mark.parametrize("dtype", vectors.DTYPES)
@pytest.mark.parametrize("text", EXPRESSIONS)
def test_a_kernel_gives_the_bits_of_the_expression(text: str, dtype: str) -> None:
    expression = parse(text)
    kernel = vectors.kernel(expression, dtype) if expression.elementwise else None
    if kernel is None:
        assert text.startswith(("affine", "clamp_by_linear")), "PyTorch's own way is for operators that have no kernel"
        return
    x = patterns(np.dtype(dtype), seed=len(text))
    expected = expression.forward(torch.from_numpy(x.copy())).numpy()
    kernel(x)
    assert same_bits(x, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_there_is_no_kernel_for_what_numpy_does_slowly_or_not_at_all(dtype: str) -> None:
    assert vectors.kernel(parse("round"), dtype) is None


def test_a_kernel_with_other_bits_is_not_used() -> None:
    class Half(Expression):
        """`x / 2`, which for one value is done otherwise."""

        def __init__(self, off: float) -> None:
            self.off = off

        @property
        def operators(self) -> tuple[Half, ...]:  # type: ignore[override]
            return (self,)

        def __str__(self) -> str:
            return f"half({self.off})"

        def model_dump(self) -> dict[str, float]:
            return {"off": self.off}

        def forward(self, x: torch.Tensor, tensors: object = None, *, out: torch.Tensor | None = None) -> torch.Tensor:
            return x / 2

        def vectorized(self, dtype: np.dtype) -> object:
            def run(x: np.ndarray) -> None:
                wrong = x == self.off
                np.divide(x, dtype.type(2), x)
                x[wrong] = 17

            return run

    assert vectors.kernel(Half(float("nan")), "float32") is not None
    assert vectors.kernel(Half(0.3), "float64") is None


def test_overflow_and_invalid_operations_are_data_and_warn_nobody() -> None:
    kernel = vectors.kernel(parse("k_bit_quantize(k=127)"), "float32")
    assert kernel is not None
    x = np.array([3e38, -3e38, np.nan, np.inf], np.float32)
    kernel(x)
    assert np.isinf(x[[0, 1, 3]]).all()
    assert np.isnan(x[2])
