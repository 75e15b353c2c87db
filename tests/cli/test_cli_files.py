"""`stequant quantize` and `stequant grad` on real files: here, on a server, through pipes; and what they refuse."""

from __future__ import annotations

import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from examples import assert_same_bits
from http_bodies import npy, read_npy, to_torch
from http_cases import CASES, DTYPES, PLAIN_CASES, TENSOR_CASES, Case, hard, moderate, operands_of
from server_process import ROOT, ServerProcess, command, environment
from test_http_bits import check_gradient

from service.cli import main

DONE, REFUSED, USAGE, UNREACHABLE = 0, 1, 2, 3


@pytest.fixture(params=["here", "server"])
def place(request: pytest.FixtureRequest) -> list[str]:
    """Where the command computes: in this process, or on a server."""
    if request.param == "here":
        return []
    server: ServerProcess = request.getfixturevalue("server")
    return ["--url", server.url]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """The one line that a command has written to standard error."""

    def line() -> str:
        written = capsys.readouterr()
        assert written.out == ""
        lines = written.err.splitlines()
        assert len(lines) == 1, written.err
        assert lines[0].startswith("stequant: ")
        return lines[0]

    return line


def write(path: Path, *tensors: torch.Tensor) -> str:
    path.write_bytes(npy(*tensors))
    return str(path)


def read(path: Path) -> list[torch.Tensor]:
    return [to_torch(array) for array in read_npy(path.read_bytes())]


@pytest.mark.parametrize("dtype", DTYPES)
def test_files_get_the_bits_of_the_plain_expression(tmp_path: Path, dtype: str, place: list[str]) -> None:
    out = tmp_path / "out.npy"
    # The whole table goes through servers elsewhere; each call here makes a connection of its own.
    for case in PLAIN_CASES[::2] if not place else PLAIN_CASES[::8]:
        for x, grad_output in list(operands_of(case, DTYPES[dtype]).values())[: 2 if place else None]:
            one, other = write(tmp_path / "x.npy", x), write(tmp_path / "g.npy", grad_output)
            assert main(["quantize", one, str(out), "--op", case.expression, *place]) == DONE
            assert_same_bits(read(out)[0], case.forward(x, {}), case)
            assert main(["grad", one, other, str(out), "--op", case.expression, *place]) == DONE
            check_gradient(read(out)[0], case.backward(x, grad_output, {})[0], case)


@pytest.mark.parametrize("case", TENSOR_CASES, ids=str)
def test_tensor_parameters_are_files_and_so_are_their_gradients(tmp_path: Path, case: Case, place: list[str]) -> None:
    x, grad_output = moderate(torch.float32, (7, 5), seed=1), moderate(torch.float32, (7, 5), seed=2)
    tensors = case.tensors_for(x)
    one, other = write(tmp_path / "x.npy", x), write(tmp_path / "g.npy", grad_output)
    given = [word for name, value in tensors.items() for word in ("--tensor", f"{name}={write(tmp_path / name, value)}")]
    out = tmp_path / "out.npy"
    assert main(["quantize", one, str(out), "--op", case.expression, *given, *place]) == DONE
    assert_same_bits(read(out)[0], case.forward(x, tensors))
    wanted = [word for name in tensors for word in ("--tensor-grad", f"{name}={tmp_path / f'grad_{name}'}")]
    assert main(["grad", one, other, str(out), "--op", case.expression, *given, *wanted, *place]) == DONE
    grad_x, grads = case.backward(x, grad_output, tensors)
    check_gradient(read(out)[0], grad_x, case)
    for name, expected in grads.items():
        check_gradient(read(tmp_path / f"grad_{name}")[0], expected, case)


def test_several_arrays_in_one_file_stay_several(tmp_path: Path, place: list[str]) -> None:
    xs = [moderate(torch.float32, (3, 4)), moderate(torch.float16, (5,)), torch.tensor(2.5), torch.zeros(0, 2)]
    one, out = write(tmp_path / "x.npy", *xs), tmp_path / "out.npy"
    assert main(["quantize", one, str(out), "--op", "round", *place]) == DONE
    for y, x in zip(read(out), xs, strict=True):
        assert_same_bits(y, torch.round(x))
    assert main(["grad", one, one, str(out), "--op", "round", *place]) == DONE
    for y, x in zip(read(out), xs, strict=True):
        assert_same_bits(y, x)


