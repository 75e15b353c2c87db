"""From the options of a job to the ground it works on: DEST claimed and locked, its journal open, its files listed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple, TextIO

from service.batch.dest import Dest, publish
from service.batch.errors import BadUsage
from service.batch.formats import SUFFIXES
from service.batch.journal import Journal, read_only
from service.batch.lock import DestLock
from service.batch.options import Options
from service.batch.sources import find
from service.batch.stopping import Stop
from service.batch.survey import History, Survey, compare, listed


class Ground(NamedTuple):
    """What a job works on."""

    dest: Dest
    journal: Journal
    files: Survey


@contextmanager
def prepared(options: Options, standard_input: TextIO, stop: Stop) -> Iterator[Ground]:
    """Everything that precedes the first chunk; DEST is this job's until the end of the block.

    Nothing is written before the sources were listed and DEST was found to be this task's. Raises `BadUsage`, `Locked`.
    """
    dest = Dest(options.dest)
    with ExitStack() as stack:
        if not options.force:
            dest.check(options.task)
        files = list_sources(options, standard_input, stop)
        stack.callback(files.close)
        dest.prepare()
        if options.force:
            # Alone here: what is dropped may be another shard's.
            with DestLock(dest.folder, None):
                dest.clear()
        stack.enter_context(DestLock(dest.folder, options.shard))
        dest.claim(options.task)
        own = dest.journal(options.shard)
        journal = Journal(own)
        stack.callback(journal.close)
        others = [stack.enter_context(read_only(path)) for path in dest.journals() if path != own]
        compare(files, dest, History(journal, others), stop, adopt=True)
        _publish_sealed(journal, dest)
        if options.shard is None:
            _remove_orphans(dest, [journal, *others])
        yield Ground(dest, journal, files)


def list_sources(options: Options, standard_input: TextIO, stop: Stop) -> Survey:
    """The files of a job; `BadUsage` where there is none."""
    files = listed(find(options.sources, options.dest, standard_input), options.shard, options.grads, stop)
    if not (files.elsewhere or any(count.files for count in files.counts().values())):
        raise BadUsage(f"no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file was found in {', '.join(options.sources)}")
    return files


def _publish_sealed(journal: Journal, dest: Dest) -> None:
    """Give their names to the files that were sealed when an earlier run was killed."""
    sealed = list(journal.rows("sealed"))
    if not sealed:
        return
    moves = ((dest.parts / str(row.part), dest.output(row.path)) for row in sealed)
    publish(move for move in moves if move[0].exists())
    with journal.transaction():
        for row in sealed:
            journal.write(row._replace(state="done", part=None))


def _remove_orphans(dest: Dest, journals: list[Journal]) -> None:
    """Remove the parts that no journal knows: those of files that were opened, and not recorded before a kill."""
    known = {row.part for journal in journals for state in ("partial", "sealed") for row in journal.rows(state)}
    for path in dest.parts.iterdir():
        if path.name not in known:
            path.unlink(missing_ok=True)
