"""Calls to a real server process: the same bits as in process, in every format, one after the other and at once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from itertools import product
from urllib.parse import urlencode

import httpx
import numpy as np
import pytest
import torch
from examples import assert_same_bits
from http_bodies import MEDIA_TYPES, decode, encode, npy
from http_cases import CASES, CHAINS, DTYPES, TENSOR_CASES, Case, operands_of
from server_process import ServerProcess, Wire, post
from test_http_bits import check_gradient, check_gradients

from service.client import AsyncClient, Client
from service.errors import BodyTooLarge, UnknownOperator

# One case for each operator, chains, tensor parameters; the whole table runs in process.
ONE_EACH = list({tuple(step.name for step in case.steps): case for case in CASES if not case.tensors}.values())
SUBSET = [*ONE_EACH, *TENSOR_CASES[1:2], *TENSOR_CASES[-1:]]
TABLE = [
    (case, kind, form)
    for case, kind, form in product(SUBSET, ("quantize", "grad"), MEDIA_TYPES)
    if form != "npy" or not case.tensors
]
assert {name for case in SUBSET for name in case.operators} == {name for case in CASES for name in case.operators}
assert len(TABLE) * len(DTYPES) > 250


@pytest.fixture(scope="module")
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    """Plain HTTP, on connections that are kept."""
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[Client]:
    """The service's own client, which gives up at the first failure."""
    with Client(server.url, retries=0, trust_env=False) as one:
        yield one


@pytest.mark.parametrize(("case", "kind", "form"), TABLE, ids=str)
def test_every_call_gives_the_bits_of_the_plain_expression(http: httpx.Client, case: Case, kind: str, form: str) -> None:
    for dtype in DTYPES.values():
        for x, grad_output in operands_of(case, dtype).values():
            tensors = case.tensors_for(x)
            message = {"x": x} if kind == "quantize" else {"x": x, "grad_output": grad_output}
            response = http.post(
                f"/{kind}?{urlencode(case.query)}",
                content=encode(form, message | tensors),
                headers={"content-type": MEDIA_TYPES[form]},
            )
            assert response.status_code == 200, response.text
            answer = decode(MEDIA_TYPES[form], response.content, "y" if kind == "quantize" else "grad_x")
            if kind == "quantize":
                assert_same_bits(answer["y"], case.forward(x, tensors), case)
            else:
                check_gradients(answer, case, x, grad_output, tensors)


@pytest.mark.parametrize("case", CHAINS + TENSOR_CASES, ids=str)
def test_the_client_gets_the_bits_of_the_plain_expression(client: Client, case: Case) -> None:
    for x, grad_output in operands_of(case, torch.float32).values():
        tensors = case.tensors_for(x)
        assert_same_bits(client.quantize(case.expression, x, **tensors), case.forward(x, tensors))
        got = client.grad(case.expression, x, grad_output, **tensors)
        expected, grads = case.backward(x, grad_output, tensors)
        check_gradient(got[0] if tensors else got, expected, case)
        for name, grad in grads.items():
            check_gradient(got[1][name], grad, case)


def test_a_hundred_calls_at_once_each_get_their_own_answer(server: ServerProcess) -> None:
    """Small ones and large ones mixed, with one connection for each."""
    sizes = [1 + 997 * n for n in range(95)] + [70_000, 140_000, 300_000, 500_000, 1_000_000]
    xs = [torch.linspace(-n - 1, n + 1, size) for n, size in enumerate(sizes)]

    async def calls() -> list[torch.Tensor]:
        async with AsyncClient(server.url, retries=0, trust_env=False) as client:
            return await asyncio.gather(*(client.quantize("k_bit_quantize(k=4)", x) for x in xs))

    for y, x in zip(asyncio.run(calls()), xs, strict=True):
        assert_same_bits(y, torch.round(x * 15) / 15)
    assert server.metric("stequant_in_flight_bytes") == 0


@pytest.mark.parametrize("form", ["npy", "msgpack"])
def test_a_tensor_of_64_mib_travels_both_ways(server: ServerProcess, form: str) -> None:
    x = torch.arange(2**24, dtype=torch.float32) / 1000
    with Client(server.url, retries=0, format=form, trust_env=False) as client:
        assert torch.equal(client.quantize("clamp(0, 9000) | k_bit_quantize(4)", x), torch.round(torch.clamp(x, 0, 9000) * 15) / 15)
        grad_x = client.grad("clamp(0, 9000)", x, x)
    assert torch.equal(grad_x, torch.where(x <= 9000, x, 0))
    assert server.metric("stequant_in_flight_bytes") == 0


def test_a_thousand_tensors_travel_in_one_call(client: Client) -> None:
    xs = {f"layer.{i}": torch.full((i % 5, 3), i + 0.5) for i in range(1000)}
    y = client.quantize("round", xs)
    assert list(y) == list(xs)
    for name, x in xs.items():
        assert_same_bits(y[name], torch.round(x))


def test_a_real_file_gives_the_bits_of_the_expression_in_the_readme(http: httpx.Client) -> None:
    """1 000 x 1 000 float32, as `curl --data-binary @x.npy` sends it."""
    x = np.random.default_rng(0).standard_normal((1000, 1000), np.float32)
    response = http.post("/quantize?op=k_bit_quantize&k=4", content=npy(x), headers={"content-type": "application/x-npy"})
    assert response.content == npy((torch.round(torch.from_numpy(x) * 15) / 15).numpy())


def test_errors_keep_their_classes(client: Client) -> None:
    with pytest.raises(UnknownOperator, match="rounded"):
        client.quantize("rounded", torch.ones(3))


def test_a_refusal_reaches_a_client_that_is_still_sending(server: ServerProcess) -> None:
    """The limit is 256 MiB: 300 are announced, refused, and never all sent."""
    with Client(server.url, retries=0, trust_env=False) as client, pytest.raises(BodyTooLarge, match="268435456"):
        client.quantize("round", torch.empty(300 * 2**18))


def test_small_calls_and_probes_are_answered_while_a_large_call_is_computed(server: ServerProcess) -> None:
    chain = "%7C".join(["step_quantize(0.1)"] * 32)
    small, expected = npy(torch.tensor([0.6])), npy(torch.tensor([1.0]))
    with Wire(server) as large, Wire(server) as other:
        large.send(post(npy(torch.ones(2**24)), f"op={chain}"))
        other.socket.settimeout(2)
        answered = 0
        while large.is_silent(0):
            assert other.ask(post(small)).body == expected
            assert other.ask(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").status == 200
            answered += 1
        assert large.read().status == 200
    assert answered >= 3


def test_two_thousand_calls_share_one_connection(server: ServerProcess) -> None:
    body, expected = npy(torch.tensor([0.6])), npy(torch.tensor([1.0]))
    request = post(body)
    with Wire(server) as wire:
        for _ in range(2000):
            assert wire.ask(request).body == expected


def test_connections_of_callers_that_leave_are_forgotten(server: ServerProcess) -> None:
    for _ in range(200):
        with socket.create_connection(("127.0.0.1", server.port)) as one:
            one.sendall(b"POST /quantize?op=round HTTP/1.1\r\nHost: a\r\n")
    with Wire(server) as wire:
        assert wire.ask(post(npy(torch.tensor([0.6])))).status == 200
