"""The engine against the plain expressions: every way a call can take through it gives the same bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from examples import DTYPES, EXAMPLES, assert_same_bits, interesting, moderate, tensors_for
from scripted_device import ScriptedDevice
from torch import Tensor
from wire_tensors import off_wire, on_wire

from service.call import Call, plan
from service.device.devices import Cpu, choose
from service.device.engine import Engine
from service.device.gathering import LARGE_BYTES
from service.errors import DeviceFault
from service.ops import Chain, Clamp, Expression, KBitQuantize, Round, StepQuantize, parse
from service.wire.message import Bundle, WireTensor

# Sizes in elements around every boundary: nothing, one, and a tile of the CPU, less and more by one.
TILE = Cpu.tile_bytes // 4
SIZES = (0, 1, 2, TILE - 1, TILE, TILE + 1, 2 * TILE + 3)
CHAIN = Clamp(min_value=0, max_value=1) | KBitQuantize(k=4) | StepQuantize(step=0.3)


@pytest.fixture(params=["cpu", "beside the host", pytest.param("cuda", marks=pytest.mark.gpu)])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine on every kind of device; a CUDA device that is not there skips visibly."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    engine = Engine(ScriptedDevice() if request.param == "beside the host" else choose(request.param))
    yield engine
    engine.close()


def quantized(engine: Engine, expression: Expression, x: WireTensor, tensors: dict[str, Tensor] | None = None) -> Tensor:
    message = {"x": Bundle.of(x)} | {name: Bundle.of(on_wire(value)) for name, value in (tensors or {}).items()}
    (y,) = engine.run(plan("quantize", expression, message))["y"].tensors
    assert y.fortran == x.fortran
    return off_wire(y)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("expression", [*EXAMPLES, CHAIN], ids=str)
def test_values_are_those_of_the_expression(engine: Engine, expression: Expression, dtype: torch.dtype) -> None:
    if isinstance(expression, KBitQuantize) and expression.k == 15 and dtype == torch.bfloat16:
        expression = KBitQuantize(k=9)
    x = interesting(dtype)[:120].reshape(2, 3, 20)
    for shape in ((), (1, 1, 1), (20,), (3, 1), (2, 3, 20)):
        tensors = tensors_for(expression, x, shape)
        expected = expression.forward(x, tensors)
        for wire in (on_wire(x), on_wire(x, fortran=True), on_wire(x, offset=1), on_wire(x, readonly=True)):
            assert_same_bits(quantized(engine, expression, wire, tensors), expected, (str(expression), shape))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("expression", [*EXAMPLES, CHAIN], ids=str)
def test_gradients_are_those_of_the_expression(engine: Engine, expression: Expression, dtype: torch.dtype) -> None:
    if isinstance(expression, KBitQuantize) and expression.k == 15 and dtype == torch.bfloat16:
        expression = KBitQuantize(k=9)
    x, grad_output = moderate(dtype, 2, 3, 20), interesting(dtype)[-120:].reshape(2, 3, 20)
    for shape in ((), (1, 1, 1), (20,), (3, 1), (2, 3, 20)):
        tensors = tensors_for(expression, x, shape)
        expected = expression.backward(x, grad_output, tensors)
        for x_fortran, g_fortran in ((False, False), (True, True), (True, False), (False, True)):
            message = {
                "x": Bundle.of(on_wire(x, fortran=x_fortran)),
                "grad_output": Bundle.of(on_wire(grad_output, fortran=g_fortran, offset=3)),
            } | {name: Bundle.of(on_wire(value)) for name, value in tensors.items()}
            answer = engine.run(plan("grad", expression, message))
            (grad_x,) = answer["grad_x"].tensors
            assert grad_x.fortran == x_fortran
            assert_same_bits(off_wire(grad_x), expected.grad_x, (str(expression), shape))
            for name, gradient in expected.by_name().items():
                assert_same_bits(off_wire(answer[f"grad_{name}"].tensors[0]), gradient, (str(expression), name, shape))


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("shape", [(3, 2, TILE // 2 + 5), (2 * TILE + 1, 1), (1, 1, TILE + 1), (TILE // 3, 7)], ids=str)
@pytest.mark.parametrize(
    "text", ["affine_k_bit_quantize(4, w, b)", "clamp_by_linear | affine_k_bit_quantize(4, w, 0.1) | clamp_by_linear"]
)
def test_tiles_of_any_shape_change_no_bit(engine: Engine, text: str, shape: tuple[int, ...], fortran: bool) -> None:
    expression, x = parse(text), moderate(torch.float32, *shape)
    broadcast = [(), (1,), (shape[-1],), (*shape[:-1], 1), (1, *shape[1:]), shape]
    for own in broadcast:
        tensors = tensors_for(expression, x, own)
        expected = expression.forward(x, tensors)
        assert_same_bits(quantized(engine, expression, on_wire(x, fortran=fortran), tensors), expected, (text, own))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("text", ["round", "clamp(0, 1)", "k_bit_quantize(4)", str(CHAIN), "affine_k_bit_quantize(4, 0.3, 0.1)"])
def test_tiles_change_no_bit(engine: Engine, text: str, size: int) -> None:
    expression, x, grad_output = parse(text), moderate(torch.float32, size), moderate(torch.float32, size, seed=1)
    assert_same_bits(quantized(engine, expression, on_wire(x)), expression.forward(x))
    call = plan("grad", expression, {"x": Bundle.of(on_wire(x)), "grad_output": Bundle.of(on_wire(grad_output))})
    (grad_x,) = engine.run(call)["grad_x"].tensors
    assert_same_bits(off_wire(grad_x), expression.backward(x, grad_output).grad_x)


def mixed(dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    """Tensors of mixed dtypes and shapes: in runs and alone, empty, 0-d, one large among small ones."""
    shapes = [(), (0,), (1,), (3, 5), (2, 0, 3), (7,), (LARGE_BYTES // 4 + 1,), (2, 2), (31,)]
    return [moderate(dtype, *shape, seed=n) for n, (dtype, shape) in enumerate((d, s) for d in dtypes for s in shapes)]


@pytest.mark.parametrize("dtypes", [DTYPES[2:3], DTYPES, DTYPES * 2], ids=["one dtype", "runs", "twice"])
def test_many_tensors_in_one_call_have_the_bits_of_each_alone(engine: Engine, dtypes: list[torch.dtype]) -> None:
    xs = mixed(dtypes)
    grads = [moderate(x.dtype, *x.shape, seed=50 + n) for n, x in enumerate(xs)]
    bundle = Bundle(tuple(on_wire(x, fortran=n % 3 == 0) for n, x in enumerate(xs)))
    ys = engine.run(plan("quantize", CHAIN, {"x": bundle}))["y"].tensors
    for x, y in zip(xs, ys, strict=True):
        assert_same_bits(off_wire(y), CHAIN.forward(x))
    bundle = Bundle(tuple(on_wire(x) for x in xs))
    answer = engine.run(plan("grad", CHAIN, {"x": bundle, "grad_output": Bundle(tuple(map(on_wire, grads)))}))
    for x, grad_output, grad_x in zip(xs, grads, answer["grad_x"].tensors, strict=True):
        assert_same_bits(off_wire(grad_x), CHAIN.backward(x, grad_output).grad_x)


def test_gradients_of_tensor_parameters_are_added_over_the_tensors_from_left_to_right(engine: Engine) -> None:
    expression = parse("affine_k_bit_quantize(k=4, w=w, b=b) | affine_k_bit_quantize(k=2, w=w, b=0.5)")
    xs, grads = ([moderate(torch.float16, 5, 3, seed=seed) for seed in seeds] for seeds in ((1, 2, 3, 4), (5, 6, 7, 8)))
    tensors = tensors_for(expression, xs[0], (3,))
    message = {"x": Bundle(tuple(map(on_wire, xs))), "grad_output": Bundle(tuple(map(on_wire, grads)))}
    message |= {name: Bundle.of(on_wire(value)) for name, value in tensors.items()}
    answer = engine.run(plan("grad", expression, message))
    for name in tensors:
        own = [expression.backward(x, g, tensors).by_name()[name] for x, g in zip(xs, grads, strict=True)]
        assert_same_bits(off_wire(answer[f"grad_{name}"].tensors[0]), ((own[0] + own[1]) + own[2]) + own[3])


def test_no_tensor_gives_gradients_of_zero(engine: Engine) -> None:
    expression = parse("affine_k_bit_quantize(k=4, w=w, b=0)")
    message = {"x": Bundle(()), "grad_output": Bundle(()), "w": Bundle.of(on_wire(torch.ones(2, 3)))}
    answer = engine.run(plan("grad", expression, message))
    assert answer["grad_x"] == Bundle(())
    assert_same_bits(off_wire(answer["grad_w"].tensors[0]), torch.zeros(2, 3))


def test_values_lie_in_the_memory_of_the_request_where_it_is_aligned() -> None:
    engine, wire = Engine(Cpu("test")), on_wire(moderate(torch.float32, 1000))
    before = bytes(wire.data)
    (y,) = engine.run(Call("quantize", KBitQuantize(k=4), Bundle.of(wire)))["y"].tensors
    assert y.data is wire.data
    assert bytes(wire.data) != before


def test_the_gradient_of_a_straight_through_chain_is_the_very_memory_of_grad_output() -> None:
    engine, grad_output = Engine(Cpu("test")), on_wire(moderate(torch.float32, 1000), offset=1, readonly=True)
    call = Call("grad", Chain((Round(), KBitQuantize(k=4))), None, Bundle.of(grad_output))
    assert engine.run(call)["grad_x"].tensors[0].data is grad_output.data


def test_warming_up_runs_every_operator(engine: Engine) -> None:
    engine.warm_up()


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(DeviceFault, match=r"'cuda:99' is not there"):
        choose("cuda:99")


def test_auto_takes_the_cpu_where_there_is_no_cuda_device_and_says_why() -> None:
    device = choose("auto")
    assert device.name == "cpu" if not torch.cuda.is_available() else device.name.startswith("cuda:")
    assert device.reason
