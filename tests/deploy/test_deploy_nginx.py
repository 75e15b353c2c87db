"""The compose file's nginx, run by the nginx of this machine: no call is lost with a replica, no answer of one is changed.

The shipped configuration is run, with its own address and its replicas replaced: a Unix socket in place
of its port, and real servers on loopback ports in place of the name that Docker would look up.
"""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from http_bodies import npy
from server_process import PATIENCE_S, ROOT, Answer, ServerProcess, Wire, eventually, get, post

from service.client import Client
from service.client.retries import RetryPolicy
from service.errors import BY_CODE, CapacityError
from service.settings import MIB, Settings

SHIPPED = ROOT / "docs" / "compose" / "nginx"
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx-light")

SMALL = np.float32([0.6, -0.4, 2.5])
LARGE = np.linspace(-9, 9, 4 * MIB, dtype=np.float32)  # 16 MiB


# The proxy ------------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """A line of nginx's log: the caller's status, and the address of each replica that was asked."""

    request_id: str
    method: str
    status: int
    replicas: Sequence[str]


@dataclass(frozen=True)
class Proxy:
    """A running nginx. `address` is what the tests' connections need to know of a server."""

    folder: Path

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.folder / "socket"

    @property
    def address(self) -> str:
        """The same, as servers say it."""
        return f"unix:{self.socket}"

    def client(self, retries: int | RetryPolicy = 0) -> Client:
        """A client that does not try again, so that every loss shows."""
        return Client(uds=str(self.socket), retries=retries)

    def ask(self, request: bytes) -> Answer:
        """One request on a connection of its own."""
        with Wire(self) as wire:  # type: ignore[arg-type]
            return wire.ask(request)

    def calls(self, at_least: int = 0, **wanted: object) -> list[Call]:
        """What has been logged, of calls with these values; waits for so many (a call is logged after its answer)."""

        def found() -> list[Call] | None:
            calls = [
                Call(line["request_id"], line["method"], line["status"], line["replicas"].split(", "))
                for line in map(json.loads, (self.folder / "stdout").read_text().splitlines(keepends=True))
            ]
            matching = [call for call in calls if all(getattr(call, name) == value for name, value in wanted.items())]
            return matching if len(matching) >= at_least else None

        return eventually(found, f"{at_least} calls with {wanted} are logged")


def configured(folder: Path, ports: Sequence[int]) -> Path:
    """A copy of the shipped configuration for these replicas."""
    configuration = folder / "etc"
    shutil.copytree(SHIPPED, configuration)
    replicas = configuration / "replicas.conf"
    (shipped,) = re.findall(r"^server server:8000 resolve (.+);$", replicas.read_text(), re.MULTILINE)
    replicas.write_text("".join(f"server 127.0.0.1:{port} {shipped};\n" for port in ports))
    main = configuration / "nginx.conf"
    text, count = re.subn(r"\blisten 8080;", f"listen unix:{folder}/socket;", main.read_text())
    assert count == 1
    main.write_text(text)
    return main


@contextmanager
def proxying(folder: Path, *ports: int) -> Iterator[Proxy]:
    """nginx before the replicas on these ports; told to stop in the end."""
    proxy = Proxy(folder)
    assert NGINX is not None
    prefix = folder / "prefix"
    prefix.mkdir()
    # Its workers would be `nobody`, who may not enter a test's folder.
    as_root = ["-g", "user root;"] if os.geteuid() == 0 else []
    command = [NGINX, "-p", f"{prefix}/", "-c", str(configured(folder, ports)), "-e", "stderr", *as_root]
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
    said = folder / "stderr"

    def listens() -> bool:
        assert process.poll() is None, said.read_text()
        return proxy.socket.exists() and proxy.ask(get("/metrics")).status == 404

    try:
        eventually(listens, "nginx listens")
        yield proxy
    finally:
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    assert not re.search(r"\[(emerg|alert|crit)\]", said.read_text()), said.read_text()
    assert not list((prefix / "body").iterdir()), "bodies are left behind"


@contextmanager
def replicas(count: int, *flags: str, at: Sequence[int] = ()) -> Iterator[list[ServerProcess]]:
    """Servers that a test may stop, kill and leave as it likes."""
    with ExitStack() as stack:
        servers = []
        for index in range(count):
            place = ("--port", str(at[index])) if at else ()
            server = ServerProcess(*place, *flags)
            stack.callback(server.stop, signal.SIGKILL)
            servers.append(server)
        yield servers


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Proxy, list[ServerProcess]]]:
    """nginx before two servers, of 1 MiB each, for the tests that leave them as they are."""
    limits = ("--max-body-bytes", str(MIB), "--max-in-flight-bytes", str(MIB))
    with replicas(2, *limits) as servers, proxying(tmp_path_factory.mktemp("nginx"), *(one.port for one in servers)) as proxy:
        yield proxy, servers


