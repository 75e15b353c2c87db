"""Callers in a process of their own that call as fast as they are answered: `python overload_callers.py PLAN`.

PLAN is a JSON object with the fields of `Plan`; what the callers have seen is printed as that of `Seen`.
"""

from __future__ import annotations

import json
import random
import select
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

# No more than the kernel takes without waiting, so that an answer is seen soon.
_AT_ONCE_BYTES = 256 * 1024
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / folder) for folder in ("http", "e2e")]


@dataclass
class Plan:
    """How many callers send a tensor of this many float32 numbers, and for how long.

    After a refusal a caller pauses for `pause_s`; where that is None, for as long as `Retry-After` says, and up to a quarter more.
    """

    port: int
    callers: int
    seconds: float
    elements: int
    pause_s: float | None = None


@dataclass
class Seen:
    """How often each status came, and how long the answers with it took, in seconds."""

    elapsed_s: float
    counts: dict[str, int]
    p50_s: dict[str, float]
    p99_s: dict[str, float]
    wrong: list[str] = field(default_factory=list)

    @property
    def goodput_per_s(self) -> float:
        """Calls answered with their result, a second."""
        return self.counts.get("200", 0) / self.elapsed_s


def seen_by(plan: Plan) -> Seen:
    """Let callers run in another process, and wait for what they have seen."""
    command = [sys.executable, __file__, json.dumps(asdict(plan))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=plan.seconds + 60, check=True)
    return Seen(**json.loads(done.stdout))


class Callers:
    """All callers, and what they have seen."""

    def __init__(self, plan: Plan) -> None:
        import torch
        from http_bodies import npy
        from server_process import post

        x = torch.linspace(-9, 9, plan.elements)
        self.plan = plan
        self.request, self.expected = post(npy(x)), npy(x.round())
        self.took_s: dict[str, list[float]] = {}
        self.wrong: Counter[str] = Counter()
        self._lock = threading.Lock()

    def call(self, until: float) -> None:
        """One caller, who keeps a connection as long as the server does, and waits a little after a refusal."""
        took_s: dict[str, list[float]] = {}
        wire = None
        while time.perf_counter() < until:
            wire = wire if wire is not None else self._connect()
            begin = time.perf_counter()
            sent_all = _send_until_answered(wire, self.request)
            answer = wire.read()
            took_s.setdefault(str(answer.status), []).append(time.perf_counter() - begin)
            if answer.status == 200 and answer.body != self.expected:
                self.wrong["bits"] += 1
            if not sent_all or answer.headers.get("connection") == "close":
                wire.socket.close()
                wire = None
            if answer.status == 429:
                time.sleep(max(0.0, min(self._pause_s(int(answer.headers["retry-after"])), until - time.perf_counter())))
        if wire is not None:
            wire.socket.close()
        with self._lock:
            for status, times_s in took_s.items():
                self.took_s.setdefault(status, []).extend(times_s)

    def _pause_s(self, retry_after_s: int) -> float:
        return retry_after_s * (1 + random.random() / 4) if self.plan.pause_s is None else self.plan.pause_s

    def _connect(self) -> Any:
        from server_process import Wire

        return Wire(self)  # type: ignore[arg-type]

    @property
    def address(self) -> str:
        """For `Wire`."""
        return f"http://127.0.0.1:{self.plan.port}"

    @property
    def port(self) -> int:
        """For `Wire`."""
        return self.plan.port

    def run(self) -> Seen:
        """All callers at once, until the time is over."""
        begin = time.perf_counter()
        threads = [threading.Thread(target=self._called, args=(begin + self.plan.seconds,)) for _ in range(self.plan.callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        elapsed_s = time.perf_counter() - begin
        cuts = {status: quantiles(times_s, n=100) for status, times_s in self.took_s.items() if len(times_s) > 1}
        return Seen(
            elapsed_s,
            {status: len(times_s) for status, times_s in self.took_s.items()},
            {status: cut[49] for status, cut in cuts.items()},
            {status: cut[98] for status, cut in cuts.items()},
            [f"{count} x {what}" for what, count in self.wrong.items()],
        )

    def _called(self, until: float) -> None:
        try:
            self.call(until)
        except Exception as error:
            self.wrong[repr(error)] += 1


def _send_until_answered(wire: Any, request: bytes) -> bool:
    """Send a request as curl, Go and Node do: who is answered before the end sends no more. False in that case."""
    rest = memoryview(request)
    with suppress(BrokenPipeError, ConnectionResetError):
        while rest:
            readable, _, _ = select.select([wire.socket], [wire.socket], [], wire.socket.gettimeout())
            if readable:
                return False
            rest = rest[wire.socket.send(rest[:_AT_ONCE_BYTES]) :]
    return True


if __name__ == "__main__":
    print(json.dumps(asdict(Callers(Plan(**json.loads(sys.argv[1]))).run())))
