"""Processes: workers, Unix sockets, signals, exit statuses, and what is said when a server cannot start."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from http_bodies import npy
from server_process import ROOT, ServerProcess, Wire, command, environment, eventually, get, http_connection, post

from service.cli import main
from service.client import Client

SMALL, ROUNDED = npy(torch.tensor([0.6, -0.4])), npy(torch.tensor([1.0, -0.0]))


@contextmanager
def started(*flags: str, variables: dict[str, str] | None = None) -> Iterator[ServerProcess]:
    """A server that the test ends itself; killed if it did not."""
    server = ServerProcess(*flags, variables=variables)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.stop()


def refused_to_start(*flags: str, variables: dict[str, str] | None = None) -> str:
    """The one line that a server says which cannot start."""
    done = subprocess.run(
        command("serve", "--device", "cpu", *flags),
        cwd=ROOT,
        env=environment(variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode not in (0, -signal.SIGTERM)
    assert done.stdout == ""
    lines = done.stderr.strip().split("\n")
    assert len(lines) == 1, done.stderr
    return lines[0]


def refused_here(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The same, in this process: for what is refused before anything is set up."""
    assert main(["serve", *flags]) not in (0, None)
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.strip().split("\n")
    assert len(lines) == 1, said.err
    return lines[0]


# Signals -------------------------------------------------------------------------------------------------


def test_no_call_is_lost_when_a_server_under_load_is_told_to_stop() -> None:
    """Eight clients, one connection each, no retries: each goes on until it is told that the connection ends."""
    large = npy(torch.ones(100_000))
    lost: list[BaseException | int] = []
    answered = [0] * 8

    def calls(client: int) -> None:
        body = large if client % 2 else SMALL
        try:
            connection = http_connection(server)
            while True:
                connection.request("POST", "/quantize?op=round", body, {"Content-Type": "application/x-npy"})
                response = connection.getresponse()
                if len(response.read()) != len(body) or response.status != 200:
                    lost.append(response.status)
                answered[client] += 1
                if response.getheader("connection") == "close":
                    connection.close()
                    return
        except (OSError, http.client.HTTPException) as error:
            lost.append(error)

    with started() as server:
        threads = [threading.Thread(target=calls, args=(client,)) for client in range(8)]
        for thread in threads:
            thread.start()
        eventually(lambda: min(answered) >= 20, "every client was answered 20 times")
        assert server.stop() == 0
        for thread in threads:
            thread.join(30)
    assert not lost
    assert min(answered) >= 20


def test_a_call_in_flight_is_answered_after_the_signal_unless_its_grace_has_passed() -> None:
    request = post(npy(torch.linspace(-9, 9, 300_000)), "op=clamp(-1,1)")
    half = len(request) // 2
    with started("--grace-s", "2") as server, Wire(server) as wire, Wire(server) as unfinished, Wire(server) as other:
        other.ask(get("/healthz"))
        wire.send(request[:half])
        unfinished.send(request[:half])
        other.ask(get("/healthz"))
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: other.is_closed(0) or None, "idle connections are closed")
        wire.send(request[half:])
        answer = wire.read()
        assert answer.status == 200
        assert answer.headers["connection"] == "close"
        assert answer.body == npy(torch.linspace(-9, 9, 300_000).clamp(-1, 1))
        assert wire.is_closed()
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 4


def test_while_it_drains_a_server_is_not_ready_but_still_answers() -> None:
    with started("--drain-delay-s", "2") as server, Wire(server) as wire:
        assert wire.ask(get("/readyz")).status == 200
        server.process.send_signal(signal.SIGTERM)

        def not_ready() -> dict[str, object] | None:
            answer = wire.ask(get("/readyz"))
            return json.loads(answer.body) if answer.status == 503 and "retry-after" in answer.headers else None

        assert eventually(not_ready, "/readyz says no")["draining"] is True
        assert wire.ask(post(SMALL)).body == ROUNDED
        with Wire(server) as new:  # new connections are still taken
            assert new.ask(post(SMALL)).body == ROUNDED
        assert server.stop() == 0


def test_a_second_signal_ends_at_once() -> None:
    request = post(npy(torch.ones(1000)))
    with started() as server, Wire(server) as unfinished, Wire(server) as idle:
        idle.ask(get("/healthz"))
        unfinished.send(request[:-1])  # its grace would be 30 s
        idle.ask(get("/healthz"))
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: idle.is_closed(0) or None, "the first signal was seen")
        assert server.process.poll() is None
        began = time.monotonic()
        server.stop(signal.SIGINT)
        assert time.monotonic() - began < 2


# Unix sockets --------------------------------------------------------------------------------------------


def listening_tcp_sockets(pid: int) -> set[str]:
    """The inodes of a process's listening TCP sockets."""
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A":
                listening.add(columns[9])
    own = {
        os.readlink(entry).removeprefix("socket:[").rstrip("]")
        for entry in Path(f"/proc/{pid}/fd").iterdir()
        if entry.exists() or True
    }
    return listening & own


