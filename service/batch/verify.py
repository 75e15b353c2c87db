"""`--verify`: whether sources and outputs are still what the journal says."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from service.batch.checksums import sum_of
from service.batch.dest import Dest
from service.batch.errors import BadUsage
from service.batch.journal import Journal, Origin, Row
from service.batch.looking import looked_at
from service.batch.options import Options
from service.batch.report import Bad, Tally
from service.batch.stopping import Stop
from service.batch.survey import Item


def verify(options: Options, standard_input: TextIO, stop: Stop, tally: Tally) -> None:
    """Read every source and every output again; what differs is in `tally.bad`. Nothing is written."""
    with looked_at(options, standard_input, stop) as view:
        if not view.journals:
            raise BadUsage(f"DEST {str(options.dest)!r} holds no job to verify")
        for item in view.files.items("todo", "bad"):
            stop.check()
            tally.files_total += 1
            reason = item.reason or _difference(item, view.dest, view.journals)
            if reason is None:
                tally.files_done += 1
            else:
                tally.bad.append(Bad(item.source.path, reason))


def _difference(item: Item, dest: Dest, journals: Iterable[Journal]) -> str | None:
    """What is not as a journal says, or None. Where several know a file, as after another number of shards, one is enough."""
    rows = [row for journal in journals if (row := journal.row(item.output)) is not None]
    done = [row for row in rows if row.state in ("sealed", "done")]
    if not done:
        bad = next((row for row in rows if row.state == "bad"), None)
        return "is not done yet" if bad is None else f"was bad: {bad.reason}"
    differences = [_difference_from(row, item, dest) for row in done]
    return None if None in differences else differences[0]


def _difference_from(row: Row, item: Item, dest: Dest) -> str | None:
    for name, now, before in (("the source", item.source, row.source), ("the gradient", item.grad, row.grad)):
        if (now is None) != (before is None):
            return f"{name} is not one that the job has read"
        if now is not None and before is not None and _sum_of(now) != (before.crc, before.nbytes):
            return f"{name} is not what it was"
    output = Origin(str(dest.output(row.path)), 0, 0)
    return None if row.output is not None and _sum_of(output) == row.output else f"the output {row.path} is not what it was"


def _sum_of(origin: Origin) -> tuple[int, int] | None:
    try:
        return sum_of(Path(origin.path))
    except OSError:
        return None
