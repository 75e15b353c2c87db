"""What goes into the client comes out of it: structures, dtypes, memory orders, NumPy and torch."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from rounding_server import RoundingServer

from service.client import Client
from service.client.calls import Wire
from service.client.tensors import send
from service.errors import NotAcceptable, NotAllowed, StructureMismatch, UnsupportedDtype
from service.ops import Clamp, Round

NUMPY_DTYPES = [np.dtype(name) for name in ("float16", "float32", "float64")] + [np.dtype(ml_dtypes.bfloat16)]
TORCH_DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
every_wire = pytest.mark.parametrize("wire", ["npy", "msgpack"])
every_numpy_dtype = pytest.mark.parametrize("dtype", NUMPY_DTYPES, ids=str)
every_torch_dtype = pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)

W = np.array(3, np.float32)
B = np.array(0.5, np.float32)
AFFINE = "affine_k_bit_quantize(k=4, w=w, b=b)"


def client(wire: Wire | None = None) -> Client:
    return Client(transport=RoundingServer().transport, format=wire)


def values(*shape: int, dtype: np.dtype | type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 3, shape).astype(dtype)


def assert_rounded(y: np.ndarray, x: np.ndarray) -> None:
    assert type(y) is np.ndarray
    assert (y.dtype, y.shape) == (x.dtype.newbyteorder("="), x.shape)
    np.testing.assert_array_equal(y.astype(np.float64), np.rint(np.asarray(x, np.float64)))
    assert y.flags.writeable
    assert y.flags.aligned


@every_wire
@every_numpy_dtype
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (5, 7), (2, 3, 4)], ids=str)
def test_an_array_of_any_shape_and_dtype_comes_back_as_such(wire: Wire, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    x = values(*shape, dtype=dtype)
    assert_rounded(client(wire).quantize("round", x), x)


@every_wire
@given(
    x=npst.arrays(
        st.sampled_from([np.dtype(f"{order}f{size}") for order in "<>" for size in (2, 4, 8)]),
        npst.array_shapes(min_dims=0, min_side=0),
    ),
    transposed=st.booleans(),
)
def test_every_bit_of_every_array_arrives(wire: Wire, x: np.ndarray, transposed: bool) -> None:
    """NaN payloads and the signs of zeros too: the gradient of `round` is `grad_output` itself."""
    given_x = x.T if transposed else x
    grad_x = client(wire).grad("round", given_x, given_x)
    assert grad_x.tobytes() == given_x.astype(given_x.dtype.newbyteorder("<")).tobytes()
    assert grad_x.dtype.isnative


@every_wire
def test_a_numpy_scalar_gives_a_0d_array(wire: Wire) -> None:
    y = client(wire).quantize("round", np.float32(2.6))
    assert_rounded(y, np.array(2.6, np.float32))


@every_wire
@pytest.mark.parametrize(
    "x",
    [values(6, 8)[::2, 1::3], values(6, 8)[:, ::-1], np.broadcast_to(values(1, 3), (4, 3)), values(2, 3, 4).transpose(1, 0, 2)],
    ids=["strided", "reversed", "broadcast", "transposed"],
)
def test_memory_that_is_not_contiguous_is_made_so(wire: Wire, x: np.ndarray) -> None:
    assert_rounded(client(wire).quantize("round", x), x)


def test_npy_keeps_fortran_order() -> None:
    x = np.asfortranarray(values(3, 4, 5))
    y = client("npy").quantize("round", x)
    assert_rounded(y, x)
    assert y.strides == x.strides


def test_msgpack_has_c_order_only() -> None:
    x = np.asfortranarray(values(3, 4))
    y = client("msgpack").quantize("round", x)
    assert_rounded(y, x)
    assert y.flags.c_contiguous


@every_wire
def test_big_endian_arrays_come_back_in_the_machines_order(wire: Wire) -> None:
    x = values(3, 4, dtype=np.dtype(">f4"))
    assert_rounded(client(wire).quantize("round", x), x)


def test_read_only_arrays_can_be_sent() -> None:
    x = values(3, 4)
    x.flags.writeable = False
    assert_rounded(client().quantize("round", x), x)


@every_wire
@pytest.mark.parametrize("container", [list, tuple])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_list_comes_back_as_a_list_and_a_tuple_as_a_tuple(wire: Wire, container: type, count: int) -> None:
    x = container(values(n, 2, dtype=NUMPY_DTYPES[n % 4]) for n in range(count))
    y = client(wire).quantize("round", x)
    assert type(y) is container
    assert len(y) == count
    for one_y, one_x in zip(y, x, strict=True):
        assert_rounded(one_y, one_x)


@every_wire
def test_names_come_back_in_the_order_they_were_given(wire: Wire) -> None:
    x = {"z": values(2), "a": values(3, 1), "layer.weight": values()}
    y = client(wire).quantize("round", x)
    assert list(y) == list(x)
    for name in x:
        assert_rounded(y[name], x[name])


@pytest.mark.parametrize("x", [[], (), {}], ids=str)
def test_nothing_gives_nothing(x: list | tuple | dict) -> None:
    assert client().quantize("round", x) == x
    assert client().grad("round", x, x) == x


@every_wire
def test_gradients_of_names_belong_to_their_names_in_whatever_order_they_are_given(wire: Wire) -> None:
    x = {"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)}
    g = {"b": np.ones(3, np.float32), "a": values(2)}
    grad_x = client(wire).grad("clamp(0, 1)", x, g)
    assert list(grad_x) == ["a", "b"]
    np.testing.assert_array_equal(grad_x["a"], g["a"])
    np.testing.assert_array_equal(grad_x["b"], g["b"])


@every_wire
def test_pairs_stay_pairs(wire: Wire) -> None:
    x = [np.float32([0.5, 2]), np.float32([-1, 1, 0])]
    grad_x = client(wire).grad("clamp(0, 1)", x, [np.float32([5, 6]), np.float32([7, 8, 9])])
    assert [one.tolist() for one in grad_x] == [[5, 0], [0, 8, 9]]


@pytest.mark.parametrize(
    ("x", "grad_output"),
    [([B], B), (B, [B]), ([B, B], [B]), ({"a": B}, {"b": B}), ({"a": B}, [B]), ([], {})],
    ids=["list", "single", "count", "names", "names and list", "nothing"],
)
def test_x_and_grad_output_must_have_one_structure(x: object, grad_output: object) -> None:
    with pytest.raises(StructureMismatch, match=r"'grad_output' is .*, but 'x' is"):
        client().grad("round", x, grad_output)  # type: ignore[type-var]


def test_a_list_and_a_tuple_are_the_same_structure() -> None:
    assert client().grad("round", [B], (B,)) == [B]


@pytest.mark.parametrize("grad_output", [values(3), [values(3), values(2)], {"a": values(2)}], ids=["single", "list", "dict"])
def test_x_may_be_left_out_where_it_is_not_needed(grad_output: object) -> None:
    grad_x = client().grad("round", None, grad_output)
    np.testing.assert_equal(grad_x, grad_output)
    assert type(grad_x) is type(grad_output)


def test_tensor_parameters_travel_by_name_and_their_gradients_come_back_by_name() -> None:
    x, g = np.float32([0.6, 1.2]), np.float32([10, 1])
    np.testing.assert_array_equal(client().quantize(AFFINE, x, w=W, b=B), [3.5, 3.5])
    grad_x, grads = client().grad(AFFINE, x, g, w=W, b=B)
    np.testing.assert_array_equal(grad_x, [30, 3])
    assert list(grads) == ["w", "b"]
    np.testing.assert_equal(grads, {"w": np.float32(11), "b": np.float32(11)})
    assert grads["w"].shape == ()


def test_tensor_parameters_go_with_lists_and_names() -> None:
    xs = [np.float32([0.6]), np.float32([1.2, 3])]
    grad_x, grads = client().grad(AFFINE, xs, xs, b=B, w=W)
    np.testing.assert_equal([one.tolist() for one in grad_x], [(3 * x).tolist() for x in xs])
    assert list(grads) == ["b", "w"]
    y = client().quantize(AFFINE, {"n": xs[1]}, w=W, b=B)
    np.testing.assert_array_equal(y["n"], [3.5, 9.5])


def test_each_gradient_comes_back_as_what_its_own_tensor_is() -> None:
    x, g = torch.tensor([0.6, 1.2]), np.float32([10, 1])
    grad_x, grads = client().grad(AFFINE, x, g, w=W, b=torch.tensor(0.5))
    assert isinstance(grad_x, torch.Tensor)
    assert isinstance(grads["w"], np.ndarray)
    assert isinstance(grads["b"], torch.Tensor)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda c: c.quantize(AFFINE, B, w=W, b=B), "tensor parameters"),
        (lambda c: c.grad("round", None, B), "without 'x'"),
        (lambda c: c.quantize("round", []), "empty list"),
    ],
    ids=["tensor parameters", "no x", "empty list"],
)
def test_what_npy_cannot_hold_is_refused_where_npy_is_demanded(call: object, reason: str) -> None:
    with pytest.raises(NotAcceptable, match=reason):
        call(client("npy"))  # type: ignore[operator]


def test_npy_is_chosen_where_it_can_hold_the_call_and_msgpack_elsewhere() -> None:
    server = RoundingServer()
    client = Client(transport=server.transport)
    client.quantize("round", B)
    client.quantize("round", [B, B])
    client.grad("round", B, B)
    client.quantize("round", {"a": B})
    client.quantize(AFFINE, B, w=W, b=B)
    client.grad("round", None, B)
    chosen = [request.headers["content-type"] for request in server.requests]
    assert chosen == ["application/x-npy"] * 3 + ["application/vnd.msgpack"] * 3
    assert [request.headers["accept"] for request in server.requests] == chosen


@pytest.mark.parametrize("x", [1.5, [1.0, 2.0], [[1.0]], "0.5", None, {"a": 1}, object(), range(3)], ids=lambda x: type(x).__name__)
def test_what_is_no_tensor_is_refused_with_a_hint(x: object) -> None:
    server = RoundingServer()
    with pytest.raises(TypeError, match=r"x.* is of type .*NumPy array"):
        Client(transport=server.transport).quantize("round", x)  # type: ignore[type-var]
    assert not server.requests


def test_names_are_strings() -> None:
    with pytest.raises(TypeError, match="'x' has the key 1"):
        client().quantize("round", {1: B})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "x",
    [
        np.arange(3),
        np.zeros(2, complex),
        np.zeros(2, bool),
        np.zeros(2, "V2"),
        np.array(["a"]),
        np.array([object()]),
        np.zeros(2, ml_dtypes.float8_e4m3fn),
        torch.arange(3),
        torch.zeros(2, dtype=torch.complex64),
    ],
    ids=lambda x: str(x.dtype),
)
def test_other_dtypes_are_refused_before_anything_is_sent(x: object) -> None:
    server = RoundingServer()
    with pytest.raises(UnsupportedDtype, match=r"x\[1\] has dtype .*; allowed: float16, bfloat16, float32, float64"):
        Client(transport=server.transport).quantize("round", [B, x])  # type: ignore[list-item]
    assert not server.requests


# torch -----------------------------------------------------------------------------------------------


@every_wire
@every_torch_dtype
@pytest.mark.parametrize("shape", [(), (0,), (5, 7)], ids=str)
def test_torch_goes_in_and_torch_comes_out(wire: Wire, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.as_tensor(values(*shape)).to(dtype)
    y = client(wire).quantize("round", x)
    assert isinstance(y, torch.Tensor)
    torch.testing.assert_close(y, x.round(), rtol=0, atol=0)
    y += 1  # its memory is its own


def test_a_result_is_on_the_device_of_its_input(device: torch.device) -> None:
    x = [torch.as_tensor(values(3, 4)).to(device, dtype) for dtype in TORCH_DTYPES]
    for y, one in zip(client().quantize("round", x), x, strict=True):
        assert y.device == one.device
        torch.testing.assert_close(y, one.round(), rtol=0, atol=0)


def test_a_tensor_that_requires_grad_is_sent_detached() -> None:
    x = torch.tensor([0.4, 1.6], requires_grad=True)
    y = client().quantize("round", x)
    assert not y.requires_grad
    assert y.tolist() == [0, 2]


@every_torch_dtype
def test_the_memory_of_a_cpu_tensor_is_what_is_sent(dtype: torch.dtype) -> None:
    x = torch.zeros(4, 3, dtype=dtype)
    sent = np.frombuffer(send(x, "x").wire.data, np.uint8)
    assert sent.ctypes.data == x.data_ptr()
    assert sent.nbytes == x.nbytes


@pytest.mark.parametrize(
    "x",
    [
        torch.arange(12.0).reshape(3, 4).T,
        torch.arange(12.0)[::3],
        torch.ones(1).expand(4),
        torch.zeros(2, 3, 4, 5).permute(0, 2, 3, 1),
    ],
    ids=["transposed", "strided", "expanded", "channels last"],
)
@every_wire
def test_tensors_in_any_memory_order_can_be_sent(wire: Wire, x: torch.Tensor) -> None:
    torch.testing.assert_close(client(wire).quantize("round", x), x.round(), rtol=0, atol=0)


def test_a_parameter_of_a_module_is_a_tensor() -> None:
    weights = dict(torch.nn.Linear(3, 2).named_parameters())
    y = client().quantize("round", weights)
    assert {name: type(one) for name, one in y.items()} == {"weight": torch.Tensor, "bias": torch.Tensor}


def test_a_sparse_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match="to_dense"):
        client().quantize("round", torch.zeros(3).to_sparse())


# memory ----------------------------------------------------------------------------------------------


def test_a_result_is_a_view_of_the_memory_it_was_received_in() -> None:
    y = client("npy").quantize("round", [values(100), values(200)])
    first, second = (np.asarray(one) for one in y)
    assert not first.flags.owndata
    assert not np.shares_memory(first, second)
    distance = second.ctypes.data - first.ctypes.data
    assert distance == 400 + 128, "the second array's header lies between them"


def test_expressions_may_be_values() -> None:
    server = RoundingServer()
    client = Client(transport=server.transport)
    client.quantize(Clamp(min_value=0, max_value=1e-5), B)
    client.quantize(Round(), B)
    assert server.expressions == ["clamp(min_value=0, max_value=1e-05)", "round()"]


@pytest.mark.parametrize("expression", ["round ", " round( )", "clamp(0,1e+2)", "clamp( 0\t, 1 )", "\nround"])
def test_strings_arrive_as_they_are(expression: str) -> None:
    server = RoundingServer()
    Client(transport=server.transport).quantize(expression, B)
    assert server.expressions == [expression]


@pytest.mark.parametrize("expression", ["a|b+c%20&op=d#e?f;g=ü 100%", "%2B", "\ud800"])
def test_no_string_can_become_another_query(expression: str) -> None:
    """A newer server may know more than the parser here: whatever it is, it is sent, quoted."""
    server = RoundingServer()
    with pytest.raises(NotAllowed):
        Client(transport=server.transport).quantize(expression, B)
    assert server.expressions == [expression.replace("\ud800", "?")]
    assert len(server.requests[0].url.params) == 1


@pytest.mark.parametrize("expression", [None, 4, b"round", Round])
def test_an_expression_is_a_string_or_a_value(expression: object) -> None:
    with pytest.raises(TypeError, match="expression"):
        client().quantize(expression, B)  # type: ignore[arg-type]
