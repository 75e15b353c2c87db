"""`stequant plot`: the curves are those of the operators, the pictures can be read, and what cannot be drawn is refused."""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from lacking import SERVER_EXTRA, run_lacking
from server_process import ROOT, ServerProcess, command, environment

from service.cli import main, picture, plot
from service.ops import parse
from service.wire.layout import bytes_of
from service.wire.message import Message

DONE, REFUSED, USAGE, UNREACHABLE = 0, 1, 2, 3
STAIRCASE = "clamp(min_value=0, max_value=1) | k_bit_quantize(k=3)"


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error."""
    written = capsys.readouterr()
    assert written.out == ""
    (line,) = written.err.splitlines()
    assert line.startswith("stequant: ")
    return line


def drawn(folder: Path, expression: str, *arguments: str, name: str = "out.svg") -> bytes:
    """The picture that the command makes."""
    out = folder / name
    assert main(["plot", expression, "-o", str(out), *arguments]) == DONE
    return out.read_bytes()


def texts(svg: bytes) -> list[str]:
    """The texts of a picture."""
    return ["".join(element.itertext()).strip() for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def curves(svg: bytes) -> list[np.ndarray]:
    """The corners of the two black lines, in points from the top left: y's and that of its slope."""
    paths = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}path")
    lines = [path.get("d", "") for path in paths if "stroke-width: 1.1" in path.get("style", "")]
    assert len(lines) == 2
    return [np.array(re.findall(r"[ML] (\S+) (\S+)", line), float) for line in lines]


def heights(line: np.ndarray) -> set[float]:
    """The heights at which a line runs level."""
    return {float(before[1]) for before, after in itertools.pairwise(line) if before[1] == after[1]}


# What is drawn -------------------------------------------------------------------------------------------


def test_a_curve_is_what_the_operators_give_and_its_slope_what_they_make_of_ones() -> None:
    def compute(kind: str, expression: object, message: Message) -> Message:
        x = torch.frombuffer(bytearray(message["x"].tensors[0].data), dtype=torch.float64)
        y = torch.round(torch.clamp(x, 0, 1) * 7) / 7 if kind == "quantize" else ((x >= 0) & (x <= 1)).double()
        tensor = message["x"].tensors[0]
        return {"y" if kind == "quantize" else "grad_x": message["x"]._replace(tensors=(tensor.like(bytes_of(y.numpy())),))}

    class Options:
        url, uds, device = None, None, "cpu"

    expected = plot.compute_curve(parse(STAIRCASE), -0.25, 1.25, compute)  # type: ignore[arg-type]
    got = plot.compute_curve(parse(STAIRCASE), -0.25, 1.25, plot.computer(Options()))  # type: ignore[arg-type]
    for one, other in ((got.x, expected.x), (got.y, expected.y), (got.slope, expected.slope)):
        np.testing.assert_array_equal(one, other)
    assert (np.diff(got.x) > 0).all()
    assert len(set(got.y.tolist())) == 8
    assert set(got.slope.tolist()) == {0.0, 1.0}


def test_a_picture_has_a_step_for_each_level_and_a_gradient_that_is_on_or_off(tmp_path: Path) -> None:
    y, slope = curves(drawn(tmp_path, STAIRCASE))
    assert len(heights(y)) == 8
    assert len(heights(slope)) == 2
    # From the left edge to the right one, upwards, the steps upright.
    assert (np.diff(y[:, 0]) >= 0).all()
    assert (np.diff(y[:, 1]) <= 0).all()
    risers = [after[0] - before[0] for before, after in itertools.pairwise(y) if before[1] != after[1]]
    assert max(risers) < 0.2, "points, of which an inch has 72"
    assert slope[0, 1] > slope[len(slope) // 2, 1], "0 is below 1"


def test_a_picture_says_what_it_shows_in_text(tmp_path: Path) -> None:
    found = texts(drawn(tmp_path, "clamp(0,1)|k_bit_quantize(3)"))
    assert STAIRCASE in found
    assert {"x", "y", "dy/dx"} <= set(found)


def test_a_long_expression_is_broken_before_its_operators(tmp_path: Path) -> None:
    expression = parse("clamp(-1, 1) | affine_k_bit_quantize(k=2, w=3, b=-0.5) | round | step_quantize(0.25)")
    lines = picture.title(expression).splitlines()
    assert lines == [
        "clamp(min_value=-1, max_value=1)",
        "| affine_k_bit_quantize(k=2, w=3, b=-0.5) | round()",
        "| step_quantize(step=0.25)",
    ]
    found = texts(drawn(tmp_path, str(expression)))
    assert "".join(lines) in "".join(found)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (STAIRCASE, (-0.25, 1.25)),
        ("k_bit_quantize(2) | clamp(-2, 2)", (-3, 3)),
        ("clamp(-inf, 2) | clamp(0, 4)", (-1, 5)),
        ("round", (-1.5, 1.5)),
        ("clamp(-inf, inf)", (-1.5, 1.5)),
        ("clamp(1, 1)", (-1.5, 1.5)),
        ("clamp(-1e308, 1e308)", (-1.5, 1.5)),
    ],
)
def test_where_no_range_is_given_it_is_that_of_a_clamp_and_a_little_more(expression: str, expected: tuple[float, float]) -> None:
    assert plot.default_range(parse(expression)) == expected


