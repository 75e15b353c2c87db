"""What the connections of one event loop have in common."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from service.transport import haul
from service.transport.heads import KnownHeads
from service.transport.reaper import Reaper
from service.transport.scratch import Scratch

_KEY = "transport"


class Shared:
    """`addresses` counts the connections from each address."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.reaper = Reaper(loop)
        self.heads = KnownHeads()
        self.scratch = Scratch()
        self.threads = haul.threads()
        self.addresses: Counter[str] = Counter()


def shared(app_state: dict[str, Any], loop: asyncio.AbstractEventLoop) -> Shared:
    """That of the loop, kept in the application's state."""
    if _KEY not in app_state:
        app_state[_KEY] = Shared(loop)
    found: Shared = app_state[_KEY]
    return found


def forget_heads(app_state: dict[str, Any]) -> None:
    """What was allowed before may not be any more: every head is read again."""
    if _KEY in app_state:
        app_state[_KEY].heads.forget()
