"""One file while it is worked on: opened, computed chunk by chunk, sealed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from service.batch.checksums import Sum, checksum, drained, joined, sum_of
from service.batch.chunks import Chunk, Extent, Run, missing
from service.batch.dest import Dest
from service.batch.errors import BadInput
from service.batch.formats import format_of
from service.batch.inspection import inspect
from service.batch.journal import Origin, Row
from service.batch.operands import Operand
from service.batch.rooms import Room
from service.batch.survey import Item
from service.batch.task import Task
from service.wire.message import Bundle, Message, WireTensor


class Rooms:
    """One thread's memory for the operands of a chunk."""

    def __init__(self) -> None:
        self.x = Room()
        self.grad_output = Room()


class Loaded(NamedTuple):
    """A chunk as a call. `room` is where the operand lies that the result is like; the sums are of what was read."""

    message: Message
    room: Room
    x: Sum
    grad: Sum | None


class Beginning(NamedTuple):
    """What an earlier run has left of a file: the name of the part, and what of it is there."""

    part: str
    extents: list[Extent]


class Work:
    """A file in work. Chunks may be loaded and stored by several threads at once; the rest is for one thread.

    Raises `BadInput` for what is wrong with the input, `OSError` for what is wrong under DEST.
    """

    def __init__(self, task: Task, item: Item, dest: Dest, beginning: Beginning | None = None) -> None:
        self.item = item
        self.failure: BadInput | None = None
        self._task = task
        self._form = format_of(item.source.path)
        stem = secrets.token_hex(8) if beginning is None else Path(beginning.part).stem
        self._part = dest.parts / f"{stem}.part"
        self._results = self._part.with_suffix(".raw") if self._form.is_packed else self._part
        self._extents = [] if beginning is None else beginning.extents
        self._operands: list[Operand] = []
        self._descriptor: int | None = None
        try:
            self._x = self._open(item.source, ".x")
            self._grad = None if item.grad is None else self._open(item.grad, ".grad")
            grad_source = None if self._grad is None else self._grad.source
            self._runs, self._target = inspect(task, self._form, self._x.source, grad_source)
            for operand in self._operands:
                operand.unpack()
            self._descriptor = self._open_results()
        except BaseException:
            self.close()
            raise

    @property
    def there(self) -> Sequence[Extent]:
        """What is stored so far."""
        return self._extents

    def _open(self, origin: Origin, suffix: str) -> Operand:
        operand = Operand(origin, self._form, self._part.with_suffix(suffix))
        self._operands.append(operand)
        return operand

    def _open_results(self) -> int:
        """The part that an earlier run has left, or a new one with its headers written."""
        if self._extents:
            with suppress(FileNotFoundError):
                descriptor = os.open(self._results, os.O_RDWR | os.O_CLOEXEC)
                if os.fstat(descriptor).st_size == self._target.nbytes:
                    return descriptor
                os.close(descriptor)
            self._extents = []
        descriptor = os.open(self._results, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            os.ftruncate(descriptor, self._target.nbytes)
            for literal in self._target.literals:
                _write(descriptor, memoryview(literal.data), literal.start)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def chunks(self, chunk_bytes: int) -> Iterator[Chunk]:
        """What is still to be computed."""
        return missing(self._runs, tuple(self._extents), chunk_bytes)

    def load(self, chunk: Chunk, rooms: Rooms) -> Loaded:
        """Read a chunk."""
        run, whole = chunk.run, chunk.run.whole
        itemsize = run.dtype.itemsize
        x, x_sum = self._x.read(run.x_start + chunk.start, chunk.nbytes, itemsize, rooms.x, swapped=run.x_swapped)
        message = {"x": _bundle(chunk, x, fortran=whole is not None and whole.fortran)}
        message |= {name: Bundle.of(one) for name, one in (self._task.scalars if whole is None else self._task.tensors).items()}
        if self._grad is None or run.grad_start is None:
            return Loaded(message, rooms.x, x_sum, None)
        grad, grad_sum = self._grad.read(
            run.grad_start + chunk.start, chunk.nbytes, itemsize, rooms.grad_output, swapped=run.grad_swapped
        )
        message["grad_output"] = _bundle(chunk, grad, fortran=whole is not None and run.grad_fortran)
        return Loaded(message, rooms.grad_output, x_sum, grad_sum)

    def store(self, chunk: Chunk, y: memoryview, loaded: Loaded) -> Extent:
        """Write the results of a chunk to their place."""
        descriptor = self._descriptor
        assert descriptor is not None
        y_sum = drained(y, lambda offset, piece: _write(descriptor, piece, chunk.y_start + offset))
        extent = Extent(chunk.y_start, y_sum, loaded.x, loaded.grad)
        self._extents.append(extent)
        return extent

    def row(self) -> Row:
        """What the journal is to know of it while it is not complete."""
        return Row(
            self.item.output,
            "partial",
            self._task.text,
            self.item.source,
            self.item.grad,
            chunks=len(self._extents),
            part=self._results.name,
        )

    def seal(self) -> Row:
        """All chunks are there: complete the part, which is not durable yet; what the journal is to know of it."""
        output = self._packed() if self._form.is_packed else self._joined()
        extents = sorted(self._extents)
        source = self.item.source._replace(crc=self._x.sum(_read_of_x(self._runs, extents)).crc)
        grad = self.item.grad
        if grad is not None and self._grad is not None:
            grad = grad._replace(crc=self._grad.sum(_read_of_grad(self._runs, extents)).crc)
        for operand in self._operands:
            operand.check_unchanged()
        self.close()
        return self.row()._replace(state="sealed", source=source, grad=grad, output=output, part=self._part.name)

    def _joined(self) -> Sum:
        headers = [(literal.start, checksum(literal.data)) for literal in self._target.literals]
        return joined(one for _, one in sorted(headers + [(extent.y_start, extent.y) for extent in self._extents]))

    def _packed(self) -> Sum:
        self._form.pack(self._x.source, self._results, self._target, self._part)
        self._results.unlink()
        return sum_of(self._part)

    def discard(self) -> None:
        """Remove what was computed."""
        self.close()
        for path in (self._part, self._results):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files; results that are there stay there."""
        while self._operands:
            self._operands.pop().close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _bundle(chunk: Chunk, elements: memoryview, *, fortran: bool) -> Bundle:
    whole = chunk.run.whole
    shape = (chunk.nbytes // chunk.run.dtype.itemsize,) if whole is None else whole.shape
    return Bundle.of(WireTensor(chunk.run.dtype, shape, elements, fortran))


def _write(descriptor: int, data: memoryview, start: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], start + written)


def _read_of_x(runs: Iterable[Run], extents: list[Extent]) -> list[tuple[int, Sum]]:
    """The sums of what was read of the source, by first bytes in its file, in order."""
    return sorted((run.x_start + extent.y_start - run.y_start, extent.x) for run, extent in _in_runs(runs, extents))


def _read_of_grad(runs: Iterable[Run], extents: list[Extent]) -> list[tuple[int, Sum]]:
    """The sums of what was read of the gradient, by first bytes in its file, in order."""
    return sorted(
        (run.grad_start + extent.y_start - run.y_start, extent.grad)
        for run, extent in _in_runs(runs, extents)
        if run.grad_start is not None and extent.grad is not None
    )


def _in_runs(runs: Iterable[Run], extents: Iterable[Extent]) -> Iterator[tuple[Run, Extent]]:
    """Each extent with the run of which it is a piece; both are in the order of the output."""
    ordered = iter(runs)
    run = next(ordered, None)
    for extent in extents:
        while run is not None and extent.y_start >= run.y_start + run.nbytes:
            run = next(ordered, None)
        assert run is not None
        yield run, extent
