"""The settings: each of the contract exists, with its default, its variable and its flag; wrong ones are named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.cli import main
from service.settings import Settings

MIB = 2**20
ROOT = Path(__file__).parent.parent

# As the contract has them; what it leaves open is written here as it is documented.
DEFAULTS: dict[str, Any] = {
    "host": "127.0.0.1",
    "port": 8000,
    "uds": None,
    "device": "auto",
    "device_timeout_s": 60,
    "workers": 1,
    "max_body_bytes": 256 * MIB,
    "max_json_bytes": 4 * MIB,
    "max_in_flight_bytes": None,
    "max_tensors": 16_384,
    "header_timeout_s": 5,
    "body_idle_timeout_s": 10,
    "body_timeout_s": 300,
    "min_body_bytes_per_s": 1024,
    "request_timeout_s": None,
    "max_url_bytes": 8192,
    "max_header_bytes": 16_384,
    "max_headers": 100,
    "max_pipelined": 32,
    "max_connections": 20_000,
    "max_connections_per_address": None,
    "write_timeout_s": 30,
    "keep_alive_s": 65,
    "drain_delay_s": 0,
    "grace_s": 30,
    "worker_start_timeout_s": 300,
    "worker_timeout_s": 60,
    "api_keys_file": None,
    "metrics_without_key": False,
    "trusted_hosts": None,
    "shared_memory_names": None,
    "tls_cert_file": None,
    "tls_key_file": None,
    "tls_key_password_file": None,
    "tls_ca_file": None,
    "log_level": "info",
    "log_format": "text",
}

# Another value for each, as text, and as what it is.
OTHERS: dict[str, tuple[str, Any]] = {
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("0", 0),
    "uds": ("/run/stequant.sock", Path("/run/stequant.sock")),
    "device": ("cuda:3", "cuda:3"),
    "device_timeout_s": ("12.5", 12.5),
    "workers": ("4", 4),
    "max_body_bytes": ("1000", 1000),
    "max_json_bytes": ("10", 10),
    "max_in_flight_bytes": (str(2**40), 2**40),
    "max_tensors": ("7", 7),
    "header_timeout_s": ("0.5", 0.5),
    "body_idle_timeout_s": ("1", 1),
    "body_timeout_s": ("1e3", 1000),
    "min_body_bytes_per_s": ("0", 0),
    "request_timeout_s": ("1.5", 1.5),
    "max_url_bytes": ("1000", 1000),
    "max_header_bytes": ("4096", 4096),
    "max_headers": ("20", 20),
    "max_pipelined": ("1", 1),
    "max_connections": ("10", 10),
    "max_connections_per_address": ("5", 5),
    "write_timeout_s": ("2.5", 2.5),
    "keep_alive_s": ("5", 5),
    "drain_delay_s": ("0.25", 0.25),
    "grace_s": ("1", 1),
    "worker_start_timeout_s": ("30", 30),
    "worker_timeout_s": ("0.5", 0.5),
    "api_keys_file": ("/etc/keys", Path("/etc/keys")),
    "metrics_without_key": ("true", True),
    "trusted_hosts": ("a.example, *.example.org,[::1]", ("a.example", "*.example.org", "[::1]")),
    "shared_memory_names": ("/train-*, psm_[0-9a-f]*", ("/train-*", "psm_[0-9a-f]*")),
    "tls_cert_file": ("/etc/tls/cert.pem", Path("/etc/tls/cert.pem")),
    "tls_key_file": ("/etc/tls/key.pem", Path("/etc/tls/key.pem")),
    "tls_key_password_file": ("/etc/tls/password", Path("/etc/tls/password")),
    "tls_ca_file": ("/etc/tls/ca.pem", Path("/etc/tls/ca.pem")),
    "log_level": ("DEBUG", "debug"),
    "log_format": ("JSON", "json"),
}

# These need another one beside them.
BESIDE = {name: {"tls_cert_file": "cert.pem"} for name in ("tls_key_file", "tls_key_password_file", "tls_ca_file")}

# Numbers without a unit.
COUNTS = ("port", "workers", "max_tensors", "max_headers", "max_pipelined", "max_connections", "metrics_without_key")

WRONG: dict[str, list[str]] = {
    "port": ["-1", "65536", "http", "80.5", ""],
    "device": ["tpu", "cuda:", "cuda:-1", "CUDA 0", ""],
    "device_timeout_s": ["0", "nan"],
    "workers": ["0", "-1", "two", "1.5"],
    "max_body_bytes": ["0", "-1", "1MiB", "1e6"],
    "max_json_bytes": ["0", "4m"],
    "max_in_flight_bytes": ["0", "-5", "all"],
    "max_tensors": ["0", "many"],
    "header_timeout_s": ["0", "-1", "nan", "soon"],
    "body_idle_timeout_s": ["0", "nan"],
    "body_timeout_s": ["0", "-inf"],
    "min_body_bytes_per_s": ["-1", "1.5"],
    "request_timeout_s": ["0", "nan", "never"],
    "max_url_bytes": ["0", "-1"],
    "max_header_bytes": ["0", "1023"],
    "max_headers": ["0", "15"],
    "max_pipelined": ["0", "-1"],
    "max_connections": ["0", "-1"],
    "max_connections_per_address": ["0", "-1"],
    "write_timeout_s": ["0", "nan"],
    "keep_alive_s": ["0", "5 s"],
    "drain_delay_s": ["-1", "nan"],
    "grace_s": ["0", "nan"],
    "worker_start_timeout_s": ["0", "nan"],
    "worker_timeout_s": ["0", "-1"],
    "metrics_without_key": ["maybe", ""],
    "trusted_hosts": ["*", "a:80", "https://a", "a b", "*.*.a"],
    "shared_memory_names": ["/", "//a", "a/b", "a b", "ä"],
    "log_level": ["loud", "5"],
    "log_format": ["xml"],
}


def from_environment(**variables: str) -> subprocess.CompletedProcess[str]:
    """The settings that a process reads from its environment, printed as a dictionary; or the error."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("STEQUANT_")}
    code = "from service.settings import Settings; print({name: str(value) for name, value in Settings()})"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=own | variables, capture_output=True, text=True, timeout=60, check=False
    )


