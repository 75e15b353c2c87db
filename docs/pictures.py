"""The pictures of docs/operators.md, drawn by the code: `python docs/pictures.py`; `--check` says whether they are stale.

They are those of `stequant plot`, and follow the reader to a dark page. The same version of matplotlib
draws the same files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from service.cli.files import Compute, computer
from service.cli.picture import Curve, draw
from service.cli.plot import compute_curve
from service.ops import parse

FOLDER = Path(__file__).parent / "images" / "operators"

# What is drawn under which name, and from which x to which; few steps, so that each can be seen.
DRAWN = {
    "round": ("round", -2.75, 2.75),
    "ceil": ("ceil", -2.75, 2.75),
    "floor": ("floor", -2.75, 2.75),
    "clamp": ("clamp(min_value=0, max_value=1)", -0.25, 1.25),
    "step_quantize": ("step_quantize(step=0.5)", -1.4, 1.4),
    "k_bit_quantize": ("k_bit_quantize(k=2)", -0.25, 1.25),
    "affine_k_bit_quantize": ("affine_k_bit_quantize(k=2, w=2, b=-1)", -0.25, 1.25),
    "clamp_by_linear": ("clamp_by_linear()", -1.0, 2.0),
    "chain": ("clamp(min_value=0, max_value=1) | k_bit_quantize(k=2)", -0.25, 1.25),
}

# What `draw` paints black on white is painted light on dark for readers who prefer that. Programs that know no
# such preference show the picture as it was drawn.
_STYLE_BEGIN = '<style type="text/css">'
_DARK_STYLE = """
@media (prefers-color-scheme: dark) {
[style*="fill: #ffffff"] {fill: #161b22 !important}
[style*="stroke: #000000"] {stroke: #e6edf3 !important}
text {fill: #e6edf3}
}
"""


def pictures() -> dict[str, bytes]:
    """Every picture, by the name of its file."""
    compute = computer(argparse.Namespace(url=None, uds=None, device="cpu"))
    return {f"{name}.svg": _with_dark_style(draw(_curve(*drawn, compute), ".svg")) for name, drawn in DRAWN.items()}


def _curve(text: str, low: float, high: float, compute: Compute) -> Curve:
    """The curve; that of an operator on whole tensors lies between the extrema, which have gradients of their own."""
    expression = parse(text)
    curve = compute_curve(expression, low, high, compute)
    if expression.elementwise:
        return curve
    inner = slice(1, -1)
    return replace(curve, x=curve.x[inner], y=curve.y[inner], slope=curve.slope[inner])


def _with_dark_style(svg: bytes) -> bytes:
    text = svg.decode()
    assert text.count(_STYLE_BEGIN) == 1, "matplotlib writes its style in another way"
    lines = text.replace(_STYLE_BEGIN, _STYLE_BEGIN + _DARK_STYLE).splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines).encode()


def main(arguments: Sequence[str] | None = None, folder: Path = FOLDER) -> int:
    """Draw the pictures, or only look; returns the exit status."""
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/operators.md from the code.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where a picture is out of date")
    options = parser.parse_args(arguments)
    stale = {
        folder / name: drawn
        for name, drawn in pictures().items()
        if not (folder / name).exists() or (folder / name).read_bytes() != drawn
    }
    if options.check:
        for path in stale:
            print(f"{path.name} is out of date; draw it anew with: python docs/pictures.py", file=sys.stderr)
        return int(bool(stale))
    folder.mkdir(parents=True, exist_ok=True)
    for path, drawn in stale.items():
        path.write_bytes(drawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())
