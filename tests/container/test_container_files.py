"""The compose file and its documentation, read without an engine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from server_process import ROOT

from service.settings import Settings

TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load(TEXT)
SERVICES: Mapping[str, Mapping[str, Any]] = COMPOSE["services"]
DOCUMENT = (ROOT / "docs" / "containers.md").read_text(encoding="utf-8")
# Where a server listens in its container is fixed, and TLS ends in front of it.
FIXED = re.compile(r"host|port|uds|tls_\w+")


@pytest.mark.parametrize("name", ["server", "server-gpu"])
def test_a_server_is_told_every_setting(name: str) -> None:
    settings = [setting for setting in Settings.model_fields if not FIXED.fullmatch(setting)]
    assert SERVICES[name]["environment"].keys() == {f"STEQUANT_{setting.upper()}" for setting in settings}


@pytest.mark.parametrize("name", list(SERVICES))
def test_no_service_may_do_more_than_it_must(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == ("no" if name == "batch" else "unless-stopped")
    assert {"cpus", "mem_limit", "pids_limit"} <= set(service)


def test_only_the_server_is_started_unasked() -> None:
    assert [name for name, service in SERVICES.items() if "profiles" not in service] == ["server"]


def test_the_document_has_every_variable_with_its_default() -> None:
    used = {name: default or "none" for name, default in re.findall(r"\$\{([A-Z_]+):?-([^}]*)\}", TEXT)}
    assert used.keys() == set(re.findall(r"\$\{([A-Z_]+)", TEXT)), "every variable has a default"
    table = DOCUMENT.partition("## Variables of the compose file")[2].partition("\n## ")[0]
    told = {name: default.strip("`") for name, default in re.findall(r"^\| `([A-Z_]+)` \| (\S+) \|", table, re.MULTILINE)}
    assert told == used


def test_the_document_has_every_build_argument_and_target() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    section = DOCUMENT.partition("## Build")[2].partition("\n## ")[0]
    told = {
        name for row in re.findall(r"^\| ((?:`[A-Z_]+`(?:, )?)+) \|", section, re.MULTILINE) for name in re.findall(r"\w+", row)
    }
    assert told == set(re.findall(r"^ARG ([A-Z_]+)", dockerfile, re.MULTILINE))
    targets = set(re.findall(r"^\| `([a-z]+)` \|", section, re.MULTILINE))
    assert targets == set(re.findall(r"^FROM runtime AS (\S+)", dockerfile, re.MULTILINE))


def test_what_the_compose_file_mounts_is_there() -> None:
    mounted = re.findall(r"^ +- (\./[^:]+):", TEXT, re.MULTILINE) + re.findall(r"\$\{\w+:-(\./docs[^}]*)\}", TEXT)
    assert len(mounted) > 4
    for path in mounted:
        assert (ROOT / path).exists(), path
