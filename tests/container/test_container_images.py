"""The images: what is in them, what is not, and who runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from container_engine import HARDENED, Images, build, docker, inspected
from server_process import ROOT

from service import __version__

pytestmark = pytest.mark.container

MB = 10**6
# python:3.11-slim of Docker Hub, unpacked. Another base is counted as if it were this one: only what we add is ours.
BASE_BYTES = 130 * MB
BATCH_LIMIT_BYTES = 250 * MB
# A build of changed code took 3 s, one of changed dependencies more than a minute.
CODE_BUILD_S = 60

TARGETS = ("server", "batch")


@pytest.fixture(params=TARGETS)
def image(request: pytest.FixtureRequest, images: Images) -> str:
    """Each of the images."""
    tag: str = getattr(images, request.param).tag
    return tag


def run(image: str, *command: str, user: str | None = None) -> str:
    """What a command prints in a container that may do nothing."""
    chosen = ["--user", user] if user else []
    return docker("run", "--rm", "--network", "none", *HARDENED, *chosen, "--entrypoint", command[0], image, *command[1:]).stdout


def added_bytes(image: str) -> int:
    """The size of the layers above the base: those down to the one that makes the user."""
    history = docker("history", "--no-trunc", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}", image).stdout.splitlines()
    (user,) = (index for index, line in enumerate(history) if "useradd" in line)
    return sum(int(line.partition(" ")[0]) for line in history[: user + 1])


def test_batch_is_small(images: Images, capsys: pytest.CaptureFixture[str]) -> None:
    added = {target: added_bytes(getattr(images, target).tag) for target in TARGETS}
    with capsys.disabled():
        print(*(f"\nimage {target}: {nbytes / MB:.0f} MB above its base" for target, nbytes in added.items()), sep="", end=" ")
    assert BASE_BYTES + added["batch"] < BATCH_LIMIT_BYTES


def test_batch_has_no_torch_and_server_has(images: Images) -> None:
    probe = ("python", "-c", "import importlib.util; print(importlib.util.find_spec('torch') is not None)")
    assert (run(images.server.tag, *probe), run(images.batch.tag, *probe)) == ("True\n", "False\n")


def test_the_user_is_not_root_and_has_a_fixed_number(image: str) -> None:
    assert inspected(image, "image")["Config"]["User"] == "10001:10001"
    assert run(image, "id", "-u", "-n").strip() == "stequant"
    assert run(image, "id", "-u").strip() == run(image, "id", "-g").strip() == "10001"


def test_any_other_user_will_do(image: str) -> None:
    assert run(image, "stequant", "--version", user="4242:4242") == f"stequant {__version__}\n"


def test_nothing_can_be_written_and_no_capability_is_left(image: str) -> None:
    program = "import pathlib; print([line for line in open('/proc/self/status') if line.startswith('CapEff')])"
    assert re.search(r"CapEff:\\t0+\\n", run(image, "python", "-c", program))
    refused = docker("run", "--rm", "--network", "none", *HARDENED, "--entrypoint", "touch", image, "/data/file", check=False)
    assert "Read-only file system" in refused.stderr


def test_no_compiler_no_cache_and_no_lists_of_packages(image: str) -> None:
    program = """
import pathlib, shutil
print([tool for tool in ('cc', 'gcc', 'g++', 'clang', 'make', 'cargo') if shutil.which(tool)])
print([path for path in ('/root/.cache', '/tmp/.cache', '/wheels', '/lists', '/source') if pathlib.Path(path).exists()])
print([str(path) for path in pathlib.Path('/opt/stequant').rglob('*') if path.suffix == '.whl' or path.name == 'pip'])
"""
    assert run(image, "python", "-c", program, user="0:0").splitlines() == ["[]"] * 3


def test_all_code_is_compiled_as_none_of_it_can_be_later(image: str) -> None:
    """Each start would compile it again, which takes a second."""
    program = "import runpy, sys; sys.argv[1:] = ['operators']; runpy.run_module('service', run_name='__main__')"
    told = docker("run", "--rm", "--network", "none", *HARDENED, "--entrypoint", "python", image, "-v", "-c", program)
    assert "/opt/stequant/code/service/cli/main.py" in told.stderr
    assert not re.findall(r"^# (?:bytecode is stale|code object from '/opt.*\.py'$|wrote).*", told.stderr, re.MULTILINE)


def test_the_labels_say_what_it_is(image: str) -> None:
    labels = inspected(image, "image")["Config"]["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.title"].startswith("stequant")


def test_the_server_is_asked_for_its_health_without_other_tools_and_stopped_by_sigterm(images: Images) -> None:
    config = inspected(images.server.tag, "image")["Config"]
    assert config["Healthcheck"]["Test"] == ["CMD", "stequant", "ready"]
    assert config["StopSignal"] == "SIGTERM"


def test_a_change_of_the_code_leaves_the_large_layers_alone(images: Images, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    changed.mkdir()
    for name in ("Dockerfile", ".dockerignore", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, changed)
    shutil.copytree(ROOT / "service", changed / "service", ignore=shutil.ignore_patterns("__pycache__"))
    with (changed / "service" / "__init__.py").open("a") as file:
        file.write(f"# {tmp_path}\n")
    with (changed / "pyproject.toml").open("a") as file:
        file.write(f"# {tmp_path}\n")
    tag = "stequant-test:changed"
    try:
        again = build("server", tag, context=changed)
        before = inspected(images.server.tag, "image")["RootFS"]["Layers"]
        after = inspected(tag, "image")["RootFS"]["Layers"]
    finally:
        docker("image", "rm", tag, check=False)
    assert after[:-1] == before[:-1]
    assert after[-1] != before[-1]
    assert again.seconds < CODE_BUILD_S


@pytest.mark.usefixtures("compose")
def test_the_image_of_the_tests_runs_them_where_nothing_can_be_written() -> None:
    tests = build("test", "stequant-test:test").tag
    command = inspected(tests, "image")["Config"]["Cmd"]
    # Those of the formats, and one that starts a server; all of them are what `make test` runs.
    chosen = ("tests/wire", "tests/cli/test_cli_ready.py")
    done = docker("run", "--rm", "--network", "none", *HARDENED, tests, *command, *chosen, check=False)
    assert re.search(r"=+ \d+ passed", done.stdout), done.stdout[-4000:]
    assert done.returncode == 0
