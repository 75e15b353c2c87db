"""Codes of a few bits each, one behind the other in bytes: code i has the bits from i * bits on, the lowest first."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from service.wire.compact import packed_bytes

_GROUP = 8  # so many codes of any width fill whole bytes


class Scratch:
    """Memory for what is computed on the way, the same for every tile.

    Fresh memory for each tile, given back after it, took three times as long as all the arithmetic
    (64 MiB to 4 bits: 90 ms against 27).
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, purpose: str, dtype: torch.dtype, like: Tensor) -> Tensor:
        """As many elements of a dtype as `like` has, uninitialised, where it is; until the same is taken again."""
        kept = self._kept.get((purpose, dtype))
        if kept is None or kept.numel() < like.numel():
            kept = self._kept[purpose, dtype] = torch.empty(like.numel(), dtype=dtype, device=like.device)
        return kept[: like.numel()]


def pack(codes: Tensor, bits: int, scratch: Scratch) -> Tensor:
    """The bytes of 1-d uint8, int32 or int64 `codes`, all within 0 and 2**bits - 1; the last byte is filled up with zeros.

    Half and double widths are packed as words: a shift and an or for two neighbours at once. Others are put
    together byte by byte, each from the codes that lie in it.
    """
    if bits in (1, 2, 4, 8):
        narrow = codes if codes.dtype == torch.uint8 else scratch.take("packed", torch.uint8, codes).copy_(codes)
        return _merged(narrow, bits, scratch)
    if bits == 16:
        return codes.to(torch.int16).view(torch.uint8)
    if bits == 32:
        return codes.to(torch.int32).view(torch.uint8)
    nbytes = packed_bytes(codes.numel(), bits)
    codes = codes.to(torch.int32) if codes.dtype == torch.uint8 else codes
    filled = _filled_up(codes, _GROUP)
    columns = scratch.take("columns", codes.dtype, filled).view(_GROUP, -1).copy_(filled.view(-1, _GROUP).t())
    byte = scratch.take("byte", codes.dtype, columns[0])
    part = scratch.take("part", codes.dtype, columns[0])
    written = torch.empty(filled.numel() // _GROUP, bits, dtype=torch.uint8, device=codes.device)
    for index in range(bits):
        written[:, index] = _byte(columns, bits, index, byte, part)
    return written.view(-1)[:nbytes]


def pack_mask(mask: Tensor, scratch: Scratch) -> Tensor:
    """The bytes of a 1-d mask, one bit an element."""
    if mask.is_cpu:
        return torch.from_numpy(np.packbits(mask.numpy(), bitorder="little"))
    return _merged(mask.view(torch.uint8), 1, scratch)


def _merged(codes: Tensor, bits: int, scratch: Scratch) -> Tensor:
    """Bytes that hold `bits` bits each, merged two by two until they hold eight."""
    codes = _filled_up(codes, 8 // bits)
    while bits < 8:
        pairs = codes.view(torch.int16)  # the first of two neighbours is the lower byte
        merged = torch.bitwise_right_shift(pairs, 8 - bits, out=scratch.take("pairs", torch.int16, pairs)).bitwise_or_(pairs)
        codes = scratch.take(f"{bits} bits merged", torch.uint8, merged).copy_(merged)
        bits *= 2
    return codes


def _byte(columns: Tensor, bits: int, index: int, byte: Tensor, part: Tensor) -> Tensor:
    """Byte `index` of each group of eight codes, whose i-th ones are column i; it lies in `byte`."""
    start, stop = 8 * index, 8 * (index + 1)
    byte.zero_()
    for position in range(start // bits, (stop - 1) // bits + 1):
        shift = position * bits - start
        moved = torch.bitwise_left_shift if shift >= 0 else torch.bitwise_right_shift
        byte.bitwise_or_(moved(columns[position], abs(shift), out=part))
    return byte.bitwise_and_(0xFF)


def _filled_up(codes: Tensor, multiple: int) -> Tensor:
    missing = -codes.numel() % multiple
    return torch.nn.functional.pad(codes, (0, missing)) if missing else codes
