"""Fuzz the decoders and parsers: `python tests/fuzz/run.py [TARGET …] [--runs N] [--seconds S] [--keep]`.

Without a bound each target runs for a minute. `--runs` and `--seconds` are for all targets together. With
`--keep`, inputs that reached new code are added to the corpus, smallest first.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from fuzz_targets import TARGETS, Target  # noqa: E402

# Kept inputs are small ones, and few: they are read again in every run of the tests.
_MOST_KEPT_BYTES = 30_000
_LARGEST_KEPT_BYTES = 600


class Report(NamedTuple):
    """What became of one target."""

    name: str
    executions: int
    seconds: float
    status: int
    output: str

    @property
    def line(self) -> str:
        """For people."""
        rate = self.executions / max(self.seconds, 1e-9)
        end = "nothing found" if self.status == 0 else f"FOUND SOMETHING (exit status {self.status})"
        return f"{self.name:<12} {self.executions:>10,} executions {self.seconds:>7.0f} s {rate:>8,.0f}/s  {end}"


def engine_here() -> str:
    """`atheris` where it is installed, which is not possible for every Python, else `plain`."""
    return "atheris" if importlib.util.find_spec("atheris") is not None else "plain"


def fuzz(target: Target, engine: str, runs: int, seconds: float, seed: int, found: Path, *, keep: bool) -> Report:
    """Fuzz one target in a process of its own."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as new:
        arguments = [target.name, engine, str(runs), str(seconds), str(seed), str(found), *([new] if keep else [])]
        done = subprocess.run(
            [sys.executable, str(HERE / "fuzz_engine.py"), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if keep:
            keep_smallest(target, [path.read_bytes() for path in Path(new).iterdir()])
    counts = re.findall(r"(?:Done |number_of_executed_units: |^#)(\d+)", done.stderr, re.MULTILINE)
    return Report(target.name, max(map(int, counts), default=0), time.monotonic() - started, done.returncode, done.stderr)


def keep_smallest(target: Target, inputs: list[bytes]) -> None:
    """Add inputs to the target's corpus, smallest first, as long as there is room."""
    target.corpus.mkdir(parents=True, exist_ok=True)
    room = _MOST_KEPT_BYTES - sum(path.stat().st_size for path in target.corpus.iterdir())
    for data in sorted(inputs, key=len):
        room -= len(data)
        if room < 0 or len(data) > _LARGEST_KEPT_BYTES:
            return
        (target.corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def main() -> int:
    """Fuzz all targets; the exit status is 1 when something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)}; default all")
    parser.add_argument("--runs", type=int, default=0, help="executions, over all targets")
    parser.add_argument("--seconds", type=float, default=0.0, help="time, over all targets and processes")
    parser.add_argument("--seed", type=int, default=0, help="where the random numbers start; default the time")
    parser.add_argument("--processes", type=int, default=1, help="how many targets run at the same time")
    parser.add_argument(
        "--engine", choices=("atheris", "plain"), default=engine_here(), help="default atheris where it is installed"
    )
    parser.add_argument("--found", type=Path, default=Path(tempfile.gettempdir()), help="folder for inputs that fail")
    parser.add_argument("--keep", action="store_true", help="add inputs that reach new code to the corpus")
    given = parser.parse_args()
    if unknown := set(given.targets) - set(TARGETS):
        parser.error(f"unknown target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    targets = [TARGETS[name] for name in given.targets or TARGETS]
    seconds = given.seconds if given.seconds or given.runs else 60.0 * len(targets)
    share = min(given.processes, len(targets)) / len(targets)
    seed = given.seed or int(time.time())
    print(
        f"engine {given.engine}, seed {seed}" + (" (atheris is not installed: not guided by coverage)" * (given.engine == "plain"))
    )
    with ThreadPoolExecutor(given.processes) as pool:
        reports = [
            pool.submit(
                fuzz, target, given.engine, -(-given.runs // len(targets)), seconds * share, seed, given.found, keep=given.keep
            )
            for target in targets
        ]
        for report in (pending.result() for pending in reports):
            print(report.line, flush=True)
            if report.status:
                print(report.output[-6000:])
    done = [pending.result() for pending in reports]
    print(f"{'in all':<12} {sum(report.executions for report in done):>10,} executions")
    return int(any(report.status for report in done))


if __name__ == "__main__":
    sys.exit(main())
