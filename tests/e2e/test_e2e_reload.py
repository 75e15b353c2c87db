"""SIGHUP: keys are read again at once, workers are replaced one after the other, and no call is lost meanwhile."""

from __future__ import annotations

import http.client
import itertools
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from http_bodies import npy
from server_process import ROOT, ServerProcess, Wire, command, environment, eventually, get, post, serving
from steady_load import steady_load
from test_e2e_workers import replaced
from worker_processes import is_alive, said, several_workers, workers_of

# Every one starts processes that import torch, several times.
pytestmark = pytest.mark.slow

SMALL, ROUNDED = npy(torch.tensor([0.6, -0.4])), npy(torch.tensor([1.0, -0.0]))


def hang_up(server: ServerProcess) -> None:
    server.process.send_signal(signal.SIGHUP)


def call_with(key: str) -> bytes:
    return post(SMALL, "op=round", f"Authorization: Bearer {key}")


@contextmanager
def locked(file: Path, *flags: str) -> Iterator[ServerProcess]:
    """A server with one worker that asks for the keys of a file."""
    with serving("--api-keys-file", str(file), *flags) as server:
        yield server


class WithKey(http.client.HTTPConnection):
    """A connection that sends a key with every request."""

    def putheader(self, header: str, *values: str) -> None:  # type: ignore[override]
        super().putheader(header, *values)
        if header == "Content-Type":
            super().putheader("Authorization", "Bearer lasting")


class OneCall(http.client.HTTPConnection):
    """A connection for one request; the next one connects anew."""

    def putheader(self, header: str, *values: str) -> None:  # type: ignore[override]
        super().putheader(header, *values)
        if header == "Content-Type":
            super().putheader("Connection", "close")


# Keys ----------------------------------------------------------------------------------------------------


def test_a_revoked_key_is_refused_on_connections_that_are_open_and_the_others_lose_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("old\nlasting\n")
    with locked(file) as server, Wire(server) as old, Wire(server) as new:
        for _ in range(4):  # from the second on the head is known by its bytes
            assert old.ask(call_with("old")).body == ROUNDED
        assert new.ask(call_with("new")).code == "unauthorized"
        with steady_load(lambda: WithKey("127.0.0.1", server.port, timeout=30), clients=4) as load:
            file.write_text("lasting\nnew\n")
            hang_up(server)
            eventually(lambda: old.ask(call_with("old")).status == 401, "the old key is refused")
            assert new.ask(call_with("new")).body == ROUNDED
            load.go_on(20)
        assert not load.lost
        assert old.ask(call_with("old")).code == "unauthorized"
        assert old.ask(get("/operators", "Authorization: Bearer old")).code == "unauthorized"
        assert len(said(server, "INFO", str(file), "read again: 2")) == 1