def test_a_range_is_drawn_as_it_is_given(tmp_path: Path) -> None:
    y, slope = curves(drawn(tmp_path, "floor", "--range", "-2", "3"))
    assert len(heights(y)) == 5
    assert len(heights(slope)) == 1
    assert {"−2", "3"} <= set(texts(drawn(tmp_path, "floor", "--range", "-2", "3")))


@pytest.mark.parametrize("expression", ["clamp(1, 1)", "affine_k_bit_quantize(k=1, w=1e299, b=0)", "k_bit_quantize(1023)"])
def test_flat_and_extreme_curves_can_be_drawn_too(tmp_path: Path, expression: str) -> None:
    assert len(curves(drawn(tmp_path, expression))) == 2


# The files -----------------------------------------------------------------------------------------------


def test_the_suffix_says_what_is_written(tmp_path: Path) -> None:
    assert drawn(tmp_path, "round", name="a.svg").startswith(b"<?xml")
    assert drawn(tmp_path, "round", name="a.PDF").startswith(b"%PDF")
    assert drawn(tmp_path, "round", name="a.png").startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.PDF", "a.png", "a.svg"]


def test_a_picture_is_black_grey_and_white(tmp_path: Path) -> None:
    from matplotlib import image

    drawn(tmp_path, STAIRCASE, name="a.png")
    pixels = image.imread(tmp_path / "a.png")
    assert pixels.shape[1] == round(picture.WIDTH_INCHES * picture.PNG_DOTS_PER_INCH)
    red, green, blue, alpha = np.moveaxis(pixels, -1, 0)
    assert (red == green).all()
    assert (red == blue).all()
    assert (alpha == 1).all()
    assert red.min() == 0
    assert (red == 1).mean() > 0.8


@pytest.mark.parametrize("suffix", picture.FORMATS)
def test_the_same_curve_is_the_same_file_wherever_it_was_computed(tmp_path: Path, server: ServerProcess, suffix: str) -> None:
    here = drawn(tmp_path, STAIRCASE, name=f"a{suffix}")
    assert drawn(tmp_path, STAIRCASE, name=f"b{suffix}") == here
    assert drawn(tmp_path, STAIRCASE, "--url", server.url, name=f"c{suffix}") == here


def test_a_style_of_ones_own_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("axes.facecolor: black\nlines.linewidth: 9\nfont.size: 20\n")
    subprocess.run(
        command("plot", STAIRCASE, "-o", str(tmp_path / "own.svg")),
        cwd=ROOT,
        env=environment({"MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}),
        timeout=60,
        check=True,
    )
    assert (tmp_path / "own.svg").read_bytes() == drawn(tmp_path, STAIRCASE)


# Refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["round", "-o", "a.jpg"], USAGE, "--out is 'a.jpg'; allowed: a name that ends with .svg, .png, .pdf"),
        (["round", "-o", "-"], USAGE, "--out is '-'"),
        (["round", "-o", "a.svg", "--range", "1", "1"], USAGE, "--range is 1.0 1.0; allowed: two numbers"),
        (["round", "-o", "a.svg", "--range", "0", "inf"], USAGE, "--range is 0.0 inf"),
        (["round", "-o", "a.svg", "--range", "nan", "1"], USAGE, "--range is nan 1.0"),
        (["round", "-o", "a.svg", "--range", "0", "1e301"], USAGE, "of at most 1e+300"),
        (["affine_k_bit_quantize(1, 1e308, 1e308)", "-o", "a.svg"], REFUSED, "reaches inf; what can be drawn is at most 1e+300"),
        (["clamp_by_linear | round", "-o", "a.svg"], REFUSED, "'clamp_by_linear' maps a tensor as a whole"),
        (["affine_k_bit_quantize(k=2, w=scale, b=0)", "-o", "a.svg"], REFUSED, "names the tensor 'scale'; a curve needs a number"),
        (["k_bit_quantize(k=0)", "-o", "a.svg"], REFUSED, "[bad_parameter]"),
        (["round", "-o", "no such folder/a.svg"], REFUSED, "cannot write"),
        (["round", "-o", "a.svg", "--url", "http://127.0.0.1:1"], UNREACHABLE, "[connection_failed]"),
        (["round", "-o", "a.svg", "--url", "ftp://a"], USAGE, "--url"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, message: str
) -> None:
    with contextlib.chdir(tmp_path):
        assert main(["plot", *arguments]) == status
    assert message in said(capsys)
    assert list(tmp_path.iterdir()) == []


def test_without_torch_a_server_computes(tmp_path: Path, server: ServerProcess) -> None:
    out = tmp_path / "out.svg"
    done = run_lacking(SERVER_EXTRA, "plot", STAIRCASE, "-o", str(out))
    assert done.returncode == REFUSED
    assert "or name a server with --url" in done.stderr
    done = run_lacking(SERVER_EXTRA, "plot", STAIRCASE, "-o", str(out), "--url", server.url)
    assert (done.returncode, done.stderr) == (DONE, "")
    assert len(heights(curves(out.read_bytes())[0])) == 8


def test_without_matplotlib_the_extra_is_named(tmp_path: Path) -> None:
    done = run_lacking(["matplotlib"], "plot", "round", "-o", str(tmp_path / "out.svg"))
    assert done.returncode == REFUSED
    (line,) = done.stderr.splitlines()
    assert line == "stequant: drawing needs matplotlib, which is not installed: pip install 'stequant[plot]'"
    assert list(tmp_path.iterdir()) == []
