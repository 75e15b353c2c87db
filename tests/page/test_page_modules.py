"""The page's modules without a browser: its codec held to NumPy's files, its parser to the service's, its sums to NumPy."""

from __future__ import annotations

import base64
import io
import json
import math
import shlex
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import ml_dtypes
import numpy as np
import pytest
from page_modules import Modules
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from service.errors import StequantError
from service.head import parse_query
from service.ops import parse
from service.ops.catalogue import catalogue

GOLDEN = Path(__file__).parents[1] / "golden"
FLOATING = sorted(path.name for path in GOLDEN.glob("*.npy") if path.name != "two.npy")
DECODE = "return m.decode(bytes(given))"


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def saved(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def numbers(values: list[float | str]) -> np.ndarray:
    return np.array([float(str(value).replace("Infinity", "inf")) for value in values])


def loaded(path: Path) -> np.ndarray:
    """A golden file as NumPy reads it; two bytes of void are bfloat16."""
    array = np.load(path)
    return array.view(ml_dtypes.bfloat16) if array.dtype.kind == "V" else array


# The codec ------------------------------------------------------------------------------------------------


def test_files_that_numpy_wrote_are_read(modules: Modules) -> None:
    """Both byte orders and memory orders, 0-d and empty, bfloat16, versions 1 to 3."""
    given = [text((GOLDEN / name).read_bytes()) for name in FLOATING]
    read = modules.run("npy.js", "return given.flatMap((one) => m.decode(bytes(one)))", given)
    assert len(FLOATING) >= 18
    for name, array in zip(FLOATING, read, strict=True):
        expected = loaded(GOLDEN / name)
        assert array["dtype"] == expected.dtype.newbyteorder("=").name, name
        assert tuple(array["shape"]) == expected.shape, name
        assert array["fortranOrder"] == name.endswith("fortran.npy"), name
        order = "F" if array["fortranOrder"] else "C"
        np.testing.assert_array_equal(numbers(array["values"]), expected.astype(np.float64).ravel(order), name)


def test_arrays_back_to_back_are_read_in_order(modules: Modules) -> None:
    first, second = modules.run("npy.js", DECODE, text((GOLDEN / "two.npy").read_bytes()))
    assert (first["dtype"], second["dtype"]) == ("float32", "float64")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("count", [0, 1, 12_345])
def test_what_is_written_is_what_numpy_writes(modules: Modules, dtype: str, count: int) -> None:
    values = np.random.default_rng(0).normal(size=count)
    written = modules.run("npy.js", "return Buffer.from(m.encode(given[0], given[1])).toString('base64')", [dtype, values.tolist()])
    assert base64.b64decode(written) == saved(values.astype(dtype))


def test_every_float16_is_read_and_written(modules: Modules) -> None:
    values = modules.run("floats.js", "return Array.from({length: 65536}, (_, bits) => m.fromFloat16(bits))")
    expected = np.arange(65536, dtype=np.uint16).view(np.float16)
    np.testing.assert_array_equal(numbers(values), expected.astype(np.float64))
    back = modules.run("floats.js", "return Array.from({length: 65536}, (_, bits) => m.toFloat16(m.fromFloat16(bits)))")
    finite = ~np.isnan(expected)
    np.testing.assert_array_equal(np.array(back)[finite], np.arange(65536)[finite])
    assert np.isnan(np.array(back, np.uint16)[~finite].view(np.float16)).all()


def test_numbers_between_two_float16_go_to_the_nearest_ties_to_even(modules: Modules) -> None:
    exact = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    halfway = (exact[:-1] + exact[1:]) / 2
    around = np.concatenate([halfway, np.nextafter(halfway, 0), np.nextafter(halfway, 1e9), [65519.99, 65520.0, 1e300, 2.0**-26]])
    values = np.concatenate([around, -around])
    bits = modules.run("floats.js", "return given.map(m.toFloat16)", values.tolist())
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(np.array(bits), values.astype(np.float16).view(np.uint16))


NOT_READ = [
    (b"", "not a .npy file"),
    (b"PK\x03\x04 a zip file is no array", "not a .npy file"),
    (saved(np.arange(3)), "'<i8'"),
    (saved(np.zeros(3, np.complex64)), "'<c8'"),
    (saved(np.zeros(2, [("a", "<f4")])), "several dtypes"),
    (saved(np.array(["a"])), "'<U1'"),
    (saved(np.zeros(3, np.float32))[:-1], "ends early"),
    (saved(np.zeros(3, np.float32)) + b"tail", "follows the arrays"),
    (b"\x93NUMPY\x01\x00\xff\xff{'descr'", "cut off"),
    (b"\x93NUMPY\x04\x00\x00\x00\x00\x00", "version 4"),
    (b"\x93NUMPY\x01\x00\x02\x00{}", "cannot be read"),
]


def test_what_is_no_floating_array_is_refused_in_words(modules: Modules) -> None:
    refusal = """return given.map((one) => {
        try { m.decode(bytes(one)) } catch (error) { return [error.constructor.name, error.message] }
    })"""
    refused = modules.run("npy.js", refusal, [text(body) for body, _ in NOT_READ])
    for (body, word), (kind, message) in zip(NOT_READ, refused, strict=True):
        assert kind == "NpyError", body
        assert word in message


# Chains ---------------------------------------------------------------------------------------------------

RIGHT = [
    "round",
    "round()",
    " clamp ( 0 , 1 )|k_bit_quantize(4) ",
    "clamp(min_value=-inf, max_value=inf)",
    "clamp(-1e-3, max_value=2.5)",
    "step_quantize(step=0.25) | ceil | floor",
    "affine_k_bit_quantize(k=3, b=-1, w=2)",
    "clamp_by_linear",
    "clamp_by_linear(eps=0) | k_bit_quantize(k=1023)",
]
WRONG = [
    "",
    "|",
    "round |",
    "round round",
    "nothing",
    "k_bit_quantize",
    "k_bit_quantize(0)",
    "k_bit_quantize(1024)",
    "k_bit_quantize(4.0)",
    "k_bit_quantize(4, 5)",
    "k_bit_quantize(k=4, k=4)",
    "k_bit_quantize(bits=4)",
    "k_bit_quantize(k=)",
    "k_bit_quantize(k=4",
    "clamp(0)",
    "clamp(nan, 1)",
    "clamp(.5, 1)",
    "clamp(min_value=0, 1)",
    "step_quantize(0)",
    "step_quantize(inf)",
    "clamp_by_linear(eps=-1)",
    "affine_k_bit_quantize(4, inf, 0)",
    "round(1)",
    "clamp(0x1, 2)",
    "clamp(1_0, 20)",
]


def test_what_the_service_reads_the_page_reads_alike(modules: Modules) -> None:
    body = "return given.expressions.map((text) => m.format(m.parse(text, given.operators)))"
    written = modules.run("chain.js", body, {"expressions": RIGHT, "operators": catalogue()})
    assert [parse(one) for one in written] == [parse(one) for one in RIGHT]


def test_what_the_service_refuses_the_page_refuses(modules: Modules) -> None:
    body = """return given.expressions.map((text) => {
        try { m.parse(text, given.operators); return null } catch (error) { return [error.constructor.name, error.message] }
    })"""
    refused = modules.run("chain.js", body, {"expressions": WRONG, "operators": catalogue()})
    for expression, found in zip(WRONG, refused, strict=True):
        with pytest.raises(StequantError):
            parse(expression)
        assert found is not None, expression
        assert found[0] == "ChainError"
        assert found[1].endswith("."), found


def test_a_tensor_is_refused_with_its_name(modules: Modules) -> None:
    body = "try { m.parse(given.text, given.operators) } catch (error) { return error.message }"
    said = modules.run("chain.js", body, {"text": "affine_k_bit_quantize(4, scale, 0)", "operators": catalogue()})
    assert "w=scale names a tensor" in said


def test_an_operator_is_added_with_values_that_it_takes(modules: Modules) -> None:
    body = "return given.map((operator) => m.format([m.freshStep(operator)]))"
    for written in modules.run("chain.js", body, catalogue()):
        parse(written)


# Calls to copy --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["quantize", "grad"])
@pytest.mark.parametrize("file", ["x.npy", 'it\'s $HOME `x` "y".npy', "-o.npy", "重み.npy"])
def test_what_is_copied_names_the_file_and_the_chain_whatever_they_hold(modules: Modules, kind: str, file: str) -> None:
    expression = "clamp(min_value=-1e-05, max_value=1) | k_bit_quantize(k=4)"
    given = {"kind": kind, "expression": expression, "base": "https://host.test/under/a%20path/", "file": file}
    made = modules.run("calls.js", "return m.texts(given)", given)
    curl, shell = shlex.split(made["curl"]), shlex.split(made["shell"])
    names = {file, f"./{file}", f"@{file}"}
    assert names & set(curl)
    assert names & set(shell)
    assert shell[shell.index("--op") + 1] == expression
    assert shell[shell.index("--url") + 1] == "https://host.test/under/a%20path"
    url = urlsplit(curl[-1])
    assert url.path == f"/under/a%20path/{kind}"
    assert parse_query(url.query.encode()) == parse(expression)
    compile(made["python"], "copied", "exec")
    assert expression in made["python"]


def test_a_key_is_named_and_never_written(modules: Modules) -> None:
    given = {"kind": "quantize", "expression": "round", "base": "http://host.test", "needsKey": True}
    made = modules.run("calls.js", "return m.texts(given)", given)
    assert '"Authorization: Bearer $STEQUANT_API_KEY"' in made["curl"]


def test_a_link_says_what_it_was_made_of(modules: Modules) -> None:
    state = {
        "op": "clamp(min_value=-1e+3, max_value=1) | round",
        "from": "-0.5",
        "to": "1e+2",
        "dtype": "float16",
        "input": "normal",
    }
    link, back = modules.run("address.js", "const link = m.write(given); return [link, m.read(link)]", state)
    assert parse(back.pop("op")) == parse(state.pop("op"))
    assert back == state
    assert parse_qs(link[1:])["dtype"] == ["float16"]


# Figures --------------------------------------------------------------------------------------------------


def test_errors_are_those_that_numpy_finds(modules: Modules) -> None:
    x = np.random.default_rng(1).normal(size=1000)
    y = np.round(x * 4) / 4
    y[3], x[5] = np.nan, np.inf
    body = "return m.compare(given[0].map(Number), given[1].map(Number))"
    found = modules.run("statistics.js", body, [_texts(x), _texts(y)])
    both = np.isfinite(x) & np.isfinite(y)
    error = (y - x)[both]
    assert (found["elements"], found["compared"], found["nonFinite"]) == (1000, 998, 1)
    assert found["levels"] == len(np.unique(y[np.isfinite(y)]))
    assert math.isclose(found["snrDb"], 10 * math.log10((x[both] ** 2).sum() / (error**2).sum()), rel_tol=1e-12)
    assert math.isclose(found["largestError"], np.abs(error).max(), rel_tol=1e-12)
    assert math.isclose(found["rmsError"], math.sqrt((error**2).mean()), rel_tol=1e-12)
    assert math.isclose(found["meanError"], error.mean(), rel_tol=1e-9)
    assert found["histogram"]["counts"] == np.histogram(error, 81)[0].tolist()


def _texts(values: np.ndarray) -> list[str]:
    return [str(value).replace("inf", "Infinity").replace("nan", "NaN") for value in values.tolist()]


@pytest.mark.parametrize(
    ("x", "y", "snr"), [([1.0], [1.0], "Infinity"), ([0.0], [0.0], "NaN"), ([], [], "NaN"), ([0.0], [1.0], "-Infinity")]
)
def test_errors_at_their_ends(modules: Modules, x: list[float], y: list[float], snr: str) -> None:
    assert modules.run("statistics.js", "return m.compare(given[0], given[1]).snrDb", [x, y]) == snr


def test_metrics_are_read_as_prometheus_writes_them(modules: Modules) -> None:
    registry = CollectorRegistry()
    requests = Counter("stequant_requests", "…", ("route", "operator", "format", "status"), registry=registry)
    seconds = Histogram("stequant_request_seconds", "…", ("route",), buckets=(0.001, 0.01, 0.1), registry=registry)
    errors = Counter("stequant_errors", 'odd "text"\nin two lines', ("code",), registry=registry)
    errors.labels('a "quoted\\" one').inc(3)
    requests.labels("/metrics", "", "", "200").inc(1000)
    first = generate_latest(registry).decode()
    for _ in range(10):
        seconds.labels("/quantize").observe(0.005)
        requests.labels("/quantize", "round", "npy", "200").inc()
    seconds.labels("/metrics").observe(50)
    second = generate_latest(registry).decode()
    body = "const [a, b] = given.map((text, index) => m.read(text, 2000 * index)); return [a, b, m.between(a, b), m.between(b, a)]"
    earlier, later, rates, backwards = modules.run("metrics.js", body, [first, second])
    assert (earlier["calls"], later["calls"], later["errors"]) == (0, 10, 3)
    assert rates["callsPerSecond"] == 5
    # Ten observations in the bucket from 1 to 10 ms: the median lies in its middle.
    assert math.isclose(rates["medianSeconds"], 0.0055)
    assert backwards is None


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (-0.25, 1.25, ["−0.2", "0", "0.2", "0.4", "0.6", "0.8", "1", "1.2"]),
        (0, 1e-9, ["0", "2e−10", "4e−10", "6e−10", "8e−10", "1e−9"]),
    ],
)
def test_ticks_stand_at_round_values(modules: Modules, low: float, high: float, labels: list[str]) -> None:
    found = modules.run("scale.js", "return m.ticks(given[0], given[1], 8).map((tick) => tick.label)", [low, high])
    assert json.dumps(found) == json.dumps(labels)
