"""The operators as values: `Clamp(min_value=0, max_value=1) | KBitQuantize(k=4)`, `parse()`, `str()`."""

# Operators are registered, and so listed, in the order of these imports.
# isort: off
from service.ops.base import MAX_CHAIN_LENGTH, REGISTRY, Chain, Expression, Gradients, Operator, register
from service.ops.catalogue import catalogue
from service.ops.rounding import Ceil, Floor, Round
from service.ops.clamping import Clamp
from service.ops.uniform import AffineKBitQuantize, KBitQuantize, StepQuantize
from service.ops.normalizing import ClampByLinear
from service.ops.expression import parse

# isort: on

__all__ = [
    "MAX_CHAIN_LENGTH",
    "REGISTRY",
    "AffineKBitQuantize",
    "Ceil",
    "Chain",
    "Clamp",
    "ClampByLinear",
    "Expression",
    "Floor",
    "Gradients",
    "KBitQuantize",
    "Operator",
    "Round",
    "StepQuantize",
    "catalogue",
    "parse",
    "register",
]
