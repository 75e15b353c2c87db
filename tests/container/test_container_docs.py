"""docs/containers.md, followed by a reader: its blocks fenced by ~~~ are run in their order, and print what stands below them.

The reader works in a copy of the project, with ports and names of images that are free; nothing else differs.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from container_engine import Images, call, nginx_image
from server_process import ROOT

pytestmark = pytest.mark.container

DOCUMENT = ROOT / "docs" / "containers.md"
BLOCK_S = 600.0
NEEDED = ("Dockerfile", ".dockerignore", "docker-compose.yml", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")


def blocks() -> Iterator[tuple[str, str]]:
    """The commands, each with what it is said to print."""
    found = re.findall(r"^~~~(\w+)\n(.*?)^~~~$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for index, (language, code) in enumerate(found):
        if language == "sh":
            follower = found[index + 1] if index + 1 < len(found) else ("", "")
            yield code, follower[1] if follower[0] == "text" else ""


def free_port() -> str:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return str(bound.getsockname()[1])


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project as somebody has it who has just cloned it."""
    folder = tmp_path / "stequant"
    folder.mkdir()
    for name in NEEDED:
        shutil.copy(ROOT / name, folder)
    for name in ("service", "docs", "tests/container"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def install(tool: Path, script: str) -> None:
    """Put a shell script where commands are found."""
    tool.parent.mkdir(exist_ok=True)
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


def test_the_document_can_be_followed_to_its_end(compose: list[str], images: Images, copy: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    docker = shutil.which("docker")
    # `docker build` as it has to be called here, and compose by either of its names; all else is as it is typed.
    build_flags = os.environ.get("BUILD_FLAGS", "")
    install(tools / "docker", f'case $1 in build) shift; exec {docker} build {build_flags} "$@";; esac\nexec {docker} "$@"')
    if shutil.which("docker-compose") is None:
        install(tools / "docker-compose", f'exec {shlex.join(compose)} "$@"')
    server_port, nginx_port = free_port(), free_port()
    variables = {
        "PATH": os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "COMPOSE_PROJECT_NAME": f"stequant-test-{secrets.token_hex(4)}",
        "COMPOSE_FILE": f"docker-compose.yml{os.pathsep}tests/container/nginx.yml",
        "SERVER_IMAGE": images.server.tag,
        "BATCH_IMAGE": images.batch.tag,
        "NGINX_IMAGE": nginx_image(),
        "SERVER_PORT": server_port,
        "NGINX_PORT": nginx_port,
    }
    replaced = {
        "stequant:server": images.server.tag,
        "stequant:batch": images.batch.tag,
        "127.0.0.1:8000": f"127.0.0.1:{server_port}",
        "127.0.0.1:8080": f"127.0.0.1:{nginx_port}",
    }
    followed = 0
    try:
        for code, prints in blocks():
            typed = code
            for told, here in replaced.items():
                typed = typed.replace(told, here)
            done = call(["sh", "-eu", "-c", typed], variables=variables, timeout_s=BLOCK_S, cwd=copy)
            assert done.stdout.rstrip().endswith(prints.rstrip()), f"{code}\n{done.stdout}\n{done.stderr}"
            followed += 1
    finally:
        down = "--profile scale --profile batch down --volumes --remove-orphans --timeout 10"
        call([*compose, *down.split()], variables=variables, cwd=copy)
    assert followed >= 5
