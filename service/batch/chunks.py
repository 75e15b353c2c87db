"""From the tensors of a file to the pieces that are computed one at a time. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from service.batch.checksums import Sum
from service.batch.layout import Layout, Slot, Target
from service.dtypes import DType


class Run(NamedTuple):
    """Elements that lie in one piece in the source, in the gradient's file and in the output.

    `whole` is the tensor itself where the expression has to see it in its shape; then the run is one chunk.
    """

    dtype: DType
    nbytes: int
    x_start: int
    y_start: int
    grad_start: int | None = None
    x_swapped: bool = False
    grad_swapped: bool = False
    whole: Slot | None = None
    grad_fortran: bool = False


class Chunk(NamedTuple):
    """`nbytes` of a run, from byte `start` of the run on."""

    run: Run
    start: int
    nbytes: int

    @property
    def y_start(self) -> int:
        """Where in the output its results go."""
        return self.run.y_start + self.start


class Extent(NamedTuple):
    """A piece of an output that is there: from byte `y_start` on, with the sums of what it was made of."""

    y_start: int
    y: Sum
    x: Sum
    grad: Sum | None = None

    @property
    def stop(self) -> int:
        """The byte after its last."""
        return self.y_start + self.y.nbytes

    @property
    def bytes_read(self) -> int:
        """How much was read for it."""
        return self.x.nbytes + (0 if self.grad is None else self.grad.nbytes)


def runs(x: Layout, grad: Layout | None, target: Target, *, cuttable: bool) -> tuple[Run, ...]:
    """The runs of a file, in the order of its output; tensors without elements have none.

    The tensors of `grad` are paired with those of `x`, by name where they have names. Where `cuttable`,
    neighbours without a gap (as in a safetensors file) become one run: an element knows nothing of its tensor.
    """
    partners = _partners(x, grad)
    found: list[Run] = []
    for slot, partner, y_start in sorted(zip(x.slots, partners, target.starts, strict=True), key=lambda triple: triple[2]):
        if not slot.nbytes:
            continue
        run = _run(slot, partner, y_start, cuttable=cuttable)
        if found and _continues(found[-1], run):
            found[-1] = found[-1]._replace(nbytes=found[-1].nbytes + run.nbytes)
        else:
            found.append(run)
    return tuple(found)


def missing(runs: Iterable[Run], done: Iterable[Extent], chunk_bytes: int) -> Iterator[Chunk]:
    """The chunks that are still to be computed, of at most `chunk_bytes` (at least one element), in order."""
    extents = sorted(done)
    at = 0
    for run in runs:
        start = 0
        while at < len(extents) and extents[at].y_start < run.y_start + run.nbytes:
            yield from _cut(run, start, extents[at].y_start - run.y_start, chunk_bytes)
            start = extents[at].stop - run.y_start
            at += 1
        yield from _cut(run, start, run.nbytes, chunk_bytes)


def _cut(run: Run, start: int, stop: int, chunk_bytes: int) -> Iterator[Chunk]:
    if start >= stop:
        return
    step = run.nbytes if run.whole is not None else max(1, chunk_bytes // run.dtype.itemsize) * run.dtype.itemsize
    for at in range(start, stop, step):
        yield Chunk(run, at, min(step, stop - at))


def _partners(x: Layout, grad: Layout | None) -> Sequence[Slot | None]:
    if grad is None:
        return (None,) * len(x.slots)
    if x.names is None or grad.names is None:
        return grad.slots
    by_name = dict(zip(grad.names, grad.slots, strict=True))
    return [by_name[name] for name in x.names]


def _run(slot: Slot, partner: Slot | None, y_start: int, *, cuttable: bool) -> Run:
    in_order = partner is None or partner.fortran == slot.fortran or _is_flat(slot.shape)
    return Run(
        slot.dtype,
        slot.nbytes,
        slot.start,
        y_start,
        None if partner is None else partner.start,
        slot.swapped,
        partner is not None and partner.swapped,
        None if cuttable and in_order else slot,
        partner is not None and partner.fortran,
    )


def _is_flat(shape: tuple[int, ...]) -> bool:
    """Whether C and Fortran order are the same for this shape."""
    return sum(dimension > 1 for dimension in shape) < 2


def _continues(before: Run, run: Run) -> bool:
    """Whether a run lies right behind another in every file, and both may be cut anywhere."""
    if before.whole is not None or run.whole is not None:
        return False
    grad_start = None if before.grad_start is None else before.grad_start + before.nbytes
    behind = before._replace(
        nbytes=run.nbytes, x_start=before.x_start + before.nbytes, y_start=before.y_start + before.nbytes, grad_start=grad_start
    )
    return behind._replace(grad_fortran=run.grad_fortran) == run
