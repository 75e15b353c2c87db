"""Bits in bytes: what the server packs and the client unpacks, beside Python's own ints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compact_reference import unpacked

from service.client import unpack
from service.device.packing import Scratch, pack, pack_mask

COUNTS = [0, 1, 2, 3, 7, 8, 9, 17, 64, 1001, 2**18 + 5]


@pytest.mark.parametrize("bits", range(1, 33))
def test_packed_codes_are_unpacked_again(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    scratch = Scratch()
    for count in COUNTS:
        codes = torch.randint(0, 2**bits, (count,), generator=generator)
        wide = codes if bits > 30 else codes.to(torch.int32)
        packed = pack(wide, bits, scratch).clone().numpy()
        assert packed.nbytes == -(-count * bits // 8)
        assert unpacked(packed.tobytes(), bits, count) == codes.tolist()
        again = unpack(packed, bits, count)
        assert again.dtype == (np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32)
        assert np.array_equal(again, codes.numpy())


def test_a_mask_is_what_numpy_packs() -> None:
    for count in COUNTS:
        mask = torch.rand(count) < 0.5
        assert pack_mask(mask, Scratch()).numpy().tobytes() == np.packbits(mask.numpy(), bitorder="little").tobytes()


@pytest.mark.parametrize(
    ("nbytes", "bits", "count"), [(2, 4, 5), (3, 4, 4), (0, 1, 1), (1, 1, 0), (1, 0, 1), (5, 33, 1), (1, -1, 1), (1, 8, -1)]
)
def test_other_bytes_than_the_codes_take_are_refused(nbytes: int, bits: int, count: int) -> None:
    with pytest.raises(ValueError, match=r"allowed: 1 to 32|got \d"):
        unpack(np.zeros(nbytes, np.uint8), bits, count)
