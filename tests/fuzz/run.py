"""Fuzz the decoders and parsers: `python tests/fuzz/run.py [TARGET …] [--runs N | --seconds S] [--processes N] [--keep]`.

Executions and seconds are shared among the targets; without either each runs for a minute. What is found is printed,
and its input is saved: `python tests/fuzz/run.py TARGET --replay FILE` shows it again. With `--keep`, inputs that reach
new code go to the corpus.
"""

from __future__ import annotations

import argparse
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

import fuzz_corpus  # noqa: E402
from fuzz_targets import TARGETS, Target  # noqa: E402

# What an engine may take longer than it was told: it starts, and writes its corpus. It is ended when it hangs.
_PATIENCE_S = 120.0
# The end of an engine's output, which has the failure and its input.
_TOLD_CHARACTERS = 6000


class Plan(NamedTuple):
    """How long each target runs: so many executions or seconds, whichever ends first; 0 is no bound."""

    runs: int
    seconds: float
    seed: int


class Report(NamedTuple):
    """What became of one target."""

    name: str
    seconds: float
    status: int
    output: str

    @property
    def executions(self) -> int:
        """How many inputs were checked."""
        return self._most(r"(?:^Done |number_of_executed_units: |^#)(\d+)")

    @property
    def line(self) -> str:
        """For people. Branches are those of the service that were taken; only an engine that is guided by them counts them."""
        rate = self.executions / max(self.seconds, 1e-9)
        guided = f"{branches:>5} branches" if (branches := self._most(r" cov: (\d+)")) else ""
        end = "nothing found" if self.status == 0 else f"FOUND SOMETHING (exit status {self.status})"
        return f"{self.name:<12} {self.executions:>10,} executions {self.seconds:>7.0f} s {rate:>8,.0f}/s {guided:>14}  {end}"

    def _most(self, pattern: str) -> int:
        return max(map(int, re.findall(pattern, self.output, re.MULTILINE)), default=0)


def engine_here() -> str:
    """`atheris` where it is installed, which is not possible for every Python, else `plain`."""
    return "atheris" if importlib.util.find_spec("atheris") is not None else "plain"


def fuzz(target: Target, given: argparse.Namespace, plan: Plan) -> Report:
    """Fuzz one target in a process of its own."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as new:
        numbers = map(str, (plan.runs, plan.seconds, plan.seed))
        arguments = [target.name, given.engine, *numbers, str(given.found), *([new] if given.keep else [])]
        status, output = _ended([sys.executable, str(HERE / "fuzz_engine.py"), *arguments], plan.seconds)
        if given.keep and status == 0:
            fuzz_corpus.keep(target, [path.read_bytes() for path in Path(new).iterdir()])
    return Report(target.name, time.monotonic() - started, status, output)


def _ended(command: list[str], seconds: float) -> tuple[int, str]:
    """The exit status of a command that runs for so long, and what it has written."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process:
        try:
            output, _ = process.communicate(timeout=seconds + _PATIENCE_S if seconds else None)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            output += f"\nended: it ran {_PATIENCE_S:.0f} s longer than it should\n"
    return process.returncode, output


def replay(target: Target, file: Path) -> int:
    """Check one input; a failure shows its traceback."""
    target.check(file.read_bytes())
    print(f"{target.name}: nothing found in {file}")
    return 0


def main() -> int:
    """Fuzz; the exit status is 1 when something was found."""
    given = _arguments()
    targets = [TARGETS[name] for name in given.targets or TARGETS]
    if given.replay:
        return replay(targets[0], given.replay)
    given.found.mkdir(parents=True, exist_ok=True)
    plan = _plan(given, len(targets))
    without = " (atheris is not installed: not guided by coverage)" if given.engine == "plain" else ""
    print(f"engine {given.engine}, seed {plan.seed}{without}", flush=True)
    reports = []
    with ThreadPoolExecutor(given.processes) as pool:
        for pending in [pool.submit(fuzz, target, given, plan) for target in targets]:
            reports.append(pending.result())
            print(reports[-1].line, flush=True)
            if reports[-1].status:
                print(reports[-1].output[-_TOLD_CHARACTERS:], flush=True)
    print(f"{'in all':<12} {sum(report.executions for report in reports):>10,} executions")
    return int(any(report.status for report in reports))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)}; default all")
    parser.add_argument("--runs", type=int, default=0, help="executions, over all targets")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long it takes, over all targets")
    parser.add_argument("--seed", type=int, default=0, help="where the random numbers start; default the time")
    parser.add_argument("--processes", type=int, default=1, help="how many targets run at the same time")
    parser.add_argument(
        "--engine", choices=("atheris", "plain"), default=engine_here(), help="default atheris where it is installed"
    )
    parser.add_argument(
        "--found", type=Path, default=Path(tempfile.gettempdir(), "stequant-fuzz"), help="folder for inputs that fail"
    )
    parser.add_argument("--keep", action="store_true", help="put inputs that reach new code into the corpus")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="check this input of the one target that is named")
    given = parser.parse_args()
    if unknown := set(given.targets) - set(TARGETS):
        parser.error(f"unknown target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    if given.replay and len(given.targets) != 1:
        parser.error("--replay needs the name of one target")
    return given


def _plan(given: argparse.Namespace, targets: int) -> Plan:
    """Each target's share."""
    seconds = given.seconds if given.seconds or given.runs else 60.0 * targets
    at_once = min(given.processes, targets)
    return Plan(-(-given.runs // targets), seconds * at_once / targets, given.seed or int(time.time()))


if __name__ == "__main__":
    sys.exit(main())
