"""The expression syntax: `clamp(min_value=0, max_value=1) | k_bit_quantize(k=4)`, read and built.

    chain    = operator *( "|" operator )
    operator = name [ "(" [ argument *( "," argument ) ] ")" ]
    argument = [ name "=" ] value            positional ones first
    value    = number | "inf" | "-inf" | name

Blanks may stand between any two of these. Numbers are JSON numbers; one without point and exponent is
an int. A name as a value stands for a tensor that travels with the call.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, NoReturn

from service.errors import BadExpression, BadParameter, ChainTooLong, UnknownOperator
from service.ops.base import MAX_CHAIN_LENGTH, REGISTRY, RESERVED_NAMES, TENSOR_NAME, Chain, Expression, Operator
from service.ops.parameters import Value, matched

MAX_EXPRESSION_LENGTH = 8192
# More digits than any int parameter may have; checked before int(), whose time grows with the square of the length.
_INT = re.compile(r"-?[0-9]{1,18}")

_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
_TOKEN = re.compile(rf"(?P<number>{_NUMBER}|-inf\b)(?![\w.])|(?P<name>[A-Za-z_]\w*)|(?P<mark>[|(),=])", re.ASCII)
_BLANKS = " \t\r\n"

_EXAMPLE = "example: clamp(min_value=0, max_value=1) | k_bit_quantize(k=4)"


@lru_cache(maxsize=1024)
def parse(text: str) -> Expression:
    """The expression that `text` writes; `parse(str(e)) == e` for every expression `e`.

    Raises `BadExpression` for its syntax, `UnknownOperator`, `UnknownParameter`, `MissingParameter`,
    `RepeatedParameter` and `BadParameter` for what it says, `ChainTooLong` beyond 32 operators.

    >>> parse("clamp(0, 1) | k_bit_quantize(4)")
    Clamp(min_value=0.0, max_value=1.0) | KBitQuantize(k=4)
    """
    operators = _Reader(text).chain()
    return operators[0] if len(operators) == 1 else Chain(operators)


def is_bare_name(text: str) -> bool:
    """Whether `text` is one operator name without parentheses: then its parameters stand beside it."""
    return TENSOR_NAME.fullmatch(text.strip(_BLANKS)) is not None


def build(name: str, positional: Sequence[Value] = (), keywords: Sequence[tuple[str, Value]] = ()) -> Operator:
    """The operator of this name with these parameters, checked; a keyword may not come twice."""
    cls = operator_class(name)
    # Matched here, where a repeated keyword can still be seen.
    return cls(**matched(cls, positional, keywords))


def operator_class(name: str) -> type[Operator]:
    """The operator's class; `UnknownOperator` lists the known ones."""
    try:
        return REGISTRY[name]
    except KeyError:
        raise UnknownOperator(f"unknown operator {name[:80]!r}; known: {', '.join(REGISTRY)}") from None


def parse_value(text: str) -> Value:
    """A parameter's value as it stands in a query string: a number, `inf`, `-inf` or a tensor's name."""
    reader = _Reader(text)
    value = reader.value()
    reader.end()
    return value


class _Token(NamedTuple):
    kind: str
    text: str
    start: int


class _Reader:
    """Reads an expression token by token; positions in its messages count from 1."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_EXPRESSION_LENGTH:
            raise BadExpression(f"the expression has {len(text)} characters; allowed: {MAX_EXPRESSION_LENGTH}")
        self.text = text
        self.position = 0

    def chain(self) -> list[Operator]:
        operators = [self.operator()]
        while self.take("|"):
            if len(operators) == MAX_CHAIN_LENGTH:
                raise ChainTooLong(f"a chain has at most {MAX_CHAIN_LENGTH} operators")
            operators.append(self.operator())
        self.end()
        return operators

    def operator(self) -> Operator:
        token = self.next()
        if token.kind != "name":
            self.fail("the name of an operator", token)
        operator_class(token.text)
        positional: list[Value] = []
        keywords: list[tuple[str, Value]] = []
        if self.take("(") and not self.take(")"):
            self.argument(positional, keywords)
            while self.take(","):
                self.argument(positional, keywords)
            self.expect(")", "',' or ')'")
        return build(token.text, positional, keywords)

    def argument(self, positional: list[Value], keywords: list[tuple[str, Value]]) -> None:
        start = self.position
        token = self.next()
        if token.kind == "name" and self.take("="):
            keywords.append((token.text, self.value()))
            return
        if keywords:
            self.fail("NAME=VALUE, as after every other NAME=VALUE,", token)
        self.position = start
        positional.append(self.value())

    def value(self) -> Value:
        token = self.next()
        if token.kind == "number" or token.text == "inf":
            return _number(token.text)
        if token.kind == "name":
            if token.text in RESERVED_NAMES or not TENSOR_NAME.fullmatch(token.text):
                raise BadParameter(
                    f"{token.text[:80]!r} is neither a number nor a name that a tensor may have "
                    f"(at most 64 letters, digits and '_'; not {', '.join(sorted(RESERVED_NAMES))})"
                )
            return token.text
        return self.fail("a number, inf, -inf or a name", token)

    def next(self) -> _Token:
        self.skip_blanks()
        if self.position == len(self.text):
            return _Token("end", "", self.position)
        match = _TOKEN.match(self.text, self.position)
        if match is None:
            self.fail(
                "a name, a JSON number, inf, -inf or one of | ( ) , =", _Token("odd", self.text[self.position], self.position)
            )
        self.position = match.end()
        return _Token(str(match.lastgroup), match.group(), match.start())

    def take(self, mark: str) -> bool:
        self.skip_blanks()
        found = self.text.startswith(mark, self.position)
        self.position += len(mark) if found else 0
        return found

    def expect(self, mark: str, wanted: str) -> None:
        if not self.take(mark):
            self.fail(wanted, self.next())

    def end(self) -> None:
        token = self.next()
        if token.kind != "end":
            self.fail("the end", token)

    def skip_blanks(self) -> None:
        while self.position < len(self.text) and self.text[self.position] in _BLANKS:
            self.position += 1

    def fail(self, wanted: str, token: _Token) -> NoReturn:
        found = repr(token.text[:40]) if token.text else "the end"
        raise BadExpression(f"expected {wanted} at character {token.start + 1}, found {found}; {_EXAMPLE}")


def _number(text: str) -> int | float:
    if _INT.fullmatch(text) and text != "-0":
        return int(text)
    value = float(text)
    if math.isinf(value) and not text.endswith("inf"):
        raise BadParameter(f"the number {text if len(text) <= 40 else text[:40] + '…'} is too large; infinity is written inf")
    return value
