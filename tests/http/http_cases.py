"""The calls that every way in is held to, and their oracle.

The oracle is the contract's table, written out: plain eager PyTorch on the CPU, and pairwise sums in
NumPy. It imports nothing of the service; a case is the text that a caller would write.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}

Tensors = Mapping[str, Tensor]
Terms = list[tuple[str, Tensor]]


@dataclass(frozen=True)
class Step:
    """One operator of a chain: its name and parameters as text, its value and its gradients."""

    name: str
    parameters: Mapping[str, str]
    forward: Callable[[Tensor, Tensors], Tensor]
    backward: Callable[[Tensor, Tensor, Tensors], tuple[Tensor, Terms]]

    @property
    def text(self) -> str:
        """As an expression writes it."""
        return f"{self.name}({', '.join(f'{key}={value}' for key, value in self.parameters.items())})"


@dataclass(frozen=True)
class Case:
    """A chain, and the shapes of its tensor parameters: how each broadcasts to x."""

    steps: Sequence[Step]
    tensors: Mapping[str, str] = field(default_factory=dict)

    @property
    def expression(self) -> str:
        """The chain as a caller writes it."""
        return " | ".join(step.text for step in self.steps)

    @property
    def query(self) -> dict[str, str]:
        """The query: a bare name with its parameters beside it, where that is possible."""
        if len(self.steps) > 1:
            return {"op": self.expression}
        (step,) = self.steps
        return {"op": step.name, **step.parameters}

    @property
    def operators(self) -> set[str]:
        """The names of its operators."""
        return {step.name for step in self.steps}

    def __str__(self) -> str:
        shapes = "".join(f" {name}:{kind}" for name, kind in self.tensors.items())
        return self.expression + shapes

    def tensors_for(self, x: Tensor) -> dict[str, Tensor]:
        """Values for the tensor parameters of a call with this x."""
        return {
            name: moderate(x.dtype, SHAPES[kind](tuple(x.shape)), seed=7 + index)
            for index, (name, kind) in enumerate(self.tensors.items())
        }

    def forward(self, x: Tensor, tensors: Tensors) -> Tensor:
        """`y`."""
        for step in self.steps:
            x = step.forward(x, tensors)
        return x

    def backward(self, x: Tensor, grad_output: Tensor, tensors: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        """`grad_x`, and the gradient of each tensor parameter: its terms added in the order of the chain."""
        inputs = [x]
        for step in self.steps[:-1]:
            inputs.append(step.forward(inputs[-1], tensors))
        gradient = grad_output
        terms: Terms = []
        for step, value in zip(reversed(self.steps), reversed(inputs), strict=True):
            gradient, own = step.backward(value, gradient, tensors)
            terms = own + terms
        totals: dict[str, Tensor] = {}
        for name, term in terms:
            totals[name] = totals[name] + term if name in totals else term
        return gradient, totals


SHAPES: dict[str, Callable[[tuple[int, ...]], tuple[int, ...]]] = {
    "0-d": lambda _: (),
    "one": lambda shape: (1,) * min(1, len(shape)),
    "row": lambda shape: shape[-1:],
    "column": lambda shape: (*shape[:-1], 1) if shape else (),
    "full": lambda shape: shape,
}


# The contract's table ------------------------------------------------------------------------------------


def straight_through(_x: Tensor, grad_output: Tensor, _tensors: Tensors) -> tuple[Tensor, Terms]:
    return grad_output, []


def rounding(name: str) -> Step:
    return Step(name, {}, lambda x, _: getattr(torch, name)(x), straight_through)


def clamp(low: str, high: str) -> Step:
    a, b = float(low), float(high)
    return Step(
        "clamp",
        {"min_value": low, "max_value": high},
        lambda x, _: torch.clamp(x, a, b),
        lambda x, g, _: (torch.where((x >= a) & (x <= b), g, torch.zeros_like(g)), []),
    )


def step_quantize(step: str) -> Step:
    return Step(
        "step_quantize",
        {"step": step},
        lambda x, _: torch.round(x / float(step)) * float(step),
        straight_through,
    )


def quantized(x: Tensor, k: int) -> Tensor:
    s = float(2**k - 1)
    return torch.round(x * s) / s


def k_bit_quantize(k: int) -> Step:
    return Step("k_bit_quantize", {"k": str(k)}, lambda x, _: quantized(x, k), straight_through)


def affine(k: int, w: str, b: str) -> Step:
    def value(text: str, tensors: Tensors) -> float | Tensor:
        return tensors[text] if text.isidentifier() else float(text)

    def backward(x: Tensor, g: Tensor, tensors: Tensors) -> tuple[Tensor, Terms]:
        terms = []
        if w.isidentifier():
            terms.append((w, pairwise_sum(g * quantized(x, k), tensors[w].shape)))
        if b.isidentifier():
            terms.append((b, pairwise_sum(g, tensors[b].shape)))
        return value(w, tensors) * g, terms

    return Step(
        "affine_k_bit_quantize",
        {"k": str(k), "w": w, "b": b},
        lambda x, tensors: value(w, tensors) * quantized(x, k) + value(b, tensors),
        backward,
    )


def clamp_by_linear(eps: str | None = None) -> Step:
    e = 1e-5 if eps is None else float(eps)

    def extent(x: Tensor) -> tuple[Tensor, Tensor]:
        x_min, x_max = torch.min(x), torch.max(x) + e
        return x_min, x_max - x_min

    def forward(x: Tensor, _: Tensors) -> Tensor:
        x_min, span = extent(x)
        return (x - x_min) / span

    def backward(x: Tensor, g: Tensor, _: Tensors) -> tuple[Tensor, Terms]:
        x_min, D = extent(x)
        n = x - x_min
        gn = g / D
        gD = pairwise_sum(-g * ((n / D) / D), ())
        gm = (-gD) + pairwise_sum(-gn, ())
        zero = torch.zeros((), dtype=x.dtype)
        at_min, at_max = x == x.min(), x == x.max()
        count_min, count_max = at_min.sum().to(x.dtype), at_max.sum().to(x.dtype)
        return (gn + torch.where(at_min, gm / count_min, zero)) + torch.where(at_max, gD / count_max, zero), []

    return Step("clamp_by_linear", {} if eps is None else {"eps": eps}, forward, backward)


def pairwise_sum(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The contract's sum, down to `shape`: neighbours level by level, in float32 (float64), rounded once."""
    wide = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32).numpy()
    padded = (1,) * (x.dim() - len(shape)) + tuple(shape)
    summed = [axis for axis in range(x.dim()) if padded[axis] == 1 and x.shape[axis] != 1]
    kept = [axis for axis in range(x.dim()) if axis not in summed]
    kept_shape = [x.shape[axis] for axis in kept]
    length = math.prod(x.shape[axis] for axis in summed)
    rows = np.ascontiguousarray(wide.transpose(*kept, *summed)).reshape(math.prod(kept_shape), length)
    if not length:
        rows = np.zeros((len(rows), 1), wide.dtype)
    with np.errstate(all="ignore"):
        while rows.shape[1] > 1:
            pairs = rows.shape[1] // 2
            level = rows[:, 0 : 2 * pairs : 2] + rows[:, 1 : 2 * pairs : 2]
            rows = np.concatenate([level, rows[:, 2 * pairs :]], axis=1)
    return torch.from_numpy(rows[:, 0].copy()).to(x.dtype).reshape(tuple(shape))


