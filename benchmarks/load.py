"""The load generator as a process: started, waited for, its answer read."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import native
from benchmarks.results import Sample

GRACE_S = 120.0  # beyond the time asked for: slow answers, the warm-up, two processes that have to start


class LoadFailed(Exception):
    """The generator could not finish a cell; the message is its own."""


class Load:
    """A generator at work."""

    def __init__(self, process: subprocess.Popen[str], seconds: float) -> None:
        self._process = process
        self._seconds = seconds

    def wait(self) -> Sample:
        """What it saw, once it is done."""
        try:
            out, err = self._process.communicate(timeout=self._seconds + GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise LoadFailed(f"no end after {self._seconds + GRACE_S:g} s") from None
        if self._process.returncode:
            raise LoadFailed(err.strip() or f"the load generator exited with {self._process.returncode}")
        return Sample.model_validate_json(out)


@dataclass(frozen=True)
class Generator:
    """How the generator is started; `name` says which of the two it is."""

    name: str
    command: tuple[str, ...]

    def start(
        self, address: str, request: Path, expect: Path | None, *, connections: int, seconds: float, pause_ms: float = 0.0
    ) -> Load:
        """Begin to send the bytes of `request` over and over."""
        arguments = ["--address", address, "--request", str(request), "--connections", str(connections)]
        arguments += ["--seconds", str(seconds), "--pause-ms", str(pause_ms)]
        if expect is not None:
            arguments += ["--expect", str(expect)]
        process = subprocess.Popen([*self.command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return Load(process, seconds)


PYTHON_GENERATOR = Generator("Python, one process a connection", (sys.executable, "-m", "benchmarks.loadgen"))


def best_generator(folder: Path) -> Generator:
    """The one in C, compiled into `folder`; the one in Python where there is no compiler."""
    binary = native.build("loadgen", folder)
    return Generator("C, one thread a connection", (str(binary),)) if binary else PYTHON_GENERATOR
