"""The comparison with other tensor servers sends what they take, believes only right bits, and hides nothing that failed."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cells
from benchmarks.bounds import Bound
from benchmarks.payloads import Payload, WrongBits
from benchmarks.peers import report
from benchmarks.peers.bench import PeerBench, PeerServer
from benchmarks.peers.catalogue import PEERS, Peer, tuned_name
from benchmarks.peers.install import NotInstalled, install, reason, run, site_packages
from benchmarks.peers.payloads import RawPayload, TritonPayload
from benchmarks.peers.results import PeerNote, PeerResults
from benchmarks.peers.run import comparisons, not_started, selected
from benchmarks.results import Measured, MemoryUse, Row, Sample
from benchmarks.servers import Kind, ServerFailed
from benchmarks.units import KIB, MIB

TENSOR = Payload("quantize", "npy", 4 * KIB)
RAW, TRITON = RawPayload(TENSOR, "/predict"), TritonPayload(TENSOR, "/v2/models/k_bit_quantize/infer")
X = np.load(io.BytesIO(TENSOR.body()))
Y = TENSOR.expected()[0]


def parsed(request: bytes) -> tuple[str, dict[str, str], bytes]:
    head, _, body = request.partition(b"\r\n\r\n")
    line, *headers = head.decode().split("\r\n")
    return line, dict(header.split(": ", 1) for header in headers), body


def described(**changes: object) -> bytes:
    """The JSON object in front of an answer of Triton."""
    output = {"name": "y", "datatype": "FP32", "shape": [1024], "parameters": {"binary_data_size": 4 * KIB}} | changes
    return json.dumps({"model_name": "k_bit_quantize", "model_version": "1", "outputs": [output]}).encode()


def test_a_raw_request_is_the_bytes_of_the_tensor() -> None:
    line, headers, body = parsed(RAW.request())
    assert line == "POST /predict HTTP/1.1"
    assert headers == {"Host": "benchmark", "Content-Type": "application/octet-stream", "Content-Length": "4096"}
    assert body == X.tobytes()


def test_a_request_to_triton_describes_the_tensor_and_appends_its_bytes() -> None:
    line, headers, body = parsed(TRITON.request())
    assert line == "POST /v2/models/k_bit_quantize/infer HTTP/1.1"
    length = int(headers["Inference-Header-Content-Length"])
    assert int(headers["Content-Length"]) == len(body) == length + 4 * KIB
    assert body[length:] == X.tobytes()
    message = json.loads(body[:length])
    assert message["inputs"] == [
        {"name": "x", "shape": [1024], "datatype": "FP32", "parameters": {"binary_data_size": 4 * KIB}},
    ]
    assert message["outputs"] == [{"name": "y", "parameters": {"binary_data": True}}]


def test_answers_are_right_only_with_numpys_bits() -> None:
    RAW.check(Y.tobytes())
    TRITON.check(described() + Y.tobytes())
    wrong = Y.copy()
    wrong[-1] = np.nextafter(wrong[-1], np.float32(9))
    for answer in (wrong.tobytes(), Y.tobytes()[:-4], Y.tobytes() + b"\0", b"", X.tobytes()):
        with pytest.raises(WrongBits, match="not what NumPy computes"):
            RAW.check(answer)
    with pytest.raises(WrongBits, match="not what NumPy computes"):
        TRITON.check(described() + wrong.tobytes())


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"error": "no"}',
        b'{"outputs": []}',
        b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [1024], "data": []}]}',
        described(name="z"),
        described(datatype="FP16"),
        described(shape=[1, 1024]),
        described(parameters={"binary_data_size": 4}),
    ],
)
def test_an_answer_of_triton_with_another_description_is_wrong(head: bytes) -> None:
    with pytest.raises(WrongBits):
        TRITON.check(head + Y.tobytes())


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_peer_is_pinned_with_all_that_it_needs(peer: Peer) -> None:
    lines = [line for line in peer.requirements.read_text().splitlines() if not line.startswith("#")]
    assert all(line.count("==") == 1 for line in lines)
    assert f"{peer.package}=={peer.version}" in lines
    assert any(line.startswith("numpy==") for line in lines)
    assert not any(line.startswith(("torch==", "nvidia-c")) for line in lines)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_the_programs_of_a_peer_exist_and_learn_port_and_way(peer: Peer, tmp_path: Path) -> None:
    commands = {kind.name: kind.command("127.0.0.1:1234") for kind in peer.kinds(tmp_path)}
    assert list(commands) == peer.names
    for name, command in commands.items():
        assert "1234" in command
        assert command[0] == "env"
        assert f"STEQUANT_PEER_TUNED={'1' if name == tuned_name(peer.name) else ''}" in command
        assert any(part.startswith(str(tmp_path / "bin")) for part in command)
    assert [path.suffix for path in peer.folder.glob("s*.py")] == [".py"]


def test_both_ways_of_the_peers_have_numpys_bits() -> None:
    """In a process of its own: the module sets the number of torch's threads."""
    payload = RawPayload(Payload("quantize", "npy", 3 * MIB + 4), "/")  # pieces, and a rest
    program = (
        "import sys; from benchmarks.peers.arithmetic import *; x = sys.stdin.buffer.read()\n"
        "for way in (as_written, in_place): sys.stdout.buffer.write(to_bytes(way(from_bytes(bytearray(x)))))"
    )
    command, root = [sys.executable, "-c", program], Path(__file__).parents[2]
    answers = subprocess.run(command, input=payload.body(), capture_output=True, check=True, cwd=root).stdout
    payload.check(answers[: payload.size_bytes])
    payload.check(answers[payload.size_bytes :])


