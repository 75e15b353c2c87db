"""How a curve and its gradient are drawn: two panels over one axis, in black on white."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.cli.serving import Unavailable
from service.ops import Expression

Values = npt.NDArray[np.float64]

# Each with what keeps the same curve the same file.
FORMATS: dict[str, dict[str, str | None]] = {
    ".svg": {"Date": None},
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None},
}
# The width of a column of text in a paper.
WIDTH_INCHES, HEIGHT_INCHES = 3.4, 3.2
PNG_DOTS_PER_INCH = 300
# Beyond this, what matplotlib multiplies with it is infinite.
MAX_DRAWN = 1e300
# So many fit over it, in points of this size.
TITLE_CHARACTERS, TITLE_POINTS = 56, 7
# Share of the height of what is shown that is left free above it and below it.
MARGIN = 0.08

_STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.1,
    "lines.solid_joinstyle": "miter",
    # Text stays text, which can be searched for and read aloud.
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "svg.hashsalt": "stequant",
}


@dataclass(frozen=True)
class Curve:
    """`y` over `x` from `low` to `high`, and `slope`, by which the backward pass multiplies a gradient there."""

    expression: Expression
    low: float
    high: float
    x: Values
    y: Values
    slope: Values


def draw(curve: Curve, suffix: str) -> bytes:
    """The picture as a file of this suffix, one of `FORMATS`; `Unavailable` where matplotlib is not installed.

    The identity is dashed in the panel of `y`: where quantizing is rounding, the curve follows it.
    """
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise Unavailable(f"drawing needs {error.name}, which is not installed: pip install 'stequant[plot]'") from None
    # Not in the reader's own style: the same curve is the same file everywhere.
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), layout="constrained")
        upper, lower = figure.subplots(2, sharex=True, height_ratios=(5, 2))
        figure.suptitle(title(curve.expression), fontsize=TITLE_POINTS)
        _panel(upper, curve.x, curve.y, "y")
        upper.plot(
            [curve.low, curve.high], [curve.low, curve.high], color="0.55", linewidth=0.6, dashes=(4, 3), scaley=False, zorder=1
        )
        _panel(lower, curve.x, curve.slope, "dy/dx", 0.0, 1.0)
        lower.locator_params(axis="y", nbins=3)
        lower.set_xlabel("x")
        lower.set_xlim(curve.low, curve.high)
        figure.align_ylabels()
        written = io.BytesIO()
        figure.savefig(written, format=suffix.removeprefix("."), dpi=PNG_DOTS_PER_INCH, metadata=FORMATS[suffix])
    return written.getvalue()


def title(expression: Expression) -> str:
    """The expression, broken before operators into lines of about `TITLE_CHARACTERS`."""
    lines = [""]
    for index, operator in enumerate(expression.operators):
        text = f"| {operator}" if index else str(operator)
        if lines[-1] and len(f"{lines[-1]} {text}") > TITLE_CHARACTERS:
            lines.append(text)
        else:
            lines[-1] = f"{lines[-1]} {text}".strip()
    return "\n".join(lines)


def _panel(axes: Any, x: Values, values: Values, label: str, *shown: float) -> None:
    """One curve; the values of `shown` are within the panel whatever the curve is."""
    axes.plot(x, values, color="black", zorder=2)
    low, high = min([values.min(), *shown]), max([values.max(), *shown])
    margin = MARGIN * (high - low) or 0.5
    axes.set_ylim(low - margin, high + margin)
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
