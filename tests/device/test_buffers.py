"""Memory for bodies: aligned at its end, and used again while bodies of its size come."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from service.device.buffers import ALIGNMENT, Pool, Room, allocate, pageable

MIB = 2**20


def address(buffer: memoryview) -> int:
    return np.frombuffer(buffer, dtype=np.uint8).ctypes.data


@pytest.mark.parametrize("nbytes", [0, 1, 4096, 16 * 1024 - 1])
def test_small_memory_has_its_size(nbytes: int) -> None:
    assert allocate(nbytes).nbytes == nbytes


@pytest.mark.parametrize("nbytes", [16 * 1024, 16 * 1024 + 1, MIB + 77])
def test_large_memory_ends_aligned(nbytes: int) -> None:
    for buffer in (allocate(nbytes), Pool().take(nbytes)):
        assert buffer.nbytes == nbytes
        assert (address(buffer) + nbytes) % ALIGNMENT == 0


@pytest.mark.parametrize("later", [MIB, MIB - 1, MIB - MIB // 8])
def test_memory_is_used_again_for_bodies_of_about_its_size(later: int) -> None:
    pool = Pool()
    first = pool.take(MIB)
    begin = address(first)
    pool.give(first)
    again = pool.take(later)
    assert begin - ALIGNMENT <= address(again) <= begin + MIB
    assert again.nbytes == later
    assert (address(again) + later) % ALIGNMENT == 0
    assert pool.bytes == 0


@pytest.mark.parametrize("later", [2 * MIB, MIB // 2, MIB + 1])
def test_memory_of_another_size_is_not_used(later: int) -> None:
    pool = Pool()
    pool.give(pool.take(MIB))
    pool.take(later)
    assert pool.bytes == MIB + ALIGNMENT


def test_memory_in_use_is_never_given_out_twice() -> None:
    pool = Pool()
    taken = [pool.take(MIB) for _ in range(4)]
    for buffer in taken[:2]:
        pool.give(buffer)
    taken[:2] = [pool.take(MIB) for _ in range(3)]
    begins = sorted(map(address, taken))
    assert all(later - earlier >= MIB for earlier, later in itertools.pairwise(begins))


def test_large_memory_comes_from_where_the_device_wants_it_and_is_used_again() -> None:
    asked: list[int] = []

    def fresh(nbytes: int) -> Room:
        asked.append(nbytes)
        return pageable(nbytes)

    pool = Pool(fresh)
    pool.take(4096)
    assert asked == []
    pool.give(pool.take(MIB))
    buffer = pool.take(MIB)
    assert asked == [MIB + ALIGNMENT]
    assert (address(buffer) + MIB) % ALIGNMENT == 0


def test_small_memory_is_not_kept() -> None:
    pool = Pool()
    pool.give(pool.take(4096))
    pool.give(pool.take(100 * 1024))
    assert pool.bytes == 0


def test_the_pool_keeps_no_more_than_its_share() -> None:
    pool = Pool()
    for buffer in [pool.take(200 * MIB) for _ in range(4)]:
        pool.give(buffer)
    assert pool.bytes == 2 * (200 * MIB + ALIGNMENT)


def test_memory_just_used_survives_a_trim() -> None:
    pool = Pool()
    pool.give(pool.take(MIB))
    pool.trim()
    assert pool.bytes == MIB + ALIGNMENT
