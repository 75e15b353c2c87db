"""A plain mutator: where no coverage-guided engine can be had, and for a fast look in every run of the tests."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from fuzz_checks import MAX_INPUT_BYTES
from fuzz_targets import Target

_EDGES = (0, 1, 0x7F, 0x80, 0xFF)


class Finding(Exception):
    """An input for which a check fails; the failure is its cause."""

    def __init__(self, target: Target, data: bytes) -> None:
        super().__init__(f"{target.name}: {data!r}")
        self.data = data


def mutants(target: Target, seed: int) -> Iterator[bytes]:
    """Inputs without end, made of the target's; the same for the same seed."""
    chance = random.Random(seed)
    pool = target.inputs()
    while True:
        data = bytearray(chance.choice(pool))
        for _ in range(chance.choice((1, 1, 2, 3, 8))):
            _mutate(data, chance, pool, target.words)
        yield bytes(data[:MAX_INPUT_BYTES])


def _mutate(data: bytearray, chance: random.Random, pool: list[bytes], words: list[bytes]) -> None:
    at = chance.randrange(len(data) + 1)
    length = chance.choice((1, 1, 2, 4, 8, 64))
    kind = chance.randrange(7)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << chance.randrange(8)
    elif kind == 1:
        data[at : at + 1] = bytes([chance.choice((*_EDGES, chance.randrange(256)))])
    elif kind == 2:
        del data[at : at + length]
    elif kind == 3:
        data[at:at] = data[at : at + length]
    elif kind == 4:
        data[at:at] = chance.choice(words)
    elif kind == 5:
        data[at : at + length] = chance.choice(words)
    elif kind == 6:
        other = chance.choice(pool)
        data[at:] = other[chance.randrange(len(other) + 1) :]


def run(target: Target, *, seed: int, runs: int | None = None, seconds: float | None = None) -> int:
    """Check so many inputs, or for so long; how many were checked. Raises `Finding` for the first that fails."""
    end = None if seconds is None else time.monotonic() + seconds
    done = 0
    for data in mutants(target, seed):
        if done == runs or (end is not None and time.monotonic() >= end):
            break
        try:
            target.check(data)
        except Exception as error:
            raise Finding(target, data) from error
        done += 1
    return done