# What the answers are -------------------------------------------------------------------------------------


@needs_nginx
def test_calls_through_the_proxy_have_their_bits_and_every_replica_has_its_share(tmp_path: Path) -> None:
    with replicas(2) as servers, proxying(tmp_path, *(one.port for one in servers)) as proxy, proxy.client() as client:
        for x in (SMALL, LARGE) * 4:
            np.testing.assert_array_equal(client.quantize("round", x).view(np.int32), np.rint(x).view(np.int32))
        grad_x = client.grad("clamp(0, 1)", LARGE, LARGE)
        np.testing.assert_array_equal(grad_x, np.where((LARGE >= 0) & (LARGE <= 1), LARGE, np.float32(0)))
        asked = [address for call in proxy.calls(at_least=9, method="POST") for address in call.replicas]
    assert set(asked) == {f"127.0.0.1:{one.port}" for one in servers}
    assert len(asked) == 9
    assert min(map(asked.count, asked)) >= 4


@needs_nginx
@pytest.mark.parametrize(
    ("code", "request_bytes"),
    [
        ("body_too_large", post(npy(LARGE))),
        ("bad_parameter", post(npy(SMALL), "op=k_bit_quantize&k=0")),
        ("malformed_body", post(npy(SMALL)[:-1])),
        ("unsupported_media_type", post(npy(SMALL), media_type="text/plain")),
        ("method_not_allowed", get("/quantize?op=round")),
        ("uri_too_long", get("/quantize?op=" + "r" * 9000)),
        ("headers_too_large", get("/quantize?op=round", "X: " + "x" * 17_000)),
        ("not_found", get("/nowhere")),
    ],
)
def test_a_refusal_passes_as_the_replica_has_written_it(
    code: str, request_bytes: bytes, pair: tuple[Proxy, list[ServerProcess]]
) -> None:
    proxy, (server, _) = pair
    with Wire(server) as wire:
        direct = asked_patiently(wire, request_bytes)
    with Wire(proxy) as wire:  # type: ignore[arg-type]
        passed = asked_patiently(wire, request_bytes)
    assert direct.code == code
    assert without_own_headers(passed) == without_own_headers(direct)


def asked_patiently(wire: Wire, request: bytes) -> Answer:
    """The answer to a request that may be refused before all of it has been taken."""
    wire.send_until_refused(request)
    return wire.read()


def without_own_headers(answer: Answer) -> Answer:
    """An answer without the headers that every proxy writes anew."""
    own = ("connection", "date", "server", "x-request-id")
    # How long it took is told by both, and differs.
    kept = {name: re.sub(r"[0-9.]+", "", value) if name == "server-timing" else value for name, value in answer.headers.items()}
    return Answer(answer.status, {name: value for name, value in kept.items() if name not in own}, answer.body)


@needs_nginx
def test_too_much_in_flight_is_the_callers_to_wait_for(pair: tuple[Proxy, list[ServerProcess]]) -> None:
    proxy, servers = pair
    body = npy(np.zeros(200_000, np.float32))
    with ExitStack() as stack:
        for server in servers:
            wire = stack.enter_context(Wire(server))
            wire.send(post(body)[:-1])
            eventually(lambda server=server: server.metric("stequant_in_flight_bytes") > 0, "the call is in flight")
        answer = proxy.ask(post(body))
        assert (answer.status, answer.code) == (429, "overloaded")
        assert 1 <= int(answer.headers["retry-after"]) <= 30
        (refused,) = proxy.calls(at_least=1, status=429)
        assert len(refused.replicas) == 1


@needs_nginx
def test_a_replica_that_drains_is_passed_over_until_no_other_is_left(tmp_path: Path) -> None:
    with replicas(2, "--drain-delay-s", "60") as servers, proxying(tmp_path, *(one.port for one in servers)) as proxy:
        servers[0].process.send_signal(signal.SIGTERM)
        eventually(lambda: is_draining(servers[0]), "the first drains")
        assert {proxy.ask(get("/readyz")).status for _ in range(4)} == {200}
        servers[1].process.send_signal(signal.SIGTERM)
        eventually(lambda: is_draining(servers[1]), "the second drains")
        answer = proxy.ask(get("/readyz"))
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert json.loads(answer.body)["draining"] is True
        with proxy.client() as client:  # they still take calls
            np.testing.assert_array_equal(client.quantize("round", SMALL), np.rint(SMALL))


def is_draining(server: ServerProcess) -> bool:
    """Whether the server says so."""
    with Wire(server) as wire:
        return wire.ask(get("/readyz")).status == 503


