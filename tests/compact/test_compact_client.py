"""Compact answers through the client: the same bits as `values`, from NumPy and torch, for one tensor and for several."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from compact_reference import every_pattern
from examples import DTYPES, assert_same_bits, interesting, moderate
from http_app import Service
from http_bodies import to_numpy, to_torch
from server_process import ServerProcess

from service.client import AsyncClient, Client, Codes, Mask, Packed, ProtocolError
from service.errors import DtypeMismatch, MissingTensor, NotRepresentable, ShapeMismatch
from service.ops import KBitQuantize, parse

CHAIN = "clamp(0,1)|k_bit_quantize(4)"
EXPRESSIONS = [
    "round",
    "ceil",
    "floor",
    "step_quantize(0.1)",
    "k_bit_quantize(3)",
    "affine_k_bit_quantize(5, 0.3, -1)",
    "clamp(0,1)|k_bit_quantize(8)",
    "clamp(0,1)|k_bit_quantize(15)",
    "clamp(0,1)|affine_k_bit_quantize(2, -1.7, 1e-3)",
]
X = np.array([[0, 0.3, 1], [0.5, 0.9, 0.1]], np.float32)


def ask(service: Service, method: str, *arguments: Any, wire: Any = None, **keywords: Any) -> Any:
    """What a client's method gives."""

    async def asked() -> Any:
        async with AsyncClient("http://service.test", transport=service.transport, format=wire) as client:
            return await getattr(client, method)(*arguments, **keywords)

    return service.run(asked())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_decoding_gives_the_bits_of_values(service: Service, expression: str, dtype: torch.dtype) -> None:
    few = every_pattern(dtype)[::5] if dtype.itemsize == 2 else interesting(dtype)
    x = torch.cat([few[few.abs() < 100], few[few.isnan()][:5], moderate(dtype, 200), torch.full((2,), torch.inf, dtype=dtype)])
    x = x[~((x == 0) & x.signbit())].reshape(1, -1, 1)
    values = ask(service, "quantize", expression, x)
    codes = ask(service, "quantize", expression, x, output="codes")
    assert isinstance(codes, Codes)
    assert (codes.shape, codes.dtype) == (tuple(x.shape), str(dtype).removeprefix("torch."))
    assert codes.operator == parse(expression).operators[-1]
    assert_same_bits(codes.decode(), values, expression)
    array = ask(service, "quantize", expression, to_numpy(x), output="codes").decode()
    assert array.dtype == to_numpy(x).dtype
    assert array.flags.writeable
    assert_same_bits(to_torch(array), values, expression)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [1, 3, 4, 8, 11, 15])
