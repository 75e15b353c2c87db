"""A log that cannot be written keeps nobody waiting: a pipe without a reader, a full disk, no standard error at all."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import pytest
import torch
from http_bodies import npy
from prometheus_client.parser import text_string_to_metric_families
from server_process import ROOT, Wire, command, environment, eventually, get, post

BODY, ROUNDED = npy(torch.tensor([0.6, -0.4])), npy(torch.tensor([1.0, -0.0]))
# A line of these has some hundred bytes, and a pipe takes 64 KiB.
MANY = 3000
LINE = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z (DEBUG|INFO|WARNING|ERROR) \S.*")


class Place(NamedTuple):
    """Where a server listens, for `Wire`."""

    address: str
    process: subprocess.Popen[bytes]

    def dropped_lines(self) -> float:
        with Wire(self) as wire:  # type: ignore[arg-type]
            text = wire.ask(get("/metrics")).body.decode()
        (family,) = (one for one in text_string_to_metric_families(text) if one.name == "stequant_log_lines_dropped")
        return sum(one.value for one in family.samples if one.name.endswith("_total"))

    def is_ready(self) -> bool:
        assert self.process.poll() is None
        try:
            with Wire(self) as wire:  # type: ignore[arg-type]
                return wire.ask(get("/readyz")).status == 200
        except OSError:
            return False

    def answer_many(self) -> None:
        """Ask more than a pipe can take the lines of."""
        with Wire(self, timeout_s=10) as wire:  # type: ignore[arg-type]
            for _ in range(MANY):
                assert wire.ask(post(BODY)).body == ROUNDED


@contextmanager
def logging_to(
    stderr: int | IO[bytes] | None, folder: Path, *flags: str, stdout: int | None = subprocess.DEVNULL
) -> Iterator[Place]:
    """A server with this as its standard error; None: with none at all. It must end as any other."""
    path = folder / "s"
    arguments = command("serve", "--device", "cpu", "--uds", str(path), *flags)
    if stderr is None:
        arguments = ["sh", "-c", 'exec "$@" 1>&- 2>&-', "sh", *arguments]
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=environment({"TMPDIR": str(folder)}), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
    )
    place = Place(f"unix:{path}", process)
    try:
        eventually(place.is_ready, "/readyz says yes")
        yield place
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()


def lines_in(descriptor: int) -> list[str]:
    """What lies in a pipe now."""
    os.set_blocking(descriptor, False)
    data = b""
    try:
        while piece := os.read(descriptor, 2**20):
            data += piece
    except BlockingIOError:
        pass
    return data.decode().splitlines()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_nobody_waits_for_a_log_that_nobody_reads(pipe: tuple[int, int], tmp_path: Path, workers: int) -> None:
    reading, writing = pipe
    with logging_to(writing, tmp_path, "--workers", str(workers)) as server:
        server.answer_many()
        eventually(lambda: server.dropped_lines() > 0, "lines were dropped, and counted")
        # What was written is whole, and as soon as someone reads, the log goes on.
        before = lines_in(reading)
        assert len(before) > 100
        assert not [line for line in before if not LINE.fullmatch(line)]
        with Wire(server) as wire:  # type: ignore[arg-type]
            wire.ask(get("/healthz", "X-Request-Id: seen"))
        eventually(lambda: any(line.endswith(" seen") for line in lines_in(reading)), "the next line is there")


def test_nobody_waits_for_a_socket_that_nobody_reads(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, logging_to(theirs.fileno(), tmp_path) as server:
        server.answer_many()
        eventually(lambda: server.dropped_lines() > 0, "lines were dropped, and counted")


def test_a_full_disk_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full, logging_to(full, tmp_path) as server:
        server.answer_many()
        eventually(lambda: server.dropped_lines() >= MANY, "every line was dropped, and counted")


def test_a_reader_who_has_gone_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with logging_to(writing, tmp_path, stdout=writing) as server:
        os.close(writing)
        os.close(reading)
        server.answer_many()
        eventually(lambda: server.dropped_lines() >= MANY, "every line was dropped, and counted")


def test_a_server_without_standard_streams_serves(tmp_path: Path) -> None:
    with logging_to(None, tmp_path) as server:
        server.answer_many()
        assert server.dropped_lines() == 0
