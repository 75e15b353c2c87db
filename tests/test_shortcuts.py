"""The short way of a repeated call against the long one: the same status, headers and bytes, whatever the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch
from examples import DTYPES, ELEMENTWISE, interesting
from torch import Tensor

from service.answer import Answer
from service.call import plan
from service.core import Core, Terms
from service.device import memory
from service.device.devices import Cpu
from service.device.engine import Engine
from service.dtypes import DTYPES as WIRE_DTYPES
from service.errors import StequantError
from service.head import Head
from service.job import Job
from service.metrics import Metrics
from service.ops import Expression, parse
from service.settings import Settings
from service.shortcuts import Learned, Shortcuts, many, one
from service.wire import FORMATS
from service.wire.message import Bundle, Message, WireTensor

CASES = [expression for expression in ELEMENTWISE if not expression.tensor_names]
FORMS = ["npy", "msgpack", "safetensors"]
# Less than an element, a few, those of a tile and one more or less: tensors of a call, gathered into tiles of 512 KiB.
SIZES = {
    "equal": [64] * 20,
    "one": [7],
    "different": [1, 5, 64, 3, 1000, 2],
    "full": [131072, 131071, 1],
    "large": [300_000, 4, 262_143, 9],
}


@pytest.fixture(scope="module")
def core() -> Iterator[Core]:
    engine = Engine(Cpu("test"))
    instance = Core(Settings(), engine, Metrics())
    instance.ready = True
    yield instance
    engine.close()


def wire(x: Tensor) -> WireTensor:
    return WireTensor(WIRE_DTYPES[str(x.dtype).removeprefix("torch.")], tuple(x.shape), memory.data_of(x.clone()))


def body_of(message: Message, form: str) -> memoryview:
    """The body of a call, in memory of its own, its end aligned as the server has it."""
    content = b"".join(FORMATS[form].encode(message))
    padding = -len(content) % 64
    return memoryview(bytearray(padding) + content)[padding:]


def admitted(core: Core, kind: str, expression: Expression | str, form: str, length: int) -> Job:
    query = str(expression).replace(" ", "").encode()
    headers = [
        (b"host", b"a"),
        (b"content-type", FORMATS[form].media_type.encode()),
        (b"content-length", b"%d" % length),
    ]
    head = Head("POST", f"/{kind}", b"op=" + query, headers)
    job = core.job(head)
    core.admit(job, head)
    core.budget.release(job.reserved_bytes)
    return job


def terms_of(job: Job) -> Terms:
    assert isinstance(job.terms, Terms)
    return job.terms


def seen(answer: Answer) -> tuple[int, str, int, bytes]:
    return answer.status, answer.media_type, answer.length, b"".join(answer.pieces)


def seen_alone(core: Core, kind: str, expression: Expression | str, form: str, message: Message) -> tuple[int, str, int, bytes]:
    """The answer to a call whose head never came before."""
    body = body_of(message, form)
    return seen(core.answer_at_once(admitted(core, kind, expression, form, len(body)), body))


def job_that_has_learned(core: Core, kind: str, expression: Expression | str, form: str, message: Message) -> Job:
    """A job on terms on which a call like this was answered twice: the first may have a head that never comes again."""
    job = admitted(core, kind, expression, form, len(body_of(message, form)))
    for _ in range(2):
        assert core.answer_at_once(job, body_of(message, form)).status == 200
    return job


def skip_unless_taken(expression: Expression, dtype: torch.dtype) -> None:
    try:
        expression.check(WIRE_DTYPES[str(dtype).removeprefix("torch.")])
    except StequantError:
        pytest.skip("the operator does not take this dtype")


# One tensor -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("expression", CASES, ids=str)
def test_a_repeated_call_has_the_bytes_of_a_first_one(core: Core, expression: Expression, dtype: torch.dtype, form: str) -> None:
    skip_unless_taken(expression, dtype)
    values = interesting(dtype)[:120]
    messages = [
        {"x": Bundle.of(wire(x))} for x in (values, values.flip(0), values.reshape(8, 15), values.reshape(15, 8), values.roll(7))
    ]
    length = len(body_of(messages[0], form))
    for again in (message for message in messages if len(body_of(message, form)) == length):
        job = job_that_has_learned(core, "quantize", expression, form, messages[0])
        assert isinstance(terms_of(job).shortcuts.known, one.Shortcut), "nothing was learned"
        answer = core.answer_at_once(job, body_of(again, form))
        assert seen(answer) == seen_alone(core, "quantize", expression, form, again)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("expression", CASES, ids=str)
def test_a_repeated_gradient_has_the_bytes_of_a_first_one(
    core: Core, expression: Expression, dtype: torch.dtype, form: str
) -> None:
    skip_unless_taken(expression, dtype)
    values = interesting(dtype)[:120]
    messages = [pair(values, values.flip(0)), pair(values.roll(3), values.roll(50))]
    job = job_that_has_learned(core, "grad", expression, form, messages[0])
    assert isinstance(terms_of(job).shortcuts.known, one.Shortcut), "nothing was learned"
    for message in messages:
        answer = core.answer_at_once(job, body_of(message, form))
        assert seen(answer) == seen_alone(core, "grad", expression, form, message)


def pair(x: Tensor, grad_output: Tensor) -> Message:
    return {"x": Bundle.of(wire(x)), "grad_output": Bundle.of(wire(grad_output))}


@pytest.mark.parametrize("expression", ["round", "clamp(-1, 0.5)"])
def test_the_operands_of_a_gradient_may_come_in_either_order(core: Core, expression: str) -> None:
    x, grad_output = torch.linspace(-2, 2, 33), torch.linspace(1, 9, 33)
    message = dict(reversed(pair(x, grad_output).items()))
    job = job_that_has_learned(core, "grad", expression, "msgpack", message)
    answer = core.answer_at_once(job, body_of(message, "msgpack"))
    assert seen(answer) == seen_alone(core, "grad", expression, "msgpack", message)


def test_a_gradient_without_x_is_learned_too(core: Core) -> None:
    message = {"grad_output": Bundle.of(wire(torch.arange(5.0)))}
    job = job_that_has_learned(core, "grad", "round", "msgpack", message)
    assert isinstance(terms_of(job).shortcuts.known, one.Shortcut)
    answer = core.answer_at_once(job, body_of(message, "msgpack"))
    assert seen(answer) == seen_alone(core, "grad", "round", "msgpack", message)


def test_a_call_that_is_like_the_last_one_but_broken_is_refused(core: Core) -> None:
    message = {"x": Bundle.of(wire(torch.ones(100)))}
    job = job_that_has_learned(core, "quantize", CASES[0], "npy", message)
    broken = body_of(message, "npy")
    broken[:1] = b"\0"
    assert core.answer_at_once(job, broken).code == "malformed_body"


def test_a_gradient_whose_second_header_is_broken_is_refused(core: Core) -> None:
    message = pair(torch.ones(100), torch.ones(100))
    for expression in ("round", "clamp(0, 1)"):
        job = job_that_has_learned(core, "grad", expression, "npy", message)
        broken = body_of(message, "npy")
        broken[128 + 400 : 128 + 401] = b"\0"
        assert core.answer_at_once(job, broken).code == "malformed_body"


def test_nothing_is_learned_from_the_first_call_with_a_head(core: Core) -> None:
    message = {"x": Bundle.of(wire(torch.ones(100)))}
    body = body_of(message, "npy")
    job = admitted(core, "quantize", "round", "npy", len(body))
    core.answer_at_once(job, body)
    assert terms_of(job).shortcuts.known is None


def test_learning_in_vain_becomes_rare_and_does_not_end(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[bool] = []
    monkeypatch.setattr(one, "learn", lambda *_: learned.append(True))
    message = {"x": Bundle.of(wire(torch.ones(100)))}
    job = admitted(core, "quantize", "round", "npy", len(body_of(message, "npy")))
    counts = [0]
    for _ in range(100):
        core.answer_at_once(job, body_of(message, "npy"))
        counts.append(len(learned))
    assert [n for n in range(1, 101) if counts[n] > counts[n - 1]] == [2, 3, 4, 5, 6, 7, 8, 16, 32, 64]


def test_what_is_learned_has_a_bound() -> None:
    """Of many heads, each with many tensors: then all is forgotten, and learned again."""
    x = Bundle.of(wire(torch.ones(3)))
    body = body_of({"x": x}, "npy")
    engine = Engine(Cpu("test"))
    learned = Learned(most_places=100)
    call = plan("quantize", parse("round"), FORMATS["npy"].decode(body, ("x",), 1))
    answer = Answer.of(200, "application/x-npy", FORMATS["npy"].encode(engine.run(call)))
    kept = [Shortcuts(learned) for _ in range(50)]
    for shortcuts in kept:
        for _ in range(2):
            shortcuts.learn(call, body, answer, engine.device)
        assert shortcuts.known is not None
        assert sum(one.known is not None for one in kept) <= 100 // 16
    engine.close()


# Many tensors -----------------------------------------------------------------------------------------------


def tensors(dtype: torch.dtype, sizes: list[int], turn: int) -> list[Tensor]:
    values = interesting(dtype)
    longest = values.repeat(-(-max(sizes) // len(values)) + 1)
    return [longest[turn % len(values) :].roll(n)[:size].clone() for n, size in enumerate(sizes)]


def bundle(xs: list[Tensor], names: bool) -> Bundle:
    return Bundle(tuple(map(wire, xs)), tuple(f"layer.{n}" for n in range(len(xs))) if names else None)


def many_tensors(kind: str, dtype: torch.dtype, sizes: list[int], turn: int, form: str) -> Mapping[str, Bundle]:
    names = form == "safetensors"
    message = {"x": bundle(tensors(dtype, sizes, turn), names)}
    if kind == "grad":
        message["grad_output"] = bundle(tensors(dtype, sizes, turn + 40), names)
    return message


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["quantize", "grad"])
@pytest.mark.parametrize("expression", ["k_bit_quantize(4)", "clamp(-0.5, 1) | round", "step_quantize(0.1)"])
def test_repeated_calls_with_many_tensors_have_the_bytes_of_first_ones(
    core: Core, expression: str, kind: str, dtype: torch.dtype, sizes: list[int], form: str
) -> None:
    skip_unless_taken(parse(expression), dtype)
    job = job_that_has_learned(core, kind, expression, form, many_tensors(kind, dtype, sizes, 0, form))
    if len(sizes) > 1 and not (kind == "grad" and form == "npy"):  # npy has the operands in turn
        assert isinstance(terms_of(job).shortcuts.known, many.Shortcut), "nothing was learned"
    for turn in (0, 17):
        message = many_tensors(kind, dtype, sizes, turn, form)
        answer = core.answer_at_once(job, body_of(message, form))
        assert seen(answer) == seen_alone(core, kind, expression, form, message)


def test_named_tensors_in_msgpack_are_learned(core: Core) -> None:
    message = {"x": bundle(tensors(torch.float32, [3, 50, 2], 0), names=True)}
    job = job_that_has_learned(core, "quantize", "round", "msgpack", message)
    assert isinstance(terms_of(job).shortcuts.known, many.Shortcut)
    again = {"x": bundle(tensors(torch.float32, [3, 50, 2], 9), names=True)}
    assert seen(core.answer_at_once(job, body_of(again, "msgpack"))) == seen_alone(core, "quantize", "round", "msgpack", again)


@pytest.mark.parametrize("form", FORMS)
def test_the_same_lengths_with_other_shapes_are_other_calls(core: Core, form: str) -> None:
    shapes = [(2, 3), (3, 2), (6, 1)]
    messages = [
        {"x": Bundle(tuple(wire(torch.rand(shape)) for shape in order), None if form != "safetensors" else ("a", "b", "c"))}
        for order in (shapes, shapes[::-1])
    ]
    job = job_that_has_learned(core, "quantize", "round", form, messages[0])
    for message in (messages[1], messages[0]):
        answer = core.answer_at_once(job, body_of(message, form))
        assert seen(answer) == seen_alone(core, "quantize", "round", form, message)


@pytest.mark.parametrize("which", range(3))
def test_a_header_among_many_that_is_broken_is_refused_and_nothing_is_overwritten(core: Core, which: int) -> None:
    message = {"x": bundle([torch.full((10,), 0.4)] * 3, names=False)}
    job = job_that_has_learned(core, "quantize", "round", "npy", message)
    broken = body_of(message, "npy")
    broken[which * 168 : which * 168 + 1] = b"\0"
    before = broken.tobytes()
    assert core.answer_at_once(job, broken).code == "malformed_body"
    assert broken.tobytes() == before


def test_tensors_of_different_dtypes_are_answered_the_long_way(core: Core) -> None:
    xs = [torch.full((3,), 1.6), torch.full((3,), 2.6, dtype=torch.float64)]
    message = {"x": bundle(xs, names=False)}
    job = job_that_has_learned(core, "quantize", "round", "msgpack", message)
    assert terms_of(job).shortcuts.known is None
    answer = core.answer_at_once(job, body_of(message, "msgpack"))
    assert seen(answer) == seen_alone(core, "quantize", "round", "msgpack", message)


def test_empty_tensors_among_others_are_answered_the_long_way(core: Core) -> None:
    message = {"x": bundle([torch.rand(3), torch.rand(0), torch.rand(2)], names=False)}
    job = job_that_has_learned(core, "quantize", "round", "msgpack", message)
    answer = core.answer_at_once(job, body_of(message, "msgpack"))
    assert seen(answer) == seen_alone(core, "quantize", "round", "msgpack", message)
