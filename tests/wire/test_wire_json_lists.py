"""Long lists in JSON, read without an object for each number: as the standard library and NumPy read them, bit for bit."""

from __future__ import annotations

import json as library
import math
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BadTensor, MalformedBody, RequestError, TooManyTensors
from service.oip import request as oip
from service.wire import json, json_lists, json_text
from service.wire.json_numbers import decimals, named

MAX_TENSORS = 64
CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"
BLANKS = ["", "", "", " ", "\n", "\t \r"]
Outcome = tuple[object, ...]


@pytest.fixture(scope="module", autouse=True)
def every_list_is_long() -> Any:
    """Lists are cut out that are not much longer than a shape, and texts are looked at in many parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lists, "_LONG", 9)
        patch.setattr(json_text, "_PART_BYTES", 7)
        patch.setattr(json_text, "_MANY_QUOTES", 6)
        yield


def of_json(body: bytes) -> Outcome:
    message = json.decode(memoryview(body), ("x",), MAX_TENSORS)
    return tuple(
        (field, bundle.names, bundle.single, [(t.dtype.name, t.shape, t.style, bytes(t.data)) for t in bundle.tensors])
        for field, bundle in message.items()
    )


def of_oip(body: bytes) -> Outcome:
    request = oip.read(memoryview(body), None, MAX_TENSORS)
    inputs = [(one.name, one.tensor.dtype.name, one.tensor.shape, bytes(one.tensor.data)) for one in request.inputs]
    return (inputs, request.outputs, repr(request.parameters), request.has_json_data)


def outcome(read: Callable[[bytes], Outcome], body: bytes, short_bytes: int) -> Outcome:
    """What is read of a body, or the code that it is refused with; all of it by the standard library if it is short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json, "_SHORT_BYTES", short_bytes)
        try:
            return read(body)
        except RequestError as error:
            return (error.code, 10 < len(str(error)) < 600)


def assert_same(body: str | bytes, *reads: Callable[[bytes], Outcome]) -> None:
    raw = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
    for read in reads or (of_json, of_oip):
        assert outcome(read, raw, -1) == outcome(read, raw, 2**30), raw[:2000]


# Documents ------------------------------------------------------------------------------------------------

digits = st.text("0123456789", min_size=1, max_size=25)
numbers = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.builds(lambda sign, whole, part: f"{sign}{int(whole)}.{part}", st.sampled_from(["", "-"]), digits, digits),
    st.builds(lambda whole, exponent: f"{int(whole)}e{exponent}", digits, st.integers(-400, 400)),
    st.sampled_from(["0", "-0", "-0.0", "1", "1e999", "-1E+2", '"NaN"', '"Infinity"', '"-Infinity"', '"\\u004eaN"', "9" * 400]),
)
# What is no number, and what is no JSON.
wrong = st.sampled_from(
    [
        *("null", "true", '"a"', '"[1,"', '"\\""', '"\\\\"', '"\\ud800"', '"é😀"', "{}", '{"a":[1,2,3]}', "NaN", "-Infinity"),
        *("01", "1.", ".5", "-", "+1", "1e", "1 2", "1\\", '"a', '"\x01"', '"a""b"', "nul", "--1", "1-", "", "9" * 5000),
    ]
)


@st.composite
def lists(draw: Any, leaf: st.SearchStrategy[str]) -> str:
    """Lists in lists of one shape, but that now and then an entry is left out, put twice, or something else."""
    shape = draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    level = draw(st.lists(leaf, min_size=math.prod(shape), max_size=math.prod(shape)))
    odd = draw(st.sampled_from(range(40)))
    for length in reversed(shape):
        count = len(level) // length if length else math.prod(shape[: shape.index(0)])
        level = [_joined(draw, level[i * length : (i + 1) * length]) for i in range(count)]
        if odd < 3 and level:
            level[-1] = draw(st.sampled_from([level[-1] + "," + level[-1], "1", "[]", "[1]", level[-1][:-1], level[-1] + "]"]))
    return level[0] if level else "[]"


def _joined(draw: Any, entries: list[str]) -> str:
    blank = draw(st.sampled_from(BLANKS))
    return "[" + blank + (blank + "," + blank).join(entries) + blank + "]"


some_lists = st.one_of(lists(numbers), lists(numbers), lists(st.one_of(numbers, wrong)))
data_lists = st.one_of(st.lists(numbers, max_size=12).map(lambda all_: "[" + ",".join(all_) + "]"), some_lists)


@st.composite
def tensors(draw: Any) -> str:
    data = draw(data_lists)
    shape = draw(st.sampled_from([f"[{data.count(',') + 1}]", "[2]", "[0]", "[2,2]", "[" + "1," * 70 + "1]"]))
    # Of two faults either may be told.
    dtype = draw(st.sampled_from(["float16", "bfloat16", "float32", "float64", *["int8"] * (len(shape) < 100)]))
    return f'{{"dtype":"{dtype}", "shape":{shape},"data":{data}}}'