def test_packed_codes_decode_to_the_bits_of_values(service: Service, k: int, dtype: torch.dtype) -> None:
    x = moderate(dtype, 37, 11).abs()
    x[0, :3] = torch.tensor([-0.0, torch.nan, torch.inf])
    expression = f"clamp(0,1)|affine_k_bit_quantize({k}, 0.3, -1)"
    values = ask(service, "quantize", expression, x)
    packed = ask(service, "quantize", expression, x, output="packed")
    assert isinstance(packed, Packed)
    assert (packed.bits, packed.shape, packed.packed.nbytes) == (k, (37, 11), -(-37 * 11 * k // 8))
    assert_same_bits(packed.decode(), values)
    codes = ask(service, "quantize", expression, x, output="codes")
    assert packed.codes().dtype == codes.codes.dtype
    # The code of 1 may be 2**k: packed it is 2**k - 1, which the dtype rounds to it.
    same = [torch.from_numpy(one.astype(np.int64)).to(dtype) for one in (packed.codes(), codes.codes)]
    assert_same_bits(*same)


def test_a_result_keeps_none_of_what_was_sent(service: Service) -> None:
    codes = ask(service, "quantize", CHAIN, X, output="codes")
    assert codes.codes.tolist() == [[0, 4, 15], [8, 14, 2]]
    assert codes.nbytes == 6
    assert codes.operator == KBitQuantize(k=4)
    assert codes._like.wire.data.nbytes == 0
    assert repr(codes).startswith("Codes(codes=array(")


@pytest.mark.parametrize("wire", ["npy", "msgpack", "safetensors", None])
@pytest.mark.parametrize("output", ["codes", "packed", "mask"])
def test_the_structure_is_that_of_x(service: Service, output: str, wire: str | None) -> None:
    method, expression = ("grad", "clamp(0,1)") if output == "mask" else ("quantize", CHAIN)
    kind = {"codes": Codes, "packed": Packed, "mask": Mask}[output]
    half = X.astype(np.float16)
    for x in ([X], [X, half[0]], (half, X), {"a": X}, {"b": half, "a.codes": X}):
        got = ask(service, method, expression, x, wire=wire, output=output)
        assert type(got) is type(x)
        if isinstance(x, dict):
            assert list(got) == list(x)
            x, got = list(x.values()), list(got.values())
        assert all(isinstance(one, kind) for one in got)
        for one, sent in zip(got, x, strict=True):
            assert one.shape == sent.shape
            if output != "mask":
                y = one.decode()
                assert y.dtype == sent.dtype
                np.testing.assert_array_equal(y, ask(service, "quantize", CHAIN, sent))
    if wire in ("msgpack", None):
        assert ask(service, method, expression, [], wire=wire, output=output) == []


def test_masks_cut_a_gradient_as_the_server_does(service: Service) -> None:
    for dtype in DTYPES:
        x, grad_output = moderate(dtype, 5, 7), moderate(dtype, 5, 7, seed=1)
        x[0, 0], grad_output[0, 1] = torch.nan, torch.nan
        for expression in ("clamp(0,1)", "round", "clamp(-1,1)|round|clamp(0,1)|k_bit_quantize(2)"):
            mask = ask(service, "grad", expression, x, output="mask")
            assert (mask.shape, mask.dtype, mask.nbytes) == ((5, 7), str(dtype).removeprefix("torch."), 5)
            assert mask.array().shape == (5, 7)
            expected = ask(service, "grad", expression, x, grad_output)
            assert_same_bits(mask.apply(grad_output), expected, expression)
            assert_same_bits(mask.apply(grad_output.t().contiguous().t()), expected, expression)
            assert_same_bits(to_torch(mask.apply(to_numpy(grad_output))), expected, expression)


def test_a_mask_is_applied_to_what_it_is_of(service: Service) -> None:
    mask = ask(service, "grad", "clamp(0,1)", X, output="mask")
    with pytest.raises(ShapeMismatch, match=r"\(3,\).*\(2, 3\)"):
        mask.apply(X[0])
    with pytest.raises(DtypeMismatch, match=r"float16.*float32"):
        mask.apply(X.astype(np.float16))
    with pytest.raises(TypeError, match="x alone"):
        ask(service, "grad", "clamp(0,1)", X, X, output="mask")
    with pytest.raises(TypeError, match="x alone"):
        ask(service, "grad", "clamp(0,1)", None, output="mask")
    with pytest.raises(TypeError, match="grad_output is missing"):
        ask(service, "grad", "clamp(0,1)", X)


def test_tensor_parameters_take_part_in_decoding(service: Service) -> None:
    w, b = np.array([[0.3], [-2]], ml_dtypes.bfloat16), np.array([0.1, 0.2, 0.3], ml_dtypes.bfloat16)
    x = X.astype(ml_dtypes.bfloat16)
    x[1, 2] = np.nan
    expression = "clamp(0,1)|affine_k_bit_quantize(4,w=w,b=b)"
    values = ask(service, "quantize", expression, x, w=w, b=b)
    for output in ("codes", "packed"):
        got = ask(service, "quantize", expression, x, w=w, b=b, output=output)
        assert_same_bits(to_torch(got.decode()), to_torch(values))


def test_a_tensor_may_still_be_called_output(service: Service) -> None:
    expression = "affine_k_bit_quantize(4,w=output,b=0)"
    twice = ask(service, "quantize", expression, X, output=np.float32(2))
    np.testing.assert_array_equal(twice, 2 * ask(service, "quantize", "k_bit_quantize(4)", X))
    grad_x, grads = ask(service, "grad", expression, X, X, output=np.float32(2))
    np.testing.assert_array_equal(grad_x, 2 * X)
    assert set(grads) == {"output"}


def test_the_servers_refusals_come_as_their_classes(service: Service) -> None:
    with pytest.raises(NotRepresentable, match="'clamp'"):
        ask(service, "quantize", "clamp(0,1)", X, output="codes")
    with pytest.raises(ValueError, match="output is 'bits'; allowed: 'values', 'codes', 'packed'"):
        ask(service, "quantize", CHAIN, X, output="bits")
    with pytest.raises(ValueError, match="output is 'codes'; allowed: 'values', 'mask'"):
        ask(service, "grad", CHAIN, X, output="codes")
    with pytest.raises(MissingTensor):
        ask(service, "quantize", "affine_k_bit_quantize(4,w,0)", X, output="codes")


def test_the_client_that_waits_gives_the_same(server: ServerProcess) -> None:
    x = moderate(torch.float32, 300_000).numpy()
    with Client(server.url) as client:
        values = client.quantize(CHAIN, x)
        packed = client.quantize(CHAIN, x, output="packed")
        codes = client.quantize(CHAIN, x, output="codes")
        mask = client.grad(CHAIN, x, output="mask")
        assert packed.packed.nbytes == 150_000
        for decoded in (packed.decode(), codes.decode()):
            assert decoded.tobytes() == values.tobytes()
        assert mask.apply(x).tobytes() == client.grad(CHAIN, x, x).tobytes()


# Answers of another kind of server -----------------------------------------------------------------------

DESCRIBED = {"dtype": "float32", "shape": [2, 3], "operator": "k_bit_quantize(k=4)", "code_dtype": "uint8"}
PARTS = {
    "y.codes": np.zeros((2, 3), np.uint8),
    "y.exceptions.index": np.zeros(0, np.uint32),
    "y.exceptions.value": np.zeros(0, np.float32),
}

OUTSIDE = {"y.exceptions.index": np.array([6], np.uint32), "y.exceptions.value": np.zeros(1, np.float32)}


def answering(
    parts: dict[str, np.ndarray], described: object, media_type: str = "application/vnd.safetensors"
) -> Callable[[], Any]:
    metadata = {} if described is None else {"y": described if isinstance(described, str) else json.dumps(described)}
    content = safetensors.numpy.save(parts, metadata=metadata)
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers={"content-type": media_type}, content=content))
    return lambda: Client(transport=transport).quantize(CHAIN, X, output="codes")


