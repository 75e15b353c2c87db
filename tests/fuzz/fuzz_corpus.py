"""The corpus: inputs that take a way through the service that no smaller one takes."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from fuzz_targets import Target

import service

# Kept inputs are read again in every run of the tests.
_LARGEST_BYTES = 1024
_SERVICE = str(Path(service.__file__).parent)

Step = tuple[str, int, int]


def keep(target: Target, inputs: Iterable[bytes]) -> None:
    """Make the target's corpus of what it holds and of these inputs, smallest first; what the seeds reach needs no other."""
    target.corpus.mkdir(parents=True, exist_ok=True)
    kept = {path: path.read_bytes() for path in target.corpus.iterdir()}
    known = set().union(*(steps(target, data) for data in target.seeds()))
    for path in kept:
        path.unlink()
    for data in sorted({*kept.values(), *inputs}, key=lambda one: (len(one), one)):
        if len(data) > _LARGEST_BYTES or not (new := steps(target, data) - known):
            continue
        known |= new
        (target.corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def steps(target: Target, data: bytes) -> set[Step]:
    """From which line of the service to which line the check of an input goes."""
    found: set[Step] = set()

    def called(frame: FrameType, _event: str, _value: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(_SERVICE):
            return None
        at = frame.f_lineno

        def stepped(frame: FrameType, event: str, _value: Any) -> Any:
            nonlocal at
            if event == "line":
                found.add((file, at, frame.f_lineno))
                at = frame.f_lineno
            return stepped

        return stepped

    sys.settrace(called)
    try:
        target.check(data)
    finally:
        sys.settrace(None)
    return found
