"""One of several workers whose device breaks: its calls are answered, it ends with status 70, and another takes its place."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from http_bodies import npy
from server_process import ROOT, Answer, Wire, environment, eventually, get, post

HERE = Path(__file__).parent
BODY, ROUNDED = npy(torch.tensor([0.6, -0.4])), npy(torch.tensor([1.0, -0.0]))


class Workers(NamedTuple):
    """The processes, as a caller and an operator see them."""

    address: str
    process: subprocess.Popen[str]
    lines: list[str]
    sign: Path

    def ask(self, request: bytes) -> Answer:
        with Wire(self) as wire:  # type: ignore[arg-type]
            return wire.ask(request)

    def logged(self, pattern: str) -> list[re.Match[str]]:
        return [match for line in list(self.lines) if (match := re.search(pattern, line))]


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    path, sign = tmp_path / "s", tmp_path / "broken"
    process = subprocess.Popen(
        [sys.executable, str(HERE / "failing_workers.py"), str(path), str(sign)],
        cwd=ROOT,
        env=environment({"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    one = Workers(f"unix:{path}", process, [], sign)
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
        workers.sign.touch()
        broken = workers.ask(post(BODY))
        assert (broken.status, broken.code, broken.headers["retry-after"]) == (503, "device_lost", "1")
        eventually(lambda times=times: len(workers.logged(r"worker \d \(pid \d+\) ended with status 70$")) == times, "it has ended")
        assert workers.process.poll() is None
        assert workers.ask(post(BODY)).body == ROUNDED
    assert workers.logged(r"worker \d is started again in 0\.5 s$")
    workers.process.send_signal(signal.SIGTERM)
    assert workers.process.wait(20) == 0
    assert not workers.logged("Traceback")