def test_a_unix_socket_is_served_and_no_port(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place))  # as a server leaves it that was killed: it is taken over
    with started(variables={"STEQUANT_UDS": str(place), "STEQUANT_PORT": "1"}) as server:
        assert server.address == f"unix:{place}"
        assert not listening_tcp_sockets(server.pid)
        x = np.linspace(-3, 3, 300_000, dtype=np.float32)
        with Client(uds=str(place), retries=0) as client:
            np.testing.assert_array_equal(client.quantize("round", x), np.rint(x))
            np.testing.assert_array_equal(client.grad("clamp(0, 1)", x, x), np.where((x >= 0) & (x <= 1), x, 0))
        np.save(tmp_path / "x.npy", x)
        assert main(["quantize", str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), "--op", "ceil", "--uds", str(place)]) == 0
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), np.ceil(x))
        assert str(place) in refused_here(capsys, "--uds", str(place))
        assert place.is_socket()  # the refused one has not taken it away
        with Wire(server) as idle, Wire(server) as silent:
            assert idle.ask(post(SMALL)).body == ROUNDED
            began = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - began < 2
            assert idle.is_closed()
            assert silent.is_closed()
        assert server.lines[-1].endswith("stopped")
    assert not place.exists()


def test_a_file_in_the_place_of_the_socket_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "data"
    place.write_text("precious")
    assert str(place) in refused_here(capsys, "--uds", str(place))
    assert place.read_text() == "precious"


# Workers -------------------------------------------------------------------------------------------------


def descendants(pid: int) -> set[int]:
    """The processes that a process has started, and those that they have started."""
    try:
        children = {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except FileNotFoundError:
        return set()
    return children.union(*map(descendants, children))


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def two_workers(folder: Path) -> Iterator[ServerProcess]:
    """A server with two workers, both of which have answered."""
    with started("--workers", "2", variables={"TMPDIR": str(folder)}) as server:
        eventually(lambda: sum("device cpu" in line for line in server.lines) == 2, "both workers have started")
        yield server


def test_two_workers_share_a_port_and_their_metrics_are_summed(tmp_path: Path) -> None:
    with two_workers(tmp_path) as server:
        for _ in range(30):
            with Wire(server) as wire:
                assert wire.ask(post(SMALL)).body == ROUNDED
        # A call is counted when its answer has left. Whoever is asked tells of all.
        for _ in range(6):
            eventually(
                lambda: server.metric("stequant_requests_total", route="/quantize", status="200") == 30, "30 calls are counted"
            )
        assert server.metric("stequant_in_flight_bytes") == 0
        # What a worker leaves that ends in the moment in which it makes its file.
        (folder,) = tmp_path.glob("stequant-metrics-*")
        (folder / "counter_1.db").touch()
        assert server.metric("stequant_requests_total", route="/quantize", status="200") == 30
        workers = descendants(server.pid)
        assert len(workers) >= 2
        assert server.stop() == 0
        eventually(lambda: not [pid for pid in workers if is_alive(pid)], "no process is left")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_worker_that_dies_is_started_again_and_all_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    with two_workers(tmp_path) as server:
        pids = {pid for pid in descendants(server.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()}
        assert len(pids) == 2
        os.kill(pids.pop(), signal.SIGKILL)
        eventually(lambda: sum("device cpu" in line for line in server.lines) == 3, "a third worker has started")
        with Wire(server) as wire:
            assert wire.ask(post(SMALL)).body == ROUNDED
        port, workers = server.port, descendants(server.pid)
        assert len(workers) >= 2
        server.process.kill()
        server.process.wait()
        eventually(lambda: not [pid for pid in workers if is_alive(pid)], "no worker is left")
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", port))
            again.listen()


# Servers that cannot start -------------------------------------------------------------------------------


def test_a_port_that_is_taken_gives_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused_here(capsys, "--port", str(port))
    assert str(port) in line
    assert "--port" in line


@pytest.mark.parametrize(
    ("flags", "variables", "words"),
    [
        (("--device", "cuda:99"), {}, ("cuda:99",)),
        (("--api-keys-file", "/nowhere/keys"), {}, ("/nowhere/keys",)),
        ((), {"STEQUANT_WORKERS": "zero"}, ("STEQUANT_WORKERS", "'zero'")),
    ],
)
def test_a_setting_that_cannot_be_met_gives_one_line(
    flags: tuple[str, ...], variables: dict[str, str], words: tuple[str, ...]
) -> None:
    line = refused_to_start(*flags, "--port", "0", variables=variables)
    for word in words:
        assert word in line


def test_a_host_that_is_none_gives_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "256.256.256.256" in refused_here(capsys, "--host", "256.256.256.256", "--port", "0")
