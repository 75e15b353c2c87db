"""`stequant plot`: what an expression does to a number, and what its backward pass makes of a gradient, as a picture."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from service.cli.files import Compute, add_place, computer, write
from service.cli.operators import Commands
from service.cli.picture import FORMATS, MAX_DRAWN, Curve, Values, draw
from service.cli.serving import BadUsage
from service.dtypes import DTYPES
from service.errors import NotAllowed
from service.ops import Clamp, Expression, parse
from service.wire.layout import bytes_of
from service.wire.message import Bundle, Message, WireTensor

# Nearer to each other than the dots of the picture: the risers of a staircase are upright.
POINTS = 4000
DEFAULT_RANGE = (-1.5, 1.5)
# How far beyond the bounds of a clamp is shown, as a share of their distance.
BEYOND_BOUNDS = 0.25


def add_command(commands: Commands) -> None:
    """Add `plot` to the command line."""
    parser = commands.add_parser(
        "plot",
        help="draw an expression and its gradient",
        description="Draw y over x, and dy/dx as the backward pass has it, into OUT. The dashed line is y = x. "
        "An operator on whole tensors (clamp_by_linear) has no such curve, and tensor parameters are given as numbers.",
    )
    parser.add_argument("expression", metavar="EXPR", help="an operator or a chain; see stequant operators")
    parser.add_argument(
        "-o", "--out", required=True, metavar="OUT", help=f"the file to write; its suffix says what: {', '.join(FORMATS)}"
    )
    parser.add_argument(
        "--range",
        nargs=2,
        type=float,
        metavar=("MIN", "MAX"),
        help=f"what x is drawn; by default {DEFAULT_RANGE[0]} to {DEFAULT_RANGE[1]}, "
        "or the bounds of the first clamp and a quarter of their distance beyond each",
    )
    add_place(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    suffix = Path(options.out).suffix.lower()
    if suffix not in FORMATS:
        raise BadUsage(f"--out is {options.out!r}; allowed: a name that ends with {', '.join(FORMATS)}")
    expression = parse(options.expression)
    _check_drawable(expression)
    low, high = _checked_range(*options.range) if options.range else default_range(expression)
    curve = compute_curve(expression, low, high, computer(options))
    write(options.out, [draw(curve, suffix)])
    return 0


def _check_drawable(expression: Expression) -> None:
    for operator in expression.operators:
        if not operator.is_elementwise:
            raise NotAllowed(
                f"{operator.name!r} maps a tensor as a whole, so that '{expression}' has no curve; draw the rest of it"
            )
        if operator.own_tensor_names:
            raise NotAllowed(f"{operator.name!r} names the tensor {operator.own_tensor_names[0]!r}; a curve needs a number there")


def _checked_range(low: float, high: float) -> tuple[float, float]:
    if not -MAX_DRAWN <= low < high <= MAX_DRAWN:
        raise BadUsage(f"--range is {low} {high}; allowed: two numbers of at most {MAX_DRAWN:g}, the first less than the second")
    return low, high


def default_range(expression: Expression) -> tuple[float, float]:
    """Where there is something to see: around the first clamp with two finite bounds, else around 0."""
    for operator in expression.operators:
        if isinstance(operator, Clamp):
            low, high = operator.min_value, operator.max_value
            beyond = BEYOND_BOUNDS * (high - low)
            if 0 < beyond < math.inf:
                return low - beyond, high + beyond
    return DEFAULT_RANGE


def compute_curve(expression: Expression, low: float, high: float, compute: Compute) -> Curve:
    """The curve from `low` to `high`, in float64, which holds every parameter that an operator can have."""
    # The middles of as many intervals: a step at either end would be drawn in half.
    x = low + (np.arange(POINTS, dtype=np.float64) + 0.5) * ((high - low) / POINTS)
    y = compute("quantize", expression, _message(x=x))["y"]
    slope = compute("grad", expression, _message(x=x, grad_output=np.ones(POINTS)))["grad_x"]
    curve = Curve(expression, low, high, x, _values(y), _values(slope))
    largest = max(float(np.abs(values).max()) for values in (curve.x, curve.y, curve.slope))
    if not largest <= MAX_DRAWN:
        raise NotAllowed(f"the curve of '{expression}' reaches {largest:g}; what can be drawn is at most {MAX_DRAWN:g}")
    return curve


def _message(**arrays: Values) -> Message:
    # Copies: results are written over what was given.
    return {
        name: Bundle.of(WireTensor(DTYPES["float64"], values.shape, bytes_of(values.astype("<f8", copy=True))))
        for name, values in arrays.items()
    }


def _values(bundle: Bundle) -> Values:
    return np.frombuffer(bundle.tensors[0].data, "<f8").astype(np.float64)
