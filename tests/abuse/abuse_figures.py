"""The figures of the abuse suite: `python tests/abuse/abuse_figures.py` runs every case several times and prints them."""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

_TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(_TESTS / folder) for folder in ("abuse", "http", "e2e")]

from abuse_case import SMALL, Case  # noqa: E402
from abuse_client import Outcome, outcome  # noqa: E402
from abuse_gauges import Prober, cpu_s, peak_bytes  # noqa: E402
from abuse_scenes import IMPATIENT, SCENES  # noqa: E402
from abuse_table import GROUPS  # noqa: E402
from server_process import ServerProcess, Wire, post, serving  # noqa: E402

MIB = 2**20
MAX_BODY_MIB = 256
# What a refusal, and a probe meanwhile, may take on a machine that does nothing else.
MOST_S = 0.1


@dataclass
class Figures:
    """What a run over the cases has measured; times in seconds."""

    outcomes: dict[Case, Outcome | Exception] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    refusal_s: dict[str, float] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=dict)
    healthz_waits_s: list[float] = field(default_factory=list)
    healthz_longest_s: dict[str, float] = field(default_factory=dict)
    healthz_failures: list[str] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def wrong(self) -> dict[str, str]:
        """What came back in cases that were answered otherwise than they must be."""
        return {case.claim: str(run) for case, run in self.outcomes.items() if not is_right(case, run)}

    @property
    def server_errors(self) -> int:
        """How many answers were 5xx."""
        return sum(count for answer, count in self.answers.items() if answer.startswith("5"))


def is_right(case: Case, run: Outcome | Exception) -> bool:
    """Whether the answers are the only right ones, and the connection is in order afterwards."""
    return isinstance(run, Outcome) and run.answers == case.expected and run.end in ("open", "closed")


def measure(server: ServerProcess, cases: Iterable[Case], repeats: int) -> Figures:
    """Run every case so many times, with a probe beside; a case's figure is the median of its repeats."""
    figures = Figures()
    with Prober(server) as prober:
        for case in cases:
            prober.beside = case.claim
            _measure(server, case, repeats, figures)
    figures.healthz_waits_s, figures.healthz_failures = prober.waits_s, prober.failures
    figures.healthz_longest_s = prober.longest_s
    figures.peak_bytes = peak_bytes(server)
    return figures


def _measure(server: ServerProcess, case: Case, repeats: int, figures: Figures) -> None:
    waits_s, costs_s = [], []
    for _ in range(repeats):
        before_s = cpu_s(server)
        try:
            run = outcome(server, case)
        except (OSError, AssertionError) as error:
            figures.outcomes[case] = error
            return
        figures.outcomes[case] = run
        figures.answers.update(run.answers)
        waits_s.append(run.first_answer_s)
        costs_s.append(cpu_s(server) - before_s)
        if not is_right(case, run):
            return
    if case.is_refusal:
        figures.refusal_s[case.claim] = statistics.median(waits_s)
    figures.cpu_s[case.claim] = statistics.median(costs_s)


def cost_s(server: ServerProcess, query: str, calls: int) -> float:
    """Processor time of the server for so many refused calls with this query, in seconds."""
    request = post(SMALL, query)
    with Wire(server) as wire:
        before_s = cpu_s(server)
        for _ in range(calls):
            assert wire.ask(request).status == 422
        return cpu_s(server) - before_s


def play_all(server: ServerProcess) -> tuple[dict[str, BaseException | None], Prober]:
    """Play all scenes at once; what each failed with, if it did."""
    with Prober(server) as prober, ThreadPoolExecutor(32) as pool:
        playing = {claim: pool.submit(play, server) for claim, play in SCENES.items()}
        return {claim: one.exception() for claim, one in playing.items()}, prober


def _row(what: str, value: str) -> None:
    print(f"{what:<58} {value}")


def _times(times_s: Iterable[float]) -> str:
    ordered = sorted(times_s)
    return f"median {1e3 * statistics.median(ordered):.1f} ms, largest {1e3 * ordered[-1]:.1f} ms"


def _slowest(times_s: dict[str, float]) -> str:
    worst: Callable[[str], float] = times_s.__getitem__
    return "; ".join(f"{claim} {1e3 * times_s[claim]:.0f} ms" for claim in sorted(times_s, key=worst)[-3:])


def _above(times_s: dict[str, float]) -> str:
    return str(sum(time_s > MOST_S for time_s in times_s.values()))


def main(repeats: int) -> None:
    """Print the figures."""
    with serving("--log-format", "json") as server:
        idle_bytes = peak_bytes(server)
        figures = measure(server, [case for cases in GROUPS.values() for case in cases], repeats)
        costs_s = [cost_s(server, query, 1000) for query in ("op=nothing", "op=k_bit_quantize&k=1000000000") * 3]
    for group, cases in GROUPS.items():
        _row(f"cases, {group}", str(len(cases)))
    _row("cases of one connection in all, each run", f"{sum(map(len, GROUPS.values()))}, {repeats} times")
    _row("answers of 5xx", str(figures.server_errors))
    _row("cases answered otherwise than they must be", str(len(figures.wrong)))
    for claim, what in figures.wrong.items():
        print(f"    {claim}: {what}")
    _row("from the last byte sent to a refusal", _times(figures.refusal_s.values()))
    _row("  the slowest", _slowest(figures.refusal_s))
    _row(f"  longer than {1e3 * MOST_S:.0f} ms", _above(figures.refusal_s))
    _row("processor time of a case", _times(figures.cpu_s.values()))
    _row("  the dearest", _slowest(figures.cpu_s))
    _row(f"/healthz meanwhile, {len(figures.healthz_waits_s)} times", _times(figures.healthz_waits_s))
    _row("  beside", _slowest(figures.healthz_longest_s))
    _row(f"  longer than {1e3 * MOST_S:.0f} ms", _above(figures.healthz_longest_s))
    _row("/healthz not answered", str(len(figures.healthz_failures)))
    peak_mib, idle_mib = figures.peak_bytes / MIB, idle_bytes / MIB
    _row(
        "peak of the process tree",
        f"{peak_mib:.0f} MiB, {peak_mib / MAX_BODY_MIB:.2f} times the limit of a body; idle {idle_mib:.0f} MiB",
    )
    _row("1 000 refusals of an unknown operator", f"{min(costs_s[::2]):.3f} s of processor time")
    _row("1 000 refusals of k=1000000000", f"{min(costs_s[1::2]):.3f} s of processor time")
    with serving(*IMPATIENT, "--log-format", "json") as server:
        failed, prober = play_all(server)
        peak = peak_bytes(server)
    _row("scenes of slow and vanishing clients", str(len(failed)))
    _row("scenes that failed", str([claim for claim, error in failed.items() if error is not None]))
    _row(f"/healthz meanwhile, {len(prober.waits_s)} times", _times(prober.waits_s))
    _row("peak of the process tree", f"{peak / MIB:.0f} MiB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
