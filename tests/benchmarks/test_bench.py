"""The harness measures what it says it measures; how fast anything is, is not asked here."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cells, native, over_http, report, stats, thresholds
from benchmarks.bench import Bench
from benchmarks.bounds import http_bounds, operator_bounds
from benchmarks.ceiling import listen, serve
from benchmarks.exchange import BadAnswer, exchange
from benchmarks.load import PYTHON_GENERATOR, Generator, LoadFailed
from benchmarks.measure import measure
from benchmarks.payloads import CLAMP, Payload, WrongBits, _npy, _packed
from benchmarks.results import (
    GeneratorCheck,
    HttpResults,
    Measured,
    MemoryUse,
    MixedLoad,
    OperatorResults,
    OperatorTime,
    Row,
    Sample,
)
from benchmarks.units import KIB, MIB, rate_in_words, size_name

QUANTIZE, GRAD = Payload("quantize", "npy", 4 * KIB), Payload("grad", "npy", 4 * KIB)
needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="no C compiler")


@pytest.fixture
def ceiling() -> Iterator[str]:
    """The address of a ceiling in this process."""
    with listen("127.0.0.1:0") as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        host, port = listener.getsockname()
        yield f"{host}:{port}"


@pytest.fixture(params=["Python", pytest.param("C", marks=needs_compiler)])
def generator(request: pytest.FixtureRequest, tmp_path: Path) -> Generator:
    if request.param == "Python":
        return PYTHON_GENERATOR
    return Generator("C", (str(native.build("loadgen", tmp_path)),))


def files(folder: Path, payload: Payload, answer: bytes) -> tuple[Path, Path]:
    request, expected = folder / "request", folder / "expected"
    request.write_bytes(payload.request())
    expected.write_bytes(answer)
    return request, expected


@pytest.mark.parametrize("connections", [1, 3])
def test_the_generator_loads_the_ceiling_and_counts_its_answers(
    generator: Generator, ceiling: str, tmp_path: Path, connections: int
) -> None:
    request, expected = files(tmp_path, QUANTIZE, QUANTIZE.body())
    sample = generator.start(ceiling, request, expected, connections=connections, seconds=0.1).wait()
    assert sample.requests >= connections
    assert 0.1 <= sample.elapsed_s < 30
    assert sample.cpu_s >= 0
    latency = sample.latency_us
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"] <= sample.elapsed_s * 1e6
    assert sample.rate == pytest.approx(sample.requests / sample.elapsed_s)


def test_a_pause_between_requests_is_kept_and_not_counted_as_latency(generator: Generator, ceiling: str, tmp_path: Path) -> None:
    request, expected = files(tmp_path, QUANTIZE, QUANTIZE.body())
    sample = generator.start(ceiling, request, expected, connections=1, seconds=0.1, pause_ms=20).wait()
    assert sample.requests <= 6
    assert sample.latency_us["p50"] < 20_000


def test_the_generator_refuses_an_answer_with_other_bytes(generator: Generator, ceiling: str, tmp_path: Path) -> None:
    answer = bytearray(QUANTIZE.body())
    answer[-1] ^= 1
    request, expected = files(tmp_path, QUANTIZE, bytes(answer))
    with pytest.raises(LoadFailed, match="not the expected one"):
        generator.start(ceiling, request, expected, connections=2, seconds=0.05).wait()


def test_the_generator_refuses_an_answer_that_is_not_200(generator: Generator, tmp_path: Path) -> None:
    with listen("127.0.0.1:0") as listener:
        threading.Thread(
            target=answer_once, args=(listener, b"HTTP/1.1 429 Too Many\r\nContent-Length: 0\r\n\r\n"), daemon=True
        ).start()
        host, port = listener.getsockname()
        request, expected = files(tmp_path, QUANTIZE, b"")
        with pytest.raises(LoadFailed, match=r"not 200: HTTP/1\.1 429"):
            generator.start(f"{host}:{port}", request, expected, connections=1, seconds=0.05).wait()


def answer_once(listener: socket.socket, answer: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(answer)
        connection.recv(65536)


def test_the_generator_says_that_nobody_listens(generator: Generator, tmp_path: Path) -> None:
    request, expected = files(tmp_path, QUANTIZE, b"")
    with pytest.raises(LoadFailed, match="refused"):
        generator.start("127.0.0.1:1", request, expected, connections=1, seconds=0.05).wait()


def test_the_ceiling_answers_a_gradient_with_its_second_operand(ceiling: str) -> None:
    answer = exchange(ceiling, GRAD.request(), capacity=65536)
    GRAD.check_echo(answer)
    GRAD.check(answer)


def test_the_ceiling_listens_on_a_unix_socket(tmp_path: Path) -> None:
    with listen(f"unix:{tmp_path}/s") as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        assert exchange(f"unix:{tmp_path}/s", QUANTIZE.request(), capacity=65536) == QUANTIZE.body()


@needs_compiler
@pytest.mark.parametrize("payload", [QUANTIZE, GRAD, Payload("quantize", "npy", MIB)], ids=str)
def test_the_ceiling_in_c_answers_as_the_one_in_python_does(payload: Payload, ceiling: str) -> None:
    with Bench() as bench:
        server = bench.server("ceiling (C)")
        assert exchange(server.address, payload.request(), 2 * MIB) == exchange(ceiling, payload.request(), 2 * MIB)


def test_a_bench_ends_what_it_started() -> None:
    with Bench() as bench:
        server = bench.server("ceiling")
        assert exchange(server.address, QUANTIZE.request(), capacity=65536) == QUANTIZE.body()
    with pytest.raises(OSError, match="refused"):
        exchange(server.address, QUANTIZE.request(), capacity=65536)


def test_contenders_are_measured_once_a_round() -> None:
    rows = tuple(cells.Contender(label, "ceiling", QUANTIZE) for label in ("a", "b"))
    with Bench() as bench:
        measured = measure(bench, cells.Comparison("quantize", 4 * KIB, 2, rows), rounds=2, pace=0.05)
    assert [len(row.samples) for row in measured.rows.values()] == [2, 2]
    assert not any(row.failures for row in measured.rows.values())
    assert measured.ratio("a", "b") is not None


def test_a_contender_without_its_server_is_left_out() -> None:
    row = cells.Contender(cells.NAIVE, "naive", QUANTIZE)
    with Bench(without=frozenset({"naive"})) as bench:
        assert measure(bench, cells.Comparison("quantize", 4 * KIB, 1, (row,)), rounds=1).rows == {}


def test_the_ceiling_closes_on_a_head_that_has_no_room_for_its_answer(ceiling: str) -> None:
    with pytest.raises(BadAnswer):
        exchange(ceiling, b"GET / HTTP/1.1\r\n\r\n", capacity=65536)


def test_an_answer_is_right_only_with_numpys_bits() -> None:
    right = QUANTIZE.expected()
    QUANTIZE.check(_npy(right))
    wrong = [np.nextafter(right[0], np.float32(9))]
    for answer in (_npy(wrong), _npy(right * 2), _npy([right[0].astype(np.float64)]), _npy([right[0].reshape(2, -1)])):
        with pytest.raises(WrongBits):
            QUANTIZE.check(answer)


def test_many_tensors_make_one_msgpack_call() -> None:
    payload = Payload("quantize", "msgpack", 12 * KIB, tensors=3)
    assert [array.nbytes for array in payload.expected()] == [4 * KIB] * 3
    import msgpack

    message = msgpack.unpackb(payload.body())
    assert [tensor["shape"] for tensor in message["x"]] == [[1024]] * 3
    payload.check(msgpack.packb({"y": _packed(payload.expected())}))


def test_the_gradient_of_a_clamp_is_cut_outside_its_bounds() -> None:
    (gradient,) = Payload("grad", "npy", 4 * KIB, query=CLAMP).expected()
    assert 0 < np.count_nonzero(gradient) < gradient.size


def test_every_cell_has_its_threshold() -> None:
    for connections in cells.CONNECTIONS:
        assert set(thresholds.OF_CEILING[connections]) == set(thresholds.OF_NAIVE[connections]) == set(cells.SIZES)


def test_comparisons_have_names_of_their_own() -> None:
    names = [comparison.name for comparison in cells.comparisons()]
    assert len(names) == len(set(names))
    assert all(
        comparison.size_bytes in over_http.QUICK_SIZES or comparison.group == cells.MANY
        for comparison in cells.comparisons(over_http.QUICK_SIZES)
    )


@pytest.mark.parametrize(("values", "middle"), [([3.0], 3.0), ([1.0, 9.0, 2.0], 2.0), ([1.0, 2.0, 4.0, 9.0], 3.0)])
def test_the_median_is_the_middle(values: list[float], middle: float) -> None:
    assert stats.median(values) == middle


def test_numbers_of_nothing_are_an_error() -> None:
    for function in (stats.median, lambda values: stats.percentile(values, 0.5)):
        with pytest.raises(ValueError, match="no values"):
            function([])


def test_ratio_spread_and_percentile() -> None:
    assert stats.ratio([1.0, 2.0, 30.0], [4.0, 4.0, 1.0]) == 0.5
    assert stats.spread([1.0, 2.0, 3.0]) == 1.0
    assert [stats.percentile([4.0, 1.0, 3.0, 2.0], share) for share in (0.0, 0.25, 0.5, 0.51, 0.99, 1.0)] == [1, 1, 2, 3, 4, 4]


def test_sizes_and_rates_in_words() -> None:
    assert [size_name(size) for size in (4 * KIB, MIB, 64 * MIB)] == ["4 KiB", "1 MiB", "64 MiB"]
    assert [rate_in_words(rate) for rate in (12967.4, 20.53, 3.1)] == ["12 967", "20.5", "3.1"]


def sample(rate: float) -> Sample:
    return Sample(requests=int(rate), elapsed_s=1.0, cpu_s=0.25, latency_us={"p99": 10.0})


def canned() -> HttpResults:
    rates = {cells.CEILING: 1000, cells.CEILING_C: 2000, cells.NAIVE: 100, cells.OURS: 600, cells.OURS_MSGPACK: 570}
    rows = {
        label: Row(size_bytes=64 * KIB, samples=[sample(rate), sample(rate + 2), sample(rate - 2)]) for label, rate in rates.items()
    }
    return HttpResults(
        machine={"date": "2024-02-29", "processor": "a | machine"},
        settings={"rounds": "3", "load generator": "C"},
        comparisons=[Measured(group=cells.QUANTIZE, size_bytes=64 * KIB, connections=8, rows=rows)],
        memory=[
            MemoryUse(server="ours", start_up_s=1.5, idle_bytes=200 * MIB, peak_bytes=900 * MIB, after_bytes=220 * MIB, after_s=12)
        ],
        bytes_in_flight=512 * MIB,
        mixed=[MixedLoad(server="ours", alone_p99_us=[100.0], loaded_p99_us=[900.0], healthz_max_us=[60_000.0])],
        generator=GeneratorCheck(connections=8, one=[100.0], two=[101.0]),
        failures=["something broke"],
    )


def test_the_bounds_are_held_against_the_measurements() -> None:
    bounds = {bound.claim: bound for bound in http_bounds(canned())}
    where = "`/quantize` npy, 64 KiB, 8 conn."
    assert bounds[f"{where}, to the ceiling"].value == pytest.approx(0.6)
    assert {claim: bound.met for claim, bound in bounds.items()} == {
        f"{where}, to the ceiling": True,
        f"{where}, to the ceiling (C)": False,
        f"{where}, to the naive": True,
        "`/quantize` msgpack to npy, 64 KiB, 8 conn.": True,
        "peak memory under 8 × 64 MiB: idle + 1.3 × the bytes in flight": False,
        "memory kept afterwards, of what the load added": True,
        "p99 of 4 KiB calls beside 4 × 64 MiB, to alone": True,
        "longest answer of `/healthz` meanwhile": False,
    }


def test_the_report_shows_every_table_and_what_was_missed() -> None:
    text = report.write(canned(), None, "results/http.svg")
    assert "| 64 KiB, 8 | 1 000 | 2 000 | 100 | 600 | 0.60 | **0.30** | 0.35 | 6.00 | 4 | 1% |" in text
    assert "| ours | 1.50 | 200 | 900 | 1.37 | 220 |" in text
    assert "| ours | 0.1 | 0.9 | 9 | 60 |" in text
    assert "* something broke" in text
    assert "| processor | a \\| machine |" in text
    assert "![" in text
    assert "1.01 times the rate of one" in text
    assert text.endswith("\n")
    for line in text.splitlines():
        assert not line.startswith("|") or line.endswith("|")


def test_results_are_read_back_as_they_were() -> None:
    assert HttpResults.model_validate_json(canned().model_dump_json()) == canned()


def test_the_report_of_operators_escapes_the_bar_of_a_chain() -> None:
    times = [
        OperatorTime(expression=expression, dtype="float32", size_bytes=64 * MIB, seconds=[1.3, 1.2, 1.4], memcpy_s=[1.0, 1.0, 1.0])
        for expression in (
            "round()",
            "clamp(min_value=0, max_value=1) | k_bit_quantize(k=4)",
            "affine_k_bit_quantize(k=4, w=w, b=b), w and b: 0-d",
        )
    ]
    results = OperatorResults(machine={"date": "2024-02-29"}, settings={"threads": "1"}, operators=times)
    assert [bound.met for bound in operator_bounds(results)] == [False, False, True]
    text = report.write(None, results)
    assert "**1 of 3 bounds are met.** Missed:" in text
    assert "| `clamp(min_value=0, max_value=1) \\| k_bit_quantize(k=4)` | 1.30 |" in text


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.plot import draw

    written = draw(canned(), tmp_path / "plot")
    assert [path.suffix for path in written] == [".png", ".svg"]
    assert all(path.stat().st_size > 1000 for path in written)


@needs_compiler
@pytest.mark.parametrize("program", ["echo", "loadgen"])
def test_the_c_programs_compile_without_a_warning(program: str, tmp_path: Path) -> None:
    source = Path(native.__file__).with_name(f"{program}.c")
    command = [str(native.compiler()), "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", str(tmp_path / program), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
