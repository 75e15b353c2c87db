"""One of several workers whose device breaks: its calls are answered, it ends with status 70, and another takes its place."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from http_bodies import npy
from server_process import ROOT, Answer, Wire, environment, eventually, get, post

HERE = Path(__file__).parent
CALLERS = 8
# Calls of their own: small ones are computed together.
LARGE, LARGE_ROUNDED = npy(torch.full((2**20,), 0.6)), npy(torch.ones(2**20))
BODY, ROUNDED = npy(torch.tensor([0.6, -0.4])), npy(torch.tensor([1.0, -0.0]))


class Workers(NamedTuple):
    """The processes, as a caller and an operator see them."""

    address: str
    process: subprocess.Popen[str]
    lines: list[str]
    folder: Path

    def ask(self, request: bytes) -> Answer:
        with Wire(self) as wire:  # type: ignore[arg-type]
            return wire.ask(request)

    def logged(self, pattern: str) -> list[re.Match[str]]:
        return [match for line in list(self.lines) if (match := re.search(pattern, line))]


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    path = tmp_path / "s"
    process = subprocess.Popen(
        [sys.executable, str(HERE / "failing_workers.py"), str(path), str(tmp_path), "2"],
        cwd=ROOT,
        env=environment({"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    one = Workers(f"unix:{path}", process, [], tmp_path)
    reader = threading.Thread(target=lambda: one.lines.extend(line.rstrip("\n") for line in process.stderr or ()))
    reader.start()
    try:
        eventually(lambda: path.is_socket() and len(one.logged("device scripted:0")) == 2, "both workers have started")
        yield one
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stderr.close()


def test_a_worker_whose_device_breaks_is_replaced_and_the_service_goes_on(workers: Workers) -> None:
    for times in (1, 2):
        eventually(lambda: b"stequant_ready 2.0" in workers.ask(get("/metrics")).body, "both workers are ready")
        (workers.folder / "broken").touch()
        broken = workers.ask(post(BODY))
        assert (broken.status, broken.code, broken.headers["retry-after"]) == (503, "device_lost", "1")
        eventually(lambda times=times: len(workers.logged(r"worker \d \(pid \d+\) ended with status 70$")) == times, "it has ended")
        assert workers.process.poll() is None
        assert workers.ask(post(BODY)).body == ROUNDED
    assert workers.logged(r"worker \d is started again in 0\.5 s$")
    workers.process.send_signal(signal.SIGTERM)
    assert workers.process.wait(20) == 0
    assert not workers.logged("Traceback"), workers.lines


def test_calls_in_flight_on_a_device_that_breaks_are_all_answered(workers: Workers) -> None:
    eventually(lambda: b"stequant_ready 2.0" in workers.ask(get("/metrics")).body, "both workers are ready")
    (workers.folder / "hold").touch()
    answers: list[Answer] = []
    callers = [threading.Thread(target=lambda: answers.append(workers.ask(post(LARGE)))) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    eventually(lambda: len(list(workers.folder.glob("waits-*"))) == 2, "both workers compute")
    (workers.folder / "broken").touch()
    (workers.folder / "hold").unlink()
    for caller in callers:
        caller.join()
    lost = [answer for answer in answers if answer.status != 200]
    assert len(answers) == CALLERS
    assert {(answer.status, answer.code, answer.headers["retry-after"]) for answer in lost} == {(503, "device_lost", "1")}
    assert all(answer.body == LARGE_ROUNDED for answer in answers if answer.status == 200)
    assert len(lost) < CALLERS
    eventually(lambda: workers.logged(r"ended with status 70$"), "it has ended")


def test_the_other_workers_are_ready_within_a_second(workers: Workers) -> None:
    eventually(lambda: b"stequant_ready 2.0" in workers.ask(get("/metrics")).body, "both workers are ready")
    (workers.folder / "broken").touch()
    assert workers.ask(post(BODY)).status == 503
    broken_at = time.monotonic()
    eventually(lambda: b"stequant_ready 1.0" in workers.ask(get("/metrics")).body, "one is not ready")
    assert time.monotonic() - broken_at < 1
    # Who is sent to the broken one meanwhile is told so; nobody finds a closed door.
    for _ in range(20):
        assert workers.ask(get("/readyz")).status in (200, 503)
