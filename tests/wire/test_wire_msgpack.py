"""msgpack, held to what the msgpack library and msgpack-numpy write and read."""

from __future__ import annotations

import time
import tracemalloc

import ml_dtypes
import msgpack as library
import msgpack_numpy
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wire_values import ARRAYS, array_of, arrays, assert_is, content, golden, messages, tensors, wire_tensor

from service.dtypes import DTYPES
from service.errors import BadTensor, MalformedBody, NotAcceptable, RequestError, TooManyTensors, UnsupportedDtype
from service.wire import msgpack
from service.wire.message import Bundle, Message, WireTensor

T = {"dtype": "float32", "shape": [2], "data": bytes(8)}
PACKED_T = library.packb(T)


def decoded(body: bytes | bytearray | memoryview, max_tensors: int = 100) -> dict[str, Bundle]:
    return msgpack.decode(memoryview(body), ("x",), max_tensors)


def sent(value: object, max_tensors: int = 100) -> Bundle:
    return decoded(library.packb({"x": value}), max_tensors)["x"]


def joined(message: Message) -> bytes:
    return b"".join(msgpack.encode(message))


def as_library_objects(message: Message) -> dict[str, object]:
    """What a caller would give the library to send this message."""

    def tensor(one: WireTensor) -> object:
        array = array_of(one)
        if one.style != "msgpack_numpy":
            return {"dtype": one.dtype.name, "shape": list(one.shape), "data": array.tobytes()}
        if array.dtype != ml_dtypes.bfloat16:
            return msgpack_numpy.encode(array)
        return {b"nd": True, b"type": array.dtype.descr, b"kind": b"V", b"shape": array.shape, b"data": array.tobytes()}

    def bundle(one: Bundle) -> object:
        found = [tensor(item) for item in one.tensors]
        return found[0] if one.single else found if one.names is None else dict(zip(one.names, found, strict=True))

    return {field: bundle(one) for field, one in message.items()}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("style", ["plain", "msgpack_numpy"])
def test_golden_files_are_read_bit_for_bit_and_written_again(name: str, style: str) -> None:
    body = golden(f"{name}.msgpack" if style == "plain" else f"{name}.numpy.msgpack")
    message = decoded(body)
    (tensor,) = message["x"].tensors
    assert message["x"].single
    assert tensor.style == style
    assert_is(tensor, ARRAYS[name])
    # Big-endian arrays are answered in little-endian.
    assert (joined(message) == body) == (style == "plain" or not name.endswith("big_endian"))


@given(messages(tensors(("plain", "msgpack_numpy"))))
def test_every_message_is_written_as_the_libraries_write_it_and_comes_back(message: Message) -> None:
    body = joined(message)
    assert body == library.packb(as_library_objects(message))
    assert content(decoded(body)) == content(message)


@given(messages(tensors(("plain", "msgpack_numpy"))), st.randoms(use_true_random=False))
def test_keys_may_come_in_any_order(message: Message, random: object) -> None:
    def shuffled(value: object) -> object:
        if not isinstance(value, dict):
            return [shuffled(item) for item in value] if isinstance(value, list) else value
        items = [(key, shuffled(item)) for key, item in value.items()]
        if value.keys() == T.keys() or b"nd" in value:
            random.shuffle(items)  # type: ignore[attr-defined]
        return dict(items)

    assert content(decoded(library.packb(shuffled(as_library_objects(message))))) == content(message)


