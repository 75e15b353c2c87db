"""Docker and docker-compose, called as people call them.

BUILD_FLAGS: more flags for `docker build`. NGINX_IMAGE: an nginx to be used in place of Debian's.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from server_process import ROOT, eventually

HERE = Path(__file__).parent
BUILD_S = 1200.0
COMMAND_S = 180.0
# What every service of the compose file is started with.
HARDENED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--tmpfs", "/tmp")


class NoEngine(Exception):
    """There is nothing here that runs containers; says why."""


def call(
    command: Sequence[str],
    *,
    variables: Mapping[str, str] | None = None,
    timeout_s: float = COMMAND_S,
    check: bool = True,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; one that fails shows what it wrote."""
    done = subprocess.run(
        command,
        env=os.environ | dict(variables or {}),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        **options,
    )
    assert not check or done.returncode == 0, (
        f"{shlex.join(command)}: {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    )
    return done


def docker(*arguments: str, timeout_s: float = COMMAND_S, check: bool = True) -> subprocess.CompletedProcess[str]:
    """`docker …`."""
    return call(["docker", *arguments], timeout_s=timeout_s, check=check)


def inspected(name: str, kind: str = "container") -> dict[str, Any]:
    """What the engine knows of a container or an image."""
    (description,) = json.loads(docker(kind, "inspect", name).stdout)
    return description


def compose_command() -> list[str]:
    """`docker compose`, else `docker-compose`; both read the same file. `NoEngine` where nothing answers."""
    if shutil.which("docker") is None:
        raise NoEngine("no container engine: there is no command docker")
    asked = docker("version", timeout_s=30, check=False)
    if asked.returncode != 0:
        raise NoEngine(f"no container engine answers: {asked.stderr.strip()}")
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and call([*command, "version"], check=False).returncode == 0:
            return command
    raise NoEngine("neither docker compose nor docker-compose is there")


@dataclass(frozen=True)
class Built:
    """An image, and how long its build took."""

    tag: str
    seconds: float


class Images(NamedTuple):
    """The targets, built from this tree."""

    server: Built
    batch: Built


def build(target: str, tag: str, *, context: Path = ROOT, file: Path | None = None) -> Built:
    """Build a target of the Dockerfile."""
    begin = time.monotonic()
    flags = shlex.split(os.environ.get("BUILD_FLAGS", ""))
    chosen = ["--target", target] if target else []
    docker("build", *flags, *chosen, "--tag", tag, "--file", str(file or context / "Dockerfile"), str(context), timeout_s=BUILD_S)
    return Built(tag, time.monotonic() - begin)


def nginx_image() -> str:
    """NGINX_IMAGE, else an image with Debian's nginx."""
    given = os.environ.get("NGINX_IMAGE")
    return given or build("", "stequant-test:nginx", context=HERE, file=HERE / "nginx.Dockerfile").tag


@dataclass(frozen=True)
class Project:
    """The compose file, started under a name of its own, with variables and a data folder of its own."""

    command: Sequence[str]
    name: str
    variables: Mapping[str, str]
    files: tuple[Path, ...] = field(default=(ROOT / "docker-compose.yml",))

    def compose(
        self, *arguments: str, timeout_s: float = COMMAND_S, check: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """`docker-compose …`, as typed in the folder of the compose file."""
        files = [word for file in self.files for word in ("--file", str(file))]
        return call(
            [*self.command, "--project-name", self.name, "--project-directory", str(ROOT), *files, *arguments],
            variables={**self.variables, **variables},
            timeout_s=timeout_s,
            check=check,
        )

    def containers(self, service: str = "", *options: str) -> list[str]:
        """The containers of a service, or of all; running ones only, but for the option `--all`."""
        labels = [f"project={self.name}", *([f"service={service}"] if service else [])]
        filters = [word for label in labels for word in ("--filter", f"label=com.docker.compose.{label}")]
        listed = docker("ps", "--quiet", *options, *filters)
        return listed.stdout.split()

    def up(self, *arguments: str, **variables: str) -> None:
        """`docker-compose up -d`, of images that are there, to the moment when all are healthy."""
        self.compose("up", "-d", "--no-build", *arguments, **variables)
        for container in self.containers("server"):
            wait_until_healthy(container)

    def url(self, service: str, port: int) -> str:
        """Where a service is reached from outside."""
        return f"http://{self.compose('port', service, str(port)).stdout.strip()}"

    def down(self) -> None:
        """Remove all that was started, and its volumes."""
        self.compose("--profile", "scale", "--profile", "batch", "down", "--volumes", "--remove-orphans", "--timeout", "10")


def wait_until_healthy(container: str) -> None:
    """Until the engine's own health check says so."""
    eventually(lambda: inspected(container)["State"]["Health"]["Status"] == "healthy", f"{container} is healthy", 90)


def kill_the_process(container: str) -> None:
    """`kill -9` of the process itself: the engine's own `kill` would count as a wish that it stay dead."""
    program = "import os, signal; os.kill(int(open('/proc/1/task/1/children').read().split()[0]), signal.SIGKILL)"
    # The process that runs this dies with the container.
    docker("exec", container, "python", "-c", program, check=False)
