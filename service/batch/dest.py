"""DEST: the tree of outputs, and `.stequant/` in it, which holds everything that is not output.

.stequant/job.json              which job DEST belongs to
.stequant/journal*.sqlite       what is done
.stequant/lock*                 who works here
.stequant/parts/                outputs that are not complete
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from service import __version__
from service.batch.errors import BadUsage
from service.batch.failures import unusable
from service.batch.shards import Shard
from service.batch.task import Task

FOLDER = ".stequant"
LAYOUT_VERSION = 1


class Dest:
    """The places in a DEST."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / FOLDER
        self.parts = self.folder / "parts"

    def output(self, path: str) -> Path:
        """The final name of an output."""
        return self.root / path

    def journal(self, shard: Shard | None) -> Path:
        """The journal of a shard, or of an undivided job."""
        return self.folder / ("journal.sqlite" if shard is None else f"journal-{shard.name}.sqlite")

    def journals(self) -> list[Path]:
        """All journals that are there."""
        return sorted(self.folder.glob("journal*.sqlite"))

    def prepare(self) -> None:
        """Make the folders; `BadUsage` where nothing can be written, `GaveUp` where the disk is full."""
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
            probe = self.parts / f"probe-{os.getpid()}"
            probe.write_bytes(bytes(1))
            probe.unlink()
        except OSError as error:
            raise unusable(error, self.root) from error

    def claim(self, task: Task) -> None:
        """Mark DEST as this task's; `BadUsage`, naming both, where it is another's."""
        ours = {
            "layout": LAYOUT_VERSION,
            "kind": task.kind,
            "expression": task.text,
            "tensors": dict(task.tensor_digests),
            "made_by": f"stequant {__version__}",
        }
        path = self.folder / "job.json"
        if not path.exists():
            draft = self.parts / f"job-{os.getpid()}.json"
            draft.write_text(json.dumps(ours, indent=2) + "\n", encoding="utf-8")
            # A link, not a rename: of two shards that start at once, the second must not replace what the first has written.
            with suppress(FileExistsError):
                os.link(draft, path)
            draft.unlink()
            sync_folder(self.folder)
        self.check(task)

    def check(self, task: Task) -> None:
        """`BadUsage` where DEST is another task's; nothing where it is nobody's."""
        path = self.folder / "job.json"
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return
        except (OSError, ValueError) as error:
            raise BadUsage(f"{str(path)!r} cannot be read ({error}); --force starts over") from error
        if theirs.get("layout") != LAYOUT_VERSION:
            raise BadUsage(
                f"DEST {str(self.root)!r} was made by {theirs.get('made_by')}, which kept its journal in another way; "
                "choose another DEST, or start over with --force"
            )
        whose, own = (theirs.get("kind"), theirs.get("expression")), (task.kind, task.text)
        if whose != own:
            raise BadUsage(
                f"DEST {str(self.root)!r} belongs to {whose[0]} '{whose[1]}', this job is {own[0]} '{own[1]}'; "
                "choose another DEST, or start over with --force"
            )
        for name, digest in task.tensor_digests.items():
            if theirs.get("tensors", {}).get(name) != digest:
                raise BadUsage(
                    f"DEST {str(self.root)!r} was made with another tensor {name!r}; "
                    "choose another DEST, or start over with --force"
                )

    def clear(self) -> None:
        """Forget the job whose DEST this was; its outputs stay until they are overwritten."""
        for part in self.parts.iterdir():
            part.unlink()
        for path in (*self.folder.glob("journal*"), self.folder / "job.json"):
            path.unlink(missing_ok=True)
        sync_folder(self.folder)


def publish(moves: Iterable[tuple[Path, Path]]) -> None:
    """Give parts their final names, durably: when this returns, they survive a loss of power."""
    folders: dict[Path, None] = {}
    for part, output in moves:
        if output.parent not in folders:
            folders |= dict.fromkeys(_made(output.parent))
        os.replace(part, output)
    for folder in folders:
        sync_folder(folder)


def _made(folder: Path) -> list[Path]:
    """Make a folder; itself, and those above it that have got a new entry."""
    new = []
    missing = folder
    while not missing.exists():
        new.append(missing.parent)
        missing = missing.parent
    folder.mkdir(parents=True, exist_ok=True)
    return [folder, *new]


def sync_file(path: Path) -> bool:
    """Wait until the bytes of a file are on the disk; whether it is there.

    The memory in which the system keeps its pages is let go of: a container's limit counts that memory too, and fresh
    memory for every page may cost more than the rest of writing it (1 GiB in writes of 16 MiB, in a virtual machine:
    4.4 s, and 1.0 s with pages let go of every 64 MiB).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return True


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
