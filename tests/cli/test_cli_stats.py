"""`stequant stats`: its figures are those of the formulas, odd numbers are counted apart, and large files are read in blocks."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from lacking import SERVER_EXTRA, run_lacking
from server_process import ROOT, command, environment

from service.cli import comparison, main

DONE, REFUSED, USAGE = 0, 1, 2
DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def saved(path: Path, *arrays: np.ndarray) -> str:
    """A file of these arrays, back to back."""
    with path.open("wb") as stream:
        for array in arrays:
            np.save(stream, array)
    return str(path)


def values(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.5, 0.4, shape).astype(dtype)


def quantized(x: np.ndarray, k: int = 3) -> np.ndarray:
    """What `clamp(0, 1) | k_bit_quantize(k)` gives, nearly."""
    steps = 2**k - 1
    return (np.rint(np.clip(x.astype(np.float64), 0, 1) * steps) / steps).astype(x.dtype)


@pytest.fixture
def stats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command on two arrays or two lists of them: the object that it prints with `--json`."""

    def run(x: Any, y: Any) -> dict[str, Any]:
        files = [
            saved(tmp_path / name, *(arrays if isinstance(arrays, list) else [arrays])) for name, arrays in (("x", x), ("y", y))
        ]
        assert main(["stats", *files, "--json"]) == DONE
        written = capsys.readouterr()
        assert written.err == ""

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        found: dict[str, Any] = json.loads(written.out, parse_constant=refuse)
        return found

    return run


def exact(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """The figures in fractions, which do not round."""
    xs = [Fraction(float(one)) for one in x.ravel()]
    errors = [Fraction(float(one)) - before for one, before in zip(y.ravel(), xs, strict=True)]
    squares = sum(error * error for error in errors)
    return {
        "max_abs": max(map(abs, errors)),
        "mean": sum(errors) / len(errors),
        "mse": squares / len(errors),
        "snr_db": 10 * math.log10(sum(one * one for one in xs) / squares),
    }


# Figures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_figures_are_those_of_the_formulas(stats: Any, dtype: Any) -> None:
    x = values(37, 53, dtype=dtype)
    y = quantized(x)
    found, expected = stats(x, y), exact(x, y)
    assert (found["elements"], found["compared"]) == (37 * 53, 37 * 53)
    for name in ("max_abs", "mean", "mse"):
        assert found["error"][name] == pytest.approx(float(expected[name]), rel=1e-12, abs=1e-18)
    assert found["snr_db"] == pytest.approx(expected["snr_db"], rel=1e-12)
    assert found["in"] == {"min": float(x.min()), "max": float(x.max()), "nan": 0, "infinite": 0}
    assert found["out"] == {"min": 0, "max": 1, "nan": 0, "infinite": 0}
    assert found["levels"] == 8


def test_the_histogram_is_of_the_errors_from_the_least_to_the_greatest(stats: Any) -> None:
    x = values(50_000)
    y = quantized(x)
    histogram = stats(x, y)["histogram"]
    error = y.astype(np.float64) - x
    assert len(histogram["counts"]) == comparison.BINS
    assert (histogram["edges"][0], histogram["edges"][-1]) == (error.min(), error.max())
    np.testing.assert_allclose(np.diff(histogram["edges"]), (error.max() - error.min()) / comparison.BINS)
    for low, high, count in zip(histogram["edges"], histogram["edges"][1:-1], histogram["counts"], strict=False):
        assert count == ((error >= low) & (error < high)).sum()
    assert sum(histogram["counts"]) == x.size


@pytest.mark.parametrize("k", [1, 2, 8, 12])
def test_levels_are_counted_over_all_blocks(stats: Any, k: int) -> None:
    x = np.linspace(0, 1, 4 * comparison.BLOCK_ELEMENTS, dtype=np.float64)
    assert stats(x, quantized(x, k))["levels"] == 2**k


def test_zeros_of_both_signs_are_one_level(stats: Any) -> None:
    assert stats(np.float32([-0.1, 0.1]), np.float32([-0.0, 0.0]))["levels"] == 1


def test_what_is_not_quantized_has_too_many_levels_to_count(stats: Any) -> None:
    x = np.arange(comparison.MAX_LEVELS + 1, dtype=np.float64)
    assert stats(x, x)["levels"] is None
    assert stats(x[1:], x[1:])["levels"] == comparison.MAX_LEVELS


def test_blocks_make_no_difference_to_the_figures(stats: Any) -> None:
    x = values(3 * comparison.BLOCK_ELEMENTS + 17)
    y = quantized(x)
    found = stats(x, y)
    error = y.astype(np.float64) - x
    assert found["error"]["max_abs"] == np.abs(error).max()
    assert found["error"]["mse"] == pytest.approx(math.fsum(error**2) / x.size, rel=1e-12)
    assert found["error"]["mean"] == pytest.approx(math.fsum(error) / x.size, rel=1e-9)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (np.float32([1, 2]), np.float32([1, 2]), "Infinity"),
        (np.float32([0, 0]), np.float32([1, 2]), "-Infinity"),
        (np.float32([0, 0]), np.float32([0, 0]), "NaN"),
        (np.float32([]), np.float32([]), "NaN"),
        (np.float64([1e300, 0]), np.float64([-1e300, 0]), "NaN"),
        (np.float32([10, 0]), np.float32([9, 0]), 20.0),
    ],
)
def test_the_snr_is_the_ratio_of_squares_where_it_can_be_had(stats: Any, x: np.ndarray, y: np.ndarray, expected: object) -> None:
    assert stats(x, y)["snr_db"] == expected


