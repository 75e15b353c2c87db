"""`--dry-run`: what a run would do now."""

from __future__ import annotations

import json
from typing import NamedTuple, TextIO

from service.batch.errors import BadInput
from service.batch.inspection import inspect_item
from service.batch.journal import has_same_bytes
from service.batch.looking import View, looked_at
from service.batch.options import Options
from service.batch.quantities import size
from service.batch.report import Bad
from service.batch.stopping import Stop
from service.batch.survey import Count, History, Item, Standing, compare

# In the order in which they are told.
_TOLD: dict[Standing, str] = {
    "todo": "to do",
    "continue": "to continue",
    "changed": "changed, to do again",
    "done": "done",
    "bad": "bad",
}


class Forecast(NamedTuple):
    """How many files, and how many bytes, stand how; and what is wrong with the bad ones."""

    counts: dict[Standing, Count]
    bad: tuple[Bad, ...]

    def as_text(self) -> str:
        """For people: a line for each standing."""
        width = max(map(len, _TOLD.values()))
        lines = [(name, self.counts[standing]) for standing, name in _TOLD.items()]
        return "\n".join(f"{name:<{width}}  {count.files:>9} files  {size(count.nbytes):>10}" for name, count in lines)

    def as_json(self) -> str:
        """For machines: one object."""
        counts = {standing: {"files": self.counts[standing].files, "bytes": self.counts[standing].nbytes} for standing in _TOLD}
        return json.dumps(counts | {"reasons": [bad._asdict() for bad in self.bad]})


def forecast(options: Options, standard_input: TextIO, stop: Stop) -> Forecast:
    """Look at every file as a run would, but for its elements. Nothing is written, not even DEST."""
    with looked_at(options, standard_input, stop) as view:
        history = History(None, view.journals)
        compare(view.files, view.dest, history, stop, adopt=False)
        bad = [Bad(item.source.path, item.reason or "") for item in view.files.items("bad")]
        for item in view.files.items("todo", "changed", "continue", "recheck"):
            stop.check()
            try:
                view.files.mark(item, _standing(options, view, history, item))
            except BadInput as error:
                view.files.mark(item, "bad")
                bad.append(Bad(item.source.path, str(error)))
        return Forecast(view.files.counts(), tuple(sorted(bad)))


def _standing(options: Options, view: View, history: History, item: Item) -> Standing:
    """The standing of a file that would be opened; `BadInput` where that would show that it is bad."""
    inspect_item(options.task, item)
    if item.standing != "recheck":
        return item.standing
    best = history.best(item, view.dest)
    return "done" if best is not None and has_same_bytes(best[0], item.source, item.grad) else "changed"
