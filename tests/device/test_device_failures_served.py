"""A server whose device breaks or hangs: callers are answered, probes say no, the process ends with status 70."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from wire_tensors import on_wire

from service.wire import FORMATS
from service.wire.message import Bundle

HERE = Path(__file__).parent
SOON_S = 30.0

# A server as `stequant serve` runs it, on a device that lines on standard input break or make hang.
SERVER = """
import sys
sys.path[:0] = sys.argv[1:2]
import threading, torch
from scripted_device import ScriptedDevice
from service.processes.errors import DEVICE_FAILED, DeviceHasFailed
from service.processes.server import serve
from service.processes.sockets import listening
from service.settings import Settings
device = ScriptedDevice(lanes=2, hang_s=3600)
hold = device.held()

def obey():
    for line in sys.stdin:
        match line.strip():
            case "hang": hold.__enter__()
            case "break": device.errors.extend([torch.AcceleratorError("CUDA error: broken")] * 100)
            case "spoil": device.spoils_bits = True
        print("done", flush=True)

threading.Thread(target=obey, daemon=True).start()
settings = Settings(uds=sys.argv[2], device_timeout_s=1.0, log_level="warning")
with listening(settings) as sock:
    try:
        serve(settings, sock, device=device)
    except DeviceHasFailed:
        sys.exit(DEVICE_FAILED)
"""


class Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=SOON_S)
        self.path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(SOON_S)
        self.sock.connect(self.path)


class Server:
    """The process, what it is told, and what it answers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(HERE), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE.parent.parent,
        )

    def tell(self, what: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def get(self, path: str) -> tuple[int, dict]:
        return self.ask("GET", path)

    def quantize(self, n: int) -> tuple[int, dict]:
        body = b"".join(FORMATS["npy"].encode({"x": Bundle.of(on_wire(torch.ones(n)))}))
        return self.ask("POST", "/quantize?op=round", body)

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, dict]:
        connection = Connection(self.path)
        try:
            connection.request(method, path, body, {"Content-Type": "application/x-npy"} if body else {})
            answer = connection.getresponse()
            content = answer.read()
            if answer.status == 503:
                assert answer.headers["Retry-After"] == "1"
            return answer.status, json.loads(content) if "json" in answer.headers["Content-Type"] else {"bytes": content}
        finally:
            connection.close()

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + SOON_S
        while not self.is_ready():
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def is_ready(self) -> bool:
        try:
            return self.get("/readyz")[0] == 200
        except (OSError, http.client.HTTPException):
            return False


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    one = Server(tmp_path / "s")
    try:
        one.wait_until_ready()
        yield one
    finally:
        one.process.kill()
        one.process.communicate()


@pytest.mark.parametrize("size", [3, 2_000_000], ids=["small", "large"])
def test_a_broken_device_is_not_ready_at_once_and_the_process_ends(server: Server, size: int) -> None:
    assert server.quantize(size)[0] == 200
    server.tell("break")
    status, problem = server.quantize(size)
    assert (status, problem["code"]) == (503, "device_lost")
    assert problem["detail"] == "scripted:0 failed: CUDA error: broken"
    assert not server.is_ready()
    assert server.process.wait(SOON_S) == 70


def test_calls_that_hang_are_answered_and_the_process_ends(server: Server) -> None:
    server.tell("hang")
    answers: list[tuple[int, dict]] = []
    threads = [threading.Thread(target=lambda n=n: answers.append(server.quantize(n))) for n in (3, 4, 2_000_000, 2_000_001)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S)
    assert [(status, problem["code"]) for status, problem in answers] == [(503, "device_lost")] * 4
    assert server.process.wait(SOON_S) == 70


def test_wrong_bits_are_seen_by_readiness_and_end_the_process(server: Server) -> None:
    server.tell("spoil")
    deadline = time.monotonic() + SOON_S
    while (answer := server.get("/readyz"))[0] == 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert answer[1]["fault"] == "scripted:0 gave wrong bits for known values"
    assert answer[1]["ready"] is False
    assert server.process.wait(SOON_S) == 70