# Replicas that die ----------------------------------------------------------------------------------------


@needs_nginx
@pytest.mark.parametrize("x", [SMALL, LARGE], ids=["small", "16 MiB"])
def test_calls_that_a_replica_has_when_it_is_killed_are_sent_to_another(x: np.ndarray, tmp_path: Path) -> None:
    """A stopped replica takes calls and answers none; of 8 it has 4 when it is killed."""
    with replicas(2) as servers, proxying(tmp_path, *(one.port for one in servers)) as proxy:
        doomed = servers[0]
        doomed.process.send_signal(signal.SIGSTOP)
        answered: list[bool] = []

        def call() -> None:
            with proxy.client() as client:
                y = client.quantize("round", x)
            answered.append(np.array_equal(y.view(np.int32), np.rint(x).view(np.int32)))

        with running([call] * 8):
            eventually(lambda: len(answered) == 4, "the other replica has answered its calls")
            doomed.process.kill()
        assert answered == [True] * 8
        logged = proxy.calls(at_least=8, method="POST")
    passed_on = [call for call in logged if len(call.replicas) > 1]
    assert len(passed_on) == 4
    for one in logged:
        assert one.status == 200
        assert one.replicas[-1].endswith(f":{servers[1].port}")
    assert {one.replicas[0] for one in passed_on} == {f"127.0.0.1:{doomed.port}"}


@needs_nginx
def test_no_call_is_lost_when_a_replica_is_killed_in_the_middle_of_traffic(tmp_path: Path) -> None:
    """Small calls without retries; large ones, whose answer may have begun, with those that a client makes by default."""
    lost: list[BaseException] = []
    counts = [0] * 8
    with replicas(2) as servers, proxying(tmp_path, *(one.port for one in servers)) as proxy:
        stop = threading.Event()

        def calls(number: int) -> None:
            is_large = number >= 6
            x = np.random.default_rng(number).normal(size=2**20 if is_large else 1000).astype(np.float32)
            expected = np.rint(x).tobytes()
            try:
                with proxy.client(retries=5 if is_large else 0) as client:
                    while not stop.is_set():
                        assert client.quantize("round", x).tobytes() == expected
                        counts[number] += 1
            except BaseException as error:
                lost.append(error)

        with running([lambda number=number: calls(number) for number in range(len(counts))], stop):
            eventually(lambda: min(counts) >= 5 or bool(lost), "every client was answered 5 times")
            servers[0].process.kill()
            wanted = [count + 5 for count in counts]
            eventually(
                lambda: all(count >= goal for count, goal in zip(counts, wanted, strict=True)) or bool(lost),
                "every client was answered 5 times more",
            )
        assert not lost
        logged = proxy.calls(at_least=sum(counts), method="POST")
    # Where an answer had begun, its caller has seen a broken one, under the status 200.
    assert {call.status for call in logged} == {200}
    assert [call for call in logged if len(call.replicas) > 1], "no call was passed on"


@needs_nginx
def test_while_no_replica_is_there_callers_are_told_to_come_back_and_the_client_does(tmp_path: Path) -> None:
    with replicas(1) as servers:
        ports = [servers[0].port]
    with proxying(tmp_path, *ports) as proxy:
        answer = proxy.ask(post(npy(SMALL)))
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert_is_problem(answer, "unavailable")
        with proxy.client() as client, pytest.raises(CapacityError, match="no replica has answered"):
            client.quantize("round", SMALL)
        results: list[np.ndarray] = []

        def call() -> None:
            with proxy.client(RetryPolicy(max_attempts=100, max_backoff_s=0.2)) as client:
                results.append(client.quantize("round", SMALL))

        with running([call]), replicas(1, at=ports):
            eventually(lambda: bool(results), "the call that came first is answered")
    np.testing.assert_array_equal(results[0], np.rint(SMALL))


