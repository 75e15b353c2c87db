"""The direction of imports, and that importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "service"

# What each part may import of the others. A part is a module of `service` or one of its folders.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "dtypes": {"errors"},
    "ops": {"errors", "dtypes"},
    "wire": {"errors", "dtypes"},
    "call": {"errors", "ops", "wire"},
    "quantize": {"ops"},
    "head": {"errors", "ops"},
    "answer": {"errors"},
    "keys": {"errors"},
    "hosts": {"errors"},
    "budget": {"errors"},
    "job": set(),
    "ahead": {"answer", "call", "device", "shortcuts", "wire"},
    "settings": set(),
    "metrics": set(),
    "sink": set(),
    "logs": {"metrics", "sink"},
    "device": {"errors", "dtypes", "ops", "wire", "call"},
    "shortcuts": {"answer", "call", "device", "dtypes", "ops", "wire"},
    "core": {
        "ahead",
        "answer",
        "budget",
        "call",
        "device",
        "errors",
        "head",
        "hosts",
        "job",
        "keys",
        "logs",
        "metrics",
        "ops",
        "settings",
        "shortcuts",
        "wire",
    },
    "asgi": {"answer", "core", "device", "errors", "head", "job", "logs", "metrics"},
    "transport": {"ahead", "answer", "core", "device", "errors", "head", "job", "logs", "metrics", "settings", "shortcuts"},
    "openapi": {"answer", "call", "dtypes", "errors", "ops", "settings", "wire"},
    "page": set(),
    "routes": {"answer", "asgi", "core", "dtypes", "errors", "metrics", "ops", "page"},
    "oip": {"", "answer", "call", "core", "dtypes", "errors", "head", "job", "ops", "wire"},
    "tracing": {"", "head", "logs", "metrics"},
    "app": {"", "asgi", "core", "device", "metrics", "oip", "openapi", "routes", "settings", "tracing"},
    "processes": {"", "app", "core", "device", "errors", "logs", "settings", "tracing", "transport"},
    "client": {"", "errors", "dtypes", "ops", "wire", "call"},
    "batch": {"", "call", "client", "device", "dtypes", "errors", "ops", "wire"},
    "cli": {"", "batch", "call", "client", "dtypes", "device", "errors", "ops", "processes", "settings", "wire"},
    "__main__": {"cli"},
    "__init__": set(),
}

# Outside packages that only these parts may import, wherever in the module the import stands.
ONLY_IN: dict[str, set[str]] = {
    "torch": {"ops", "device", "shortcuts", "quantize", "client"},
    "fastapi": {"app", "asgi", "oip", "openapi", "routes"},
    "starlette": {"app", "routes"},
    "uvicorn": {"processes", "transport"},
    "httptools": {"transport"},
    "httpx": {"batch", "client"},
    "isal": {"batch"},
    "jax": {"client"},
    "matplotlib": {"cli"},
    "opentelemetry": {"tracing"},
    "safetensors": {"batch"},
    "prometheus_client": {"metrics", "processes"},
    "pydantic_settings": {"settings"},
}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package, with the part it belongs to."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path


def imports(path: Path) -> Iterator[str]:
    """The names of what a module imports, anywhere in it but for type checkers alone."""
    tree = ast.parse(path.read_text())
    only_for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in only_for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(name: str) -> str:
    """Which part of the package a dotted name is from; empty for the package itself."""
    inside = name.split(".")[1:]
    return inside[0] if inside and ((PACKAGE / inside[0]).is_dir() or (PACKAGE / f"{inside[0]}.py").exists()) else ""


@pytest.mark.parametrize(("part", "path"), list(modules()), ids=lambda value: value.name if isinstance(value, Path) else value)
def test_imports_point_inward(part: str, path: Path) -> None:
    assert part in ALLOWED, f"{part} is not in the table; say what it may import"
    own = {part_of(name) for name in imports(path) if name.split(".")[0] == "service"} - {part}
    assert own <= ALLOWED[part], f"{path.name} imports {sorted(own - ALLOWED[part])}"


@pytest.mark.parametrize(("part", "path"), list(modules()), ids=lambda value: value.name if isinstance(value, Path) else value)
def test_a_framework_is_known_only_where_it_is_used(part: str, path: Path) -> None:
    outside = {name.split(".")[0] for name in imports(path)}
    assert not [name for name in outside & set(ONLY_IN) if part not in ONLY_IN[name]]


def test_the_table_names_what_is_there() -> None:
    assert set(ALLOWED) == {part for part, _ in modules()}


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=PACKAGE.parent
    ).stdout.strip()


@pytest.mark.parametrize("name", ["service.client", "service.ops", "service.wire", "service.call", "service.cli"])
def test_what_the_base_install_has_imports_without_the_server_extra(name: str) -> None:
    missing = ("torch", "fastapi", "starlette", "uvicorn", "pydantic_settings", "prometheus_client")
    assert run(f"import sys; sys.modules.update(dict.fromkeys({missing!r})); import {name}; print('imported')") == "imported"


def test_importing_the_server_configures_nothing() -> None:
    code = """
import logging, os, threading, torch
before = (torch.get_num_threads(), logging.getLogger('stequant').handlers[:], threading.active_count(), dict(os.environ))
os.environ['STEQUANT_PORT'] = 'not a number'
import service.app, service.processes.run, service.processes.server, service.quantize
del os.environ['STEQUANT_PORT']
after = (torch.get_num_threads(), logging.getLogger('stequant').handlers[:], threading.active_count(), dict(os.environ))
print(before == after)
"""
    assert run(code) == "True"
