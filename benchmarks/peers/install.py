"""An environment for each peer, made from its pinned requirements when it is first needed.

torch is not installed again: a path file lends each environment the packages of the running interpreter, behind its
own ones. So all compute with the same torch, and nothing large is fetched four times.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from benchmarks.peers.catalogue import Peer

CACHE = Path(__file__).parent.parent / ".peers"
INSTALL_TIMEOUT_S = 1800.0
REASON_CHARACTERS = 300


class NotInstalled(Exception):
    """A peer cannot be had on this machine; the message is pip's."""


def run(command: list[str]) -> None:
    """Carry out a command that installs; `NotInstalled` says why it could not."""
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        raise NotInstalled(reason(error.stderr or error.stdout)) from error
    except subprocess.TimeoutExpired as error:
        raise NotInstalled(f"no end after {INSTALL_TIMEOUT_S:g} s") from error


def install(peer: Peer, say: Callable[[str], None], cache: Path = CACHE, execute: Callable[[list[str]], None] = run) -> Path:
    """The environment of a peer. It is made again where its requirements or the interpreter have changed."""
    environment = cache / peer.name.lower()
    stamp = environment / "installed"
    packages = sysconfig.get_path("platlib")
    wanted = f"{sys.version}\n{packages}\n{peer.requirements.read_text()}"
    if stamp.exists() and stamp.read_text() == wanted:
        return environment
    cache.mkdir(parents=True, exist_ok=True)
    (cache / ".gitignore").write_text("*\n")
    say(f"installing {peer.package} {peer.version} into {environment}")
    execute([sys.executable, "-m", "venv", "--clear", str(environment)])
    # Every package is named with its version: nothing is left to be resolved.
    pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    execute([*pip, "--requirement", str(peer.requirements)])
    (site_packages(environment) / "torch-of-the-harness.pth").write_text(f"{packages}\n")
    stamp.write_text(wanted)
    return environment


def site_packages(environment: Path) -> Path:
    """Where the packages of an environment lie."""
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(environment)}))


def reason(output: str) -> str:
    """What pip says last, its errors before all else."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["nothing was said"])[-1][:REASON_CHARACTERS]
