"""The two C programs, compiled when they are needed, into a folder that goes away."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

FLAGS = ("-O2", "-Wall", "-pthread")


def compiler() -> str | None:
    """A C compiler of this machine, if there is one."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def build(program: str, folder: Path) -> Path | None:
    """The path of `echo` or `loadgen`, compiled into `folder`; None where there is no compiler."""
    found = compiler()
    if found is None:
        return None
    binary = folder / program
    if not binary.exists():
        source = Path(__file__).with_name(f"{program}.c")
        subprocess.run([found, *FLAGS, "-o", str(binary), str(source)], check=True)
    return binary
