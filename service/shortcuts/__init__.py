"""Calls that differ from an earlier one in nothing but their data.

On a kept connection most calls repeat head and body header byte for byte. What decoding, planning and
encoding gave for the first of them holds for the others; only the elements have to be computed, where they lie.
Of calls with one tensor (`one`) a body that is still on its way can be overwritten as far as it has come; calls with
many (`many`) are answered when all of it is there.
"""

from __future__ import annotations

import threading

from service.answer import Answer
from service.call import Call
from service.device.devices import Device
from service.shortcuts import many, one

Shortcut = one.Shortcut | many.Shortcut

# Learning costs as much as the call that it is done for. It begins with the second call that has the same head, as some
# callers give every call a head of its own; and becomes rare after so many in a row that were not like the one before.
_OFTEN_IN_VAIN = 8


# What all that was learned may hold, in places of tensors: about 20 MB. Then everything is forgotten.
_MOST_PLACES = 100_000
# A shortcut of one tensor takes as much memory as so many places.
_PLACES_OF_ONE = 16


class Learned:
    """All that a process has learned, so that it has a bound."""

    def __init__(self, most_places: int = _MOST_PLACES) -> None:
        self._most_places = most_places
        self._places = 0
        self._of: list[Shortcuts] = []
        self._lock = threading.Lock()

    def add(self, shortcuts: Shortcuts, known: Shortcut) -> None:
        """Remember a shortcut there; where that is too much, in exchange for all others."""
        places = len(known.around) if isinstance(known, many.Shortcut) else _PLACES_OF_ONE
        with self._lock:
            self._places += places
            if self._places > self._most_places:
                for other in self._of:
                    other.known = None
                self._of.clear()
                self._places = places
            if places <= self._most_places:
                self._of.append(shortcuts)
                shortcuts.known = known


class Shortcuts:
    """What was learned from the last call with some head, if anything.

    Several threads may use it at once; one that comes too late learns or finds nothing, which is always right.
    """

    def __init__(self, learned: Learned) -> None:
        self.known: Shortcut | None = None
        self._learned = learned
        self._in_vain = 0

    def find(self, body: memoryview) -> Shortcut | None:
        """The shortcut for this body, where it is like the last one."""
        known = self.known
        if known is None or not known.fits(body):
            return None
        self._in_vain = 1
        return known

    def learn(self, call: Call, body: memoryview, answer: Answer, device: Device) -> None:
        """Remember what holds for all calls like this one, which was computed in this body and so answered."""
        self._in_vain += 1
        in_vain = self._in_vain
        if in_vain == 1 or (in_vain > _OFTEN_IN_VAIN and in_vain & (in_vain - 1)):
            return
        learn = one.learn if call.operand.single else many.learn
        known = learn(call, body, answer, device)
        if known is not None:
            self._learned.add(self, known)