@given(arrays(("float16", "float32", "float64")), st.booleans())
def test_msgpack_numpy_reads_what_is_written_for_it(array: np.ndarray, keys_as_text: bool) -> None:
    body = library.packb({"x": msgpack_numpy.encode(array)})
    if keys_as_text:
        body = library.packb({"x": {key.decode(): value for key, value in msgpack_numpy.encode(array).items()}})
    message = decoded(body)
    assert_is(message["x"].tensors[0], array)
    read = library.unpackb(joined(message), object_hook=msgpack_numpy.decode)["x"]
    assert (read.dtype, read.shape, read.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_bfloat16_is_read_in_every_way_that_msgpack_numpy_may_write_it() -> None:
    array = ARRAYS["bfloat16_c"]
    own = msgpack_numpy.encode(array.T)  # not contiguous: so it copies, and does not fail
    assert_is(sent(own).tensors[0], np.ascontiguousarray(array.T))
    for kind, described in ((b"", "<V2"), (b"V", "|V2"), ("V", [["", "|V2"]]), (b"V", [(b"", b"<V2")])):
        assert_is(sent(own | {b"kind": kind, b"type": described}).tensors[0], np.ascontiguousarray(array.T))


@given(arrays())
def test_a_tensor_in_fortran_order_is_written_in_c_order(array: np.ndarray) -> None:
    tensor = wire_tensor(array.copy(order="F"))
    message = decoded(joined({"y": Bundle.of(tensor)}))
    assert message["y"].tensors[0].data.tobytes() == array.tobytes()


def test_many_dimensions_of_one_can_be_reordered() -> None:
    tensor = WireTensor(DTYPES["float16"], (2, *(1,) * 62, 2), memoryview(b"a-b-c-d-"), fortran=True)
    assert msgpack.encode({"y": Bundle.of(tensor)})[-1] == b"a-c-b-d-"


def test_tensors_share_the_body_and_pieces_share_the_tensors() -> None:
    body = bytearray(library.packb({"x": [T, T]}))
    bundle = decoded(body)["x"]
    pieces = msgpack.encode({"y": bundle})
    body[-8:] = np.array([7, 8], "<f4").tobytes()
    assert array_of(bundle.tensors[1]).tolist() == [7, 8]
    assert [piece for piece in pieces if isinstance(piece, memoryview)] == [tensor.data for tensor in bundle.tensors]
    assert pieces[1] is bundle.tensors[0].data
    assert len(pieces) == 4


def test_a_list_of_none_and_a_map_of_none_are_told_apart() -> None:
    assert sent([]) == Bundle(())
    assert sent({}) == Bundle((), names=())


def test_names_keep_their_order_and_may_be_any_text() -> None:
    assert sent({"b": T, "a": T, "": T, "dtype": T, "é": T}).names == ("b", "a", "", "dtype", "é")
    assert sent({"dtype": T, "shape": T, "other": T}).names == ("dtype", "shape", "other")


@pytest.mark.parametrize("names", [("shape", "dtype", "data"), ("nd", "type", "kind", "shape", "data")])
def test_names_that_are_those_of_a_tensors_own_map_cannot_be_written(names: tuple[str, ...]) -> None:
    tensor = wire_tensor(np.float32([1]))
    with pytest.raises(NotAcceptable, match="such a map is one tensor"):
        msgpack.encode({"y": Bundle((tensor,) * len(names), names=names)})


def test_long_spellings_of_ints_and_lengths_are_read() -> None:
    spelled = (
        b"\xdf\0\0\0\1\xdb\0\0\0\1x\xde\0\3\xda\0\5dtype\xd9\7float32"
        b"\xd9\5shape\xdd\0\0\0\1\xd3\0\0\0\0\0\0\0\2\xa4data\xc6\0\0\0\x08"
    )
    assert content(decoded(spelled + bytes(8))) == content(decoded(library.packb({"x": T})))


def test_large_dimensions_of_empty_tensors_are_read_and_written() -> None:
    shape = (0, 127, 128, 256, 65536)
    tensor = WireTensor(DTYPES["float16"], shape, memoryview(b""))
    assert decoded(joined({"y": Bundle.of(tensor)}))["y"].tensors[0].shape == shape
    with pytest.raises(MalformedBody):
        sent({"dtype": "float16", "shape": [0, 2**62], "data": b""})
    assert sent({"dtype": "float16", "shape": [0, 2**62 - 1], "data": b""}).tensors[0].shape == (0, 2**62 - 1)
    assert sent({"dtype": "float16", "shape": [1] * 64, "data": bytes(2)}).tensors[0].shape == (1,) * 64


def numpy_map(array: np.ndarray) -> dict[bytes, object]:
    """What msgpack-numpy makes of an array; its data as bytes, whose name is the same in every process."""
    encoded = msgpack_numpy.encode(array)
    return encoded | {b"data": bytes(encoded[b"data"])}


NUMPY_T = numpy_map(np.zeros(2, np.float32))


@pytest.mark.parametrize(
    "value",
    [
        T | {"dtype": 4},
        T | {"dtype": b"float32"},
        T | {"shape": 2},
        T | {"shape": [2.0]},
        T | {"shape": [True]},
        T | {"shape": ["2"]},
        T | {"shape": [-2]},
        T | {"shape": [-1, -2]},
        T | {"shape": [3]},
        T | {"shape": []},
        T | {"shape": [2] + [1] * 64},
        T | {"shape": [2**63, 2**63]},
        T | {"shape": [2**64 - 1]},
        T | {"data": bytes(7)},
        T | {"data": bytes(12)},
        T | {"data": "12345678"},
        T | {"data": [0.0, 0.0]},
        T | {"data": None},
        NUMPY_T | {b"nd": False},
        NUMPY_T | {b"nd": 1},
        NUMPY_T | {b"data": bytes(7)},
        NUMPY_T | {b"shape": [3]},
        NUMPY_T | {b"kind": 3},
    ],
    ids=repr,
)
def test_a_tensor_that_contradicts_itself_is_malformed(value: object) -> None:
    with pytest.raises(MalformedBody):
        sent(value)
    with pytest.raises(MalformedBody):
        sent([T, value])


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (T | {"dtype": "int32"}, "int32"),
        (T | {"dtype": "Float32"}, "Float32"),
        (T | {"dtype": ""}, "''"),
        (NUMPY_T | {b"type": "<i4"}, "<i4"),
        (NUMPY_T | {b"type": ">V2"}, ">V2"),
        (NUMPY_T | {b"type": None}, "structured"),
        (msgpack_numpy.encode(np.zeros(2, "c8")), "<c8"),
        (msgpack_numpy.encode(np.zeros(2, [("a", "<f4")])), "structured"),
        (msgpack_numpy.encode(np.zeros(2, [("a", "<f4"), ("b", "<f4")])), "structured"),
        (msgpack_numpy.encode(np.array([{}, {}])), "structured"),
        (NUMPY_T | {b"kind": b"O", b"data": b"cposix\nsystem\n."}, "kind 'O'"),
    ],
)
def test_other_dtypes_are_named_and_refused(value: object, named: str) -> None:
    with pytest.raises(UnsupportedDtype, match="allowed") as refusal:
        sent(value)
    assert named in str(refusal.value)


