"""What the results were measured on, read from the machine itself."""

from __future__ import annotations

import os
import platform
import re
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "numpy", "uvicorn", "uvloop", "httptools", "fastapi", "msgpack")


def use_cores(count: int) -> None:
    """Keep this process and all it starts on the first `count` cores it may use; 0 leaves all of them."""
    if count:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def describe_machine() -> dict[str, str]:
    """Processor, cores, memory, kernel and versions, by the name the table gives them."""
    memory_kib = int(_first(r"^MemTotal:\s*(\d+) kB$", "/proc/meminfo") or 0)
    return {
        "date": date.today().isoformat(),
        "processor": _first(r"^model name\s*:\s*(.+)$", "/proc/cpuinfo") or platform.processor() or platform.machine(),
        "cores": f"{os.cpu_count()} in the machine, {len(os.sched_getaffinity(0))} used",
        "memory": f"{memory_kib / 2**20:.0f} GiB",
        "load before the run": f"{os.getloadavg()[0]:.2f} processes on average in the last minute",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name))),
    }


def _first(pattern: str, path: str) -> str | None:
    try:
        match = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    except OSError:
        return None
    return match.group(1) if match else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
