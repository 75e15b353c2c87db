"""Remote quantizers in torch: their values and gradients, what they ask for, and how they go with torch's own tools.

The oracles are the drop-in module and, for sums, whose order the server defines, the table of `http_cases`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from examples import assert_same_bits
from http_cases import CASES, DTYPES, Case, affine, clamp, k_bit_quantize, moderate, operands_of
from recording import Recorder
from rounding_server import RoundingServer, problem
from server_process import ServerProcess
from test_http_bits import check_gradient
from torch import Tensor

from service import quantize as local
from service.client import AsyncClient, Client
from service.client.torch import RemoteQuantizer, quantize
from service.errors import BadParameter, DtypeMismatch, MissingTensor, Overloaded, SurplusTensor, UnsupportedDtype
from service.ops import Clamp, KBitQuantize

EXPRESSION = "clamp(min_value=0, max_value=1) | k_bit_quantize(k=4)"
AFFINE = "affine_k_bit_quantize(k=4, w=w, b=b)"


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


def here(x: Tensor) -> Tensor:
    """`EXPRESSION` by the drop-in."""
    return local.k_bit_quantize(local.clamp(x, 0, 1), 4)


def leaf(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values around [-2, 2] that ask for a gradient."""
    return moderate(dtype, shape, seed=seed).requires_grad_()


# Values and gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_are_those_of_the_table(client: Client, case: Case, dtype: str) -> None:
    for x, grad_output in operands_of(case, DTYPES[dtype]).values():
        operands = {"x": x, **case.tensors_for(x)}
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in operands.items()}
        y = quantize(case.expression, client, **leaves)
        assert_same_bits(y, case.forward(x, operands), case)
        y.backward(grad_output)
        grad_x, grads = case.backward(x, grad_output, operands)
        for name, expected in {"x": grad_x, **grads}.items():
            check_gradient(leaves[name].grad, expected, case)


@pytest.mark.parametrize(
    ("expression", "drop_in"),
    [
        ("round", local.round),
        ("ceil", local.ceil),
        ("floor", local.floor),
        ("clamp(-0.5, 0.25)", lambda x: local.clamp(x, -0.5, 0.25)),
        ("step_quantize(0.1)", lambda x: local.step_quantize(x, 0.1)),
        ("k_bit_quantize(4)", lambda x: local.k_bit_quantize(x, 4)),
        ("affine_k_bit_quantize(4, 0.7, -0.1)", lambda x: local.affine_k_bit_quantize(x, 4, 0.7, -0.1)),
        (EXPRESSION, here),
    ],
)
def test_a_remote_quantizer_is_the_drop_in_at_another_place(
    client: Client, expression: str, drop_in: Callable[[Tensor], Tensor]
) -> None:
    x, same = leaf(9, 31), leaf(9, 31)
    for function, one in ((RemoteQuantizer(expression, client), x), (drop_in, same)):
        (torch.sin(function(one * 1.5)) ** 2).sum().backward()
    assert_same_bits(x.grad, same.grad)


def test_where_nothing_is_summed_tensor_parameters_have_the_drop_ins_gradients(client: Client) -> None:
    x, w, b, *same = (leaf(5, 6, seed=seed) for seed in (1, 2, 3, 1, 2, 3))
    (quantize(AFFINE, client, x, w=w, b=b) ** 2).sum().backward()
    (local.affine_k_bit_quantize(same[0], 4, same[1], same[2]) ** 2).sum().backward()
    for one, other in zip((x, w, b), same, strict=True):
        assert_same_bits(one.grad, other.grad)


def test_results_come_back_to_the_device_of_their_tensors(client: Client, device: torch.device) -> None:
    x = moderate(torch.float32, (4, 5)).to(device).requires_grad_()
    w, b = moderate(torch.float32, (5,), seed=1).to(device).requires_grad_(), torch.zeros((), device=device)
    y = quantize(AFFINE, client, x, w=w, b=b)
    y.sum().backward()
    assert y.device == x.grad.device == w.grad.device == x.device
    assert_same_bits(y, local.affine_k_bit_quantize(x.detach().cpu(), 4, w.detach().cpu(), b.cpu()))


