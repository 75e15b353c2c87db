"""A DEST looked at, and not touched: the journals are read, and nothing is locked or written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple, TextIO

from service.batch.dest import Dest
from service.batch.journal import Journal, read_only
from service.batch.options import Options
from service.batch.preparation import list_sources
from service.batch.stopping import Stop
from service.batch.survey import Survey


class View(NamedTuple):
    """What is there: one's own journal first, where there is one, then those of other shards."""

    dest: Dest
    files: Survey
    journals: tuple[Journal, ...]


@contextmanager
def looked_at(options: Options, standard_input: TextIO, stop: Stop) -> Iterator[View]:
    """The sources and the journals. Raises `BadUsage` as a run would."""
    dest = Dest(options.dest)
    with ExitStack() as stack:
        if not options.force:
            dest.check(options.task)
        files = list_sources(options, standard_input, stop)
        stack.callback(files.close)
        own = dest.journal(options.shard)
        paths = [] if options.force else sorted(dest.journals(), key=lambda path: path != own)
        yield View(dest, files, tuple(stack.enter_context(read_only(path)) for path in paths))
