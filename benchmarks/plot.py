"""The picture of the main table: rate as a share of the ceiling's, by payload."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from benchmarks import cells, thresholds
from benchmarks.results import HttpResults
from benchmarks.units import size_name

LINES = {  # label: colour and dash
    cells.OURS: ("#1764ab", "-"),
    cells.OURS_MSGPACK: ("#4a98c9", "--"),
    cells.NAIVE: ("#a63603", "-"),
    cells.CEILING_C: ("#777777", ":"),
}


def draw(results: HttpResults, stem: Path) -> list[Path]:
    """Write `stem`.png and `stem`.svg; nothing where no ceiling was measured."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    # The same results give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "benchmarks"
    figure, axes = pyplot.subplots(1, len(cells.CONNECTIONS), figsize=(10, 4), sharey=True, layout="constrained")
    for axis, connections in zip(axes, cells.CONNECTIONS, strict=True):
        axis.set_title(f"{connections} connection{'s' if connections > 1 else ''}")
        for label, (colour, dash) in LINES.items():
            points = [
                (position, value)
                for position, size in enumerate(cells.SIZES)
                if (measured := results.find(cells.QUANTIZE, size, connections)) is not None
                and (value := measured.ratio(label, cells.CEILING)) is not None
            ]
            if points:
                axis.plot(*zip(*points, strict=True), dash, color=colour, marker="o", markersize=4, label=label)
        wanted = [thresholds.OF_CEILING[connections][size] for size in cells.SIZES]
        axis.plot(range(len(wanted)), wanted, "_", color="black", markersize=16, label="wanted of ours")
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set_xticks(range(len(cells.SIZES)), [size_name(size) for size in cells.SIZES])
        axis.set_ylim(bottom=0)
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("requests/s, ceiling = 1")
    axes[-1].legend(frameon=False)
    figure.suptitle("/quantize, k_bit_quantize(k=4), float32; the ceiling is a raw socket echo in Python")
    written = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    for path in written:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
    return written
