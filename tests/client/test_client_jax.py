"""Remote quantizers in JAX: their values and gradients, alone and under `jit`, `grad`, `vmap` and `scan`.

The oracle is the table of `http_cases`, computed in this process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from examples import assert_same_bits
from http_cases import CASES, DTYPES, PLAIN_CASES, TENSOR_CASES, Case, affine, clamp, k_bit_quantize, moderate, operands_of
from recording import Recorder
from server_process import ServerProcess
from test_http_bits import check_gradient
from torch import Tensor

from service.client import AsyncClient, Client
from service.errors import BadParameter, DtypeMismatch, EmptyTensor, MissingTensor, ShapeMismatch, SurplusTensor, UnsupportedDtype

jax = pytest.importorskip("jax", reason="jax is not installed")
jnp = jax.numpy

from service.client.jax import RemoteQuantizer, quantize  # noqa: E402

EXPRESSION = "clamp(min_value=0, max_value=1) | k_bit_quantize(k=4)"
AFFINE = "affine_k_bit_quantize(k=4, w=w, b=b)"
CHAIN = Case([clamp("0", "1"), k_bit_quantize(4)])


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="module")
def shared_client(server: ServerProcess, recorder: Recorder) -> Iterator[Client]:
    with recorder.client(server.url) as client:
        yield client


@pytest.fixture
def client(shared_client: Client, recorder: Recorder) -> Client:
    """A client whose recorder has noted nothing yet."""
    recorder.forget()
    return shared_client


def to_jax(x: Tensor) -> Any:
    """The same elements in JAX, bfloat16 included."""
    if x.dtype == torch.bfloat16:
        return jnp.asarray(x.contiguous().view(torch.int16).numpy().view(jnp.bfloat16))
    return jnp.asarray(x.numpy())


def to_torch(x: Any) -> Tensor:
    """The same elements in torch, bfloat16 included."""
    array = np.array(x)
    if array.dtype == jnp.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def values(*shape: int, seed: int = 0) -> Any:
    return to_jax(moderate(torch.float32, shape, seed=seed))


def expected_y(x: Any, case: Case = CHAIN) -> Tensor:
    return case.forward(to_torch(x), {})


def squared(function: Callable[..., Any]) -> Callable[..., Any]:
    """A loss whose gradient depends on the values."""
    return lambda *arguments: (function(*arguments) ** 2).sum()


def expected_gradient(x: Any, case: Case = CHAIN) -> Tensor:
    """The gradient of `squared`."""
    one = to_torch(x)
    return case.backward(one, case.forward(one, {}) * 2, {})[0]


# Values and gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [case for case in CASES if case not in TENSOR_CASES], ids=str)
def test_values_and_gradients_are_those_of_the_table(client: Client, case: Case, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        pairs = operands_of(case, DTYPES[dtype])
        y, backward = jax.vjp(RemoteQuantizer(case.expression, client), {name: to_jax(x) for name, (x, _) in pairs.items()})
        (grad_x,) = backward({name: to_jax(grad_output) for name, (_, grad_output) in pairs.items()})
    assert list(y) == list(grad_x) == sorted(pairs)
    for name, (x, grad_output) in pairs.items():
        assert_same_bits(to_torch(y[name]), case.forward(x, {}), case)
        check_gradient(to_torch(grad_x[name]), case.backward(x, grad_output, {})[0], case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", TENSOR_CASES, ids=str)
def test_tensor_parameters_have_the_gradients_of_the_table(client: Client, case: Case, dtype: str) -> None:
    x, grad_output = operands_of(case, DTYPES[dtype])["finite gradient"]
    tensors = case.tensors_for(x)
    with jax.enable_x64(dtype == "float64"):
        y, backward = jax.vjp(
            lambda x, tensors: quantize(case.expression, client, x, **tensors),
            to_jax(x),
            {name: to_jax(tensor) for name, tensor in tensors.items()},
        )
        grad_x, grads = backward(to_jax(grad_output))
    assert_same_bits(to_torch(y), case.forward(x, tensors), case)
    expected_x, expected = case.backward(x, grad_output, tensors)
    check_gradient(to_torch(grad_x), expected_x, case)
    assert set(grads) == set(expected)
    for name, gradient in grads.items():
        check_gradient(to_torch(gradient), expected[name], case)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_compiled_or_not_the_bits_are_the_same(client: Client, transform: Callable[..., Any]) -> None:
    x = values(9, 31)
    remote = RemoteQuantizer(EXPRESSION, client)
    assert_same_bits(to_torch(transform(remote)(x)), expected_y(x))
    assert_same_bits(to_torch(transform(jax.grad(squared(remote)))(x)), expected_gradient(x))


def test_without_its_switch_jax_makes_float32_of_float64(client: Client) -> None:
    x = np.float64([0.3, 0.7])
    assert quantize(EXPRESSION, client, x).dtype == jnp.float32
    with jax.enable_x64(True):
        assert_same_bits(to_torch(quantize(EXPRESSION, client, x)), expected_y(x))


def test_a_quantizer_in_a_loop_is_asked_in_every_turn(client: Client, recorder: Recorder) -> None:
    def looped(x: Any) -> Any:
        return jax.lax.scan(lambda y, _: (quantize(EXPRESSION, client, y * 1.1), None), x, length=3)[0].sum()

    x = jnp.float32([-0.5, 0.3, 0.7, 0.95])
    got = jax.jit(jax.grad(looped))(x)
    assert recorder.kinds == ["quantize"] * 3 + ["grad"] * 3
    expected, factor = to_torch(x).requires_grad_(), float(np.float32(1.1))
    y = expected
    for _ in range(3):
        y = y * factor
        y = torch.clamp(y, 0, 1)
        y = y + (torch.round(y * 15) / 15 - y).detach()
    y.sum().backward()
    torch.testing.assert_close(to_torch(got), expected.grad, rtol=1e-6, atol=0)


# What is asked for ---------------------------------------------------------------------------------------


def test_where_no_gradient_is_wanted_none_is_asked_for(client: Client, recorder: Recorder) -> None:
    x, weight = values(3), values(3, seed=1)
    jax.grad(lambda weight: (quantize("clamp(0, 1)", client, x) * weight).sum())(weight).block_until_ready()
    assert recorder.kinds == ["quantize"]


def test_a_gradient_that_is_handed_on_as_it_is_needs_no_call(client: Client, recorder: Recorder) -> None:
    weight = values(4, seed=1)
    grad_x = jax.grad(lambda x: (quantize("round | k_bit_quantize(3)", client, x) * weight).sum())(values(4))
    assert_same_bits(to_torch(grad_x), to_torch(weight))
    assert recorder.kinds == ["quantize"]


def test_x_is_not_sent_where_the_gradient_does_not_depend_on_it(client: Client, recorder: Recorder) -> None:
    for expression, factor in (("affine_k_bit_quantize(4, 3, 0)", 1), ("clamp(0, 1)", 2)):
        recorder.forget()
        jax.grad(squared(RemoteQuantizer(expression, client)))(values(100_000)).block_until_ready()
        forward, backward = recorder.asked
        assert backward.kind == "grad"
        assert round(backward.body_bytes / forward.body_bytes, 2) == factor


def test_a_tree_of_arrays_is_one_call_each_way(client: Client, recorder: Recorder) -> None:
    tree = {"layer": {"weight": values(3, 4), "bias": values(4, seed=1)}, "rest": [values(seed=2), ()]}
    got = jax.grad(
        lambda tree: sum((y**2).sum() for y in jax.tree.leaves(quantize(EXPRESSION, client, tree))),
    )(tree)
    assert recorder.kinds == ["quantize", "grad"]
    assert jax.tree.structure(got) == jax.tree.structure(tree)
    for gradient, x in zip(jax.tree.leaves(got), jax.tree.leaves(tree), strict=True):
        assert_same_bits(to_torch(gradient), expected_gradient(x))
    assert quantize(EXPRESSION, client, []) == []


def test_the_same_call_is_compiled_once(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    x = values(5)

    def compilations() -> list[str]:
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            jax.grad(squared(lambda x: quantize("clamp(0.1, 0.4)", client, x)))(x).block_until_ready()
        return [record.getMessage() for record in caplog.records if "XLA compilation of jit(pure_callback)" in record.getMessage()]

    assert len(compilations()) == 2, "one for each way"
    assert compilations() == []


# Transformations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
def test_vmap_of_an_elementwise_chain_is_one_call(client: Client, recorder: Recorder, axis: int) -> None:
    x = values(5, 6)
    got = jax.vmap(RemoteQuantizer(EXPRESSION, client), in_axes=axis, out_axes=axis)(x)
    assert_same_bits(to_torch(got), expected_y(x))
    assert recorder.kinds == ["quantize"]


def test_per_example_gradients_of_an_elementwise_chain_are_one_call_each_way(client: Client, recorder: Recorder) -> None:
    x = values(5, 6)
    remote = RemoteQuantizer(EXPRESSION, client)
    assert_same_bits(to_torch(jax.jit(jax.vmap(jax.grad(squared(remote))))(x)), expected_gradient(x))
    assert recorder.kinds == ["quantize", "grad"]
    assert_same_bits(to_torch(jax.grad(squared(jax.vmap(remote)))(x)), expected_gradient(x))


def test_under_vmap_every_example_of_clamp_by_linear_has_its_own_extrema(client: Client, recorder: Recorder) -> None:
    (case,) = (case for case in PLAIN_CASES if case.expression == "clamp_by_linear()")
    x = values(5, 6)
    remote = RemoteQuantizer(case.expression, client)
    got = to_torch(jax.vmap(remote)(x))
    assert recorder.kinds == ["quantize"] * 5
    gradients = to_torch(jax.vmap(jax.grad(squared(remote)))(x))
    for y, gradient, one in zip(got, gradients, x, strict=True):
        assert_same_bits(y, expected_y(one, case))
        assert_same_bits(gradient, expected_gradient(one, case))


def test_per_example_gradients_of_a_shared_parameter_are_summed_over_their_example(client: Client) -> None:
    case = Case([affine(4, "w", "b")], {"w": "0-d", "b": "row"})
    x = values(4, 3, 5)
    tensors = case.tensors_for(to_torch(x[0]))
    got = jax.vmap(jax.grad(lambda tensors, x: quantize(case.expression, client, x, **tensors).sum()), in_axes=(None, 0))(
        {name: to_jax(tensor) for name, tensor in tensors.items()}, x
    )
    for index, one in enumerate(to_torch(x)):
        _, expected = case.backward(one, torch.ones_like(one), tensors)
        for name in tensors:
            assert_same_bits(to_torch(got[name][index]), expected[name])


def test_an_elementwise_chain_can_be_differentiated_again(client: Client) -> None:
    remote = RemoteQuantizer(EXPRESSION, client)
    third = jax.grad(jax.grad(jax.grad(lambda x: remote(x) ** 3)))
    # The derivative of y is 1, that of y**3 is 3 y**2, then 6 y, then 6.
    assert third(jnp.float32(0.4)) == 6
    assert third(jnp.float32(1.4)) == 0
    tripled = RemoteQuantizer("affine_k_bit_quantize(k=4, w=3, b=0)", client)
    assert jax.grad(jax.grad(lambda x: tripled(x) ** 2))(jnp.float32(0.4)) == 18


@pytest.mark.parametrize("expression", ["clamp_by_linear", "affine_k_bit_quantize(4, w, 0)"])
def test_another_expression_says_that_it_cannot(client: Client, expression: str) -> None:
    tensors = {"w": jnp.float32(2)} if "w" in expression.split("(")[-1] else {}
    loss = squared(lambda x: quantize(expression, client, x, **tensors))
    with pytest.raises(NotImplementedError, match="not the second"):
        jax.grad(squared(jax.grad(loss)))(values(4))


def test_there_is_no_forward_mode(client: Client) -> None:
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(RemoteQuantizer(EXPRESSION, client), (jnp.ones(3),), (jnp.ones(3),))


# Refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c: quantize(AFFINE, c, jnp.ones(3), w=1.0), MissingTensor, "'b'"),
        (lambda c: quantize("round", c, jnp.ones(3), w=1.0), SurplusTensor, "'w'"),
        (lambda c: quantize(AFFINE, c, jnp.ones(3), w=1.0, b=jnp.ones(2)), ShapeMismatch, "'b' has shape"),
        (lambda c: quantize(AFFINE, c, jnp.ones(3), w=1.0, b=jnp.float16(1)), DtypeMismatch, "'b' has dtype float16"),
        (lambda c: quantize("round", c, jnp.arange(3)), UnsupportedDtype, "'int32'"),
        (lambda c: quantize("clamp_by_linear", c, jnp.ones((0, 3))), EmptyTensor, "at least one element"),
        (lambda c: quantize("k_bit_quantize(k=0)", c, jnp.ones(3)), BadParameter, "'k'"),
        (lambda c: quantize(4, c, jnp.ones(3)), TypeError, "^the expression is of type int"),
        (lambda _: quantize("round", AsyncClient(), jnp.ones(3)), TypeError, "^the client is of type AsyncClient"),
    ],
)
def test_what_cannot_be_asked_is_refused_while_it_is_traced(
    client: Client, recorder: Recorder, call: Callable[[Client], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(client)
    with pytest.raises(error, match=message):
        jax.jit(lambda: call(client))()
    assert recorder.kinds == []


def test_what_goes_wrong_on_the_way_is_in_the_error_of_the_callback() -> None:
    with Client("http://127.0.0.1:1", retries=0) as nobody, pytest.raises(jax.errors.JaxRuntimeError, match="ConnectionFailed"):
        quantize("round", nobody, jnp.ones(3)).block_until_ready()


def test_a_quantizer_prints_as_it_is_made(client: Client) -> None:
    assert repr(RemoteQuantizer(EXPRESSION, client)) == f"RemoteQuantizer('{EXPRESSION}', client={client!r})"


# Training ------------------------------------------------------------------------------------------------

WEIGHTS = Case([clamp("-1", "1"), affine(3, "w", "b")])


def local(case: Case) -> Callable[..., Any]:
    """The case as a function in JAX: the table, computed in this process, behind callbacks as the remote one is."""

    def forward(*arrays: Any) -> Any:
        x, *tensors = map(to_torch, arrays)
        return case.forward(x, dict(zip("wb", tensors, strict=False))).numpy()

    def backward(grad_output: Any, *arrays: Any) -> Any:
        x, *tensors = map(to_torch, arrays)
        grad_x, grads = case.backward(x, to_torch(grad_output), dict(zip("wb", tensors, strict=False)))
        return tuple(gradient.numpy() for gradient in (grad_x, *grads.values()))

    @jax.custom_vjp
    def function(*arrays: Any) -> Any:
        return jax.pure_callback(forward, jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype), *arrays)

    function.defvjp(
        lambda *arrays: (function(*arrays), arrays),
        lambda arrays, grad_output: jax.pure_callback(
            backward, tuple(jax.ShapeDtypeStruct(one.shape, one.dtype) for one in arrays), grad_output, *arrays
        ),
    )
    return function


def train(quantize_weight: Callable[..., Any], quantize_activation: Callable[..., Any]) -> tuple[Any, list[float]]:
    """The parameters of a network of three layers after 50 steps, and the losses; `w` and `b` are learned."""
    keys = iter(jax.random.split(jax.random.key(0), 5))
    scale, shift = jnp.float32(1), jnp.float32(0.01)
    layers = [
        {"weight": jax.random.normal(next(keys), (i, o)) * i**-0.5, "bias": jnp.zeros(o), "w": scale, "b": shift}
        for i, o in ((8, 16), (16, 12), (12, 3))
    ]
    x, target = jax.random.uniform(next(keys), (32, 8)), jax.random.uniform(next(keys), (32, 3))

    def loss(layers: Any) -> Any:
        hidden = x
        for index, layer in enumerate(layers):
            hidden = hidden @ quantize_weight(layer["weight"], layer["w"], layer["b"]) + layer["bias"]
            hidden = quantize_activation(hidden) if index < 2 else hidden
        return ((hidden - target) ** 2).mean()

    @jax.jit
    def step(layers: Any, momentum: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(layers)
        momentum = jax.tree.map(lambda m, gradient: 0.9 * m + gradient, momentum, gradients)
        return jax.tree.map(lambda p, m: p - 0.05 * m, layers, momentum), momentum, value

    momentum, losses = jax.tree.map(jnp.zeros_like, layers), []
    for _ in range(50):
        layers, momentum, value = step(layers, momentum)
        losses.append(float(value))
    return layers, losses


def test_training_with_a_server_gives_the_weights_of_training_here(client: Client, recorder: Recorder) -> None:
    remote_weights = RemoteQuantizer(WEIGHTS.expression, client)
    layers, losses = train(lambda x, w, b: remote_weights(x, w=w, b=b), RemoteQuantizer(EXPRESSION, client))
    assert recorder.kinds.count("quantize") == recorder.kinds.count("grad") == 50 * (3 + 2)
    expected_layers, expected_losses = train(local(WEIGHTS), local(CHAIN))
    assert losses == expected_losses
    assert losses[-1] < losses[0] / 2, "nothing was learned"
    for got, expected in zip(jax.tree.leaves(layers), jax.tree.leaves(expected_layers), strict=True):
        assert_same_bits(to_torch(got), to_torch(expected))
