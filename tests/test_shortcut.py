"""The short way of a repeated call against the long one: the same status, headers and bytes, whatever the data."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from examples import DTYPES, ELEMENTWISE, interesting
from torch import Tensor

from service.answer import Answer
from service.core import Core
from service.device import memory
from service.device.devices import Cpu
from service.device.engine import Engine
from service.dtypes import DTYPES as WIRE_DTYPES
from service.errors import StequantError
from service.head import Head
from service.job import Job
from service.metrics import Metrics
from service.ops import Expression
from service.settings import Settings
from service.wire import FORMATS
from service.wire.message import Bundle, WireTensor

CASES = [expression for expression in ELEMENTWISE if not expression.tensor_names]


@pytest.fixture(scope="module")
def core() -> Iterator[Core]:
    engine = Engine(Cpu("test"))
    one = Core(Settings(), engine, Metrics())
    one.ready = True
    yield one
    engine.close()


def body_of(x: Tensor, form: str) -> memoryview:
    """The body of a call, in memory of its own, its end aligned as the server has it."""
    wire = WireTensor(WIRE_DTYPES[str(x.dtype).removeprefix("torch.")], tuple(x.shape), memory.data_of(x.clone()))
    content = b"".join(FORMATS[form].encode({"x": Bundle.of(wire)}))
    padding = -len(content) % 64
    return memoryview(bytearray(padding) + content)[padding:]


def head_of(expression: Expression, form: str, length: int) -> Head:
    query = str(expression).replace(" ", "").encode()
    media_type = FORMATS[form].media_type.encode()
    headers = [(b"host", b"a"), (b"content-type", media_type), (b"content-length", b"%d" % length)]
    return Head("POST", "/quantize", b"op=" + query, headers)


def seen(answer: Answer) -> tuple[int, str, int, bytes]:
    return answer.status, answer.media_type, answer.length, b"".join(answer.pieces)


def admitted(core: Core, head: Head) -> Job:
    job = core.job(head)
    core.admit(job, head)
    return job


@pytest.mark.parametrize("form", ["npy", "msgpack", "safetensors"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("expression", CASES, ids=str)
def test_a_repeated_call_has_the_bytes_of_a_first_one(core: Core, expression: Expression, dtype: torch.dtype, form: str) -> None:
    values = interesting(dtype)[:120]
    bodies = [values, values.flip(0), values.reshape(8, 15), values.reshape(15, 8), values.roll(7)]
    length = len(body_of(bodies[0], form))
    try:
        expression.check(WIRE_DTYPES[str(dtype).removeprefix("torch.")])
    except StequantError:
        pytest.skip("the operator does not take this dtype")
    for again in (x for x in bodies if len(body_of(x, form)) == length):
        job = admitted(core, head_of(expression, form, length))
        core.answer_at_once(job, body_of(bodies[0], form))
        assert job.terms.shortcuts, "nothing was learned"
        alone = admitted(core, head_of(expression, form, length))
        assert seen(core.answer_at_once(job, body_of(again, form))) == seen(core.answer_at_once(alone, body_of(again, form)))


def test_a_call_that_is_like_the_last_one_but_broken_is_refused(core: Core) -> None:
    x = torch.ones(100)
    length = len(body_of(x, "npy"))
    job = admitted(core, head_of(CASES[0], "npy", length))
    assert core.answer_at_once(job, body_of(x, "npy")).status == 200
    broken = body_of(x, "npy")
    broken[:1] = b"\0"
    assert core.answer_at_once(job, broken).code == "malformed_body"


def test_nothing_is_learned_from_a_list_of_one(core: Core) -> None:
    wire = WireTensor(WIRE_DTYPES["float32"], (16,), memory.data_of(torch.ones(16)))
    content = bytearray(b"".join(FORMATS["msgpack"].encode({"x": Bundle((wire,))})))
    job = admitted(core, head_of(CASES[0], "msgpack", len(content)))
    assert core.answer_at_once(job, memoryview(content)).status == 200
    assert not job.terms.shortcuts
