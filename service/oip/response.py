"""An answer as the protocol writes it: JSON that describes the tensors, then the bytes of those that are wanted so."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from service.answer import Answer, Piece
from service.errors import NotAcceptable, UnknownOutput
from service.oip.models import DATATYPE_OF, VERSION, Document, Model
from service.oip.regions import Bytes, Range, Regions
from service.oip.request import InferRequest, Output
from service.wire.json import array_of
from service.wire.message import WireTensor

JSON_MEDIA_TYPE = "application/json"
BINARY_MEDIA_TYPE = "application/octet-stream"


class Placed(NamedTuple):
    """An output, and where in shared memory it is written to, if it is."""

    wanted: Output
    target: Bytes | None

    @property
    def as_json(self) -> bool:
        """Whether its elements become JSON numbers."""
        return self.target is None and not self.wanted.binary


def placed(request: InferRequest, available: Mapping[str, int], regions: Regions, max_json_bytes: int) -> tuple[Placed, ...]:
    """The outputs of a call, in the order in which they are wanted; `available` has the bytes of each that there is.

    Raises `UnknownOutput`; `BadRegion` for a range that is not there or too small; `NotAcceptable` for more elements
    than are written as JSON.
    """
    wanted = request.outputs or tuple(Output(name, request.binary_output, None) for name in available)
    for one in wanted:
        if one.name not in available:
            raise UnknownOutput(f"there is no output {one.name[:80]!r}; there are: {', '.join(map(repr, available))}")
    found = tuple(Placed(one, _target(one.shared, available[one.name], regions)) for one in wanted)
    json_bytes = sum(available[one.wanted.name] for one in found if one.as_json)
    if json_bytes > max_json_bytes:
        raise NotAcceptable(
            f"outputs of {json_bytes} bytes are too large for JSON; allowed: {max_json_bytes} (ask for binary data)"
        )
    return found


def _target(part: Range | None, nbytes: int, regions: Regions) -> Bytes | None:
    return None if part is None else regions.locate_for(part, nbytes)


def encode(model: Model, request: InferRequest, outputs: Sequence[tuple[Placed, WireTensor]]) -> Answer:
    """The answer; what belongs into shared memory is there already."""
    described: list[Document] = []
    pieces: list[Piece] = []
    for output, tensor in outputs:
        one: Document = {"name": output.wanted.name, "datatype": DATATYPE_OF[tensor.dtype], "shape": list(tensor.shape)}
        # What lies in shared memory has no parameters, as in Triton's answers: its clients in C++, and perf_analyzer with
        # them, look for binary_data_size wherever there are some.
        if output.as_json:
            one["data"] = array_of(tensor).tolist()
        elif output.target is None:
            one["parameters"] = {"binary_data_size": tensor.data.nbytes}
            pieces += [tensor.data] if tensor.data.nbytes else []
        described.append(one)
    document: Document = {"model_name": model.name, "model_version": VERSION}
    if request.request_id is not None:
        document["id"] = request.request_id
    # Non-finite numbers are written as Triton writes them, NaN, Infinity and -Infinity: its clients read nothing else.
    head = json.dumps({**document, "outputs": described}, separators=(",", ":")).encode("ascii")
    if not any(output.wanted.binary and output.target is None for output, _ in outputs):
        return Answer.of(200, JSON_MEDIA_TYPE, (head,))
    answer = Answer.of(200, BINARY_MEDIA_TYPE, (head, *pieces))
    return answer._replace(headers=((b"inference-header-content-length", b"%d" % len(head)),))