def read(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert done.returncode == 0, done.stderr
    import ast

    result: dict[str, str] = ast.literal_eval(done.stdout)
    return result


def as_read(name: str, value: Any) -> str:
    is_time = name.endswith("_s") and "_bytes_" not in name and value is not None
    return str(float(value) if is_time else value)


def test_these_are_all_settings() -> None:
    assert list(Settings.model_fields) == list(DEFAULTS)
    assert set(OTHERS) == set(DEFAULTS)


def test_without_variables_the_defaults_hold() -> None:
    assert read(from_environment()) == {name: as_read(name, value) for name, value in DEFAULTS.items()}
    assert {name: field.default for name, field in Settings.model_fields.items()} == DEFAULTS


def test_every_setting_has_a_variable() -> None:
    # Regions of shared memory are known to one worker only.
    for names in (OTHERS.keys() - {"shared_memory_names"}, OTHERS.keys() - {"workers"}):
        settings = read(from_environment(**{f"STEQUANT_{name.upper()}": OTHERS[name][0] for name in names}))
        assert {name: settings[name] for name in names} == {name: as_read(name, OTHERS[name][1]) for name in names}


def test_empty_variables_are_unset_ones_where_a_setting_may_be_absent() -> None:
    """Compose files pass on unset variables as empty ones."""
    settings = read(from_environment(STEQUANT_UDS="", STEQUANT_API_KEYS_FILE="", STEQUANT_MAX_IN_FLIGHT_BYTES=""))
    assert {settings[name] for name in ("uds", "api_keys_file", "max_in_flight_bytes")} == {"None"}


def test_unknown_variables_are_left_alone() -> None:
    assert read(from_environment(STEQUANT_API_KEY="secret", STEQUANT_OTHER="1"))["port"] == "8000"


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_setting_has_another_value_than_its_default(name: str) -> None:
    text, value = OTHERS[name]
    settings = Settings(**{name: text, **BESIDE.get(name, {})})
    assert getattr(settings, name) == value
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]  # frozen


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_flag_gives_one_line_that_names_it(capsys: pytest.CaptureFixture[str], name: str, value: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    try:
        # Were the value accepted, there would be no place to listen at.
        status: object = main(["serve", "--uds=/nowhere/at/all", f"{flag}={value}"])
    except SystemExit as end:
        status = end.code
    assert status in (1, 2)
    written = capsys.readouterr()
    assert written.out == ""
    line = written.err.strip().splitlines()[-1]
    assert flag in line
    assert value in line
    assert len(written.err.strip().splitlines()) == 1


def test_a_wrong_variable_gives_one_line_that_names_it() -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith("STEQUANT_")}
    done = subprocess.run(
        [sys.executable, "-m", "service", "serve"],
        cwd=ROOT,
        env=own | {"STEQUANT_MAX_TENSORS": "many"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (1, 2)
    (line,) = done.stderr.splitlines()
    assert "STEQUANT_MAX_TENSORS" in line
    assert "'many'" in line


def test_limits_that_contradict_each_other_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--max-body-bytes", "1000", "--max-in-flight-bytes", "999"]) in (1, 2)
    line = capsys.readouterr().err
    assert "999" in line
    assert "1000" in line
    assert Settings(max_body_bytes=1000, max_in_flight_bytes=1000).in_flight_limit_bytes == 1000


def test_a_key_without_a_certificate_is_refused_rather_than_served_in_plain(capsys: pytest.CaptureFixture[str]) -> None:
    for name, beside in BESIDE.items():
        assert main(["serve", f"--{name.replace('_', '-')}", "key.pem"]) in (1, 2)
        (line,) = capsys.readouterr().err.splitlines()
        assert all(word in line for word in (name, "key.pem", *beside))


def test_names_of_a_list_are_given_one_by_one_or_with_commas(capsys: pytest.CaptureFixture[str]) -> None:
    """The wrong one is the one that is named."""
    flags = ["--trusted-host", "a.example", "--trusted-host", "b.example,c.example", "--trusted-hosts", "d example"]
    assert main(["serve", "--uds=/nowhere/at/all", *flags]) in (1, 2)
    assert "--trusted-hosts is 'd example'" in capsys.readouterr().err


def test_json_is_bound_by_both_limits() -> None:
    assert Settings(max_body_bytes=10, max_json_bytes=100).limit_of("json") == 10
    assert Settings(max_body_bytes=1000, max_json_bytes=100).limit_of("json") == 100
    assert Settings(max_body_bytes=1000, max_json_bytes=100).limit_of("npy") == 1000


def test_every_setting_says_what_it_is() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        if isinstance(field.default, float | int) and name not in COUNTS:
            assert name.endswith(("_s", "_bytes")), f"{name} has no unit"
