"""TLS: the same answers, deadlines and ends as in plain, certificates that are asked for, and ones that are changed."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives import serialization
from http_bodies import npy
from server_process import ServerProcess, eventually, get, post
from steady_load import steady_load
from test_e2e_processes import refused_to_start
from test_e2e_workers import replaced
from tls_server import Authority, TlsWire, authority, https_connection, port_of, tls_serving
from worker_processes import Starts, said, workers_of

from service.client import AsyncClient, Client
from service.client.errors import ConnectionFailed

KIB, MIB = 2**10, 2**20
SMALL, ROUNDED = npy(torch.tensor([0.6, -0.4])), npy(torch.tensor([1.0, -0.0]))


@pytest.fixture(scope="module")
def who(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def server(who: Authority) -> Iterator[ServerProcess]:  # a server that speaks TLS, in place of the plain one
    with tls_serving(who, "--header-timeout-s", "1", "--write-timeout-s", "1", "--body-idle-timeout-s", "2") as running:
        yield running


def connect(server: ServerProcess, who: Authority) -> TlsWire:
    return TlsWire(server, who.trust())


def in_flight_bytes(server: ServerProcess, who: Authority) -> float:
    with connect(server, who) as wire:
        lines = wire.ask(get("/metrics")).body.decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("stequant_in_flight_bytes "))


# Answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [4 * KIB, 64 * KIB, 300 * KIB, MIB, 16 * MIB])
def test_calls_of_all_sizes_give_the_right_bits(server: ServerProcess, who: Authority, nbytes: int) -> None:
    x = np.random.default_rng(nbytes).normal(0, 9, nbytes // 4).astype(np.float32)
    with Client(server.address, verify=who.trust(), retries=0) as client:
        for _ in range(3):
            np.testing.assert_array_equal(client.quantize("round", x), np.rint(x))
            np.testing.assert_array_equal(client.grad("clamp(-1, 1)", x, x), np.where(np.abs(x) <= 1, x, 0))


def test_the_asynchronous_client_calls_at_once(server: ServerProcess, who: Authority) -> None:
    async def calls() -> None:
        x = np.linspace(-9, 9, 100_000, dtype=np.float32)
        async with AsyncClient(server.address, verify=who.trust(), retries=0) as client:
            for y in await asyncio.gather(*(client.quantize("round", x + n) for n in range(20))):
                assert y.dtype == np.float32
            np.testing.assert_array_equal(await client.quantize("round", x), np.rint(x))

    asyncio.run(calls())


def test_every_path_answers_on_one_connection(server: ServerProcess, who: Authority) -> None:
    with connect(server, who) as wire:
        for _ in range(3):
            for path in ("/healthz", "/readyz", "/operators", "/openapi.json", "/metrics", "/docs/assets/swagger-ui-bundle.js"):
                assert wire.ask(get(path)).status == 200
            assert wire.ask(post(SMALL)).body == ROUNDED
            assert wire.ask(post(SMALL, chunks=[SMALL[:20], SMALL[20:]])).body == ROUNDED
            assert wire.ask(post(SMALL, "op=nothing")).code == "unknown_operator"


def test_requests_in_a_row_are_answered_in_their_order(server: ServerProcess, who: Authority) -> None:
    tensors = [torch.linspace(-9, 9, n) for n in (3, 500_000, 10, 700_000, 4)]
    with connect(server, who) as wire:
        for _ in range(2):
            wire.send(b"".join(post(npy(x)) for x in tensors[:2]) + get("/healthz") + post(npy(tensors[2])))
            assert [wire.read().body for _ in tensors[:2]] == [npy(x.round()) for x in tensors[:2]]
            assert wire.read().body == b'{"status":"ok"}'
            assert wire.read().body == npy(tensors[2].round())


def test_a_body_in_small_pieces_and_one_that_was_asked_for(server: ServerProcess, who: Authority) -> None:
    x = torch.linspace(-9, 9, 1000)
    with connect(server, who) as wire:
        request = post(npy(x))
        for start in range(0, len(request), 37):
            wire.send(request[start : start + 37])
        assert wire.read().body == npy(x.round())
        head, _, body = post(npy(x), "op=round", "Expect: 100-continue").partition(b"\r\n\r\n")
        wire.send(head + b"\r\n\r\n")
        assert wire.read().status == 100
        wire.send(body)
        assert wire.read().body == npy(x.round())


# Those who do not do what they should ----------------------------------------------------------------------


def test_callers_who_vanish_leave_nothing_behind(server: ServerProcess, who: Authority) -> None:
    large = post(npy(torch.ones(4 * MIB)))
    for sent in (100, len(large) // 2, len(large)):
        with connect(server, who) as wire:
            wire.send(large[:sent])
            wire.reset()
    with connect(server, who) as wire:
        wire.send(large)
        wire.socket.recv(1000)  # the answer has begun
        wire.reset()
    eventually(lambda: in_flight_bytes(server, who) == 0, "nothing is in flight")


def test_a_caller_who_says_goodbye_in_the_middle_is_no_error(server: ServerProcess, who: Authority) -> None:
    with connect(server, who) as wire:
        wire.send(post(npy(torch.ones(MIB)))[:-1])
        wire.socket.unwrap()
    eventually(lambda: in_flight_bytes(server, who) == 0, "nothing is in flight")


def test_a_reader_that_does_not_read_is_cut_off(server: ServerProcess, who: Authority) -> None:
    with TlsWire(server, who.trust(), receive_buffer_bytes=4096) as wire:
        wire.send(post(npy(torch.ones(8 * MIB))))
        eventually(lambda: in_flight_bytes(server, who) > 0, "the call is in flight")
        eventually(lambda: in_flight_bytes(server, who) == 0, "it was given up")
        with pytest.raises((OSError, AssertionError)):
            wire.read()


def test_a_slow_reader_gets_all_of_it(server: ServerProcess, who: Authority) -> None:
    x = torch.linspace(-9, 9, 2 * MIB)
    with TlsWire(server, who.trust(), receive_buffer_bytes=64 * KIB) as wire:
        wire.send(post(npy(x)))
        expected, received = npy(x.round()), bytearray()
        while (end := received.find(b"\r\n\r\n")) < 0 or len(received) < end + 4 + len(expected):
            received += wire.socket.recv(MIB)
            time.sleep(0.005)  # some three seconds in all; a pause longer than a second would end it
        assert received[end + 4 :] == expected


def test_who_does_not_shake_hands_is_closed_and_plain_http_is_not_answered(server: ServerProcess, who: Authority) -> None:
    with TlsWire(server, who.trust(), handshake=False) as silent, TlsWire(server, who.trust(), handshake=False) as plain:
        plain.send(get("/healthz"))
        assert plain.is_closed()
        began = time.monotonic()
        assert silent.is_closed()
        assert 0.5 < time.monotonic() - began < 5
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{port_of(server)}/healthz", trust_env=False)
    with connect(server, who) as wire:
        assert wire.ask(get("/healthz")).status == 200


def resident_mib(pid: int) -> float:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def test_connections_that_have_ended_cost_no_memory(server: ServerProcess, who: Authority) -> None:
    """TLS holds on to more than 30 KiB for each, until a garbage collector looks that seldom does."""
    context = who.trust()

    def connections(count: int) -> None:
        for number in range(count):
            if number % 4:
                with TlsWire(server, context) as wire:
                    assert wire.ask(get("/healthz", "Connection: close")).status == 200
            else:
                with TlsWire(server, context, handshake=False) as wire:
                    wire.send_until_refused(get("/healthz"))
                    assert wire.is_closed()

    connections(100)
    before = resident_mib(server.pid)
    connections(800)
    assert resident_mib(server.pid) - before < 8


# Certificates ----------------------------------------------------------------------------------------------


def test_old_versions_of_tls_are_not_spoken(server: ServerProcess, who: Authority) -> None:
    context = who.trust()
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        TlsWire(server, context)


def test_clients_show_a_certificate_where_authorities_are_named(who: Authority, tmp_path: Path) -> None:
    theirs = authority(tmp_path)
    theirs.ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    known, unknown = who.trust(), who.trust()
    theirs.ca.issue_cert("client").configure_cert(known)
    who.ca.issue_cert("client").configure_cert(unknown)
    x = np.float32([0.6])
    with tls_serving(who, "--tls-ca-file", str(tmp_path / "ca.pem"), trust=known) as server:
        with Client(server.address, verify=known, retries=0) as client:
            assert client.quantize("round", x) == 1
        for context in (who.trust(), unknown):
            with Client(server.address, verify=context, retries=0) as client, pytest.raises(ConnectionFailed):
                client.quantize("round", x)


def encrypted(key: Path, password: bytes) -> bytes:
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    algorithm = serialization.BestAvailableEncryption(password)
    return private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, algorithm)


def test_a_key_with_a_password_is_used_and_a_certificate_is_changed_without_a_restart(tmp_path: Path) -> None:
    who = authority(tmp_path)
    password = tmp_path / "password"
    password.write_text("open sesame\n")
    who.key.write_bytes(encrypted(who.key, b"open sesame"))
    with tls_serving(who, "--tls-key-password-file", str(password)) as server, connect(server, who) as old:
        good = who.key.read_bytes()
        who.key.write_bytes(encrypted(authority(tmp_path / "..").key, b"open sesame"))  # of another certificate
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: bool(said(server, "ERROR", str(who.key))), "the error is logged")
        with connect(server, who) as same:
            assert same.serial_number == old.serial_number
        assert good != who.key.read_bytes()
        who.issue()
        server.process.send_signal(signal.SIGHUP)

        def serial_number() -> str:
            with connect(server, who) as wire:
                assert wire.ask(get("/healthz")).status == 200
                return wire.serial_number

        eventually(lambda: serial_number() != old.serial_number, "the new certificate is shown")
        assert old.ask(post(SMALL)).body == ROUNDED


def test_workers_are_replaced_with_a_new_certificate_and_no_call_is_lost(tmp_path: Path) -> None:
    who = authority(tmp_path)
    with tls_serving(who, "--workers", "2") as server:
        Starts(server).reach(2)
        with connect(server, who) as wire:
            old = wire.serial_number
        before = workers_of(server)
        with steady_load(lambda: https_connection(server, who.trust()), clients=4) as load:
            who.issue()
            server.process.send_signal(signal.SIGHUP)
            eventually(lambda: replaced(server, before), "all workers are replaced")
            load.go_on(5)
        assert not load.lost
        with connect(server, who) as wire:
            assert wire.serial_number != old


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("no certificate", ("cert.pem", "cannot be read")),
        ("no key", ("key.pem", "cannot be read")),
        ("text for a certificate", ("cert.pem",)),
        ("another key", ("key.pem", "mismatch")),
        ("a password that nobody has", ("key.pem", "password")),
    ],
)
def test_files_that_are_no_use_give_one_line(tmp_path: Path, broken: str, words: tuple[str, ...]) -> None:
    who = authority(tmp_path)
    if broken == "no certificate":
        who.cert.unlink()
    elif broken == "no key":
        who.key.unlink()
    elif broken == "text for a certificate":
        who.cert.write_text("not a certificate")
    elif broken == "another key":
        certificate = who.cert.read_bytes()
        who.issue()
        who.cert.write_bytes(certificate)
    else:
        who.key.write_bytes(encrypted(who.key, b"secret"))
    line = refused_to_start("--port", "0", *who.flags)
    for word in words:
        assert word in line


# The end -------------------------------------------------------------------------------------------------


def test_a_connection_whose_handshake_is_under_way_is_served_before_the_end(who: Authority) -> None:
    with tls_serving(who) as server, TlsWire(server, who.trust(), handshake=False) as wire, connect(server, who) as idle:
        idle.ask(get("/healthz"))  # the server has accepted the one before
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: idle.is_closed(0) or None, "idle connections are closed")
        wire.shake_hands()

        def is_last() -> bool:
            answer = wire.ask(post(SMALL))
            assert answer.body == ROUNDED
            return answer.headers.get("connection") == "close"

        eventually(is_last, "an answer says that it is the last")
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 5


def test_who_says_no_goodbye_does_not_keep_the_server(who: Authority) -> None:
    with tls_serving(who) as server, connect(server, who) as idle, socket.create_connection(("127.0.0.1", port_of(server))):
        assert idle.ask(get("/healthz")).status == 200
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 5


def test_no_call_is_lost_when_a_server_under_load_is_told_to_stop(who: Authority) -> None:
    with tls_serving(who) as server:
        with steady_load(lambda: https_connection(server, who.trust()), ends_with_connection=True) as load:
            server.process.send_signal(signal.SIGTERM)
        assert not load.lost
