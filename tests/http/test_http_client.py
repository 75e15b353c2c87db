"""The service through its own client: what goes in comes back, and errors keep their classes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
import torch
from examples import assert_same_bits
from http_app import Service
from http_cases import CASES, DTYPES, Case, operands_of
from test_http_bits import check_gradient

from service.client import AsyncClient
from service.errors import (
    BadParameter,
    EmptyTensor,
    NotReady,
    ParameterDoesNotFit,
    RequestError,
    ShapeMismatch,
    Unauthorized,
    UnknownOperator,
    UnsupportedDtype,
)
from service.ops import Clamp, KBitQuantize


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[AsyncClient]:
    """A client of the application, for the application's loop."""

    async def opened() -> AsyncClient:
        return AsyncClient("http://service.test", transport=service.transport, retries=0)

    one = service.run(opened())
    yield one
    service.run(one.close())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_client_gets_the_bits_of_the_plain_expression(service: Service, client: AsyncClient, case: Case, dtype: str) -> None:
    for x, grad_output in operands_of(case, DTYPES[dtype]).values():
        tensors = case.tensors_for(x)
        assert_same_bits(service.run(client.quantize(case.expression, x, **tensors)), case.forward(x, tensors), case)
        got = service.run(client.grad(case.expression, x, grad_output, **tensors))
        grad_x, grads = got if tensors else (got, {})
        expected, expected_grads = case.backward(x, grad_output, tensors)
        check_gradient(grad_x, expected, case)
        assert set(grads) == set(expected_grads)
        for name, grad in grads.items():
            check_gradient(grad, expected_grads[name], case)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_numpy_comes_back_as_numpy_in_its_order(service: Service, client: AsyncClient, dtype: type) -> None:
    x = np.asfortranarray(np.arange(24).reshape(2, 3, 4) / 7, dtype=dtype)
    for array in (
        x,
        np.ascontiguousarray(x),
        x[::2, ::-1],
        x[0, 0, 0],
        x.astype(x.dtype.newbyteorder("S")) if dtype != ml_dtypes.bfloat16 else x,
    ):
        y = service.run(client.quantize("round", array))
        assert isinstance(y, np.ndarray)
        assert y.dtype == dtype
        assert y.flags.writeable
        np.testing.assert_array_equal(y.astype(np.float64), np.rint(np.asarray(array).astype(np.float64)))
    assert service.run(client.quantize("round", x)).flags.f_contiguous


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_structures_come_back(service: Service, client: AsyncClient, kind: type) -> None:
    xs = [np.float32([0.4, 0.6]), torch.tensor(1.6), np.zeros((0, 2)), torch.ones(2, 2, dtype=torch.bfloat16)]
    given = dict(zip("abcd", xs, strict=True)) if kind is dict else kind(xs)
    for y in (service.run(client.quantize("round", given)), service.run(client.grad("round", given, given))):
        assert type(y) is kind
        assert list(y) == list(given) if kind is dict else len(y) == 4
        for got, x in zip(y.values() if kind is dict else y, xs, strict=True):
            assert isinstance(got, type(x))
            assert (got.dtype, got.shape) == (x.dtype, x.shape)


def test_values_of_operators_may_be_sent(service: Service, client: AsyncClient) -> None:
    x = torch.linspace(-1, 2, 50)
    y = service.run(client.quantize(Clamp(min_value=0, max_value=1) | KBitQuantize(k=4), x))
    assert_same_bits(y, torch.round(torch.clamp(x, 0, 1) * 15) / 15)


@pytest.mark.parametrize(
    ("expression", "x", "error", "word"),
    [
        ("rounded", torch.ones(3), UnknownOperator, "rounded"),
        ("k_bit_quantize(k=0)", torch.ones(3), BadParameter, "'k'"),
        ("k_bit_quantize(k=16)", torch.ones(3).half(), ParameterDoesNotFit, "float16"),
        ("clamp_by_linear", torch.ones(0), EmptyTensor, "element"),
        ("affine_k_bit_quantize(4, w, 0)", torch.ones(3), ShapeMismatch, "'w'"),
        ("round", torch.ones(3, dtype=torch.int32), UnsupportedDtype, "int32"),
    ],
)
def test_errors_keep_their_classes(
    service: Service, client: AsyncClient, expression: str, x: torch.Tensor, error: type[RequestError], word: str
) -> None:
    tensors = {"w": torch.ones(2, 3)} if "w" in expression else {}
    with pytest.raises(error, match=word):
        service.run(client.quantize(expression, x, **tensors))


def test_the_client_lists_operators_and_asks_whether_the_service_is_ready(service: Service, client: AsyncClient) -> None:
    assert [one["name"] for one in service.run(client.operators())][:2] == ["round", "ceil"]
    assert service.run(client.healthy())
    assert service.run(client.ready())


def test_keys_are_sent_and_a_wrong_one_is_told(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "keys").write_text("right\n")
    with Service(api_keys_file=tmp_path / "keys") as locked:

        async def calls() -> None:
            async with AsyncClient("http://a", transport=locked.transport, api_key="right") as good:
                assert_same_bits(await good.quantize("round", torch.tensor([0.6])), torch.tensor([1.0]))
            async with AsyncClient("http://a", transport=locked.transport, api_key="wrong") as bad:
                with pytest.raises(Unauthorized):
                    await bad.quantize("round", torch.tensor([0.6]))

        locked.run(calls())


def test_a_service_that_is_not_ready_is_told_so_and_may_be_asked_again() -> None:
    waited: list[float] = []
    with Service() as starting:
        core = starting.app.state.core

        async def sleep(seconds: float) -> None:
            waited.append(seconds)
            core.ready = True

        async def calls() -> None:
            core.ready = False
            async with AsyncClient("http://a", transport=starting.transport, retries=0) as impatient:
                assert not await impatient.ready()
                with pytest.raises(NotReady):
                    await impatient.quantize("round", torch.tensor([0.6]))
            async with AsyncClient("http://a", transport=starting.transport, sleep=sleep) as patient:
                assert_same_bits(await patient.quantize("round", torch.tensor([0.6])), torch.tensor([1.0]))

        starting.run(calls())
    assert len(waited) == 1


def test_a_hundred_calls_at_once(service: Service, client: AsyncClient) -> None:
    xs = [torch.full((n + 1,), n + 0.25) for n in range(100)]

    async def calls() -> list[torch.Tensor]:
        return await asyncio.gather(*(client.quantize("round", x) for x in xs))

    for y, x in zip(service.run(calls()), xs, strict=True):
        assert_same_bits(y, torch.round(x))