@pytest.mark.parametrize(
    "arrange",
    [
        lambda x: x.T,
        lambda x: x[::2, 1::3],
        lambda x: x[:1].expand(4, 8),
        lambda x: x.reshape(2, 3, 8).transpose(0, 1),
        lambda x: x[:0],
        lambda x: x[0, 0],
    ],
    ids=["transposed", "strided", "expanded", "permuted", "empty", "0-d"],
)
def test_memory_may_lie_as_it_likes(client: Client, arrange: Callable[[Tensor], Tensor]) -> None:
    x, same = leaf(6, 8), leaf(6, 8)
    arranged, plain = quantize(EXPRESSION, client, arrange(x)), here(arrange(same))
    assert_same_bits(arranged, plain)
    # The gradient of a sum is one element that stands for all.
    arranged.sum().backward()
    plain.sum().backward()
    assert_same_bits(x.grad, same.grad)


# What is asked for ---------------------------------------------------------------------------------------


def test_where_no_gradient_is_wanted_none_is_asked_for(client: Client, recorder: Recorder) -> None:
    weight = leaf(3)
    (quantize("clamp(0, 1)", client, moderate(torch.float32, (3,))) * weight).sum().backward()
    with torch.no_grad():
        assert not quantize("clamp(0, 1)", client, leaf(3)).requires_grad
    with torch.inference_mode():
        quantize("clamp(0, 1)", client, torch.ones(3))
    assert recorder.kinds == ["quantize", "quantize", "quantize"]


def test_a_gradient_that_is_handed_on_as_it_is_needs_no_call(client: Client, recorder: Recorder) -> None:
    x, grad_output = leaf(4), moderate(torch.float32, (4,), seed=1)
    quantize("round | k_bit_quantize(3)", client, x).backward(grad_output)
    assert_same_bits(x.grad, grad_output)
    assert recorder.kinds == ["quantize"]


def test_x_is_not_sent_where_the_gradient_does_not_depend_on_it(client: Client, recorder: Recorder) -> None:
    for expression, factor in (("affine_k_bit_quantize(4, 3, 0)", 1), ("clamp(0, 1)", 2)):
        recorder.forget()
        x = leaf(100_000)
        quantize(expression, client, x).sum().backward()
        forward, backward = recorder.asked
        assert backward.kind == "grad"
        assert round(backward.body_bytes / forward.body_bytes, 2) == factor


def test_several_tensors_are_one_call_each_way(client: Client, recorder: Recorder) -> None:
    xs = {"weight": leaf(3, 4), "bias": leaf(4, seed=1)}
    ys = quantize(EXPRESSION, client, xs)
    assert list(ys) == ["weight", "bias"]
    sum((y**2).sum() for y in ys.values()).backward()
    assert recorder.kinds == ["quantize", "grad"]
    for name, x in xs.items():
        assert_same_bits(ys[name], here(x))
        assert_same_bits(x.grad, torch.autograd.grad((here(x) ** 2).sum(), x)[0])


@pytest.mark.parametrize("container", [list, tuple])
def test_a_list_comes_back_as_a_list_and_a_tuple_as_a_tuple(client: Client, container: type) -> None:
    for count in (0, 1, 3):
        y = quantize("round", client, container(leaf(2, seed=seed) for seed in range(count)))
        assert type(y) is container
        assert len(y) == count


def test_of_several_tensors_only_those_are_sent_back_that_have_a_gradient_to_receive(client: Client, recorder: Recorder) -> None:
    size = 50_000
    unused, used, constant = leaf(size), leaf(size, seed=1), moderate(torch.float32, (size,), seed=2)
    _, y, z = quantize("clamp(0, 1)", client, [unused, used, constant])
    (y * z).sum().backward()
    assert unused.grad is None
    assert_same_bits(used.grad, torch.where((used >= 0) & (used <= 1), constant.clamp(0, 1), 0))
    forward, backward = recorder.asked
    # x and grad_output of one tensor, where the forward call had three of them.
    assert round(backward.body_bytes / forward.body_bytes, 2) == round(2 / 3, 2)