@pytest.mark.parametrize(
    "value",
    [
        1.5,
        1,
        -1,
        None,
        True,
        "text",
        b"bytes",
        library.ExtType(5, b"ext"),
        library.Timestamp(1),
        [1.0, 2.0],
        [[1.0], [2.0]],
        [T, None],
        [T, [T]],
        [{}],
        [{"a": T}],
        {"a": 1},
        {"a": [T]},
        {"a": {"b": T}},
        {b"a": T},
        {"dtype": "float32", "shape": [2]},
        {"dtype": "float32", "shape": [2], b"data": bytes(8)},
        {**T, "more": 1},
        {b"nd": False, b"type": "<f4", b"data": bytes(4)},
        {**NUMPY_T, "nd": True},
        {"nd": True, b"nd": True, b"type": "<f4", b"kind": b"", b"shape": []},
        {b"\xff": T, b"b": T, b"c": T},
        {**T, "data": [1.0] * 1000},
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_is_no_tensor_is_not_allowed_where_one_must_stand(value: object) -> None:
    with pytest.raises(BadTensor):
        sent(value)


@pytest.mark.parametrize("value", [None, 1, 1.5, "x", [T], b"", library.ExtType(5, b"")])
def test_a_body_that_is_no_map_is_not_allowed(value: object) -> None:
    with pytest.raises(BadTensor, match="must be a map"):
        decoded(library.packb(value))


@pytest.mark.parametrize("key", [b"x", 1, None, 1.5, True])
def test_the_keys_of_the_body_are_text(key: object) -> None:
    with pytest.raises(BadTensor, match="key at byte 1"):
        decoded(library.packb({key: T}))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x81\xa1x\xc1",
        b"\x82\xa1x" + PACKED_T + b"\xa1x" + PACKED_T,
        b"\x82\xa1x" + PACKED_T + b"\xd9\1x" + PACKED_T,
        b"\x81\xa1x\x82\xa1a" + PACKED_T + b"\xa1a" + PACKED_T,
        b"\x81\xa1x\x83" + b"\xa5dtype\xa7float32" * 2 + b"\xa4data\xc4\x00",
        b"\x81\xa1x\x84" + PACKED_T[1:] + b"\xa4data\xc4\x00",
        b"\x81\xa1x\x82\xc0\xc0\xc0\xc0",
        b"\x81\xa1x\x82\1\xc0\1\xc0",
        b"\x81\xa1\xff" + PACKED_T,
        b"\x81\xa1x\x81\xa1\xff" + PACKED_T,
        b"\x81\xa1x\xa1\xff",
        b"\x81\xa1x\xcb\0\0\0",
        b"\x81\xa1x\xd6\5\0\0",
        b"\x81\xa1x" + b"\x91" * 17 + b"\xc0",
        b"\x81\xa1x" + b"\x81\xa1a" * 17 + b"\xc0",
        b"\x81\xa1x" + PACKED_T.replace(b"\xa7float32", b"\xa6float32"),
        b"\x81\xa1x" + PACKED_T.replace(b"\xa7float32", b"\xa8float32"),
        b"\x81\xa1x" + PACKED_T.replace(b"\x91\x02", b"\x91\x02\x01"),
        b"\x81\xa1x" + PACKED_T.replace(b"\x91\x02", b"\x92\x02"),
        b"\xc0" + PACKED_T,
        b"{}",
        b"\x93NUMPY\x01\x00",
        b"\x81\xa1x" + PACKED_T + b"\x80",
        b"\x81\xa1x" + library.packb(T | {"dtype": "int32"}) + b"\x80",
        b"\x82\xa1x" + library.packb(T | {"dtype": "int32"}) + b"\xa1w" + PACKED_T[:-1],
    ],
    ids=repr,
)
def test_bytes_that_no_msgpack_of_tensors_can_be_are_malformed(body: bytes) -> None:
    with pytest.raises(MalformedBody):
        decoded(body)


