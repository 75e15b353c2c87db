"""`.safetensors`: one header, then the tensors end to end."""

from __future__ import annotations

import math

from safetensors import SafetensorError, safe_open

from service.batch.errors import BadInput
from service.batch.formats.base import Input, Plain
from service.batch.layout import Layout, Literal, Slot, Target
from service.dtypes import DTYPES
from service.errors import UnsupportedDtype

_DTYPES = {"F16": DTYPES["float16"], "BF16": DTYPES["bfloat16"], "F32": DTYPES["float32"], "F64": DTYPES["float64"]}


class Safetensors(Plain):
    """Headers are read by the safetensors library, which also checks that the tensors lie end to end.

    The output has the same header, byte for byte: names, order and metadata stay.
    """

    def layout(self, source: Input) -> Layout:
        """The tensors of the file, in the order in which they lie."""
        try:
            with safe_open(source.path, framework="np") as file:
                described = [(name, file.get_slice(name)) for name in file.offset_keys()]
                shapes = [(name, tuple(one.get_shape()), one.get_dtype()) for name, one in described]
        except (SafetensorError, OSError) as error:
            raise BadInput(f"is not a safetensors file: {error}") from error
        for name, _, dtype in shapes:
            if dtype not in _DTYPES:
                raise UnsupportedDtype(f"tensor {name[:80]!r} of dtype {dtype} is not supported; allowed: {', '.join(_DTYPES)}")
        # They end where the file ends, and there is nothing between them.
        at = source.nbytes - sum(math.prod(shape) * _DTYPES[dtype].itemsize for _, shape, dtype in shapes)
        slots = []
        for _, shape, dtype in shapes:
            slots.append(Slot(_DTYPES[dtype], shape, at))
            at = slots[-1].stop
        return Layout(tuple(slots), source.nbytes, tuple(name for name, _, _ in shapes))

    def target(self, source: Input, layout: Layout) -> Target:
        """The same header, and the results where the tensors were."""
        header_bytes = min((slot.start for slot in layout.slots), default=layout.nbytes)
        return Target((Literal(0, source.read(0, header_bytes)),), tuple(slot.start for slot in layout.slots), layout.nbytes)
