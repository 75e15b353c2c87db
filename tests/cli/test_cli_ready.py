"""`stequant ready`: its exit statuses, where it asks, and that it stays light."""

from __future__ import annotations

import http.server
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import PATIENCE_S, ROOT, ServerProcess, command, environment, serving

READY, USAGE, NOT_READY = 0, 2, 3


def ask(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command, as a health check runs it."""
    return subprocess.run(
        command("ready", *arguments),
        cwd=ROOT,
        env=environment(variables),
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )


@pytest.fixture
def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


class _Scripted(http.server.BaseHTTPRequestHandler):
    """Answers with the statuses it was given, the last of them for ever; keeps what was asked."""

    statuses: list[int]
    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["Authorization"]))
        self.send_response(self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the standard library's word
        pass


class Scripted:
    """A server that answers what a test wants."""

    def __init__(self, *statuses: int, certificate: Path | None = None) -> None:
        self.asked: list[tuple[str, str | None]] = []
        handler = type("Handler", (_Scripted,), {"statuses": list(statuses), "asked": self.asked})
        self._server = http.server.HTTPServer(("127.0.0.1", 0), handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"{'http' if certificate is None else 'https'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def scripted() -> Iterator[list[Scripted]]:
    """Where a test puts its servers, so that they end."""
    started: list[Scripted] = []
    yield started
    for server in started:
        server.close()


def test_a_server_that_takes_calls_is_ready_and_nothing_is_said(server: ServerProcess) -> None:
    done = ask("--url", server.url)
    assert (done.returncode, done.stdout, done.stderr) == (READY, "", "")


def test_without_options_it_asks_the_server_that_these_variables_would_start(server: ServerProcess) -> None:
    for host in ("", "0.0.0.0", "127.0.0.1"):
        assert ask(STEQUANT_HOST=host, STEQUANT_PORT=str(server.port)).returncode == READY


def test_a_unix_socket_is_asked_by_option_or_variable(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with serving("--uds", path):
        assert ask("--uds", path).returncode == READY
        assert ask(STEQUANT_UDS=path).returncode == READY
    gone = ask("--uds", path)
    assert gone.returncode == NOT_READY
    assert f"unix:{path} is not ready" in gone.stderr


def test_where_nobody_listens_the_answer_is_3_at_once_and_in_one_line(free_port: int) -> None:
    begin = time.monotonic()
    done = ask("--url", f"http://127.0.0.1:{free_port}")
    assert done.returncode == NOT_READY
    assert time.monotonic() - begin < PATIENCE_S
    (line,) = done.stderr.splitlines()
    assert line == f"stequant: http://127.0.0.1:{free_port} is not ready: Connection refused"


def test_with_a_timeout_it_waits_for_a_server_that_comes(scripted: list[Scripted]) -> None:
    scripted.append(Scripted(503, 502, 404, 200))
    assert ask("--url", f"{scripted[0].url}/under/", "--timeout", "60").returncode == READY
    assert [path for path, _ in scripted[0].asked] == ["/under/readyz"] * 4


def test_it_waits_as_long_as_it_was_told_and_no_longer(free_port: int) -> None:
    begin = time.monotonic()
    assert ask("--url", f"http://127.0.0.1:{free_port}", "--timeout", "1.5").returncode == NOT_READY
    assert 1 < time.monotonic() - begin < 1.5 + PATIENCE_S


def test_any_answer_but_200_means_not_ready_and_is_named(scripted: list[Scripted]) -> None:
    scripted.append(Scripted(503))
    done = ask("--url", scripted[0].url)
    assert done.returncode == NOT_READY
    assert "503 Service Unavailable" in done.stderr
    assert len(scripted[0].asked) == 1


def test_a_server_of_another_kind_is_not_ready() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"220 mail.example ESMTP\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        done = ask("--url", f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()
    assert done.returncode == NOT_READY
    assert "does not speak HTTP" in done.stderr


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for some other name, which nobody has signed, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl, which makes the certificate")
    file, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=tensors.example.org"
    subprocess.run([*make.split(), "-keyout", key, "-out", file], check=True, capture_output=True, timeout=PATIENCE_S)
    file.write_bytes(file.read_bytes() + key.read_bytes())
    return file


def test_a_server_that_speaks_tls_is_asked_so_by_itself_and_verified_by_others(scripted: list[Scripted], certificate: Path) -> None:
    scripted.append(Scripted(200, certificate=certificate))
    own = {"STEQUANT_TLS_CERT_FILE": str(certificate), "STEQUANT_PORT": str(scripted[0].port)}
    done = ask(**own)
    assert (done.returncode, done.stderr) == (READY, "")
    done = ask("--url", scripted[0].url)
    assert done.returncode == NOT_READY
    assert "certificate verify failed" in done.stderr
    assert ask("--url", scripted[0].url, SSL_CERT_FILE=str(certificate)).returncode == NOT_READY, "it is for another name"


def test_the_key_comes_from_the_variable_and_is_never_printed(scripted: list[Scripted]) -> None:
    scripted.append(Scripted(200))
    assert ask("--url", scripted[0].url, STEQUANT_API_KEY="a-key").returncode == READY
    assert scripted[0].asked == [("/readyz", "Bearer a-key")]
    done = ask("--url", scripted[0].url, STEQUANT_API_KEY="two words")
    assert done.returncode == USAGE
    assert "STEQUANT_API_KEY" in done.stderr
    assert "two words" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--url", "ftp://host"],
        ["--url", "http://"],
        ["--url", "http://user:word@host"],
        ["--url", "http://host:99999"],
        ["--url", "http://host:0"],
        ["--url", "http://host/?query"],
        ["--timeout", "-1"],
        ["--timeout", "nan"],
        ["--timeout", "soon"],
        ["--url", "http://host", "--uds", "socket"],
        ["surplus"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    done = ask(*arguments)
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert done.stderr


def test_a_port_that_only_the_server_knows_cannot_be_asked_for() -> None:
    done = ask(STEQUANT_PORT="0")
    assert done.returncode == USAGE
    assert "port 0" in done.stderr


def test_it_imports_nothing_that_takes_long() -> None:
    heavy = {"numpy", "httpx", "pydantic", "torch", "fastapi", "service.ops", "service.client", "asyncio"}
    program = (
        "import sys; from service.cli import main; status = main(['ready', '--url', 'http://127.0.0.1:1'])\n"
        f"print(status, sorted(set(sys.modules) & {heavy!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == f"{NOT_READY} []\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["ready"]),
        (["ready", "--help"], ["--url", "--uds", "--timeout", "STEQUANT_API_KEY", "STEQUANT_PORT", "exit status"]),
    ],
    ids=["all", "ready"],
)
def test_the_help_names_it_and_its_options(arguments: list[str], words: list[str]) -> None:
    done = subprocess.run(
        command(*arguments), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert not [word for word in words if word not in done.stdout]
