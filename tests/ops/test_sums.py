"""The defined sum, against a model in pure Python over NumPy scalars."""

from __future__ import annotations

import math

import numpy as np
import numpy_model
import pytest
import torch
from examples import DTYPES, assert_same_bits, bits, moderate

from service.ops.sums import sum_to_shape, total

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def spread(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Values of very different magnitude: another order of summation gives other bits."""
    exponents = moderate(torch.float64, *shape, seed=3) * 4
    return (moderate(torch.float64, *shape, seed=2) * 2**exponents).to(dtype)


@every_dtype
@pytest.mark.parametrize("length", [0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 1000, 4097])
def test_neighbours_are_added_pairwise_and_an_odd_last_one_is_carried_up(dtype: torch.dtype, length: int) -> None:
    x = spread(dtype, length)
    assert_same_bits(total(x), numpy_model.to_torch(numpy_model.total(numpy_model.to_numpy(x))).reshape(()))


def test_the_model_is_the_sum_the_contract_describes() -> None:
    a, b, c, d, e = (np.float32(value) for value in (1e8, 1.0, -1e8, 3.0, 0.5))
    x = np.array([a, b, c, d, e], dtype=np.float32)
    assert numpy_model.total(x) == ((a + b) + (c + d)) + e


def test_the_order_of_a_spread_sum_can_be_told_from_its_bits() -> None:
    x = spread(torch.float32, 1000)
    sequential = torch.tensor(np.add.accumulate(x.numpy(), dtype=np.float32)[-1])
    assert bits(total(x)) != bits(sequential)


SHAPES = [
    ((), ()),
    ((1,), ()),
    ((7,), ()),
    ((7,), (1,)),
    ((7,), (7,)),
    ((3, 5), ()),
    ((3, 5), (1,)),
    ((3, 5), (5,)),
    ((3, 5), (3, 1)),
    ((3, 5), (1, 5)),
    ((3, 5), (1, 1)),
    ((3, 5), (3, 5)),
    ((2, 3, 4), (3, 1)),
    ((2, 3, 4), (2, 1, 4)),
    ((2, 3, 4), (1, 3, 1)),
    ((2, 3, 4), (4,)),
    ((2, 1, 4), (1, 4)),
    ((1, 1), ()),
    ((5, 1, 3), (1, 1, 1)),
    ((0,), ()),
    ((0,), (1,)),
    ((0,), (0,)),
    ((0, 3), ()),
    ((0, 3), (1,)),
    ((0, 3), (3,)),
    ((0, 3), (1, 3)),
    ((0, 3), (0, 1)),
    ((0, 3), (0, 3)),
    ((3, 0), (3, 1)),
]


@every_dtype
@pytest.mark.parametrize(("from_shape", "shape"), SHAPES, ids=str)
def test_a_sum_has_the_parameters_own_shape(dtype: torch.dtype, from_shape: tuple[int, ...], shape: tuple[int, ...]) -> None:
    x = spread(dtype, *from_shape)
    got = sum_to_shape(x, shape)
    assert_same_bits(got, numpy_model.sum_to_shape(x, shape))
    assert got.shape == torch.empty(shape).expand(from_shape).sum_to_size(shape).shape


@every_dtype
@pytest.mark.parametrize(("from_shape", "shape"), SHAPES, ids=str)
def test_the_elements_are_taken_in_c_order_of_the_summed_dimensions_whatever_the_memory_order(
    dtype: torch.dtype, from_shape: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    x = spread(dtype, *from_shape)
    backwards = tuple(reversed(range(x.dim())))
    fortran = x.permute(backwards).contiguous().permute(backwards)
    assert_same_bits(sum_to_shape(fortran, shape), sum_to_shape(x, shape))


@every_dtype
@pytest.mark.parametrize("shape", [(), (3,), (3, 1)], ids=str)
def test_the_sum_of_no_element_is_zero(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.empty((3, 0) if shape == (3, 1) else (0, 3), dtype=dtype)
    assert_same_bits(sum_to_shape(x, shape), torch.zeros(shape, dtype=dtype))


@every_dtype
def test_the_sum_of_one_element_is_that_element(dtype: torch.dtype) -> None:
    for value in (-0.0, math.inf, 0.1):
        x = torch.tensor([value], dtype=dtype)
        assert_same_bits(total(x), x[0])


def test_a_sixteen_bit_sum_is_rounded_once_at_the_end() -> None:
    """In float16 itself the first would be infinite, the second would lose every small element."""
    assert total(torch.tensor([65504.0, 65504.0, -65504.0, 0.0]).half()).item() == 65504.0
    small = torch.tensor([2048.0, *[1.0] * 7]).half()
    assert total(small).item() == 2056.0  # 2055 in float32, a tie in float16
    assert total(torch.tensor([256.0, 1.0, 1.0, 1.0]).bfloat16()).item() == 260.0  # 259, rounded; 258 if each level were


@every_dtype
def test_a_sum_never_shares_memory_with_what_was_summed(dtype: torch.dtype) -> None:
    for from_shape, shape in SHAPES:
        x = spread(dtype, *from_shape)
        if x.numel():
            assert sum_to_shape(x, shape).data_ptr() != x.data_ptr(), (from_shape, shape)