values = st.one_of(
    some_lists,
    tensors(),
    st.lists(tensors(), min_size=1, max_size=3).map(lambda all_: "[" + ",".join(all_) + "]"),
    st.lists(st.one_of(tensors(), some_lists), min_size=1, max_size=3).map(lambda all_: "[" + ", ".join(all_) + "]"),
    st.dictionaries(st.sampled_from(["a", "é", "x]", "[1,2"]), st.one_of(some_lists, tensors()), max_size=3).map(
        lambda named_: "{" + ",".join(f'"{name}":{value}' for name, value in named_.items()) + "}"
    ),
)
documents = st.lists(st.tuples(st.sampled_from(["x", "y", "grad_output", "x"]), values), max_size=3).map(
    lambda fields: "{" + ",".join(f'"{name}": {value}' for name, value in fields) + "}"
)


@st.composite
def calls(draw: Any) -> str:
    """Calls of the inference protocol."""
    inputs = []
    for i in range(draw(st.integers(1, 3))):
        data = draw(data_lists)
        shape = draw(st.sampled_from([f"[{data.count(',') + 1}]", "[2]", "[2,2]"]))
        inputs.append(f'{{"name": "x{i}", "datatype": "FP64", "shape": {shape}, "data": {data}}}')
    more = draw(
        st.sampled_from(["", ', "junk": [[1], 2, "a"]', ', "junk": [1,{}]', ', "parameters": {"k": -Infinity, "l": [NaN]}'])
    )
    return '{"inputs": [' + ",".join(inputs) + "]" + more + "}"


@given(documents)
def test_a_document_is_read_as_the_standard_library_reads_it(text: str) -> None:
    assert_same(text, of_json)


@given(calls())
def test_a_call_is_read_as_the_standard_library_reads_it(text: str) -> None:
    assert_same(text, of_oip)


@given(
    st.one_of(documents, calls()), st.integers(0, 10**6), st.sampled_from([*'[]{},:"\\ 1-.eN', "", "[1,2]", '"']), st.integers(0, 2)
)
def test_a_broken_document_is_refused_as_the_standard_library_refuses_it(text: str, at: int, sign: str, cut: int) -> None:
    at %= len(text) + 1
    assert_same(text[:at] + sign + text[at + cut :])


@given(st.text('{}[]",:-+.eE01 \\uNaInfity', max_size=30))
def test_random_text_is_refused_as_the_standard_library_refuses_it(text: str) -> None:
    assert_same(text)
    assert_same(f'{{"x": [{text}]}}')


@pytest.mark.parametrize("name", ["json", "oip"])
def test_what_fuzzing_keeps_is_read_as_the_standard_library_reads_it(name: str) -> None:
    files = sorted((CORPUS / name).iterdir())
    assert files
    for file in files:
        assert_same(file.read_bytes().replace(b"\0", b""))


@pytest.mark.parametrize(
    "value",
    ["[" * depth + "1" + "]" * depth + more for depth in (1, 63, 64, 65, 200) for more in ("", ",1", "]", ',"y":[[1],[2,3]]')]
    + [
        "[" + "[]," * 50 + "[1]]",
        "[[[1],[2]],[[3],[4,5]]]",
        "[[[1]],[2]]",
        "[[1],2]",
        "[2,[1]]",
        "[[],[[]]]",
        "[1,[],2]",
        "[[1,2],[]]",
    ]
    + ['[-Infinity,1],"y":[1,2]', '[{"a":-Infinity}],"y":[1,2]', '"-Infinity","y":[1,2]', '"\\"-Infinity","y":[1,2]'],
)
def test_ragged_and_deep_lists_are_refused_as_the_standard_reader_refuses_them(value: str) -> None:
    assert_same(f'{{"x": {value}}}')


# Numbers --------------------------------------------------------------------------------------------------


def read_decimals(literals: list[str]) -> tuple[list[float], list[bool]]:
    text = ",".join(literals).encode()
    ends = np.cumsum([len(literal) + 1 for literal in literals]) - 1
    starts = ends - [len(literal) for literal in literals]
    found, known = decimals(np.frombuffer(text, np.uint8), starts, ends)
    return found.tolist(), known.tolist()


def test_decimals_are_the_nearest_floats() -> None:
    source = random.Random(1)
    literals = ["0", "-0", "-0.0", "0.000", "9" * 15, "0." + "9" * 14, "-" + "1" * 15, "9" * 14 + ".9"]
    for _ in range(20_000):
        text = str(source.randrange(10 ** source.randint(1, 15)))
        point = source.randint(0, len(text))
        literals.append(source.choice(["", "-"]) + (f"{text[:point]}.{text[point:]}" if 0 < point < len(text) else text))
    literals = [literal for literal in literals if is_json(literal)]
    found, known = read_decimals(literals)
    assert all(known)
    assert struct.pack(f"{len(found)}d", *found) == struct.pack(f"{len(found)}d", *map(float, literals))


