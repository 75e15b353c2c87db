"""`stequant quantize` and `stequant grad`: npy files in and out, computed here or by a server."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from service.call import Kind, fields, plan
from service.cli.operators import Commands
from service.cli.options import BadFile, add_device, add_expression, add_uds, named, read_arrays, read_tensors
from service.cli.serving import BadUsage, Unavailable
from service.errors import DeviceFault
from service.ops import Expression, parse
from service.wire import npy
from service.wire.message import Message

Compute = Callable[[Kind, Expression, Message], Message]


def add_commands(commands: Commands) -> None:
    """Add `quantize` and `grad` to the command line."""
    quantize = commands.add_parser(
        "quantize",
        help="quantize a .npy file",
        description="Quantize the arrays of IN into OUT. Several arrays back to back in one file stay several.",
    )
    quantize.add_argument("x", metavar="IN", help=".npy file; - for standard input")
    quantize.add_argument("out", metavar="OUT", help=".npy file to write; - for standard output")
    quantize.set_defaults(run=_quantize)
    grad = commands.add_parser(
        "grad",
        help="push a gradient back through a quantizer",
        description="Carry the gradient in GRAD, with respect to the quantized X, back to X, into OUT.",
    )
    grad.add_argument("x", metavar="X", help=".npy file of what was quantized")
    grad.add_argument("grad_output", metavar="GRAD", help=".npy file of its gradients, of the same dtype and shape")
    grad.add_argument("out", metavar="OUT", help=".npy file to write; - for standard output")
    grad.add_argument(
        "--tensor-grad",
        metavar="NAME=FILE",
        action="append",
        default=[],
        help="write the gradient of the tensor parameter NAME to FILE; may be repeated",
    )
    grad.set_defaults(run=_grad)
    for parser in (quantize, grad):
        add_expression(parser)
        add_place(parser)


def add_place(parser: argparse.ArgumentParser) -> None:
    """Add `--url`, `--uds` and `--device`, which `computer` reads."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help="compute on this server; without it, in this process")
    add_uds(where)
    add_device(parser)


def _quantize(options: argparse.Namespace) -> int:
    expression = parse(options.op)
    message = {"x": read_arrays(options.x)} | read_tensors(options.tensor)
    result = computer(options)("quantize", expression, message)
    _write(options.out, {"y": result["y"]})
    return 0


def _grad(options: argparse.Namespace) -> int:
    expression = parse(options.op)
    wanted = named(options.tensor_grad, "--tensor-grad")
    for name in wanted:
        if name not in expression.tensor_names:
            raise BadFile(f"--tensor-grad: '{expression}' names no tensor {name!r}")
    message = {name: read_arrays(getattr(options, name)) for name in fields("grad")} | read_tensors(options.tensor)
    result = computer(options)("grad", expression, message)
    _write(options.out, {"grad_x": result["grad_x"]})
    for name, file in wanted.items():
        _write(file, {"y": result[f"grad_{name}"]})
    return 0


def computer(options: argparse.Namespace) -> Compute:
    """What computes a call where the options say; `Unavailable` where this installation cannot."""
    if options.url is None and options.uds is None:
        return _local(options.device)
    from service.client import Client

    def compute(kind: Kind, expression: Expression, message: Message) -> Message:
        try:
            client = Client(options.url or "http://stequant", uds=options.uds)
        except ValueError as error:
            raise BadUsage(f"--url: {error}") from error
        with client:
            return client.exchange(kind, expression, message)

    return compute


def _local(device: str) -> Compute:
    try:
        from service.device.devices import choose
        from service.device.engine import Engine
    except ModuleNotFoundError as error:
        raise Unavailable(
            f"computing in this process needs {error.name}, which is not installed: "
            "pip install 'stequant[server]', or name a server with --url"
        ) from None
    try:
        engine = Engine(choose(device))
    except DeviceFault as error:
        raise Unavailable(error.detail) from error
    return lambda kind, expression, message: engine.run(plan(kind, expression, message))


def _write(file: str, message: Message) -> None:
    write(file, npy.encode(message))


def write(file: str, pieces: Sequence[bytes | memoryview]) -> None:
    """Write all or nothing: a file appears under its name when it is complete. `-` is standard output."""
    if file == "-":
        sys.stdout.buffer.writelines(pieces)
        sys.stdout.buffer.flush()
        return
    target = Path(file)
    try:
        if target.exists() and not target.is_file():  # a pipe or a device is written as it is
            with target.open("wb") as stream:
                stream.writelines(pieces)
            return
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.writelines(pieces)
            mask = os.umask(0)
            os.umask(mask)
            Path(temporary).chmod(0o666 & ~mask)
            Path(temporary).replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise
    except OSError as error:
        raise BadFile(f"cannot write {file}: {error.strerror}") from error
