"""`stequant stats`: how far a quantized file lies from what was quantized."""

from __future__ import annotations

import argparse
import json
import math
import mmap
import os
import sys
from pathlib import Path

from service.cli.comparison import MAX_LEVELS, Comparison, Side, compare
from service.cli.operators import Commands
from service.cli.options import MAX_TENSORS, BadFile
from service.cli.serving import BadUsage
from service.wire import npy
from service.wire.message import WireTensor

Json = dict[str, "Json"] | list[float | int | str | None] | float | int | str | None

BAR_CHARACTERS = 50


def add_command(commands: Commands) -> None:
    """Add `stats` to the command line."""
    parser = commands.add_parser(
        "stats",
        help="compare a quantized .npy file with its input",
        description="Say how far the numbers of OUT lie from those of IN. NaN and infinities are counted and not compared; "
        "the SNR is 10 log10(sum(IN^2) / sum((OUT - IN)^2)). Files are read in blocks: they may be larger than memory.",
    )
    parser.add_argument("x", metavar="IN", help=".npy file of what was quantized; - for standard input")
    parser.add_argument("y", metavar="OUT", help=".npy file of the result, of the same shape; - for standard input")
    parser.add_argument("--json", action="store_true", help="as JSON; numbers that are not finite are strings")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if options.x == options.y == "-":
        raise BadUsage("IN and OUT are both -; standard input is one file")
    found = compare(_arrays(options.x), _arrays(options.y))
    print(json.dumps(as_json(found)) if options.json else as_text(found))
    return 0


def _arrays(file: str) -> tuple[WireTensor, ...]:
    """The arrays of a file, in its own memory: nothing is read before it is looked at."""
    try:
        if file == "-":
            body = memoryview(sys.stdin.buffer.read())
        else:
            with Path(file).open("rb") as stream:
                # A pipe has no size, and nothing to map.
                has_size = os.fstat(stream.fileno()).st_size
                body = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if has_size else stream.read())
    except OSError as error:
        raise BadFile(f"cannot read {file}: {error.strerror}") from error
    return npy.decode(body, ("x",), MAX_TENSORS)["x"].tensors


# For people ----------------------------------------------------------------------------------------------


def as_text(found: Comparison) -> str:
    """A line for each figure, and the histogram of the errors."""
    lines = [f"{label:<15}{text}" for label, text in _figures(found)]
    if found.edges.size:
        lines += ["", "error, OUT - IN", *_histogram(found)]
    return "\n".join(lines)


def _figures(found: Comparison) -> list[tuple[str, str]]:
    return [
        ("elements", f"{found.elements:,}".replace(",", " ")),
        ("not compared", _odd(found)),
        ("IN", _extent(found.input)),
        ("OUT", _extent(found.output)),
        ("levels of OUT", _levels(found)),
        ("largest error", _number(found.max_abs_error)),
        ("mean error", _number(found.mean_error)),
        ("MSE", _number(found.mean_squared_error)),
        ("SNR", "none" if math.isnan(found.snr_db) else f"{found.snr_db:.6g} dB"),
    ]


def _odd(found: Comparison) -> str:
    left_out = found.elements - found.compared
    if not left_out:
        return "0"
    sides = {"IN": found.input, "OUT": found.output}
    return f"{left_out} ({'; '.join(f'{name}: {side.nan} NaN, {side.infinite} infinite' for name, side in sides.items())})"


def _extent(side: Side) -> str:
    return "nothing finite" if side.extent.is_empty else f"{_number(side.extent.low)} to {_number(side.extent.high)}"


def _levels(found: Comparison) -> str:
    if found.levels is None:
        return f"more than {MAX_LEVELS}"
    levels = int(found.levels.size)
    # As many bits tell them apart.
    bits = (levels - 1).bit_length()
    return f"{levels} ({bits} bit{'s' if bits != 1 else ''})" if levels else "0"


def _number(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.6g}"


def _histogram(found: Comparison) -> list[str]:
    """A line for each bin: where it begins, how many there are, and a bar."""
    greatest = max(1, int(found.counts.max()))
    return [
        f"{edge:>13.6g}  {'#' * math.ceil(BAR_CHARACTERS * count / greatest):<{BAR_CHARACTERS}}  {count}"
        for edge, count in zip(found.edges, found.counts.tolist(), strict=False)
    ]


# For machines --------------------------------------------------------------------------------------------


def as_json(found: Comparison) -> dict[str, Json]:
    """The same as an object; None for levels beyond counting."""
    return {
        "elements": found.elements,
        "compared": found.compared,
        "in": _side_as_json(found.input),
        "out": _side_as_json(found.output),
        "levels": None if found.levels is None else found.levels.size,
        "error": {
            "max_abs": _finite(found.max_abs_error),
            "mean": _finite(found.mean_error),
            "mse": _finite(found.mean_squared_error),
        },
        "snr_db": _finite(found.snr_db),
        "histogram": {"edges": found.edges.tolist(), "counts": found.counts.tolist() if found.edges.size else []},
    }


def _side_as_json(side: Side) -> dict[str, Json]:
    low, high = (None, None) if side.extent.is_empty else (side.extent.low, side.extent.high)
    return {"min": low, "max": high, "nan": side.nan, "infinite": side.infinite}


def _finite(value: float) -> float | str:
    """The number, or its name as JSON calls of this service write it: JSON has no numbers for these."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