@given(st.lists(st.one_of(numbers, st.text('0123456789.-+e"', min_size=1, max_size=18)), min_size=1, max_size=30))
def test_only_what_is_json_is_a_known_decimal(literals: list[str]) -> None:
    found, known = read_decimals(literals)
    for literal, value, is_known in zip(literals, found, known, strict=True):
        if is_known:
            assert is_json(literal)
            assert struct.pack("d", value) == struct.pack("d", float(literal))
        else:
            assert not literal.isdigit() or len(literal) > 15 or literal[0] == "0"


def is_json(literal: str) -> bool:
    try:
        return isinstance(library.loads(literal), int | float)
    except ValueError:
        return False


def test_named_numbers_are_known_by_all_their_letters() -> None:
    words = ['"NaN"', '"NaM"', '"Infinity"', '"infinity"', '"-Infinity"', '"+Infinity"', "NaN"]
    text = ",".join(words).encode()
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    found, known = named(np.frombuffer(text, np.uint8), ends - [len(word) for word in words], ends)
    assert known.tolist() == [True, False, True, False, True, False, False]
    assert math.isnan(found[0])
    assert found[known][1:].tolist() == [math.inf, -math.inf]


# Writing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (7,), (0,), (2, 3), (1, 1, 50), (5, 2, 3), (50, 1), (3, 0), (1, 40, 2)])
def test_what_is_written_in_many_parts_is_what_the_library_writes(shape: tuple[int, ...]) -> None:
    array = np.arange(math.prod(shape), dtype=np.float32).reshape(shape) / 3
    lists = array.tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json, "_ELEMENTS_AT_ONCE", 5)
        assert json._lists_text(array) == library.dumps(lists, separators=(",", ":"))
        if array.size > 4:
            array.flat[-1], array.flat[-2], array.flat[0] = math.nan, -math.inf, math.inf
            text = json._lists_text(array)
            assert text.count('"NaN"') == text.count('"Infinity"') == text.count('"-Infinity"') == 1
            assert library.dumps(library.loads(text), separators=(",", ":")) == text


# Long bodies, as they are ---------------------------------------------------------------------------------


def long(value: str) -> bytes:
    body = f'{{"x": {value}}}'.encode()
    assert len(body) > 16 * 1024
    return body


@pytest.mark.parametrize(
    ("value", "refusal", "says"),
    [
        ("[" + "1, " * 9000 + "null]", BadTensor, r"x\[9000\] must be a number .* not null"),
        ("[" + "[1,2]," * 9000 + '[3,"a"]]', BadTensor, r"x\[9000\]\[1\] must be a number .* not the string 'a'"),
        ("[" + "[1,2]," * 9000 + "[3]]", BadTensor, "x is ragged"),
        ("[" + "[1,2]," * 9000 + "3]", BadTensor, "x is ragged"),
        ("[" + "1," * 200_000 + "{}]", BadTensor, "maps and more than"),
        ("[{}" + ",1" * 200_000 + "]", BadTensor, "maps and more than"),
        ("[" + "1," * 9000 + "{}]", BadTensor, r"x\[0\] must be a map"),
        ('{"a":{}' + ",1" * 200_000 + "}", MalformedBody, "not valid JSON"),
        ("[" + "1, " * 9000 + "1}", MalformedBody, "not valid JSON"),
        ("[" + "1," * 200_000 + "1}", MalformedBody, "not valid JSON"),
        ("[" + "1," * 200_000 + ",{}]", MalformedBody, "at byte 400007"),
        ("[" + "1, " * 9000 + "1 2]", MalformedBody, "at byte 27009"),
        ("[" + "1, " * 9000 + "01]", MalformedBody, "at byte 27007"),
        ("[" + "1, " * 9000 + "NaN]", MalformedBody, "NaN is not JSON"),
        ("[" + "1, " * 9000 + '"]', MalformedBody, "Unterminated string, at byte 27007"),
        ("[" + "1, " * 9000 + '1], "y": 1, "x": 2', MalformedBody, "stands twice"),
        ("[" + "1, " * 9000 + '1], "y": tru', MalformedBody, "at byte 27016"),
        ("[" + "[1]," * 9000 + "[" * 100 + "]" * 101, BadTensor, "ragged"),
        ("[" * 65 + "1," * 9000 + "1" + "]" * 65, MalformedBody, "nested deeper than the 64"),
        ('{"dtype":"float32","shape":[3],"data":[' + "1," * 9000 + "1]}", MalformedBody, "x.data has 9001 elements; shape"),
        ('{"dtype":"float32","shape":[9001],"data":[' + "[1]," * 9000 + "[1]]}", BadTensor, "flat list"),
        ('{"dtype":"float32","shape":[' + "1," * 9000 + '1],"data":[]}', MalformedBody, "x.shape must be .* 9001"),
        ("{" + ",".join(f'"{i}":1' for i in range(9000)) + "}", TooManyTensors, "more than 1280 keys"),
        ("[" + "{}," * 9000 + "{}]", TooManyTensors, "more than 129 maps"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_long_body_is_refused_with_a_message_that_helps(value: str, refusal: type[RequestError], says: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lists, "_LONG", 160)
        with pytest.raises(refusal, match=says):
            of_json(long(value))