def test_only_takes_a_peer_or_a_part_of_a_cell() -> None:
    assert [peer.name for peer in selected("triton", [])[0]] == ["Triton"]
    assert selected("triton", [])[1] == ""
    assert selected("4 KiB", []) == (list(PEERS), "4 KiB")
    assert "mosec" not in [peer.name for peer in selected("", ["mosec"])[0]]


def test_every_cell_has_ours_and_every_peer() -> None:
    made = comparisons(PEERS, cells.SIZES)
    assert {(one.size_bytes, one.connections) for one in made} == {(size, n) for size in cells.SIZES for n in cells.CONNECTIONS}
    for one in made:
        assert [contender.label for contender in one.contenders] == [cells.OURS, *(name for peer in PEERS for name in peer.names)]


def test_the_reason_of_pip_is_its_last_error() -> None:
    assert reason("WARNING: a\nERROR: no b\nERROR: no c\nnotice\n") == "no c"
    assert reason("something\nelse\n") == "else"
    assert reason("") == "nothing was said"
    assert len(reason("ERROR: " + "x" * 9000)) == 300


def test_an_environment_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    peer, said, commands = PEERS[0], [], []

    def execute(command: list[str]) -> None:
        commands.append(command)
        site_packages(tmp_path / "litserve").mkdir(parents=True, exist_ok=True)

    environments = {install(peer, said.append, tmp_path, execute) for _ in range(2)}
    assert environments == {tmp_path / "litserve"}
    assert len(said) == 1
    made, filled = commands
    assert made[1:3] == ["-m", "venv"]
    assert "--no-deps" in filled
    assert filled[-1] == str(peer.requirements)
    assert (tmp_path / ".gitignore").read_text() == "*\n"
    (lent,) = site_packages(tmp_path / "litserve").glob("*.pth")
    assert (Path(lent.read_text().strip()) / "torch").is_dir()


def test_what_cannot_be_installed_says_why(tmp_path: Path) -> None:
    def execute(command: list[str]) -> None:
        run([sys.executable, "-c", "import sys; sys.exit('ERROR: no such thing')"])

    with pytest.raises(NotInstalled, match="no such thing"):
        install(PEERS[0], print, tmp_path, execute)


class Handler(BaseHTTPRequestHandler):
    """A peer of the simplest kind."""

    protocol_version = "HTTP/1.1"
    answer = Y.tobytes()

    def do_GET(self) -> None:
        self.reply(b"")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply(self.answer)

    def reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_peer_gets_the_tensor_in_its_own_form(address: str, tmp_path: Path) -> None:
    """The bench speaks to a server that knows nothing but raw bytes."""
    peer = next(peer for peer in PEERS if peer.form == "raw")

    class Standing:
        kind = Kind(peer.name, lambda _: [])

    Standing.address = address
    with PeerBench({peer: tmp_path}, device="cpu", without=frozenset()) as bench:
        assert all(bench.has(name) for name in peer.names)
        assert bench.run(Standing, TENSOR, connections=1, seconds=0.05).requests > 0


def test_a_server_that_does_not_start_says_why_and_is_ended(tmp_path: Path) -> None:
    kind = Kind("broken", lambda _: [sys.executable, "-c", "raise SystemExit('no such device')"])
    with pytest.raises(ServerFailed, match="no such device"):
        PeerServer(kind, tmp_path, RAW.request())