def test_bfloat16_files_are_those_of_ml_dtypes(tmp_path: Path, place: list[str]) -> None:
    x = hard(torch.bfloat16)
    out = tmp_path / "out.npy"
    assert main(["quantize", write(tmp_path / "x.npy", x), str(out), "--op", "round", *place]) == DONE
    assert b"'<V2'" in out.read_bytes()
    loaded = np.load(out)
    assert loaded.dtype == np.dtype("V2")
    assert_same_bits(to_torch(loaded.view(ml_dtypes.bfloat16)), torch.round(x))


def test_fortran_order_is_kept(tmp_path: Path, place: list[str]) -> None:
    x = np.asfortranarray(np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4))
    np.save(tmp_path / "x.npy", x)
    assert main(["quantize", str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), "--op", "round", *place]) == DONE
    y = np.load(tmp_path / "y.npy")
    assert y.flags.f_contiguous
    np.testing.assert_array_equal(y, np.rint(x))


def test_a_file_may_be_written_over_itself(tmp_path: Path) -> None:
    x = moderate(torch.float32, (10,))
    file = tmp_path / "x.npy"
    assert main(["quantize", write(file, x), str(file), "--op", "round"]) == DONE
    assert_same_bits(read(file)[0], torch.round(x))
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.npy"]


def test_written_files_have_the_usual_permissions(tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    usual.touch()
    assert main(["quantize", write(tmp_path / "x", torch.ones(1)), str(tmp_path / "y"), "--op", "round"]) == DONE
    assert stat.S_IMODE((tmp_path / "y").stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


def run(*arguments: str, stdin: bytes = b"", variables: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command(*arguments), input=stdin, capture_output=True, cwd=ROOT, env=environment(variables), timeout=120, check=False
    )


def test_standard_streams_may_be_used(server: ServerProcess, tmp_path: Path) -> None:
    x, g = moderate(torch.float32, (100, 30)), moderate(torch.float32, (100, 30), seed=1)
    done = run("quantize", "-", "-", "--op", "k_bit_quantize(4)", "--url", server.url, stdin=npy(x))
    assert (done.returncode, done.stderr) == (DONE, b"")
    assert done.stdout == npy(torch.round(x * 15) / 15)
    done = run("grad", write(tmp_path / "x", x), "-", "-", "--op", "clamp(0, 1)", stdin=npy(g))  # in its own process
    assert (done.returncode, done.stderr) == (DONE, b"")
    check_gradient(to_torch(read_npy(done.stdout)[0]), torch.where((x >= 0) & (x <= 1), g, 0), CASES[3])


# Refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "code", "word"),
    [
        ("rounded", "unknown_operator", "rounded"),
        ("k_bit_quantize(k=0)", "bad_parameter", "'k'"),
        ("k_bit_quantize(k=128)", "parameter_does_not_fit", "127"),
        ("k_bit_quantize", "missing_parameter", "'k'"),
        ("round |", "bad_expression", "the end"),
        ("affine_k_bit_quantize(4, w, 0)", "missing_tensor", "'w'"),
    ],
)
def test_an_expression_that_is_refused_gives_one_line_and_status_1(
    tmp_path: Path, said: Callable[[], str], place: list[str], expression: str, code: str, word: str
) -> None:
    out = tmp_path / "out.npy"
    assert main(["quantize", write(tmp_path / "x", torch.ones(3)), str(out), "--op", expression, *place]) == REFUSED
    line = said()
    assert word in line
    assert code in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"no array", "byte 0"),
        (npy(torch.ones(3))[:-1], "12"),
        (npy(np.arange(3)), "i8"),
        (npy(torch.ones(3)) + b"x", "140"),
    ],
)
def test_a_file_that_holds_no_tensors_gives_one_line_and_status_1(
    tmp_path: Path, said: Callable[[], str], content: bytes, word: str
) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    (tmp_path / "out.npy").write_bytes(b"untouched")
    assert main(["quantize", str(tmp_path / "x.npy"), str(tmp_path / "out.npy"), "--op", "round"]) == REFUSED
    assert word in said()
    assert (tmp_path / "out.npy").read_bytes() == b"untouched"
    assert len(list(tmp_path.iterdir())) == 2


