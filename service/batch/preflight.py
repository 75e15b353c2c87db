"""Whether servers will take the largest calls of a job, asked before anything is computed."""

from __future__ import annotations

from collections.abc import Callable

from service.batch.errors import BadInput, BadUsage
from service.batch.inspection import inspect_item
from service.batch.options import Options
from service.batch.survey import Standing, Survey

# Reasons to stop that are listed one by one; of more, the number is said.
_SHOWN = 5
# Of a file that is to be looked at again it is not known whether anything has to be computed.
_TO_COMPUTE: tuple[Standing, ...] = ("todo", "changed", "continue")


class BodyLimit:
    """What a server takes, learnt by asking: each answer is also one for all that is larger, or smaller."""

    def __init__(self, takes: Callable[[int], bool]) -> None:
        self._takes = takes
        self._taken = 0
        self._refused: int | None = None

    def allows(self, nbytes: int) -> bool:
        """Whether a body of this length is taken."""
        if nbytes > self._taken and (self._refused is None or nbytes < self._refused):
            if self._takes(nbytes):
                self._taken = nbytes
            else:
                self._refused = nbytes
        return nbytes <= self._taken


def check_sizes(options: Options, files: Survey, takes: Callable[[int], bool]) -> None:
    """`BadUsage` where a chunk, or a tensor that has to be sent whole, is more than the server takes.

    `takes` is asked whether a call with so many bytes of elements is taken.
    """
    limit = BodyLimit(takes)
    operands = 1 if options.task.kind == "quantize" else 2
    if options.task.is_cuttable:
        largest = max((item.source.nbytes for item in files.items(*_TO_COMPUTE)), default=0)
        if not limit.allows(operands * min(largest, options.chunk_bytes)):
            raise BadUsage(f"a chunk of {options.chunk_bytes} bytes is more than the server takes; choose a smaller --chunk-bytes")
        return
    refused = []
    for item in files.items(*_TO_COMPUTE):
        try:
            largest = max((run.nbytes for run in inspect_item(options.task, item).runs), default=0)
        except BadInput:
            continue  # said when its turn comes
        if not limit.allows(operands * largest):
            refused.append(f"{item.source.path} ({largest} bytes)")
    if refused:
        more = f" and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
        raise BadUsage(
            f"'{options.task.text}' needs whole tensors, and these are more than the server takes: "
            f"{', '.join(refused[:_SHOWN])}{more}; raise its STEQUANT_MAX_BODY_BYTES, or compute without --url"
        )