def test_the_answer_that_the_others_differ_from_is_read() -> None:
    assert answering(PARTS, DESCRIBED)().decode().tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("parts", "described", "said"),
    [
        (PARTS, None, "does not describe 'y'"),
        (PARTS, "{", "does not describe 'y'"),
        (PARTS, [], "described as"),
        (PARTS, DESCRIBED | {"shape": [6]}, "described as"),
        (PARTS, DESCRIBED | {"dtype": "float16"}, "described as"),
        (PARTS, DESCRIBED | {"code_dtype": "int8"}, "holds no 'y.codes' of dtype int8"),
        (PARTS, DESCRIBED | {"code_dtype": "float32"}, "holds no 'y.codes'"),
        (PARTS, DESCRIBED | {"code_dtype": ["uint8"]}, "holds no 'y.codes'"),
        (PARTS, DESCRIBED | {"operator": "nothing()"}, "operator that cannot be read"),
        (PARTS, DESCRIBED | {"operator": "round | round"}, "operator that cannot be read"),
        (PARTS, DESCRIBED | {"operator": 5}, "operator that cannot be read"),
        ({name: PARTS[name] for name in list(PARTS)[:2]}, DESCRIBED, "holds no 'y.exceptions.value'"),
        (PARTS | {"y.codes": np.zeros(5, np.uint8)}, DESCRIBED, "5 codes, expected 6"),
        (
            PARTS | {"y.exceptions.index": np.array([6], np.uint32), "y.exceptions.value": np.zeros(1, np.float32)},
            DESCRIBED,
            "do not fit",
        ),
        (PARTS | {"y.exceptions.index": np.array([1], np.uint32)}, DESCRIBED, "do not fit"),
        (PARTS | {f"{i}": np.zeros(0, np.uint8) for i in range(2)}, DESCRIBED, "cannot be read as safetensors"),
    ],
    ids=str,
)
def test_an_answer_that_is_none_to_this_call_is_refused(parts: dict[str, np.ndarray], described: object, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        answering(parts, described)()


def test_values_in_place_of_codes_are_refused() -> None:
    with pytest.raises(ProtocolError, match=r"asked for was 'application/vnd\.safetensors'"):
        answering(PARTS, DESCRIBED, "application/x-npy")()


def test_many_calls_at_once_get_their_own_answers(service: Service) -> None:
    async def all_at_once() -> list[Any]:
        async with AsyncClient("http://service.test", transport=service.transport) as client:
            asked = (client.quantize(CHAIN, X * i / 10, output="packed") for i in range(10))
            return list(await asyncio.gather(*asked))

    for i, packed in enumerate(service.run(all_at_once())):
        np.testing.assert_array_equal(packed.decode(), ask(service, "quantize", CHAIN, X * i / 10))