def test_files_that_cannot_be_opened_are_named(tmp_path: Path, said: Callable[[], str]) -> None:
    x = write(tmp_path / "x", torch.ones(3))
    for arguments, name in [
        (["quantize", str(tmp_path / "none.npy"), str(tmp_path / "y")], "none.npy"),
        (["quantize", str(tmp_path), str(tmp_path / "y")], str(tmp_path)),
        (["quantize", x, str(tmp_path / "no" / "folder.npy")], "folder.npy"),
        (["grad", x, str(tmp_path / "none.npy"), str(tmp_path / "y")], "none.npy"),
    ]:
        assert main([*arguments, "--op", "round"]) == REFUSED
        assert name in said()


def test_gradients_that_do_not_fit_are_refused(tmp_path: Path, said: Callable[[], str], place: list[str]) -> None:
    x, g = write(tmp_path / "x", torch.ones(3)), write(tmp_path / "g", torch.ones(2))
    assert main(["grad", x, g, str(tmp_path / "out"), "--op", "round", *place]) == REFUSED
    assert "(2,)" in said()
    two = write(tmp_path / "two", torch.ones(3), torch.ones(3))
    assert main(["grad", two, x, str(tmp_path / "out"), "--op", "round", *place]) == REFUSED
    said()
    assert not (tmp_path / "out").exists()


def test_a_gradient_of_a_tensor_that_is_not_named_is_refused(tmp_path: Path, said: Callable[[], str]) -> None:
    x = write(tmp_path / "x", torch.ones(3))
    assert main(["grad", x, x, str(tmp_path / "out"), "--op", "round", "--tensor-grad", f"w={tmp_path / 'w'}"]) in (REFUSED, USAGE)
    assert "'w'" in said()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["quantize"],
        ["quantize", "x"],
        ["quantize", "x", "y"],
        ["grad", "x", "g", "--op", "round"],
        ["quantize", "x", "y", "--op", "round", "--url", "http://a", "--uds", "/s"],
        ["quantize", "x", "y", "--op", "round", "--flag"],
        ["serve", "--no-such-setting", "1"],
    ],
    ids=" ".join,
)
def test_wrong_usage_has_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == USAGE
    assert "usage: stequant" in capsys.readouterr().err


@pytest.mark.parametrize("tensor", ["w", "w=", "=file"])
def test_a_tensor_without_a_name_or_a_file_is_refused(tmp_path: Path, said: Callable[[], str], tensor: str) -> None:
    x = write(tmp_path / "x", torch.ones(3))
    assert main(["quantize", x, str(tmp_path / "y"), "--op", "round", "--tensor", tensor]) in (REFUSED, USAGE)
    assert "NAME=FILE" in said()


def test_an_url_that_is_none_is_refused(tmp_path: Path, said: Callable[[], str]) -> None:
    x = write(tmp_path / "x", torch.ones(3))
    for url in ("ftp://a", "localhost:8000", "http://"):
        assert main(["quantize", x, str(tmp_path / "y"), "--op", "round", "--url", url]) in (REFUSED, USAGE)
        assert "url" in said().lower()


def test_a_server_that_is_not_there_has_status_3(tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound, but nobody listens
        x = write(tmp_path / "x", torch.ones(3))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        done = run("quantize", x, str(tmp_path / "y"), "--op", "round", "--url", url)
    assert done.returncode == UNREACHABLE
    assert done.stdout == b""
    (line,) = done.stderr.decode().splitlines()
    assert url in line
    assert not (tmp_path / "y").exists()


def test_a_key_is_taken_from_the_environment(tmp_path: Path) -> None:
    from server_process import serving

    (tmp_path / "keys").write_text("secret\n")
    x = write(tmp_path / "x", torch.tensor([0.6]))
    with serving("--api-keys-file", str(tmp_path / "keys")) as locked:
        arguments = ("quantize", x, str(tmp_path / "y"), "--op", "round", "--url", locked.url)
        assert run(*arguments, variables={"STEQUANT_API_KEY": "secret"}).returncode == DONE
        assert_same_bits(read(tmp_path / "y")[0], torch.tensor([1.0]))
        done = run(*arguments, variables={"STEQUANT_API_KEY": "wrong"})
        assert done.returncode == REFUSED
        assert b"unauthorized" in done.stderr
        assert b"wrong" not in done.stderr