def test_the_gradient_of_a_parameter_counts_every_tensor_that_was_used(client: Client) -> None:
    w, b = leaf(), torch.zeros(())
    xs = [moderate(torch.float32, (8,), seed=seed) for seed in range(3)]
    first, _, third = quantize(AFFINE, client, xs, w=w, b=b)
    (first.sum() + third.sum()).backward()
    expected = sum(local.k_bit_quantize(x, 4).double().sum() for x in (xs[0], xs[2]))
    torch.testing.assert_close(w.grad.double(), expected, rtol=1e-6, atol=0)


def test_x_that_has_changed_since_the_forward_pass_is_noticed(client: Client) -> None:
    x = leaf(3) * 1
    y = quantize("clamp(0, 1)", client, x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_x_may_change_where_the_gradient_does_not_depend_on_it(client: Client) -> None:
    base = leaf(3)
    x = base * 1
    y = quantize("round", client, x)
    x.add_(1)
    y.sum().backward()
    assert_same_bits(base.grad, torch.ones(3))


def test_the_servers_errors_are_raised_in_either_pass() -> None:
    server = RoundingServer()
    with Client(transport=server.transport, retries=0) as client:
        y = quantize("clamp(0, 1)", client, leaf(3))
        server.script.append(lambda _: problem(Overloaded("too much is in flight", retry_after_s=1)))
        with pytest.raises(Overloaded, match="in flight"):
            y.sum().backward(retain_graph=True)
        # The graph is as it was: the pass can be tried again.
        y.sum().backward()
        server.script.append(lambda _: problem(Overloaded("too much is in flight", retry_after_s=1)))
        with pytest.raises(Overloaded):
            quantize("clamp(0, 1)", client, leaf(3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c: quantize(EXPRESSION, c, torch.ones(3).numpy()), TypeError, "^x is of type ndarray"),
        (lambda c: quantize(EXPRESSION, c, [torch.ones(3), 1.0]), TypeError, r"^x\[1\] is of type float"),
        (lambda c: quantize(AFFINE, c, torch.ones(3), w=2.0, b=torch.ones(())), TypeError, "^w is of type float"),
        (lambda c: quantize(AFFINE, c, torch.ones(3), w=torch.ones(())), MissingTensor, "'b'"),
        (lambda c: quantize("round", c, torch.ones(3), w=torch.ones(())), SurplusTensor, "'w'"),
        (lambda c: quantize(AFFINE, c, torch.ones(3), w=torch.ones(()), b=torch.ones(()).half()), DtypeMismatch, "'b'"),
        (lambda c: quantize("round", c, torch.ones(3, dtype=torch.int32)), UnsupportedDtype, "^x has dtype 'int32'"),
        (lambda c: quantize("k_bit_quantize(k=0)", c, torch.ones(3)), BadParameter, "'k'"),
        (lambda c: quantize(4, c, torch.ones(3)), TypeError, "^the expression is of type int"),
        (lambda _: quantize("round", AsyncClient(), torch.ones(3)), TypeError, "^the client is of type AsyncClient"),
        (lambda c: quantize("round", c, torch.ones(3).to_sparse()), TypeError, "^x is a torch.sparse_coo tensor"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(
    client: Client, call: Callable[[Client], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(client)


# torch's own tools ---------------------------------------------------------------------------------------


def second_derivative(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient of a penalty on the gradient."""
    (grad_x,) = torch.autograd.grad((function(x) ** 3).sum(), x, create_graph=True)
    return torch.autograd.grad((grad_x**2).sum(), x)[0]


def test_an_elementwise_chain_can_be_differentiated_again_as_the_drop_in_can(client: Client) -> None:
    assert_same_bits(
        second_derivative(lambda x: quantize(EXPRESSION, client, x), leaf(40)),
        second_derivative(here, leaf(40)),
    )
    grad = torch.func.grad
    third = grad(grad(grad(lambda x: quantize(EXPRESSION, client, x) ** 3)))
    # The derivative of y is 1, that of y**3 is 3 y**2, then 6 y, then 6.
    assert third(torch.tensor(0.4)) == 6


@pytest.mark.parametrize("expression", ["clamp_by_linear", "clamp(0, 1) | affine_k_bit_quantize(4, w, 0)"])
def test_another_expression_says_that_it_cannot(client: Client, expression: str) -> None:
    tensors = {"w": leaf()} if "w" in expression.split("(")[-1] else {}
    with pytest.raises(NotImplementedError, match=r"not the second; service\.quantize"):
        second_derivative(lambda x: quantize(expression, client, x, **tensors), leaf(4))


@pytest.mark.parametrize("in_dim", [0, 1])
def test_vmap_of_an_elementwise_chain_is_one_call(client: Client, recorder: Recorder, in_dim: int) -> None:
    x = moderate(torch.float32, (5, 6))
    assert_same_bits(torch.vmap(RemoteQuantizer(EXPRESSION, client), in_dims=in_dim, out_dims=in_dim)(x), here(x))
    assert recorder.kinds == ["quantize"]


def test_per_example_gradients_of_an_elementwise_chain_are_one_call_each_way(client: Client, recorder: Recorder) -> None:
    x = moderate(torch.float32, (5, 6))

    def loss(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda one: (function(one) ** 2).sum()

    got = torch.vmap(torch.func.grad(loss(RemoteQuantizer(EXPRESSION, client))))(x)
    assert_same_bits(got, torch.stack([torch.autograd.grad(loss(here)(one), one)[0] for one in x.requires_grad_()]))
    assert recorder.kinds == ["quantize", "grad"]
    got = torch.func.grad(lambda batch: (torch.vmap(RemoteQuantizer(EXPRESSION, client))(batch) ** 2).sum())(x.detach())
    assert_same_bits(got, torch.autograd.grad(loss(here)(x), x)[0])


def test_under_vmap_every_example_of_clamp_by_linear_has_its_own_extrema(client: Client, recorder: Recorder) -> None:
    x = moderate(torch.float32, (6, 5))
    got = torch.vmap(RemoteQuantizer("clamp_by_linear", client), in_dims=1)(x)
    assert_same_bits(got, torch.stack([local.clamp_by_linear(column) for column in x.T]))
    assert recorder.kinds == ["quantize"] * 5


def test_per_example_gradients_of_a_shared_parameter_are_summed_over_their_example(client: Client) -> None:
    case = Case([affine(4, "w", "b")], {"w": "0-d", "b": "row"})
    x = moderate(torch.float32, (4, 3, 5))
    tensors = case.tensors_for(x[0])

    def loss(tensors: dict[str, Tensor], one: Tensor) -> Tensor:
        return quantize(case.expression, client, one, **tensors).sum()

    got = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(tensors, x)
    for index, one in enumerate(x):
        _, expected = case.backward(one, torch.ones_like(one), tensors)
        for name in tensors:
            assert_same_bits(got[name][index], expected[name])


def test_under_vmap_a_parameter_may_have_a_value_for_each_example(client: Client) -> None:
    x, w = moderate(torch.float32, (6,)), moderate(torch.float32, (3,), seed=1)
    got = torch.vmap(lambda one: quantize("affine_k_bit_quantize(4, w, 0)", client, x, w=one))(w)
    assert_same_bits(got, torch.stack([local.affine_k_bit_quantize(x, 4, one, 0.0) for one in w]))


def test_vmap_over_nothing_says_what_it_lacks(client: Client) -> None:
    assert torch.vmap(RemoteQuantizer(EXPRESSION, client))(torch.ones(0, 3)).shape == (0, 3)
    with pytest.raises(ValueError, match="vmap has no examples"):
        torch.vmap(RemoteQuantizer("clamp_by_linear", client))(torch.ones(0, 3))


# torch compiles its decompositions for forward mode by what it has deprecated itself.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize(
    "forward_mode", [lambda f, x: torch.func.jvp(f, (x,), (x,)), lambda f, x: torch.func.jacfwd(f)(x)], ids=["jvp", "jacfwd"]
)
def test_forward_mode_is_refused_with_what_to_do_instead(client: Client, forward_mode: Callable[..., Any]) -> None:
    with pytest.raises(NotImplementedError, match="use grad, vjp or jacrev in place of jvp"):
        forward_mode(RemoteQuantizer(EXPRESSION, client), torch.ones(3))
    with pytest.raises(NotImplementedError, match="use grad, vjp or jacrev in place of jvp"):
        forward_mode(torch.func.grad(lambda x: quantize(EXPRESSION, client, x).sum()), torch.ones(3))


def test_checkpointing_asks_again_in_place_of_keeping(client: Client, recorder: Recorder) -> None:
    x, same = leaf(7), leaf(7)
    torch.utils.checkpoint.checkpoint(RemoteQuantizer(EXPRESSION, client), x, use_reentrant=False).sum().backward()
    here(same).sum().backward()
    assert_same_bits(x.grad, same.grad)
    assert recorder.kinds == ["quantize", "quantize", "grad"]


# The compiler warns of its own ways.
@pytest.mark.filterwarnings("ignore")
def test_torch_compile_leaves_the_call_out_of_its_graphs(client: Client) -> None:
    def function(x: Tensor) -> Tensor:
        return torch.tanh(quantize(EXPRESSION, client, x * 0.7) + 1)

    x, same = leaf(3, 4), leaf(3, 4)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    try:
        torch.compile(function, backend=backend)(x).sum().backward()
        assert len(graphs) == 2, "one before the call and one after it, none of what the client does"
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported, match=r"`torch\.compiler\.disable\(\)`d function(.|\n)*_call_server"):
            torch.compile(function, backend=backend, fullgraph=True)(x)
    finally:
        torch._dynamo.reset()
    function(same).sum().backward()
    assert_same_bits(x.grad, same.grad)


# The module ----------------------------------------------------------------------------------------------


def test_a_module_holds_what_it_learns_and_what_it_does_not(client: Client) -> None:
    remote = RemoteQuantizer(AFFINE, client, w=torch.nn.Parameter(torch.tensor(2.0)), b=torch.tensor(0.5))
    assert [name for name, _ in remote.named_parameters()] == ["w"]
    assert list(remote.state_dict()) == ["w", "b"]
    x = leaf(5)
    y = remote(x)
    assert_same_bits(y, local.affine_k_bit_quantize(x, 4, torch.tensor(2.0), torch.tensor(0.5)))
    y.sum().backward()
    assert remote.w.grad is not None
    other = RemoteQuantizer(AFFINE, client, w=torch.nn.Parameter(torch.tensor(0.0)), b=torch.tensor(0.0))
    other.load_state_dict(remote.state_dict())
    assert_same_bits(other(x), y)
    assert remote.double()(x.double()).dtype == torch.float64


def test_a_tensor_of_the_call_takes_the_place_of_one_that_is_held(client: Client) -> None:
    remote = RemoteQuantizer(AFFINE, client, w=torch.tensor(2.0))
    x, b, w = leaf(5), torch.tensor(1.0), torch.tensor(-3.0)
    assert_same_bits(remote(x, b=b), local.affine_k_bit_quantize(x, 4, remote.w, b))
    assert_same_bits(remote(x, b=b, w=w), local.affine_k_bit_quantize(x, 4, w, b))


def test_an_expression_may_be_a_value_and_is_read_when_the_module_is_made(client: Client) -> None:
    remote = RemoteQuantizer(Clamp(min_value=0, max_value=1) | KBitQuantize(k=4), client)
    assert repr(remote) == f"RemoteQuantizer('{EXPRESSION}', client={client!r})"
    with pytest.raises(BadParameter, match="'k'"):
        RemoteQuantizer("k_bit_quantize(k=0)", client)


def test_copies_of_a_model_share_the_client_and_nothing_else(client: Client) -> None:
    model = torch.nn.Sequential(RemoteQuantizer(AFFINE, client, w=torch.nn.Parameter(torch.tensor(2.0)), b=torch.zeros(())))
    copied = copy.deepcopy(model)
    assert copied[0].client is client
    assert copied[0].w is not model[0].w
    with torch.no_grad():
        copied[0].w.zero_()
    assert model[0].w == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [("scale", "names no tensor 'scale'; it names 'client', 'w'"), ("client", "another attribute 'client'")],
)
def test_a_module_holds_only_tensors_that_its_expression_names(client: Client, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RemoteQuantizer("affine_k_bit_quantize(k=4, w=client, b=w)", client, **{name: torch.ones(())})


def test_a_module_holds_tensors_and_nothing_else(client: Client) -> None:
    with pytest.raises(TypeError, match=r"^w is of type float"):
        RemoteQuantizer(AFFINE, client, w=2.0)  # type: ignore[arg-type]


# Training ------------------------------------------------------------------------------------------------

WEIGHTS = Case([clamp("-1", "1"), affine(3, "w", "b")])
ACTIVATIONS = Case([clamp("0", "1"), k_bit_quantize(4)])
Quantizer = Callable[..., Tensor]


class Layer(torch.nn.Module):
    """A linear layer with quantized weights, whose scale and shift are learned."""

    def __init__(self, inputs: int, outputs: int, parameter_shape: tuple[int, ...], quantize_weight: Quantizer) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(inputs, outputs)
        self.w = torch.nn.Parameter(torch.ones(parameter_shape))
        self.b = torch.nn.Parameter(torch.full(parameter_shape, 0.01))
        self.quantize_weight = quantize_weight

    def forward(self, x: Tensor) -> Tensor:
        weight = self.quantize_weight(self.linear.weight, w=self.w, b=self.b)
        return torch.nn.functional.linear(x, weight, self.linear.bias)


def train(quantize_weight: Quantizer, quantize_activation: Quantizer, *, is_per_element: bool) -> tuple[list[Tensor], list[float]]:
    """Every parameter of a network of three layers after 50 steps, and the losses."""
    torch.manual_seed(0)
    sizes = [(8, 16), (16, 12), (12, 3)]
    layers = [Layer(i, o, (o, i) if is_per_element else (), quantize_weight) for i, o in sizes]
    parameters = list(chain.from_iterable(layer.parameters() for layer in layers))
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    x, target = torch.rand(32, 8), torch.rand(32, 3)
    losses = []
    for _ in range(50):
        hidden = quantize_activation(layers[0](x))
        hidden = quantize_activation(layers[1](hidden))
        loss = ((layers[2](hidden) - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return [parameter.detach() for parameter in parameters], losses


class Table(torch.autograd.Function):
    """The cases of the table, as autograd takes them: in this process, with sums in the server's order."""

    @staticmethod
    def forward(ctx: Any, case: Case, x: Tensor, *tensors: Tensor) -> Tensor:
        ctx.case = case
        ctx.save_for_backward(x, *tensors)
        return case.forward(x, dict(zip("wb", tensors, strict=False)))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        grad_x, grads = ctx.case.backward(x, grad_output, dict(zip("wb", tensors, strict=False)))
        return None, grad_x, *grads.values()


def remote_quantizers(client: Client) -> tuple[Quantizer, Quantizer]:
    return RemoteQuantizer(WEIGHTS.expression, client), RemoteQuantizer(ACTIVATIONS.expression, client)


def assert_trained_alike(remote: tuple[list[Tensor], list[float]], expected: tuple[list[Tensor], list[float]]) -> None:
    (weights, losses), (expected_weights, expected_losses) = remote, expected
    assert losses == expected_losses
    assert losses[-1] < losses[0] / 2, "nothing was learned"
    for weight, expected_weight in zip(weights, expected_weights, strict=True):
        assert_same_bits(weight, expected_weight)


def test_training_with_a_server_gives_the_weights_of_training_with_the_drop_in(client: Client, recorder: Recorder) -> None:
    """Scale and shift for each weight: their gradients are not summed, so that the drop-in has the same."""
    remote = train(*remote_quantizers(client), is_per_element=True)
    assert recorder.kinds.count("quantize") == recorder.kinds.count("grad") == 50 * (3 + 2)
    assert_trained_alike(
        remote,
        train(lambda x, w, b: local.affine_k_bit_quantize(local.clamp(x, -1, 1), 3, w, b), here, is_per_element=True),
    )


def test_training_with_a_server_gives_the_weights_of_training_with_the_defined_sums(client: Client) -> None:
    """One scale and one shift for a layer: their gradients are sums."""
    assert_trained_alike(
        train(*remote_quantizers(client), is_per_element=False),
        train(lambda x, w, b: Table.apply(WEIGHTS, x, w, b), lambda x: Table.apply(ACTIVATIONS, x), is_per_element=False),
    )
