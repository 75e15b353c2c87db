"""`stequant batch` as a process: started, watched, signalled, killed, and what it said."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from job_trees import ELEMENTWISE
from server_process import ROOT, command, environment, eventually

# Long enough for a machine that others use too; nothing waits for its end.
PATIENCE_S = 120.0

_SHARD_VARIABLES = ("JOB_COMPLETION_INDEX", "JOB_COMPLETION_COUNT")


@dataclass(frozen=True)
class Files:
    """`files` of the summary."""

    total: int
    done: int
    skipped: int
    bad: int


@dataclass(frozen=True)
class Chunks:
    """`chunks` of the summary."""

    sent: int
    retried: int
    skipped: int


@dataclass(frozen=True)
class Summary:
    """What `--json` says at the end."""

    status: str
    exit_code: int
    expression: str
    kind: str
    files: Files
    chunks: Chunks
    bytes: Mapping[str, int]
    seconds: float
    bad: Mapping[str, str]
    shard: str | None

    @classmethod
    def parse(cls, text: str) -> Summary:
        """One object and nothing else."""
        said: dict[str, Any] = json.loads(text)
        said["files"], said["chunks"] = Files(**said["files"]), Chunks(**said["chunks"])
        said["bad"] = {one["path"]: one["reason"] for one in said["bad"]}
        return cls(**said)


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def summary(self) -> Summary:
        """The summary, which has to agree with the exit status."""
        summary = Summary.parse(self.stdout)
        assert summary.exit_code == self.exit_code, self
        return summary

    def expect(self, exit_code: int) -> Ended:
        """Itself, if it ended so, and without a traceback."""
        assert self.exit_code == exit_code, self
        assert "Traceback" not in self.stderr, self.stderr
        return self


@dataclass
class JobProcess:
    """A job at work. What it says goes to files: no pipe fills up while nobody reads."""

    arguments: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    standard_input: str = ""

    def __post_init__(self) -> None:
        own = {name: value for name, value in environment().items() if name not in _SHARD_VARIABLES}
        self._folder = tempfile.TemporaryDirectory(prefix="stequant-job-")
        self._out, self._err, given = (Path(self._folder.name) / name for name in ("out", "err", "in"))
        given.write_text(self.standard_input)
        self.peak_bytes = 0
        with self._out.open("wb") as out, self._err.open("wb") as err, given.open("rb") as standard_input:
            self.process = subprocess.Popen(
                [*self.prefix, *command("batch", *self.arguments)],
                cwd=ROOT,
                env=own | dict(self.variables),
                stdin=standard_input,
                stdout=out,
                stderr=err,
            )

    @property
    def is_running(self) -> bool:
        """Whether it has not ended; notes how much memory it has held so far."""
        with suppress(OSError, StopIteration):
            self.peak_bytes = max(self.peak_bytes, peak_memory_bytes(self.process.pid))
        return self.process.poll() is None

    @property
    def said(self) -> str:
        """Its standard error so far."""
        return self._err.read_text()

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """`kill -9`, and wait until it is gone."""
        self.process.kill()
        self.process.wait()
        self._folder.cleanup()

    def wait(self, patience_s: float = PATIENCE_S) -> Ended:
        """Wait for its end."""
        try:
            eventually(lambda: not self.is_running, f"the end of {self.arguments}", patience_s)
        except AssertionError as error:
            said = self.said
            self.kill()
            raise AssertionError(f"{error}; it said {said!r}") from None
        ended = Ended(self.process.returncode, self._out.read_text(), self.said)
        self._folder.cleanup()
        return ended


def peak_memory_bytes(pid: int) -> int:
    """The most memory a process has held so far, pages of mapped files included.

    Raises `OSError` or `StopIteration` when it has ended.
    """
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def arguments_of(source: Path | str, dest: Path, *flags: str, op: str = ELEMENTWISE) -> tuple[str, ...]:
    """The command line of a job."""
    return (str(source), str(dest), "--op", op, *flags)


@contextmanager
def started(
    source: Path | str, dest: Path, *flags: str, op: str = ELEMENTWISE, variables: Mapping[str, str] | None = None
) -> Iterator[JobProcess]:
    """A job that is at work; it is killed if the test leaves it so."""
    job = JobProcess(arguments_of(source, dest, "--json", *flags, op=op), variables or {})
    try:
        yield job
    finally:
        job.kill()


def run(
    source: Path | str,
    dest: Path,
    *flags: str,
    op: str = ELEMENTWISE,
    variables: Mapping[str, str] | None = None,
    prefix: tuple[str, ...] = (),
) -> Ended:
    """A job from its beginning to its end, with `--json`."""
    return JobProcess(arguments_of(source, dest, "--json", *flags, op=op), variables or {}, prefix).wait()


def run_raw(*arguments: str, standard_input: str = "", prefix: tuple[str, ...] = ()) -> Ended:
    """`stequant batch` with exactly these arguments."""
    return JobProcess(arguments, prefix=prefix, standard_input=standard_input).wait()


def forecast(source: Path | str, dest: Path, *flags: str) -> dict[str, int]:
    """How many files `--dry-run` sees in which standing."""
    ended = run(source, dest, "--dry-run", *flags)
    assert ended.exit_code in (0, 1), ended
    return {standing: count["files"] for standing, count in json.loads(ended.stdout).items() if standing != "reasons"}


STOPS = {signal.SIGTERM: 143, signal.SIGINT: 130}