def test_nan_and_infinities_are_counted_on_each_side_and_compared_on_neither(stats: Any) -> None:
    nan, inf = math.nan, math.inf
    x = np.float32([nan, nan, inf, -inf, 1.0, 2.0, 3.0, inf])
    y = np.float32([nan, 5.0, inf, 7.0, nan, -inf, 2.5, nan])
    found = stats(x, y)
    assert (found["elements"], found["compared"]) == (8, 1)
    assert found["in"] == {"min": 1, "max": 3, "nan": 2, "infinite": 3}
    assert found["out"] == {"min": 2.5, "max": 7, "nan": 3, "infinite": 2}
    assert found["error"] == {"max_abs": 0.5, "mean": -0.5, "mse": 0.25}
    assert found["snr_db"] == pytest.approx(10 * math.log10(9 / 0.25))
    assert found["levels"] == 3


def test_where_nothing_can_be_compared_there_are_no_figures(stats: Any) -> None:
    found = stats(np.float32([math.nan]), np.float32([1]))
    assert found["error"] == {"max_abs": "NaN", "mean": "NaN", "mse": "NaN"}
    assert found["in"]["min"] is found["in"]["max"] is None
    assert found["histogram"] == {"edges": [], "counts": []}


def test_errors_beyond_the_largest_number_are_infinite(stats: Any) -> None:
    found = stats(np.float64([1.5e308, 1.0]), np.float64([-1.5e308, 2.0]))
    assert found["error"]["max_abs"] == found["error"]["mse"] == "Infinity"
    assert found["histogram"]["edges"] == []


# Files ---------------------------------------------------------------------------------------------------


def test_elements_are_compared_where_they_stand_whatever_the_memory_order(stats: Any) -> None:
    x = values(5, 7, 3)
    y = quantized(x)
    expected = stats(x, y)
    for one, other in ((np.asfortranarray(x), y), (x, np.asfortranarray(y)), (x.astype(">f4"), y), (x.astype(np.float64), y)):
        assert stats(one, other)["error"] == pytest.approx(expected["error"], rel=1e-12)


def test_several_arrays_are_compared_in_turn(stats: Any) -> None:
    xs = [values(2, 3), values(seed=1), values(4, seed=2)]
    ys = [quantized(x) for x in xs]
    found = stats(xs, ys)
    joined = stats(np.concatenate([x.ravel() for x in xs]), np.concatenate([y.ravel() for y in ys]))
    assert found["elements"] == joined["elements"] == 11
    assert found["error"] == pytest.approx(joined["error"], rel=1e-12)
    assert found["levels"] == joined["levels"]