@pytest.mark.parametrize(
    "value", [T, [T, T], {"a": T, "b": T}, NUMPY_T, 1.5, "text", [[1.0, 2.0]]], ids=lambda value: repr(value)[:40]
)
def test_a_body_that_ends_early_or_late_is_malformed(value: object) -> None:
    body = library.packb({"x": value, "grad_output": value})
    for kept in range(len(body)):
        with pytest.raises(MalformedBody):
            decoded(body[:kept])
    with pytest.raises(MalformedBody):
        decoded(body + b"\0")


def with_text(value: object) -> object:
    """The same with text in the places where msgpack-numpy's map may have text or bytes: its keys, `type` and `kind`."""
    if isinstance(value, dict):
        named = {key.decode("latin-1") if isinstance(key, bytes) else key: with_text(inner) for key, inner in value.items()}
        return {key: _text(inner) if key in ("type", "kind") else inner for key, inner in named.items()}
    return [with_text(inner) for inner in value] if isinstance(value, list) else value


def _text(value: object) -> object:
    return value.decode("latin-1") if isinstance(value, bytes) else value


@given(messages(tensors(("plain", "msgpack_numpy"))), st.integers(0, 400), st.integers(0, 255))
@example({"00": Bundle((wire_tensor(np.float16(0), "msgpack_numpy"),), single=True)}, 5, 0xD9)
@example({"x": Bundle((wire_tensor(np.float32([1])),))}, 12, 0xA8)
def test_a_body_with_a_broken_byte_is_malformed_if_the_library_says_so(message: Message, at: int, byte: int) -> None:
    body = bytearray(joined(message))
    body[at % len(body)] = byte
    try:
        unpacked = library.unpackb(body, strict_map_key=False)
    except (ValueError, TypeError) as error:
        # Unhashable keys are msgpack, but not for Python; ours are then no text.
        expected = MalformedBody if isinstance(error, ValueError) else RequestError
        with pytest.raises(expected):
            decoded(body)
        return
    try:
        found = decoded(body)
    except RequestError:
        return
    assert library.packb(with_text(as_library_objects(found))) == library.packb(with_text(unpacked))


@given(st.binary(max_size=40))
def test_random_bytes_are_refused_or_an_empty_message(data: bytes) -> None:
    for body in (data, b"\x81\xa1x" + data, b"\x81\xa1x\x91" + data):
        try:
            found = decoded(body)
        except RequestError:
            continue
        assert library.unpackb(body).keys() == found.keys()