def row(*rates: float, failures: tuple[str, ...] = ()) -> Row:
    samples = [Sample(requests=int(rate), elapsed_s=1.0, cpu_s=0.25, latency_us={"p99": 10.0}) for rate in rates]
    return Row(size_bytes=MIB, samples=samples, failures=list(failures))


def canned() -> PeerResults:
    rows = {
        "ours": row(900, 902, 898),
        "mosec": row(200, 201, 199),
        "mosec, tuned": row(1000, 1000, 1000),
        "Triton": row(300, 301, 299),
        "Triton, tuned": row(450, 450, 450),
        "BentoML": row(failures=("BentoML is not ready: no such file",) * 3),
    }
    notes = [
        PeerNote(name="LitServe", package="litserve", version="0.2", tensors="raw", rows=["LitServe"], missing="not installed: no"),
        PeerNote(name="BentoML", package="bentoml", version="1.4", tensors="raw", rows=["BentoML"], missing="BentoML is not ready"),
        PeerNote(name="mosec", package="mosec", version="0.9", tensors="raw", rows=["mosec", "mosec, tuned"]),
        PeerNote(name="Triton", package="nvidia-pytriton", version="0.7", tensors="binary", rows=["Triton", "Triton, tuned"]),
    ]
    return PeerResults(
        machine={"date": "2024-02-29", "processor": "a machine"},
        settings={"rounds": "3"},
        comparisons=[
            Measured(group="peers", size_bytes=MIB, connections=8, rows=rows),
            Measured(
                group="peers", size_bytes=4 * KIB, connections=1, rows={"ours": row(100), "mosec": row(50), "Triton": row(30)}
            ),
        ],
        memory=[
            MemoryUse(
                server="Triton", start_up_s=2.5, idle_bytes=200 * MIB, peak_bytes=1224 * MIB, after_bytes=300 * MIB, after_s=12
            )
        ],
        bytes_in_flight=512 * MIB,
        failures=["peers, 1 MiB, 8 connections, BentoML: BentoML is not ready: no such file (3 of 3 rounds)"],
        peers=notes,
    )


def test_the_best_is_the_one_with_the_highest_median() -> None:
    measured = canned().comparisons[0]
    assert report.best(measured, ["mosec", "Triton", "BentoML"]) == "Triton"
    assert report.best(measured, canned().rows) == "mosec, tuned"
    assert report.best(measured, ["BentoML", "LitServe"]) is None


def test_three_times_the_documented_and_ahead_of_all_is_wanted() -> None:
    found: dict[str, Bound] = {bound.claim: bound for bound in report.bounds(canned())}
    assert {claim: bound.met for claim, bound in found.items()} == {
        "1 MiB, 8 conn., to the best as documented, Triton": True,
        "1 MiB, 8 conn., to the best of all, mosec, tuned": False,
        "4 KiB, 1 conn., to the best as documented, mosec": False,
        "4 KiB, 1 conn., to the best of all, mosec": True,
    }


def test_the_report_shows_every_cell_and_hides_nobody() -> None:
    text = report.write(canned())
    assert "| 1 MiB, 8 | 900 | – | – | 200 | 1 000 | 300 | 450 | 3.00 (Triton) | **0.90** (mosec, tuned) | 0% |" in text
    assert "| 4 KiB, 1 | 100 | – | – | 50 | – | 30 | – | **2.00** (mosec) | 2.00 (mosec) | 0% |" in text
    assert "* LitServe 0.2: not installed: no" in text
    assert "* BentoML 1.4: BentoML is not ready" in text
    assert "| LitServe | litserve | 0.2 | raw | no |" in text
    assert "| Triton | nvidia-pytriton | 0.7 | binary | yes |" in text
    assert "| Triton | 2.50 | 200 | 1224 | 2.00 | 300 |" in text
    assert "| date | 2024-02-29 |" in text
    assert "(3 of 3 rounds)" in text
    for line in text.splitlines():
        assert not line.startswith("|") or line.endswith("|")


def test_who_was_never_measured_is_named_with_the_reason() -> None:
    assert not_started(canned().comparisons) == {"BentoML": "BentoML is not ready: no such file"}


def test_results_are_read_back_as_they_were() -> None:
    assert PeerResults.model_validate_json(canned().model_dump_json()) == canned()
