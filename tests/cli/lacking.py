"""The command line in a process that finds some modules not installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable

from server_process import ROOT, environment

SERVER_EXTRA = ("torch", "fastapi", "starlette", "uvicorn", "pydantic_settings", "prometheus_client", "fastapi_offline")

_CODE = """
import sys
for name in {names!r}:
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
from service.cli import main
sys.exit(main())
"""


def run_lacking(names: Iterable[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command with these arguments, where modules of these names cannot be imported."""
    return subprocess.run(
        [sys.executable, "-c", _CODE.format(names=tuple(names)), *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