# Cases -------------------------------------------------------------------------------------------------

ROUND, CEIL, FLOOR = rounding("round"), rounding("ceil"), rounding("floor")

PLAIN_CASES: list[Case] = [
    *(Case([step]) for step in (ROUND, CEIL, FLOOR)),
    *(Case([clamp(*bounds)]) for bounds in (("0", "1"), ("-1.5", "0.1"), ("-0.0", "0.0"), ("-inf", "2"), ("-inf", "inf"))),
    *(Case([step_quantize(step)]) for step in ("0.25", "0.1", "3", "1e-3")),
    *(Case([k_bit_quantize(k)]) for k in (1, 4, 15)),
    *(Case([affine(k, w, b)]) for k, w, b in ((4, "0.5", "-1"), (2, "-1.7", "0.1"), (8, "0", "-0.0"))),
    *(Case([clamp_by_linear(eps)]) for eps in (None, "0", "0.5")),
]

CHAINS: list[Case] = [
    Case([clamp("0", "1"), k_bit_quantize(4)]),
    Case([clamp("-1", "1"), affine(3, "0.5", "0.25"), step_quantize("0.1")]),
    Case([clamp_by_linear(), k_bit_quantize(4), clamp("0.2", "0.8"), affine(2, "2", "-1")]),
    Case([FLOOR, clamp("-2", "3"), CEIL, clamp_by_linear("0"), ROUND]),
]

TENSOR_CASES: list[Case] = [
    Case([affine(4, "w", "b")], {"w": "0-d", "b": "0-d"}),
    Case([affine(4, "w", "b")], {"w": "row", "b": "column"}),
    Case([affine(2, "scale", "0.1")], {"scale": "column"}),
    Case([affine(3, "-1.7", "shift")], {"shift": "row"}),
    Case([affine(3, "s", "s")], {"s": "row"}),
    Case([affine(1, "w", "b")], {"w": "full", "b": "one"}),
    Case([clamp("0", "1"), affine(4, "w", "b"), clamp_by_linear(), affine(2, "w", "0")], {"w": "row", "b": "0-d"}),
]

CASES = PLAIN_CASES + CHAINS + TENSOR_CASES


# Values ------------------------------------------------------------------------------------------------


def moderate(dtype: torch.dtype, shape: Sequence[int], *, seed: int = 0) -> Tensor:
    """Values around [-2, 2]."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(tuple(shape), generator=generator, dtype=torch.float64) * 4 - 2).to(dtype)


def hard(dtype: torch.dtype) -> Tensor:
    """NaN, infinities, both zeros, ties, subnormals, the ends of the range; of shape (8, n)."""
    info = torch.finfo(dtype)
    special = [math.nan, math.inf, 0.0, info.tiny, info.tiny / 2, info.smallest_normal * info.eps, info.max, info.max / 2]
    special += [info.eps, 1 - info.eps, 1 + info.eps, 1e-3, 1e-5, 100.0]
    ties = [n + 0.5 for n in range(5)] + [(n + 0.5) / 15 for n in range(15)] + [0.125, 0.375, 0.05, 0.15, 1.0, 2.0]
    positive = torch.tensor(special + ties, dtype=torch.float64).to(dtype)
    return torch.cat([positive, -positive])[: len(positive) * 2 // 8 * 8].reshape(8, -1)


def operands(dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
    """Pairs of `x` and `grad_output`, by what is special about them."""
    special = hard(dtype)
    tied = moderate(dtype, (13, 37), seed=1)
    tied[3, 4] = tied[7, 8] = tied.max()
    tied[0, 0] = tied.min()
    return {
        "hard": (special, special.flip(0).roll(3, 1)),
        "finite gradient": (special, moderate(dtype, special.shape, seed=2)),
        "tied": (tied, moderate(dtype, tied.shape, seed=3)),
        "0-d": (torch.tensor(0.4, dtype=dtype), torch.tensor(-3.0, dtype=dtype)),
        "empty": (torch.empty((0, 3), dtype=dtype), torch.empty((0, 3), dtype=dtype)),
        "three dimensions": (moderate(dtype, (2, 3, 5), seed=4), moderate(dtype, (2, 3, 5), seed=5)),
    }


def operands_of(case: Case, dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
    """The pairs that the case allows: the extrema of an empty tensor do not exist."""
    pairs = operands(dtype)
    if "clamp_by_linear" in case.operators:
        del pairs["empty"]
    return pairs
