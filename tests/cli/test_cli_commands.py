"""`stequant --help`, `operators`, and what the base install, without torch and FastAPI, still does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from server_process import ROOT, ServerProcess, environment

from service import __version__
from service.cli import main
from service.ops import REGISTRY
from service.ops.catalogue import catalogue
from service.settings import Settings


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints that ends well."""
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    assert status in (0, None)
    written = capsys.readouterr()
    assert written.err == ""
    return written.out


def test_help_names_the_commands_the_exit_statuses_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "--help")
    for word in ("serve", "quantize", "grad", "operators", "exit status", "examples", "STEQUANT_API_KEY"):
        assert word in text


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, "--version") == f"stequant {__version__}\n"


def test_serve_has_a_flag_for_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(output(capsys, "serve", "--help").split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')} " in text
        assert field.description is not None
        assert " ".join(field.description.split()) in text
        if field.default is not None:
            default = str(field.default).lower() if isinstance(field.default, bool) else field.default
            assert f"(default {default})" in text


@pytest.mark.parametrize("command", ["quantize", "grad"])
def test_the_help_of_a_command_explains_its_arguments(capsys: pytest.CaptureFixture[str], command: str) -> None:
    text = output(capsys, command, "--help")
    for word in ("--op", "--tensor", "--url", "--uds", "--device", "standard output"):
        assert word in text
    assert ("--tensor-grad" in text) is (command == "grad")


def test_operators_are_listed_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "operators")
    for name, cls in REGISTRY.items():
        assert name in text
        for parameter in cls.parameters():
            assert f"{parameter}:" in text
    for one in catalogue():
        assert one["formula"] in text
        assert one["gradient"] in text


def test_operators_are_listed_for_machines_as_the_server_lists_them(
    capsys: pytest.CaptureFixture[str], server: ServerProcess
) -> None:
    import httpx

    assert json.loads(output(capsys, "operators", "--json")) == httpx.get(f"{server.url}/operators", trust_env=False).json()


# Without the server extra ------------------------------------------------------------------------------------

_EXTRA = ("torch", "fastapi", "starlette", "uvicorn", "pydantic_settings", "prometheus_client", "fastapi_offline")
_BASE_INSTALL = f"""
import sys
for name in {_EXTRA!r}:
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
from service.cli import main
sys.exit(main())
"""


def without_extra(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process that finds neither torch nor FastAPI."""
    return subprocess.run(
        [sys.executable, "-c", _BASE_INSTALL, *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_without_torch_a_server_computes(server: ServerProcess, tmp_path: Path) -> None:
    x = np.linspace(-1, 2, 50, dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    done = without_extra(
        "quantize", str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), "--op", "clamp(0, 1) | round", "--url", server.url
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), np.rint(np.clip(x, 0, 1)))


def test_without_torch_commands_that_need_it_say_so_in_one_line(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones(3, np.float32))
    for arguments in (
        ["quantize", str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), "--op", "round"],
        ["serve"],
        ["serve", "--port", "0"],
    ):
        done = without_extra(*arguments)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert "stequant[server]" in line
        assert not (tmp_path / "y.npy").exists()


def test_without_torch_operators_and_help_work() -> None:
    done = without_extra("operators", "--json")
    assert done.returncode == 0
    assert [one["name"] for one in json.loads(done.stdout)["operators"]] == list(REGISTRY)
    done = without_extra("--help")
    assert done.returncode == 0
    assert "serve" in done.stdout
