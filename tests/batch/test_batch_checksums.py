"""Sums of parts are the sums of the whole; the oracle is zlib over the joined bytes."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batch.checksums import Sum, checksum, drained, filled, joined, sum_of


@given(st.lists(st.binary(max_size=300)))
def test_joined_sums_are_the_sum_of_the_joined_bytes(parts: list[bytes]) -> None:
    whole = b"".join(parts)
    assert joined(map(checksum, parts)) == Sum(zlib.crc32(whole), len(whole))


@given(st.binary(max_size=50), st.integers(0, 5), st.binary(max_size=50))
def test_long_runs_of_zeros_between_parts_count(before: bytes, zeros_mib: int, after: bytes) -> None:
    zeros = bytes(zeros_mib * 2**20)
    assert joined(map(checksum, (before, zeros, after))).crc == zlib.crc32(before + zeros + after)


def test_no_parts_are_no_bytes() -> None:
    assert joined([]) == checksum(b"") == Sum(0, 0)


@pytest.mark.parametrize("nbytes", [0, 1, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20 + 7])
def test_the_sum_of_a_file_is_that_of_its_bytes(tmp_path: Path, nbytes: int) -> None:
    data = bytes(range(256)) * (nbytes // 256) + bytes(nbytes % 256)
    file = tmp_path / "file"
    file.write_bytes(data)
    assert sum_of(file) == Sum(zlib.crc32(data), nbytes)


@pytest.mark.parametrize("nbytes", [0, 1, 2**18 - 1, 2**18, 2**18 + 1, 3 * 2**18 + 7])
def test_what_is_moved_piece_by_piece_arrives_whole_and_has_the_sum_of_the_whole(nbytes: int) -> None:
    data = bytes(range(251)) * (nbytes // 251) + bytes(nbytes % 251)
    room, copy = memoryview(bytearray(nbytes)), bytearray(nbytes)

    def fill(offset: int, piece: memoryview) -> None:
        piece[:] = data[offset : offset + len(piece)]

    def drain(offset: int, piece: memoryview) -> None:
        copy[offset : offset + len(piece)] = piece

    assert filled(room, fill) == drained(room, drain) == Sum(zlib.crc32(data), nbytes)
    assert room == copy == data
