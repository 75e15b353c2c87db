"""From the SOURCE arguments to the files of a job, each with the place of its output."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from service.batch.errors import BadUsage
from service.batch.formats import SUFFIXES

_WILDCARDS = frozenset("*?[")


class Found(NamedTuple):
    """A source and the path of its output, relative to DEST, with `/` between its parts."""

    source: str
    output: str


class Unreadable(NamedTuple):
    """A folder whose files cannot be listed, and why."""

    path: str
    reason: str


def find(arguments: Iterable[str], dest: Path, standard_input: TextIO) -> Iterator[Found | Unreadable]:
    """The files that the arguments name: files, folders, globs, and `@FILE` with one of these a line.

    Raises `BadUsage` for an argument that names nothing.
    """
    excluded = _identity(dest)
    for argument in arguments:
        if not argument.startswith("@"):
            yield from _named(argument, excluded)
            continue
        for line in _lines(argument[1:], standard_input):
            yield from _named(line, excluded)


def _lines(file: str, standard_input: TextIO) -> Iterator[str]:
    try:
        lines = standard_input.read().splitlines() if file == "-" else Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadUsage(f"cannot read the list @{file}: {getattr(error, 'strerror', None) or error}") from error
    for line in lines:
        path = line.strip()
        if path and not path.startswith("#"):
            yield path


def _named(argument: str, excluded: tuple[int, int] | None) -> Iterator[Found | Unreadable]:
    path = Path(argument)
    if path.exists() and _lies_in(path, excluded):
        raise BadUsage(f"{argument!r} lies in DEST, which is never read")
    if path.is_dir():
        yield from _below(path, excluded)
    elif path.exists():
        yield _file(path)
    elif _WILDCARDS & set(argument):
        yield from _matches(argument, excluded)
    else:
        raise BadUsage(f"{argument!r} is neither a file, nor a folder, nor a pattern")


def _file(path: Path) -> Found:
    if path.suffix.lower() not in SUFFIXES:
        raise BadUsage(f"{str(path)!r} ends in {path.suffix!r}; allowed: {', '.join(SUFFIXES)}")
    return Found(str(path), path.name)


def _matches(pattern: str, excluded: tuple[int, int] | None) -> Iterator[Found]:
    """The files that a pattern matches, relative to the part before its first wildcard."""
    parts = Path(pattern).parts
    fixed = next(index for index, part in enumerate(parts) if _WILDCARDS & set(part))
    base = Path(*parts[:fixed])
    for match in glob.iglob(pattern, recursive=True):
        path = Path(match)
        if path.suffix.lower() in SUFFIXES and path.is_file() and not _lies_in(path, excluded):
            yield Found(match, path.relative_to(base).as_posix())


def _below(folder: Path, excluded: tuple[int, int] | None) -> Iterator[Found | Unreadable]:
    """The files below a folder, links followed but not in circles, without those of DEST."""
    open_folders: list[tuple[str, str, frozenset[tuple[int, int]]]] = [(str(folder), "", frozenset())]
    while open_folders:
        path, relative, above = open_folders.pop()
        try:
            identity = _identity(Path(path))
            if identity is None or identity == excluded or identity in above:
                continue
            with os.scandir(path) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            yield Unreadable(path, f"cannot be listed: {error.strerror}")
            continue
        for entry in listed:
            place = f"{relative}{entry.name}"
            if entry.is_dir():
                open_folders.append((entry.path, f"{place}/", above | {identity}))
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                yield Found(entry.path, place)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


def _lies_in(path: Path, excluded: tuple[int, int] | None) -> bool:
    resolved = path.parent.resolve() / path.name
    return excluded is not None and any(_identity(one) == excluded for one in (resolved, *resolved.parents))