@pytest.mark.parametrize("piped", ["x", "y"])
def test_one_of_the_files_may_be_standard_input(tmp_path: Path, piped: str) -> None:
    arrays = {"x": values(9), "y": quantized(values(9))}
    files = {name: saved(tmp_path / name, array) for name, array in arrays.items()}
    arguments = ["-" if name == piped else file for name, file in files.items()]
    done = subprocess.run(
        command("stats", *arguments),
        cwd=ROOT,
        env=environment(),
        input=Path(files[piped]).read_bytes(),
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith(b"elements       9\n")


def test_a_named_pipe_is_read_as_it_comes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = values(9)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    data = io.BytesIO()
    np.save(data, quantized(x))
    writer = threading.Thread(target=pipe.write_bytes, args=(data.getvalue(),))
    writer.start()
    assert main(["stats", saved(tmp_path / "x", x), str(pipe)]) == DONE
    writer.join(30)
    assert "levels of OUT" in capsys.readouterr().out


# 256 MiB each, of which the file system keeps little more than the header.
_LARGE_ELEMENTS = 2**25
_LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (160 * 2**20, 160 * 2**20))
from service.cli import main
sys.exit(main())
"""


def test_files_may_be_larger_than_memory(tmp_path: Path) -> None:
    for name in ("x", "y"):
        with (tmp_path / name).open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (_LARGE_ELEMENTS,)})
            stream.truncate(stream.tell() + 8 * _LARGE_ELEMENTS)
    with (tmp_path / "y").open("rb+") as stream:
        stream.seek(-8, os.SEEK_END)
        stream.write(np.float64(8).tobytes())
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, "stats", str(tmp_path / "x"), str(tmp_path / "y"), "--json"],
        cwd=ROOT,
        env=environment({"OPENBLAS_NUM_THREADS": "1"}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == DONE, done.stderr
    found = json.loads(done.stdout)
    assert (found["elements"], found["levels"], found["error"]["max_abs"]) == (_LARGE_ELEMENTS, 2, 8)
    assert found["error"]["mse"] == 64 / _LARGE_ELEMENTS


# For people ----------------------------------------------------------------------------------------------


def test_people_get_a_line_for_each_figure_and_a_bar_for_each_bin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.float32([0.0, 0.25, 0.5, 1.5, 2.75, math.nan, math.inf])
    y = np.float32([0.0, 0.0, 0.0, 2.0, 3.0, math.nan, 3.0])
    assert main(["stats", saved(tmp_path / "x", x), saved(tmp_path / "y", y)]) == DONE
    printed = capsys.readouterr().out.splitlines()
    assert printed[:11] == [
        "elements       7",
        "not compared   2 (IN: 1 NaN, 1 infinite; OUT: 1 NaN, 0 infinite)",
        "IN             0 to 2.75",
        "OUT            0 to 3",
        "levels of OUT  3 (2 bits)",
        "largest error  0.5",
        "mean error     0",
        "MSE            0.125",
        "SNR            12.0952 dB",
        "",
        "error, OUT - IN",
    ]
    bars = printed[11:]
    assert len(bars) == comparison.BINS
    assert [bar.count("#") for bar in bars if "#" in bar] == [50] * 5
    assert float(bars[0].split()[0]) == -0.5
    assert [int(bar.split()[-1]) for bar in bars].count(1) == 5


@pytest.mark.parametrize(
    ("x", "y", "lines"),
    [
        ([1.0, 2.0], [1.0, 2.0], ["largest error  0", "SNR            inf dB"]),
        (
            [],
            [],
            ["elements       0", "IN             nothing finite", "levels of OUT  0", "MSE            none", "SNR            none"],
        ),
        ([1.0, 1.0], [3.0, 3.0], ["levels of OUT  1 (0 bits)", "largest error  2"]),
        (list(range(70_000)), list(range(70_000)), ["elements       70 000", "levels of OUT  more than 65536"]),
    ],
)
def test_without_different_errors_there_is_no_histogram(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], x: list[float], y: list[float], lines: list[str]
) -> None:
    assert main(["stats", saved(tmp_path / "x", np.float32(x)), saved(tmp_path / "y", np.float32(y))]) == DONE
    printed = capsys.readouterr().out.splitlines()
    assert set(lines) <= set(printed)
    assert len(printed) == 9


# Refusals ------------------------------------------------------------------------------------------------


def test_what_cannot_be_compared_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = saved(tmp_path / "x", values(4))
    complete = Path(x).read_bytes()
    files = {
        "short": complete[:-1],
        "text": b"0.1 0.2",
        "empty": b"",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    cases = [
        (x, saved(tmp_path / "other shape", values(2, 2)), REFUSED, "shape (2, 2)"),
        (x, saved(tmp_path / "two", values(4), values(4)), REFUSED, "IN holds 1 arrays, OUT 2"),
        (x, saved(tmp_path / "integers", np.arange(4)), REFUSED, "[unsupported_dtype]"),
        (x, str(tmp_path / "short"), REFUSED, "[malformed_body]"),
        (x, str(tmp_path / "text"), REFUSED, "[malformed_body]"),
        (str(tmp_path / "empty"), x, REFUSED, "[malformed_body]"),
        (x, str(tmp_path / "missing"), REFUSED, "cannot read"),
        (str(tmp_path), x, REFUSED, "cannot read"),
        ("-", "-", USAGE, "IN and OUT are both -"),
    ]
    for one, other, status, message in cases:
        assert main(["stats", one, other]) == status, (one, other)
        written = capsys.readouterr()
        assert written.out == ""
        (line,) = written.err.splitlines()
        assert line.startswith("stequant: ")
        assert message in line


def test_nothing_but_the_base_install_is_needed(tmp_path: Path) -> None:
    files = saved(tmp_path / "x", values(9)), saved(tmp_path / "y", quantized(values(9)))
    done = run_lacking([*SERVER_EXTRA, "matplotlib", "ml_dtypes"], "stats", *files)
    assert (done.returncode, done.stderr) == (DONE, "")
    assert "SNR" in done.stdout
