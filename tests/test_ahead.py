"""Large calls computed while their body arrives, against the same calls computed when it is there: the same bytes.

What has not come yet is full of other bytes here, as it is in a buffer that was used before.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import msgpack
import pytest
import torch
from examples import DTYPES, ELEMENTWISE, assert_same_bits, interesting
from torch import Tensor

from service.ahead import NEVER, planned
from service.answer import Answer
from service.call import plan
from service.core import Core
from service.device import memory
from service.device.devices import Cpu
from service.device.engine import Engine
from service.dtypes import DTYPES as WIRE_DTYPES
from service.errors import StequantError
from service.head import Head
from service.job import Job
from service.metrics import Metrics
from service.ops import parse
from service.ops.base import Expression
from service.settings import Settings
from service.wire import FORMATS
from service.wire.message import Bundle, Message, WireTensor

CHAIN = parse("clamp(-0.5,2)|k_bit_quantize(4)")
BOUNDED = parse("clamp(0,1)|k_bit_quantize(4)")
CASES: list[Expression] = [CHAIN, *(expression for expression in ELEMENTWISE if not expression.tensor_names)]
# More than a call that is answered when it is there.
LARGE_BYTES = 3 * 2**20


@pytest.fixture(scope="module")
def core() -> Iterator[Core]:
    engine = Engine(Cpu("test"))
    one = Core(Settings(), engine, Metrics())
    one.ready = True
    yield one
    engine.close()


def many(dtype: torch.dtype, nbytes: int = LARGE_BYTES) -> Tensor:
    """So many bytes of values among which every interesting one is found often."""
    values = interesting(dtype)
    return values.repeat(-(-nbytes // values.nbytes))[: nbytes // dtype.itemsize]


def wire(x: Tensor, *, fortran: bool = False) -> WireTensor:
    name = str(x.dtype).removeprefix("torch.")
    return WireTensor(WIRE_DTYPES[name], tuple(x.shape), memory.data_of(x.contiguous().clone()), fortran)


def body_of(message: Message, form: str) -> memoryview:
    """The body of a call."""
    return padded(b"".join(FORMATS[form].encode(message)))


def padded(content: bytes) -> memoryview:
    """The bytes in memory of their own, its end aligned as the server has it."""
    padding = -len(content) % 64
    return memoryview(bytearray(padding) + content)[padding:]


def admitted(core: Core, path: str, query: str, form: str, length: int) -> Job:
    headers = [
        (b"host", b"a"),
        (b"content-type", FORMATS[form].media_type.encode()),
        (b"content-length", b"%d" % length),
    ]
    head = Head("POST", path, query.replace(" ", "").encode(), headers)
    job = core.job(head)
    core.admit(job, head)
    core.budget.release(job.reserved_bytes)
    return job


def seen(answer: Answer) -> tuple[int, str, int, bytes]:
    return answer.status, answer.media_type, answer.length, b"".join(answer.pieces)


def skip_unless_taken(expression: Expression, dtype: torch.dtype) -> None:
    try:
        expression.check(WIRE_DTYPES[str(dtype).removeprefix("torch.")])
    except StequantError:
        pytest.skip("the operator does not take this dtype")


def elements_of(answer: Answer, like: Tensor) -> Tensor:
    """The elements with which an answer ends."""
    return torch.frombuffer(bytearray(b"".join(answer.pieces)[-like.nbytes :]), dtype=like.dtype)


def noise(nbytes: int) -> bytes:
    return random.Random(0).randbytes(64) * (nbytes // 64) + bytes(nbytes % 64)


def arrive(core: Core, job: Job, body: memoryview, marks: Sequence[int], before: bytes = b"") -> Answer:
    """The answer to a body of which so much is there at a time, and what was there `before` where it is not."""
    terms = job.terms
    assert terms is not None
    arrived = padded(before or noise(body.nbytes))
    look_bytes = core.first_look_bytes(terms, body.nbytes)
    at = 0
    for mark in (*marks, body.nbytes):
        arrived[at:mark] = body[at:mark]
        at = mark
        if at >= look_bytes and at < body.nbytes:
            look_bytes = job.ahead.advance(at) if job.ahead is not None else core.look_ahead(job, arrived, at)
    return core.answer_at_once(job, arrived)


def marks_of(length: int) -> list[int]:
    """Marks in the first kilobyte, around 128 KiB and 256 KiB, at odd places, and just before the end."""
    places = [1, 70, 129, 1000, 2**17 - 1, 2**17 + 77, 2**18, 2**18 + 1, *range(400_001, length, 299_993), length - 1]
    return sorted(place for place in set(places) if place < length)


def alike(core: Core, path: str, query: str, form: str, message: Message) -> Job:
    """Assert that a call has the same answer both ways; what was computed ahead."""
    body = body_of(message, form)
    job = admitted(core, path, query, form, body.nbytes)
    ahead = arrive(core, job, body, marks_of(body.nbytes))
    assert seen(ahead) == seen(core.answer_at_once(admitted(core, path, query, form, body.nbytes), body))
    return job


@pytest.mark.parametrize("form", ["npy", "msgpack", "safetensors"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("expression", CASES, ids=str)
def test_values(core: Core, expression: Expression, dtype: torch.dtype, form: str) -> None:
    skip_unless_taken(expression, dtype)
    job = alike(core, "/quantize", f"op={expression}", form, {"x": Bundle.of(wire(many(dtype)))})
    assert job.ahead is not None


@pytest.mark.parametrize("form", ["npy", "msgpack", "safetensors"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("expression", CASES, ids=str)
def test_values_of_a_repeated_call(core: Core, expression: Expression, dtype: torch.dtype, form: str) -> None:
    """Also small calls are computed as they come, where a shortcut was learned from one like them."""
    skip_unless_taken(expression, dtype)
    x = many(dtype, 2**20)
    first, again = (body_of({"x": Bundle.of(wire(one))}, form) for one in (x, x.flip(0)))
    job = admitted(core, "/quantize", f"op={expression}", form, first.nbytes)
    assert core.first_look_bytes(job.terms, first.nbytes) == NEVER
    for _ in range(2):
        core.answer_at_once(job, padded(first.tobytes()))
    repeated = Job(b"again")
    repeated.terms = job.terms
    answer = arrive(core, repeated, again, marks_of(again.nbytes))
    assert repeated.ahead is not None
    alone = core.answer_at_once(admitted(core, "/quantize", f"op={expression}", form, again.nbytes), again)
    assert seen(answer)[:3] == seen(alone)[:3]
    assert seen(answer)[3][: -x.nbytes] == seen(alone)[3][: -x.nbytes]
    assert_same_bits(elements_of(answer, x), elements_of(alone, x))


@pytest.mark.parametrize("form", ["npy", "msgpack", "safetensors"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("expression", ["clamp(-0.5,2)", "affine_k_bit_quantize(2,-1.7,0.1)", "round"])
def test_gradients_of_a_repeated_call(core: Core, expression: str, order: int, dtype: torch.dtype, form: str) -> None:
    """Whichever operand comes last; what is as it came is not computed, neither ahead nor then."""
    skip_unless_taken(parse(expression), dtype)
    x, grad_output = many(dtype, 2**19), many(dtype, 2**19).flip(0)
    operands = [("x", x), ("grad_output", grad_output)][:: order if form == "msgpack" else 1]
    first = body_of({name: Bundle.of(wire(one)) for name, one in operands}, form)
    again = body_of({name: Bundle.of(wire(one.roll(5))) for name, one in operands}, form)
    job = admitted(core, "/grad", f"op={expression}", form, first.nbytes)
    for _ in range(2):
        core.answer_at_once(job, padded(first.tobytes()))
    repeated = Job(b"again")
    repeated.terms = job.terms
    answer = arrive(core, repeated, again, marks_of(again.nbytes))
    assert (repeated.ahead is not None) == (expression != "round")
    assert seen(answer) == seen(core.answer_at_once(admitted(core, "/grad", f"op={expression}", form, again.nbytes), again))


@pytest.mark.parametrize("form", ["npy", "msgpack"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("expression", [one for one in CASES if not one.backward_is_identity], ids=str)
def test_gradients(core: Core, expression: Expression, dtype: torch.dtype, form: str) -> None:
    x, grad_output = many(dtype), many(dtype).flip(0)
    job = alike(core, "/grad", f"op={expression}", form, {"x": Bundle.of(wire(x)), "grad_output": Bundle.of(wire(grad_output))})
    assert job.ahead is not None


@pytest.mark.parametrize("output", ["codes", "packed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [1, 3, 4, 8, 10])
def test_codes(core: Core, dtype: torch.dtype, k: int, output: str) -> None:
    x = torch.rand(LARGE_BYTES // dtype.itemsize + 3, generator=torch.Generator().manual_seed(1)).to(dtype) * 3 - 1
    x[:: x.numel() // 7] = torch.nan
    x[1 :: x.numel() // 9] = -0.0
    query = f"op=clamp(0,1)|k_bit_quantize({k})&output={output}"
    job = alike(core, "/quantize", query, "msgpack", {"x": Bundle.of(wire(x))})
    assert job.ahead is not None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masks(core: Core, dtype: torch.dtype) -> None:
    job = alike(core, "/grad", f"op={CHAIN}&output=mask", "npy", {"x": Bundle.of(wire(many(dtype)))})
    assert job.ahead is not None


def test_a_shape_and_the_order_of_its_elements_stay(core: Core) -> None:
    x = many(torch.float32).view(-1, 2, 4)
    for fortran in (False, True):
        job = alike(core, "/quantize", f"op={CHAIN}", "npy", {"x": Bundle.of(wire(x, fortran=fortran))})
        assert job.ahead is not None


X = Bundle.of(wire(many(torch.float32)))


@pytest.mark.parametrize(
    ("path", "query", "form", "message"),
    [
        ("/quantize", "op=clamp_by_linear", "npy", {"x": X}),
        ("/quantize", "op=affine_k_bit_quantize(4,w,b)", "msgpack", {"x": X, "w": X, "b": X}),
        ("/quantize", f"op={CHAIN}", "npy", {"x": Bundle(X.tensors * 2)}),
        ("/quantize", f"op={CHAIN}", "msgpack", {"x": Bundle(X.tensors, ("a",))}),
        ("/quantize", f"op={'|'.join(['round'] * 20)}", "npy", {"x": X}),
        ("/quantize", "op=round&output=codes", "npy", {"x": Bundle.of(wire(torch.ones(2**20)))}),
        ("/grad", "op=clamp(0,1)", "msgpack", {"grad_output": X, "x": X}),
        ("/grad", "op=clamp(0,1)", "npy", {"x": X, "grad_output": Bundle.of(wire(many(torch.float32), fortran=True))}),
        ("/quantize", "op=round", "json", {"x": Bundle.of(wire(torch.ones(2**18)))}),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_what_cannot_be_computed_ahead_is_computed_afterwards(
    core: Core, path: str, query: str, form: str, message: Message
) -> None:
    alike(core, path, query, form, message)


def test_nothing_is_read_that_has_not_come(core: Core) -> None:
    """The shape follows the data (in 16 bytes: they are aligned), and where it is to come stands that of an earlier call."""
    x = many(torch.float32).numpy()
    before, body = (
        msgpack.packb({"x": {"dtype": "float32", "data": x.tobytes(), "shape": shape}})
        for shape in ([x.size // 2, 2, 1, 1, 1], [2, x.size // 2, 1, 1, 1])
    )
    assert len(before) == len(body)
    job = admitted(core, "/quantize", "op=round", "msgpack", len(body))
    answer = arrive(core, job, padded(body), marks_of(len(body)), before)
    job = admitted(core, "/quantize", "op=round", "msgpack", len(body))
    assert seen(answer) == seen(core.answer_at_once(job, padded(body)))


def encoded(_: object) -> Answer:
    raise AssertionError("nothing was computed")


def test_an_operand_that_has_not_begun_to_come_is_waited_for(core: Core) -> None:
    body = body_of({"x": X}, "npy")
    call = plan("quantize", CHAIN, FORMATS["npy"].decode(body, ("x",), 1))
    assert planned(core.engine, call, body, 127, encoded) is None
    assert planned(core.engine, call, body, 128, encoded) is not None


def test_small_calls_wait_for_their_body(core: Core) -> None:
    body = body_of({"x": Bundle.of(wire(torch.ones(2**18)))}, "npy")
    assert core.first_look_bytes(admitted(core, "/quantize", "op=round", "npy", body.nbytes).terms, body.nbytes) == NEVER


def test_a_call_beside_others_waits_for_its_body(core: Core) -> None:
    body = body_of({"x": X}, "npy")
    job = admitted(core, "/quantize", "op=round", "npy", body.nbytes)
    core.budget.reserve(3 * body.nbytes)
    look_bytes = core.first_look_bytes(job.terms, body.nbytes)
    core.budget.release(3 * body.nbytes)
    assert look_bytes == NEVER
    assert core.first_look_bytes(job.terms, body.nbytes) < body.nbytes


@pytest.mark.parametrize("form", ["npy", "msgpack", "safetensors"])
def test_broken_bodies_have_the_error_that_they_always_have(core: Core, form: str) -> None:
    whole = body_of({"x": X}, form)
    for at in range(0, 120, 7):
        broken = [body_of({"x": X}, form) for _ in range(2)]
        for body in broken:
            body[at] ^= 0x55
        job = admitted(core, "/quantize", "op=round", form, whole.nbytes)
        answer = arrive(core, job, broken[0], marks_of(whole.nbytes))
        assert seen(answer) == seen(core.answer_at_once(admitted(core, "/quantize", "op=round", form, whole.nbytes), broken[1]))


def test_too_many_exceptions_are_refused_when_the_body_is_there(core: Core) -> None:
    body = body_of({"x": Bundle.of(wire(torch.full((2**20,), torch.nan)))}, "npy")
    job = admitted(core, "/quantize", f"op={BOUNDED}&output=packed", "npy", body.nbytes)
    answer = arrive(core, job, body, marks_of(body.nbytes))
    assert job.ahead is not None
    assert (answer.status, answer.code) == (422, "not_representable")


def test_the_time_of_computing_is_not_that_of_reading(core: Core) -> None:
    body = body_of({"x": X}, "npy")
    job = admitted(core, "/quantize", f"op={CHAIN}", "npy", body.nbytes)
    arrive(core, job, body, marks_of(body.nbytes))
    assert job.ahead is not None
    assert job.started < job.received == job.began < job.ended
    assert job.ended - job.began >= job.ahead.compute_s > 0