@pytest.mark.parametrize(
    "body",
    [
        b"\xdf\xff\xff\xff\xff\xa1x\xc0\xc0\xc0",
        b"\x81\xa1x\xdd\xff\xff\xff\xff\xc0\xc0",
        b"\x81\xa1x\xdf\xff\xff\xff\xff\xc0\xc0",
        b"\x81\xa1x\xdb\xff\xff\xff\xff\xc0\xc0",
        b"\x81\xa1x\x83\xa4data\xc6\xff\xff\xff\xff",
        b"\x81\xa1x\x83\xa5dtype\xa7float32\xa5shape\xdd\xff\xff\xff\xff\1\1\1",
    ],
    ids=repr,
)
def test_what_is_declared_and_not_there_costs_neither_time_nor_memory(body: bytes) -> None:
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(MalformedBody):
        decoded(body, max_tensors=2**40)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 100_000
    assert time.process_time() - started < 0.5


def test_a_large_body_that_is_refused_is_not_searched_to_its_end() -> None:
    nils = 10_000_000
    started = time.process_time()
    for start in (b"\x81\xa1x\xdd", b"\xdd", b"\x81\xa1x\x83\xa4data\xdd"):
        with pytest.raises(BadTensor):
            decoded(start + nils.to_bytes(4, "big") + b"\xc0" * (nils + 10), max_tensors=nils)
    # To walk over them all would take seconds.
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("value", "count"),
    [(T, 1), ([T, T], 2), ({"a": T, "b": T, "c": T}, 3), (NUMPY_T, 1), ([None, None], 2), ({"a": None, "b": None}, 2)],
    ids=lambda value: repr(value)[:40],
)
def test_tensors_are_counted_before_they_are_read(value: object, count: int) -> None:
    body = library.packb({"x": value, "grad_output": value})
    with pytest.raises(TooManyTensors, match=f"at most {2 * count - 1}"):
        # The last tensor is not even there in part: the counts alone decide.
        decoded(library.packb({"x": [T] * count, "grad_output": value}), max_tensors=2 * count - 1)
    if None not in (value if isinstance(value, list) else value.values()):
        assert len(decoded(body, max_tensors=2 * count)) == 2


def test_a_map_of_more_entries_than_tensors_are_allowed_is_refused_at_once() -> None:
    with pytest.raises(TooManyTensors, match="1000 entries"):
        decoded(library.packb({str(i): [] for i in range(1000)}), max_tensors=999)


@pytest.mark.parametrize("template", [T, NUMPY_T, dict(reversed(T.items())), numpy_map(np.zeros(2, ">f4"))], ids=repr)
def test_repeated_headers_are_compared_whole(template: dict[object, object]) -> None:
    key = next(key for key in template if key in ("data", b"data"))
    values = np.arange(8, dtype=np.float32)
    items = [template | {key: values[i : i + 2].tobytes()} for i in range(0, 8, 2)]
    other = template | {key: bytes(12), "shape" if "shape" in template else b"shape": [3]}
    bundle = sent([*items, other, *items])
    read = [tensor.data.tobytes() for tensor in bundle.tensors]
    sent_order = ">f4" if template.get(b"type") == ">f4" else "<f4"
    expected = [np.frombuffer(item[key], sent_order).astype("<f4").tobytes() for item in items]
    assert read == [*expected, bytes(12), *expected]
    assert [tensor.shape for tensor in bundle.tensors] == [(2,)] * 4 + [(3,)] + [(2,)] * 4
    # The second of two has one byte that starts no value: it must not pass for a repetition of the first.
    packed = library.packb(template)
    two = library.packb({"x": [template, template]})
    for at in (len(two) - len(packed), two.rindex(b"shape"), two.rindex(b"data")):
        with pytest.raises(RequestError):
            decoded(two[:at] + b"\xff" + two[at + 1 :])


def test_a_tensor_too_large_for_msgpack_is_not_acceptable() -> None:
    tensor = WireTensor(DTYPES["float64"], (2**29,), memoryview(b"stands for 4 GiB"))
    with pytest.raises(NotAcceptable, match="4294967296"):
        msgpack.encode({"y": Bundle.of(tensor)})