def test_keys_that_cannot_be_read_leave_the_old_ones_in_force(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("good\n")
    with locked(file) as server, Wire(server) as wire:
        for count, content in enumerate((None, "", "# all gone\n", "two words\n"), 1):
            file.unlink(missing_ok=True)
            if content is not None:
                file.write_text(content)
            hang_up(server)
            eventually(lambda count=count: len(said(server, "ERROR", str(file))) == count, "the error is logged")
            assert wire.ask(call_with("good")).body == ROUNDED
            assert wire.ask(call_with("words")).status == 401
        file.write_text("better\n")
        hang_up(server)
        eventually(lambda: wire.ask(call_with("better")).status == 200, "the next reload works")
        assert wire.ask(call_with("good")).status == 401


def test_metrics_are_open_where_the_settings_say_so(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("a\n")
    with locked(file, "--metrics-without-key", "true") as server, Wire(server) as wire:
        assert wire.ask(get("/metrics")).status == 200
        assert wire.ask(get("/operators")).code == "unauthorized"


def test_a_server_without_keys_takes_a_hangup_for_nothing() -> None:
    with serving() as server, Wire(server) as wire:
        hang_up(server)
        for _ in range(20):
            assert wire.ask(post(SMALL)).body == ROUNDED


# Workers -------------------------------------------------------------------------------------------------


def replace_under_load(server: ServerProcess, rounds: int) -> int:
    """Replace all workers, again and again, while clients call; the calls answered, all of them rightly."""
    kinds = itertools.cycle([http.client.HTTPConnection, OneCall])
    with steady_load(lambda: next(kinds)("127.0.0.1", server.port, timeout=30)) as load:
        for _ in range(rounds):
            before = workers_of(server)
            hang_up(server)
            eventually(lambda before=before: replaced(server, before), "all workers are replaced")
            load.go_on(5)
    assert not load.lost
    return load.total


def test_all_workers_are_replaced_and_no_call_is_lost() -> None:
    with several_workers() as server, Wire(server) as probe:
        assert probe.ask(get("/readyz")).status == 200
        replace_under_load(server, 1)
        eventually(lambda: bool(said(server, "all workers were replaced")), "the end is logged")
        assert not said(server, "ERROR")
        with Wire(server) as wire:
            assert wire.ask(get("/readyz")).status == 200


@pytest.mark.soak
def test_no_call_is_lost_in_ten_rolling_restarts() -> None:
    with several_workers() as server:
        calls = replace_under_load(server, 10)
    print(f"10 rolling restarts of 2 workers under load, {calls} calls, 0 lost")


def test_a_call_in_flight_is_answered_by_the_worker_that_is_replaced() -> None:
    request = post(npy(torch.linspace(-9, 9, 300_000)))
    with several_workers("--body-idle-timeout-s", "100") as server, Wire(server) as wire:
        wire.send(request[:-10])
        eventually(lambda: server.metric("stequant_in_flight_bytes") > 1_000_000, "the call is in flight")
        before = workers_of(server)
        hang_up(server)
        eventually(lambda: bool(said(server, "all workers were replaced")), "the new workers are there")
        wire.send(request[-10:])
        answer = wire.read()
        assert (answer.status, answer.body) == (200, npy(torch.linspace(-9, 9, 300_000).round()))
        eventually(lambda: replaced(server, before), "the old ones have gone")
        assert wire.is_closed()
        assert not said(server, "ERROR")


def test_keys_change_at_once_in_all_workers_and_a_broken_file_replaces_none(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("old\n")
    with several_workers("--api-keys-file", str(file)) as server:
        before = workers_of(server)
        wires = [Wire(server) for _ in range(12)]  # of which either worker has some
        assert all(wire.ask(call_with("old")).status == 200 for wire in wires)
        file.write_text("")
        hang_up(server)
        eventually(lambda: bool(said(server, "ERROR", "not replaced")), "the workers are not replaced")
        assert len(said(server, "ERROR", str(file))) >= 3
        assert workers_of(server) == before
        assert all(wire.ask(call_with("old")).status == 200 for wire in wires)
        file.write_text("new\n")
        hang_up(server)
        # Before the first new worker can be there.
        eventually(lambda: all(wire.ask(call_with("old")).status == 401 for wire in wires), "the old key is refused", 3)
        assert workers_of(server) >= before
        for wire in wires:
            wire.socket.close()
        eventually(lambda: replaced(server, before), "all workers are replaced")


# Terminals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_ends_with_the_terminal_that_it_was_started_in(tmp_path: Path, workers: int) -> None:
    """The terminal is a pty; it goes when the process that holds its other end is killed.

    Hangups are not ignored there, even where they are by who runs this test, as under `nohup`.
    """
    pid_file = tmp_path / "pid"
    default = "signal.signal(signal.SIGHUP, signal.SIG_DFL)"
    shell = f"['sh', '-c', 'echo $$ > {pid_file}; exec \"$0\" \"$@\"', *sys.argv[1:]]"
    start = f"import pty, signal, sys; {default}; pty.spawn({shell})"
    serve = command("serve", "--device", "cpu", "--port", "0", "--workers", str(workers))
    with subprocess.Popen(
        [sys.executable, "-c", start, *serve], cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as terminal:
        assert terminal.stdout is not None
        said_here = 0
        for line in terminal.stdout:
            said_here += "device cpu" in line
            if said_here == workers:
                break
        server = int(pid_file.read_text())
        assert is_alive(server)
        terminal.kill()
        eventually(lambda: not is_alive(server), "the server has ended")
