"""What the commands share that compute: the options that say what, with which tensors, and where."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from service.wire import npy
from service.wire.message import Bundle

MAX_TENSORS = 2**31


class BadFile(Exception):
    """A file that cannot be read or written."""


def add_expression(parser: argparse.ArgumentParser) -> None:
    """Add `--op` and `--tensor`."""
    parser.add_argument("--op", required=True, metavar="EXPR", help="an operator or a chain; see stequant operators")
    parser.add_argument(
        "--tensor",
        metavar="NAME=FILE",
        action="append",
        default=[],
        help="a .npy file for the tensor that EXPR calls NAME; may be repeated",
    )


def add_uds(parser: argparse._MutuallyExclusiveGroup) -> None:
    """Add `--uds`."""
    parser.add_argument("--uds", metavar="PATH", help="compute on the server behind this Unix socket")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument("--device", default="cpu", help="device in this process: auto, cpu, cuda, cuda:N (default cpu)")


def named(given: Iterable[str], option: str) -> dict[str, str]:
    """The files of an option that takes NAME=FILE."""
    pairs = [item.partition("=") for item in given]
    for name, _, file in pairs:
        if not name or not file:
            raise BadFile(f"{option} takes NAME=FILE, got {name!r}")
    return {name: file for name, _, file in pairs}


def read_arrays(file: str) -> Bundle:
    """The arrays of a .npy file, or of standard input (`-`)."""
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise BadFile(f"cannot read {file}: {error.strerror}") from error
    return npy.decode(memoryview(bytearray(data)), ("x",), MAX_TENSORS)["x"]


def read_tensors(given: Iterable[str]) -> dict[str, Bundle]:
    """The tensors that `--tensor` names."""
    return {name: read_arrays(file) for name, file in named(given, "--tensor").items()}
