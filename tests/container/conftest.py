"""What the container tests share: an engine, else a reason to skip; images; a compose project."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from container_engine import Images, NoEngine, Project, build, compose_command


@pytest.fixture(scope="session")
def compose() -> list[str]:
    """The words of `docker compose`; without an engine the tests skip, and say why."""
    try:
        return compose_command()
    except NoEngine as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def images(compose: list[str]) -> Images:
    """`server` and `batch`, under names that are the tests' own."""
    return Images(server=build("server", "stequant-test:server"), batch=build("batch", "stequant-test:batch"))


@pytest.fixture(scope="module")
def project(compose: list[str], images: Images, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The compose file as it is, on ports that the engine chooses, removed in the end."""
    data = tmp_path_factory.mktemp("data")
    uid = os.getuid() or 10001
    for folder in ("in", "out"):
        (data / folder).mkdir()
    os.chown(data / "out", uid, os.getgid() or 10001)
    started = Project(
        compose,
        f"stequant-test-{secrets.token_hex(4)}",
        {
            "SERVER_IMAGE": images.server.tag,
            "BATCH_IMAGE": images.batch.tag,
            "SERVER_PORT": "0",
            "NGINX_PORT": "0",
            "DATA": str(data),
            "UID": str(uid),
            "GID": str(os.getgid() or 10001),
        },
    )
    try:
        yield started
    finally:
        started.down()


@pytest.fixture
def data(project: Project) -> Path:
    """The folder with `in` and `out` that the project's `batch` sees, emptied."""
    folder = Path(project.variables["DATA"])
    for path in sorted(folder.glob("*/**/*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return folder
