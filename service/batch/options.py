"""What a job is told: values only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from service.batch.shards import Shard
from service.batch.task import Task

# Large enough that a request costs little beside its bytes (1 MiB took a fifth more processor time), small enough that
# several fit in a small container.
DEFAULT_CHUNK_BYTES = 16 * 2**20
DEFAULT_CONCURRENCY = 4
DEFAULT_RETRIES = 5
DEFAULT_TIMEOUT_S = 60.0
DEFAULT_GIVE_UP_AFTER_S = 300.0
DEFAULT_GRACE_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """One job: what is done (`task`), to what (`sources`, and the tree `grads`), and where the results go (`dest`).

    `chunk_bytes` bounds what is computed at a time, `concurrency` how many chunks are in flight; `force` forgets
    what is done.
    """

    task: Task
    sources: tuple[str, ...]
    dest: Path
    grads: Path | None = None
    shard: Shard | None = None
    chunk_bytes: int = DEFAULT_CHUNK_BYTES
    concurrency: int = DEFAULT_CONCURRENCY
    retries: int = DEFAULT_RETRIES
    give_up_after_s: float = DEFAULT_GIVE_UP_AFTER_S
    force: bool = False
