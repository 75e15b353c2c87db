"""Which part of a job's files one process takes."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from service.batch.errors import BadUsage

INDEX_VARIABLE = "JOB_COMPLETION_INDEX"
COUNT_VARIABLE = "JOB_COMPLETION_COUNT"


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, counted from 0."""

    index: int
    count: int

    def owns(self, path: str) -> bool:
        """Whether an output belongs to this shard.

        The path alone decides: a file stays where it is when others come or go, and shards that look at the
        sources at different times never take the same file.
        """
        return zlib.crc32(path.encode()) % self.count == self.index

    @property
    def name(self) -> str:
        """As it stands in the names of its files."""
        return f"{self.index}-of-{self.count}"

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(text: str) -> Shard:
    """`I/N`, counted from 0; `BadUsage` for anything else."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text.strip(), re.ASCII)
    if match is None or not int(match[1]) < int(match[2]):
        raise BadUsage(f"the shard is {text!r}; allowed: I/N with 0 <= I < N, such as 0/4")
    return Shard(int(match[1]), int(match[2]))


def shard_from(environment: Mapping[str, str]) -> Shard | None:
    """The shard that a Kubernetes indexed job gives its pod, or None outside of one."""
    index, count = environment.get(INDEX_VARIABLE, ""), environment.get(COUNT_VARIABLE, "")
    if not index and not count:
        return None
    if not index or not count:
        have, lack = (INDEX_VARIABLE, COUNT_VARIABLE) if index else (COUNT_VARIABLE, INDEX_VARIABLE)
        raise BadUsage(f"{have} is set and {lack} is not: set both, neither, or --shard I/N")
    try:
        return parse_shard(f"{index}/{count}")
    except BadUsage as error:
        raise BadUsage(f"{INDEX_VARIABLE}/{COUNT_VARIABLE}: {error}") from None
