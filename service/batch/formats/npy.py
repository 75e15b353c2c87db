"""`.npy`: arrays back to back, each behind a header of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from service.batch.errors import BadInput
from service.batch.formats.base import Input, Plain
from service.batch.layout import Layout, Literal, Slot, Target
from service.wire import npy
from service.wire.message import Bundle

# The longest header that is read, and what stands before its text.
HEADER_WINDOW_BYTES = npy.MAX_HEADER_BYTES + 12


class Npy(Plain):
    """Read as `stequant quantize` reads it, written as it writes it: little-endian, with NumPy's own headers."""

    def layout(self, source: Input) -> Layout:
        """The arrays of the file, in order."""
        if not source.nbytes:
            raise BadInput("is empty; a .npy file holds at least one array")
        return Layout(tuple(arrays(source.read, 0, source.nbytes)), source.nbytes)

    def target(self, source: Input, layout: Layout) -> Target:
        """The same arrays, each behind the header that NumPy writes."""
        return target_of(layout)


def arrays(read: Callable[[int, int], bytes], start: int, stop: int) -> Iterator[Slot]:
    """The arrays that lie back to back from byte `start` to `stop`; `read` gives so many bytes from a place on."""
    at = start
    while at < stop:
        header, length = npy._header_at(memoryview(read(at, min(HEADER_WINDOW_BYTES, stop - at))), 0)
        slot = Slot(header.dtype, header.shape, at + length, header.fortran, header.swapped)
        if slot.stop > stop:
            raise BadInput(
                f"is truncated: the header before byte {slot.start} promises {slot.nbytes} bytes, {stop - slot.start} follow"
            )
        yield slot
        at = slot.stop


def target_of(layout: Layout) -> Target:
    """Arrays of these dtypes, shapes and orders, back to back."""
    literals = []
    starts = []
    at = 0
    for slot in layout.slots:
        header = bytes(npy.encode({"y": Bundle.of(slot.described)})[0])
        literals.append(Literal(at, header))
        starts.append(at + len(header))
        at += len(header) + slot.nbytes
    return Target(tuple(literals), tuple(starts), at)
