"""Trusted hosts: which values of `Host` are answered, in process and on every way into a real server."""

from __future__ import annotations

import pytest
import torch
from http_app import Service
from http_bodies import npy
from server_process import Wire, get, post, serving

from service.errors import UntrustedHost
from service.hosts import TrustedHosts

HOSTS = TrustedHosts(("api.example", "*.Example.org", "127.0.0.1", "[::1]"))
TRUSTED = [
    *("api.example", "API.example", "api.example:8000", "a.example.org", "a.b.example.org:1"),
    *("127.0.0.1:8000", "[::1]", "[::1]:80"),
]
UNTRUSTED = [
    *(None, "", "evil.example", "api.example.evil.example", "xapi.example", "example.org", ".example.org.evil.example"),
    *("127.0.0.2", "::1", "[::2]", "api.example:80:80", "api.example:x"),
    *("user@api.example", "a@b.example.org", "api.example, evil.example", "*.example.org"),
]


@pytest.mark.parametrize("host", TRUSTED)
def test_a_name_of_the_list_is_answered_whatever_its_case_and_port(host: str) -> None:
    HOSTS.check("/quantize", host)


@pytest.mark.parametrize("host", UNTRUSTED)
def test_any_other_name_is_not(host: str | None) -> None:
    with pytest.raises(UntrustedHost):
        HOSTS.check("/quantize", host)


def test_without_a_list_every_name_is_answered() -> None:
    for host in (*TRUSTED, *UNTRUSTED):
        TrustedHosts(None).check("/quantize", host)


def test_probes_are_answered_under_any_name() -> None:
    for path in ("/healthz", "/readyz"):
        HOSTS.check(path, "10.0.0.7:8000")


def test_in_process_every_path_but_those_of_probes_is_checked() -> None:
    with Service(trusted_hosts="api.example") as service:
        for method, path in (("GET", "/operators"), ("GET", "/docs"), ("GET", "/nothing"), ("POST", "/quantize?op=round")):
            refused = service.request(method, path, headers={"host": "evil.example"})
            assert (refused.status_code, refused.json()["code"]) == (400, "untrusted_host")
            assert "evil.example" in refused.json()["detail"]
        assert service.get("/operators", headers={"host": "api.example:1"}).status_code == 200
        assert service.get("/healthz", headers={"host": "evil.example"}).status_code == 200


def test_a_server_checks_every_request_of_a_connection() -> None:
    small, rounded = npy(torch.tensor([0.6])), npy(torch.tensor([1.0]))
    good = post(small).replace(b"Host: a\r\n", b"Host: a.example:80\r\n")
    with serving("--trusted-host", "a.example", "--trusted-host", "b.example") as server, Wire(server) as wire:
        for _ in range(3):  # the second and third are known by their bytes
            assert wire.ask(good).body == rounded
            refused = wire.ask(post(small))
            assert (refused.status, refused.code) == (400, "untrusted_host")
        chunked = post(small, chunks=[small])
        assert wire.ask(chunked).code == "untrusted_host"
        assert wire.ask(get("/metrics")).code == "untrusted_host"
        assert wire.ask(get("/metrics", host="B.example")).status == 200
        assert wire.ask(get("/readyz")).status == 200
