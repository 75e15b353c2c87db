"""A job against a server needs neither torch nor the server's framework; one that computes here says what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from batch_trees import DONE, USAGE, npy, numbers, outputs, write
from scripted_server import scripted
from server_process import ROOT, environment

WITHOUT_THE_SERVER_EXTRA = """
import sys
for name in ("torch", "fastapi", "starlette", "uvicorn", "pydantic_settings", "prometheus_client"):
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
from service.cli import main
sys.exit(main())
"""


def base_install(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process that finds only what the base install has."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_SERVER_EXTRA, "batch", *map(str, arguments), "--op", "round"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_server_may_compute_for_the_base_install(tmp_path: Path) -> None:
    x = numbers(100)
    source = write(tmp_path / "in", {"x.npy": npy(x)})
    with scripted() as server:
        ended = base_install(source, tmp_path / "out", "--url", server.url)
    assert ended.returncode == DONE, ended.stderr
    assert outputs(tmp_path / "out") == {"x.npy": npy(np.rint(x))}
    assert base_install(source, tmp_path / "out", "--url", server.url, "--verify").returncode == DONE
    assert base_install(source, tmp_path / "out", "--dry-run").returncode == DONE


def test_computing_here_says_what_to_install(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {"x.npy": npy(numbers(3))})
    ended = base_install(source, tmp_path / "out")
    assert ended.returncode == USAGE
    assert "torch" in ended.stderr
    assert "--url" in ended.stderr
    assert "Traceback" not in ended.stderr
