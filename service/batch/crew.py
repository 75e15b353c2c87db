"""The threads of a job: each takes what comes next, a file to open or a chunk to compute, until nothing is left."""

from __future__ import annotations

import threading
from collections.abc import Callable

from service.batch.backends import Backend, Session
from service.batch.chunks import Chunk
from service.batch.errors import BadInput, Stopped
from service.batch.failures import explained
from service.batch.feed import Feed
from service.batch.journal import Row, has_same_bytes
from service.batch.options import Options
from service.batch.persistence import Persistence
from service.batch.preparation import Ground
from service.batch.recorder import Recorder
from service.batch.report import Tally
from service.batch.stopping import Stop
from service.batch.survey import TO_OPEN, Item
from service.batch.work import Beginning, Loaded, Rooms, Work


class Crew:
    """Works through the files of a job.

    The first failure that ends the job stops all threads; it is kept as `failure`.
    """

    def __init__(self, options: Options, ground: Ground, persistence: Persistence, stop: Stop, tally: Tally) -> None:
        self._options = options
        self._task = options.task
        self._dest = ground.dest
        self._journal = ground.journal
        self._persistence = persistence
        self._stop = stop
        self._tally = tally
        self._feed = Feed(ground.files.items(*TO_OPEN), stop, options.chunk_bytes)
        self._recorder = Recorder(ground.dest, ground.journal, tally.settle, self._fail)
        self._threads: list[threading.Thread] = []
        self._failing = threading.Lock()
        self.failure: BaseException | None = None

    def start(self, backend: Backend) -> list[threading.Thread]:
        """Set the threads to work."""
        return [self.thread(f"batch-{number}", lambda: self._work(backend)) for number in range(self._options.concurrency)]

    def thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        """A thread that does something for the job; what goes wrong there ends the job."""

        def run() -> None:
            try:
                work()
            except Stopped:
                pass
            except BaseException as error:
                self._fail(error)

        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def refuse(self, item: Item, reason: str) -> None:
        """A file is bad."""
        self._recorder.settled(Row(item.output, "bad", self._task.text, item.source, item.grad, reason=reason))

    def close(self) -> None:
        """Record what was done; threads that still work are not waited for, and keep what they work on."""
        self._recorder.close()
        if not any(thread.is_alive() for thread in self._threads):
            for work in self._feed.open_files():
                work.close()

    def _work(self, backend: Backend) -> None:
        session = backend.session()
        rooms = Rooms()
        try:
            while (task := self._feed.take()) is not None:
                if isinstance(task, Item):
                    self._open(task)
                else:
                    self._compute(*task, session, rooms)
        finally:
            session.close()

    def _open(self, item: Item) -> None:
        work = None
        try:
            work = self._opened(item)
        except BadInput as error:
            self.refuse(item, str(error))
        finally:
            is_complete = self._feed.opened(work)
        if work is not None and is_complete:
            self._settle(work)

    def _opened(self, item: Item) -> Work | None:
        """The file, open; None where its source has another time than it had and the same bytes still."""
        row = None if item.standing == "todo" else self._journal.row(item.output)
        if row is not None and item.standing == "recheck" and has_same_bytes(row, item.source, item.grad):
            self._recorder.settled(row.at_times_of(item.source, item.grad))
            self._tally.skip_file(item)
            return None
        beginning = None
        if row is not None and item.standing == "continue" and row.part is not None:
            beginning = Beginning(row.part, self._journal.extents(item.output))
        elif row is not None and row.part is not None:
            (self._dest.parts / row.part).unlink(missing_ok=True)  # made of what the source was
        work = Work(self._task, item, self._dest, beginning)
        self._tally.skip_chunks(item.output, work.there)
        return work

    def _compute(self, work: Work, chunk: Chunk, session: Session, rooms: Rooms) -> None:
        def send() -> tuple[memoryview, Loaded]:
            loaded = work.load(chunk, rooms)
            return session.compute(self._task, loaded.message, loaded.room), loaded

        try:
            y, loaded = self._persistence.attempt(send)
        except BadInput as error:
            work.failure = error
        else:
            extent = work.store(chunk, y, loaded)
            self._recorder.stored(work, extent)
            self._tally.chunk(work.item.output, extent)
        if self._feed.returned(work):
            self._settle(work)

    def _settle(self, work: Work) -> None:
        """The last chunk of a file has ended."""
        try:
            if work.failure is not None:
                raise work.failure
            row = work.seal()
        except BadInput as error:
            work.discard()
            self.refuse(work.item, str(error))
        else:
            self._recorder.settled(row)

    def _fail(self, failure: BaseException) -> None:
        with self._failing:
            if self.failure is None:
                self.failure = explained(failure, self._dest.root)
        self._stop.set()