@contextmanager
def running(tasks: Sequence[Callable[[], None]], stop: threading.Event | None = None) -> Iterator[None]:
    """Threads for the length of a block; in the end they are told to stop, and waited for."""
    threads = [threading.Thread(target=task, daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        if stop is not None:
            stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert not [thread for thread in threads if thread.is_alive()]


# What nginx itself says -----------------------------------------------------------------------------------


def assert_is_problem(answer: Answer, code: str) -> None:
    """The document is the one that the service would have sent."""
    error = BY_CODE[code]
    document = json.loads(answer.body)
    assert answer.code == code
    assert answer.status == error.status
    assert document["type"] == f"urn:stequant:problem:{code}"
    assert document["title"] == error.title


@needs_nginx
def test_a_body_is_taken_up_to_the_servers_own_limit(pair: tuple[Proxy, list[ServerProcess]]) -> None:
    proxy, _ = pair
    limit_bytes = Settings.model_fields["max_body_bytes"].default
    with Wire(proxy) as wire:  # type: ignore[arg-type]
        answer = wire.ask(post(b"", "op=round", "Expect: 100-continue", length=limit_bytes))
        assert answer.status == 100
    with Wire(proxy) as wire:  # type: ignore[arg-type]
        answer = wire.ask(post(b"", length=limit_bytes + 1))
    assert_is_problem(answer, "body_too_large")
    assert str(limit_bytes) in json.loads(answer.body)["detail"]


@needs_nginx
def test_the_numbers_of_some_replica_are_not_offered(pair: tuple[Proxy, list[ServerProcess]]) -> None:
    assert_is_problem(pair[0].ask(get("/metrics")), "not_found")


@needs_nginx
def test_no_answer_tells_a_version(pair: tuple[Proxy, list[ServerProcess]]) -> None:
    proxy, _ = pair
    for request in (get("/healthz"), get("/nowhere"), b"nonsense\r\n\r\n", get("/metrics")):
        with Wire(proxy) as wire:  # type: ignore[arg-type]
            wire.send(request)
            said = wire.socket.recv(65536)
        assert b"nginx" in said
        assert not re.search(rb"nginx/|[0-9]\.[0-9]+\.[0-9]", said), said


# What a replica is told -----------------------------------------------------------------------------------


class Told(http.server.BaseHTTPRequestHandler):
    """A replica that answers with the headers it was sent, and with a request id of its own."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps({name.lower(): value for name, value in self.headers.items()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Request-Id", "the replica's")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing is logged."""


@needs_nginx
def test_a_call_has_one_name_for_caller_replica_and_log(tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Told) as replica:
        thread = threading.Thread(target=replica.serve_forever)
        thread.start()
        try:
            with proxying(tmp_path, replica.server_address[1]) as proxy:
                given = proxy.ask(get("/", "X-Request-Id: mine"))
                made = proxy.ask(get("/", host="example.org"))
                odd = proxy.ask(get("/", "X-Request-Id: two words"))
                names = [call.request_id for call in proxy.calls(at_least=3, status=200)]
        finally:
            replica.shutdown()
            thread.join(PATIENCE_S)
    answers = (given, made, odd)
    assert [answer.headers["x-request-id"] for answer in answers] == names
    assert names[0] == "mine"
    assert all(re.fullmatch("[0-9a-f]{32}", name) for name in names[1:])
    told = [json.loads(answer.body) for answer in answers]
    assert [one["x-request-id"] for one in told] == names
    assert told[1]["host"] == "example.org"
    assert all("connection" not in one for one in told), "connections to replicas are kept"


# The text of the configuration ----------------------------------------------------------------------------


def directives() -> Mapping[str, str]:
    """The directives of the configuration that stand there once, with their values."""
    text = re.sub(r"^\s*#.*$", "", (SHIPPED / "nginx.conf").read_text(), flags=re.MULTILINE)
    found = re.findall(r"^\s*([a-z_]+)\s+([^;{}]+);$", text, re.MULTILINE)
    names = [name for name, _ in found]
    return {name: value for name, value in found if names.count(name) == 1}


@pytest.mark.parametrize(
    ("directive", "setting", "unit"),
    [
        ("client_max_body_size", "max_body_bytes", "m"),
        ("client_header_timeout", "header_timeout_s", "s"),
        ("client_body_timeout", "body_idle_timeout_s", "s"),
        ("send_timeout", "write_timeout_s", "s"),
    ],
)
def test_limits_and_times_are_those_of_the_servers_settings(directive: str, setting: str, unit: str) -> None:
    default = Settings.model_fields[setting].default
    assert directives()[directive] == f"{default // MIB if unit == 'm' else default}{unit}"


def test_nginx_lets_go_of_an_idle_replica_before_the_replica_does_and_keeps_idle_callers_as_long_as_it_would() -> None:
    text = (SHIPPED / "nginx.conf").read_text()
    to_replicas_s, to_callers_s = (int(value) for value in re.findall(r"^\s*keepalive_timeout ([0-9]+)s;$", text, re.MULTILINE))
    assert to_replicas_s < to_callers_s == Settings.model_fields["keep_alive_s"].default


def test_nothing_is_written_outside_of_the_prefix() -> None:
    """The root is read-only: every path that nginx would make is there, and none is absolute."""
    found = directives()
    made = ["pid", *(f"{kind}_temp_path" for kind in ("client_body", "proxy", "fastcgi", "scgi", "uwsgi"))]
    assert {name: found[name] for name in made if found[name].startswith("/")} == {}
    assert found["error_log"] == "stderr warn"
    assert found["access_log"] == "/dev/stdout calls"
