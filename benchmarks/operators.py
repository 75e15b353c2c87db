"""Operators alone, against a memcpy of the same bytes: one thread, memory touched beforehand, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.engine import run_in_place
from benchmarks.machine import describe_machine
from benchmarks.results import OperatorResults, OperatorTime
from benchmarks.units import KIB, MIB, size_name
from service.ops import Expression, parse

SIZES = (64 * KIB, MIB, 64 * MIB)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ROUNDS = {64 * KIB: 301, MIB: 101, 64 * MIB: 7}
COLUMNS = 1024
SEED = 20240229

AFFINE = "affine_k_bit_quantize(k=4, w=w, b=b)"
# What w and b look like: one value, one for each column, one for each element (which reads two more tensors of x's size).
PARAMETER_SHAPES = ("0-d", "a row", "full")


@dataclass(frozen=True)
class Case:
    """An expression, and for an affine one the shape of its tensors."""

    expression: str
    shape: str | None = None

    def __str__(self) -> str:
        return f"{self.expression}, w and b: {self.shape}" if self.shape else self.expression

    def tensors(self, x: Tensor) -> Mapping[str, Tensor]:
        """`w` and `b` for this x, where the expression names them."""
        if self.shape is None:
            return {}
        shape = {"0-d": (), "a row": (COLUMNS,), "full": tuple(x.shape)}[self.shape]
        return {name: torch.rand(shape, dtype=torch.float32).to(x.dtype) for name in ("w", "b")}


CASES = (
    *map(
        Case,
        (
            "k_bit_quantize(k=4)",
            "clamp(min_value=0, max_value=1)",
            "step_quantize(step=0.1)",
            "round()",
            "clamp(min_value=0, max_value=1) | k_bit_quantize(k=4)",
            "clamp_by_linear(eps=1e-05)",
        ),
    ),
    *(Case(AFFINE, shape) for shape in PARAMETER_SHAPES),
)


def run(*, quick: bool, only: str, say: Callable[[str], None]) -> OperatorResults:
    """Every case whose name holds `only`, on every size and dtype."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    rounds = {size: max(3, count // 10) if quick else count for size, count in ROUNDS.items()}
    machine = describe_machine()
    times = []
    with torch.inference_mode():
        for case, dtype, size_bytes in _cells(only):
            measured = _measure(case, dtype, size_bytes, rounds[size_bytes])
            say(f"{case}, {measured.dtype}, {size_name(size_bytes)}: {measured.times_memcpy:.2f} × memcpy")
            times.append(measured)
    settings = {"rounds": ", ".join(f"{count} at {size_name(size)}" for size, count in rounds.items()), "threads": "1"}
    return OperatorResults(machine=machine, settings=settings, operators=times)


def _cells(only: str) -> Iterator[tuple[Case, torch.dtype, int]]:
    for case in CASES:
        for dtype in DTYPES:
            for size_bytes in SIZES:
                if only in f"{case}, {dtype}, {size_name(size_bytes)}":
                    yield case, dtype, size_bytes


def _measure(case: Case, dtype: torch.dtype, size_bytes: int, rounds: int) -> OperatorTime:
    expression: Expression = parse(case.expression)
    source = (torch.rand(size_bytes // dtype.itemsize // COLUMNS, COLUMNS) * 2 - 0.5).to(dtype)
    x, y = source.clone(), source.clone()
    tensors = case.tensors(x)
    operator_s, memcpy_s = [], []
    for index in range(-1, rounds):  # the first round warms up
        x.copy_(source)
        operator = _seconds(lambda: run_in_place(expression, x, tensors))
        x.copy_(source)
        memcpy = _seconds(lambda: y.copy_(x))
        if index >= 0:
            operator_s.append(operator)
            memcpy_s.append(memcpy)
    name = str(dtype).removeprefix("torch.")
    return OperatorTime(expression=str(case), dtype=name, size_bytes=size_bytes, seconds=operator_s, memcpy_s=memcpy_s)


def _seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin
