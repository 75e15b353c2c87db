"""A chain is the composition of its operators, and its gradient the chain rule over theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import ClassVar

import pytest
import torch
from examples import DTYPES, EXAMPLES, assert_same_bits, moderate, tensors_for
from torch import Tensor

from service.errors import ChainTooLong
from service.ops import (
    MAX_CHAIN_LENGTH,
    REGISTRY,
    AffineKBitQuantize,
    Chain,
    Clamp,
    ClampByLinear,
    Expression,
    Gradients,
    KBitQuantize,
    Operator,
    Round,
    StepQuantize,
)

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
PAIRS = [first | second for first, second in product(EXAMPLES, EXAMPLES)]
LONGER = [
    Clamp(min_value=0, max_value=1) | KBitQuantize(k=4) | AffineKBitQuantize(k=4, w="w", b="b"),
    AffineKBitQuantize(k=4, w="w", b="b")
    | ClampByLinear()
    | AffineKBitQuantize(k=2, w="w", b=0.5)
    | Clamp(min_value=0, max_value=1),
    ClampByLinear() | ClampByLinear(eps=0.5) | ClampByLinear(eps=1),
    Round() | StepQuantize(step=0.3) | KBitQuantize(k=2),
]


def by_hand(
    chain: Expression, x: Tensor, grad_output: Tensor, tensors: dict[str, Tensor]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """`y`, `grad_x` and the gradients by name: operator after operator, and back."""
    values = [x]
    for operator in chain.operators:
        values.append(operator.forward(values[-1], tensors))
    gradient = grad_output
    terms: list[tuple[str, Tensor]] = []
    for operator, value in zip(reversed(chain.operators), reversed(values[:-1]), strict=True):
        step = operator.backward(value, gradient, tensors)
        gradient = step.grad_x
        terms = [*step.terms, *terms]
    by_name: dict[str, Tensor] = {}
    for name, term in terms:
        by_name[name] = by_name[name] + term if name in by_name else term
    return values[-1], gradient, by_name


@every_dtype
@pytest.mark.parametrize("in_place", [False, True])
def test_every_pair_is_the_composition_and_obeys_the_chain_rule(dtype: torch.dtype, in_place: bool) -> None:
    for chain in [*PAIRS, *LONGER]:
        x, grad_output = moderate(dtype, 5, 7), moderate(dtype, 5, 7, seed=1)
        tensors = tensors_for(chain, x, (5, 7))
        y, grad_x, by_name = by_hand(chain, x, grad_output, tensors)
        got = chain.backward(x, grad_output, tensors, out=grad_output if in_place else None)
        assert_same_bits(got.grad_x, grad_x, chain)
        assert list(got.by_name()) == list(by_name)
        for name, gradient in by_name.items():
            assert_same_bits(got.by_name()[name], gradient, chain)
        assert_same_bits(chain.forward(x, tensors, out=x if in_place else None), y, chain)


def test_or_appends_and_flattens() -> None:
    a, b, c = Round(), Clamp(min_value=0, max_value=1), KBitQuantize(k=4)
    assert (a | b | c).operators == (a | (b | c)).operators == ((a | b) | c).operators == (a, b, c)
    assert list(a | b | c) == [a, b, c]
    assert list(a) == [a]


def test_or_with_something_else_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        Round() | "round"  # type: ignore[operator]


def test_a_chain_has_at_least_one_and_at_most_the_allowed_number_of_operators() -> None:
    assert len(Chain([Round()] * MAX_CHAIN_LENGTH).operators) == MAX_CHAIN_LENGTH == 32
    for operators in ([], [Round()] * (MAX_CHAIN_LENGTH + 1)):
        with pytest.raises(ChainTooLong, match=f"1 to 32 operators, this one has {len(operators)}"):
            Chain(operators)


def test_a_chain_knows_its_tensors_each_once_in_order() -> None:
    chain = AffineKBitQuantize(k=4, w="b", b="a") | Round() | AffineKBitQuantize(k=4, w="c", b="b")
    assert chain.tensor_names == ("b", "a", "c")


def test_a_chain_is_elementwise_when_all_its_operators_are() -> None:
    assert (Round() | KBitQuantize(k=4)).elementwise
    assert not (Round() | ClampByLinear()).elementwise


def test_a_chain_refuses_a_gradient_without_the_x_it_reads() -> None:
    with pytest.raises(ValueError, match="depends on x"):
        (Round() | Clamp(min_value=0, max_value=1)).backward(None, torch.ones(3))


class Probe(Operator):
    """Adds one, and writes down what was asked of it; not registered."""

    name: ClassVar[str] = "probe"
    log: ClassVar[list[str]] = []
    label: str
    reads: bool = False

    @property
    def reads_x(self) -> bool:
        return self.reads

    @property
    def own_tensor_names(self) -> tuple[str, ...]:
        return ()

    def forward(self, x: Tensor, tensors: Mapping[str, Tensor] | None = None, *, out: Tensor | None = None) -> Tensor:
        self.log.append(f"forward {self.label}")
        return torch.add(x, 1, out=out)

    def backward(
        self, x: Tensor | None, grad_output: Tensor, tensors: Mapping[str, Tensor] | None = None, *, out: Tensor | None = None
    ) -> Gradients:
        self.log.append(f"backward {self.label} of {'nothing' if x is None else int(x)}")
        return Gradients(grad_output)


@pytest.fixture
def log() -> Iterator[list[str]]:
    Probe.log.clear()
    yield Probe.log
    Probe.log.clear()


def test_backward_computes_no_value_after_the_last_one_that_is_read(log: list[str]) -> None:
    chain = Probe(label="a") | Probe(label="b", reads=True) | Probe(label="c", reads=True) | Probe(label="d") | Probe(label="e")
    chain.backward(torch.tensor(0.0), torch.tensor(1.0))
    assert log == [
        "forward a",
        "forward b",
        "backward e of nothing",
        "backward d of nothing",
        "backward c of 2",
        "backward b of 1",
        "backward a of nothing",
    ]


def test_backward_computes_no_value_where_only_the_first_operator_reads(log: list[str]) -> None:
    (Probe(label="a", reads=True) | Probe(label="b")).backward(torch.tensor(5.0), torch.tensor(1.0))
    assert log == ["backward b of nothing", "backward a of 5"]


def test_backward_computes_no_value_where_none_is_read(log: list[str]) -> None:
    (Probe(label="a") | Probe(label="b")).backward(None, torch.tensor(1.0))
    assert log == ["backward b of nothing", "backward a of nothing"]


def test_a_class_that_is_not_registered_stays_unknown() -> None:
    assert Probe not in REGISTRY.values()
