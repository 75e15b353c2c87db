"""A job from its beginning to its end."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from typing import TextIO

from service.batch.backends import Backend
from service.batch.crew import Crew
from service.batch.failures import explained
from service.batch.options import Options
from service.batch.pace import Pace
from service.batch.persistence import Persistence
from service.batch.preparation import Ground, prepared
from service.batch.report import Tally
from service.batch.stopping import Stop
from service.batch.survey import TO_OPEN


class Job:
    """One run of a job: `run` returns when all is done, or after `stop` was set."""

    def __init__(self, options: Options, backend: Callable[[], Backend], standard_input: TextIO, stop: Stop, tally: Tally) -> None:
        self._options = options
        self._make_backend = backend
        self._standard_input = standard_input
        self._stop = stop
        self._tally = tally
        self._persistence = Persistence(
            Pace(options.concurrency), stop, tally.retry, retries=options.retries, give_up_after_s=options.give_up_after_s
        )

    @property
    def trouble(self) -> str | None:
        """Why nothing is answered at the moment, or None."""
        return self._persistence.trouble

    def run(self, watch: Callable[[list[threading.Thread]], None]) -> None:
        """Do it. `watch` is given the threads that work, and returns when they have ended or are not to be waited for.

        Raises the `BatchError` that ended the job early.
        """
        try:
            self._run(watch)
        except (OSError, sqlite3.Error, MemoryError) as error:
            raise explained(error, self._options.dest) from error

    def _run(self, watch: Callable[[list[threading.Thread]], None]) -> None:
        with prepared(self._options, self._standard_input, self._stop) as ground:
            self._count(ground)
            crew = Crew(self._options, ground, self._persistence, self._stop, self._tally)
            try:
                for item in ground.files.items("bad"):
                    crew.refuse(item, item.reason or "")
                if self._tally.files_todo:
                    self._work(crew, ground, watch)
            finally:
                crew.close()
            if crew.failure is not None:
                raise crew.failure

    def _count(self, ground: Ground) -> None:
        counts = ground.files.counts()
        self._tally.files_total = sum(count.files for count in counts.values())
        self._tally.files_skipped = counts["done"].files
        for standing in TO_OPEN:
            self._tally.files_todo += counts[standing].files
            self._tally.bytes_todo += counts[standing].nbytes

    def _work(self, crew: Crew, ground: Ground, watch: Callable[[list[threading.Thread]], None]) -> None:
        made: list[Backend] = []

        def set_up() -> None:
            made.append(self._make_backend())
            made[0].check(self._options, ground.files, self._persistence)

        # In a thread, since it may take long: torch is imported, a server is waited for.
        watch([crew.thread("set-up", set_up)])
        if crew.failure is None and not self._stop.is_set:
            watch(crew.start(made[0]))
        for backend in made:
            backend.close()
