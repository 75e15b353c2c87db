"""The expression syntax: what `str()` writes `parse()` reads, and every mistake has its own error."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from examples import EXAMPLES
from hypothesis import given
from hypothesis import strategies as st

from service.errors import (
    BadExpression,
    BadParameter,
    ChainTooLong,
    MissingParameter,
    NotAllowed,
    RepeatedParameter,
    RequestError,
    UnknownOperator,
    UnknownParameter,
)
from service.ops import (
    MAX_CHAIN_LENGTH,
    REGISTRY,
    AffineKBitQuantize,
    Chain,
    Clamp,
    Expression,
    KBitQuantize,
    Operator,
    Round,
    parse,
)
from service.ops.base import RESERVED_NAMES
from service.ops.expression import MAX_EXPRESSION_LENGTH, build, is_bare_name, parse_value
from service.ops.parameters import allowed_values, bounds, type_name

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,63}", fullmatch=True).filter(lambda name: name not in RESERVED_NAMES)


def _values(cls: type[Operator], parameter: str) -> st.SearchStrategy[Any]:
    limits = bounds(cls.parameters()[parameter])
    least, greatest = limits.get("minimum", limits.get("exclusiveMinimum")), limits.get("maximum")
    finite = st.floats(least, greatest, exclude_min="exclusiveMinimum" in limits, allow_nan=False, allow_infinity=False)
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "int": st.integers(None if least is None else int(least), None if greatest is None else int(greatest)),
        "float": finite if limits else st.floats(allow_nan=False) | st.integers(-(10**17), 10**17),
        "float or tensor": finite | NAMES,
    }
    return kinds[type_name(cls, parameter)]


def _constructible(cls: type[Operator], values: dict[str, Any]) -> bool:
    try:
        cls(**values)
    except BadParameter:
        return False
    return True


def _operators_of(cls: type[Operator]) -> st.SearchStrategy[Operator]:
    values = st.fixed_dictionaries({name: _values(cls, name) for name in cls.parameters()})
    return values.filter(lambda v: _constructible(cls, v)).map(lambda v: cls(**v))


OPERATORS = st.one_of([_operators_of(cls) for cls in REGISTRY.values()])
EXPRESSIONS = OPERATORS | st.lists(OPERATORS, min_size=1, max_size=5).map(Chain)
BLANKS = st.text(" \t\r\n", max_size=3)


@given(EXPRESSIONS)
def test_parse_reads_back_what_str_writes(expression: Expression) -> None:
    again = parse(str(expression))
    assert again == expression
    assert str(again) == str(expression)
    for got, expected in zip(again.operators, expression.operators, strict=True):
        assert type(got) is type(expected)
        for name in type(expected).parameters():
            a, b = getattr(got, name), getattr(expected, name)
            assert (type(a), a) == (type(b), b)
            assert isinstance(a, str) or math.copysign(1, a) == math.copysign(1, b)


@given(EXPRESSIONS)
def test_repr_is_the_python_that_builds_the_expression(expression: Expression) -> None:
    names = {cls.__name__: cls for cls in REGISTRY.values()} | {"inf": math.inf}
    assert eval(repr(expression), {"__builtins__": {}}, names) == expression


@given(OPERATORS, st.data())
def test_blanks_may_stand_between_any_two_tokens(operator: Operator, data: st.DataObject) -> None:
    tokens = [operator.name, "("]
    for index, name in enumerate(operator.parameters()):
        value = str(operator).split(f"{name}=")[1].split(",")[0].split(")")[0]
        tokens += [",", name, "=", value] if index else [name, "=", value]
    text = "".join(data.draw(BLANKS) + token for token in [*tokens, ")"]) + data.draw(BLANKS)
    assert parse(text) == operator


@given(st.text(max_size=60) | st.text("clamproundk_bit(),=|.-+0123456789einf \t", max_size=60))
def test_any_text_gives_an_expression_or_one_of_the_422_errors(text: str) -> None:
    try:
        expression = parse(text)
    except NotAllowed:
        return
    assert parse(str(expression)) == expression


@pytest.mark.parametrize("operator", EXAMPLES, ids=str)
def test_parameters_may_stand_by_position(operator: Operator) -> None:
    values = [part.split("=")[1] for part in str(operator).removesuffix(")").partition("(")[2].split(",") if part]
    assert parse(f"{operator.name}({','.join(values)})") == operator


def test_an_operator_without_parameters_needs_no_parentheses() -> None:
    assert parse("round") == parse("round()") == parse(" round ( ) ") == Round()


def test_a_default_may_be_left_out() -> None:
    assert parse("clamp_by_linear") == parse("clamp_by_linear(1e-5)") == parse("clamp_by_linear(eps=0.00001)")


def test_keywords_come_in_any_order_after_positional_values() -> None:
    expected = AffineKBitQuantize(k=4, w=2, b="b")
    assert parse("affine_k_bit_quantize(4, b=b, w=2)") == parse("affine_k_bit_quantize(w=2, b=b, k=4)") == expected


def test_the_chain_of_the_contract() -> None:
    expected = Clamp(min_value=0, max_value=1) | KBitQuantize(k=4)
    assert parse("clamp(0,1)|k_bit_quantize(4)") == parse("clamp(min_value=0, max_value=1) | k_bit_quantize(k=4)") == expected
    assert str(expected) == "clamp(min_value=0, max_value=1) | k_bit_quantize(k=4)"


@pytest.mark.parametrize(
    ("text", "low"),
    [
        ("-inf", -math.inf),
        ("-1", -1.0),
        ("-1.5e3", -1500.0),
        ("-0", -0.0),
        ("-0.0", -0.0),
        ("0", 0.0),
        ("1E-2", 0.01),
        ("12e+0", 12.0),
    ],
)
def test_numbers_are_json_numbers_or_infinities(text: str, low: float) -> None:
    got = parse(f"clamp({text}, inf)")
    assert (str(got.min_value), got.max_value) == (str(low), math.inf)


@pytest.mark.parametrize(
    ("text", "position", "found"),
    [
        ("", 1, "the end"),
        ("  ", 3, "the end"),
        ("|round", 1, "'|'"),
        ("round|", 7, "the end"),
        ("round||round", 7, "'|'"),
        ("round(", 7, "the end"),
        ("round)", 6, "')'"),
        ("round()()", 8, "'('"),
        ("round round", 7, "'round'"),
        ("round;", 6, "';'"),
        ("4", 1, "'4'"),
        ("(round)", 1, "'('"),
        ("clamp(0,1", 10, "the end"),
        ("clamp(0 1)", 9, "'1'"),
        ("clamp(0,,1)", 9, "','"),
        ("clamp(,0,1)", 7, "','"),
        ("clamp(0,1,)", 11, "')'"),
        ("clamp(min_value=,max_value=1)", 17, "','"),
        ("clamp(min_value==0,max_value=1)", 17, "'='"),
        ("clamp(=0,1)", 7, "'='"),
        ("clamp(0=1)", 8, "'='"),
        ("clamp(max_value=1, 0)", 20, "'0'"),
        ("clamp(max_value=1, a)", 20, "'a'"),
        ("clamp(00,1)", 7, "'0'"),
        ("clamp(+1,2)", 7, "'+'"),
        ("clamp(.5,1)", 7, "'.'"),
        ("clamp(1.,2)", 7, "'1'"),
        ("clamp(1e,2)", 7, "'1'"),
        ("clamp(0x1,2)", 7, "'0'"),
        ("clamp(1_0,2)", 7, "'1'"),
        ("clamp(- 1,2)", 7, "'-'"),
        ("clamp(--1,2)", 7, "'-'"),
        ("clamp(-infinity,2)", 7, "'-'"),
        ("clamp(-nan,2)", 7, "'-'"),
        ("clamp('0',1)", 7, '"\'"'),
        ("clamp([0],1)", 7, "'['"),
        ("round\u00a0", 6, "'\\xa0'"),
        ("clamp(\u0661,2)", 7, "'\u0661'"),
        ("round\x00", 6, "'\\x00'"),
    ],
)
def test_a_syntax_error_says_where_and_what(text: str, position: int, found: str) -> None:
    with pytest.raises(BadExpression) as caught:
        parse(text)
    assert f"at character {position}, found {found}; example: clamp(" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "error", "fragments"),
    [
        ("nonsense", UnknownOperator, ["'nonsense'", *REGISTRY]),
        ("ROUND", UnknownOperator, ["'ROUND'"]),
        ("r(", UnknownOperator, ["'r'"]),
        ("r\u00f6und", UnknownOperator, ["'r'"]),
        ("round(1)", UnknownParameter, ["'round'", "no parameters", "1 values"]),
        ("round(x=1)", UnknownParameter, ["'round'", "'x'", "no parameters"]),
        ("clamp(0, 1, 2)", UnknownParameter, ["'clamp'", "'min_value'", "'max_value'", "3 values"]),
        ("clamp(low=0)", UnknownParameter, ["'low'", "'min_value' (a number, inf or -inf)", "'max_value'"]),
        ("clamp", MissingParameter, ["'min_value'", "'clamp'", "a number, inf or -inf"]),
        ("clamp(0)", MissingParameter, ["parameter 'max_value'"]),
        ("clamp(max_value=0)", MissingParameter, ["parameter 'min_value'"]),
        ("step_quantize", MissingParameter, ["parameter 'step'", "a finite number > 0"]),
        ("k_bit_quantize()", MissingParameter, ["parameter 'k'", "an int >= 1 and <= 1023"]),
        ("affine_k_bit_quantize(4, w=1)", MissingParameter, ["parameter 'b'", "a finite number or the name of a tensor"]),
        ("clamp(0, min_value=0)", RepeatedParameter, ["'min_value'", "'clamp'"]),
        ("clamp(max_value=0, max_value=0)", RepeatedParameter, ["'max_value'"]),
        ("clamp(1, 0)", BadParameter, ["min_value", "<=", "max_value", "1.0", "0.0"]),
        ("clamp(inf, -inf)", BadParameter, ["min_value", "inf"]),
        ("clamp(0, nan)", BadParameter, ["'nan'"]),
        ("clamp(0, w)", BadParameter, ["'max_value'", "'w'", "a number, inf or -inf"]),
        ("clamp(-1e400, 0)", BadParameter, ["-1e400", "inf"]),
        ("step_quantize(0)", BadParameter, ["'step'", "is 0;", "a finite number > 0"]),
        ("step_quantize(-0.5)", BadParameter, ["'step'", "-0.5"]),
        ("step_quantize(inf)", BadParameter, ["'step'", "inf", "finite"]),
        ("step_quantize(1e-400)", BadParameter, ["'step'", "> 0"]),
        ("step_quantize(w)", BadParameter, ["'step'", "'w'"]),
        ("k_bit_quantize(0)", BadParameter, ["'k'", "is 0;", "an int >= 1 and <= 1023"]),
        ("k_bit_quantize(-4)", BadParameter, ["'k'", "-4"]),
        ("k_bit_quantize(1024)", BadParameter, ["'k'", "1024", "<= 1023"]),
        ("k_bit_quantize(1000000000)", BadParameter, ["'k'", "1000000000"]),
        ("k_bit_quantize(" + "9" * 4000 + ")", BadParameter, ["too large"]),
        ("k_bit_quantize(99999999999999999999)", BadParameter, ["'k'", "an int"]),
        ("k_bit_quantize(4.0)", BadParameter, ["'k'", "4.0", "an int"]),
        ("k_bit_quantize(4e0)", BadParameter, ["'k'", "an int"]),
        ("k_bit_quantize(inf)", BadParameter, ["'k'", "an int"]),
        ("k_bit_quantize(w)", BadParameter, ["'k'", "'w'"]),
        ("affine_k_bit_quantize(0, 1, 1)", BadParameter, ["'k'", "an int >= 1"]),
        ("affine_k_bit_quantize(4, inf, 1)", BadParameter, ["'w'", "inf", "a finite number or the name of a tensor"]),
        ("affine_k_bit_quantize(4, 1, -inf)", BadParameter, ["'b'", "-inf"]),
        ("affine_k_bit_quantize(4, x, 1)", BadParameter, ["'x'", "name"]),
        ("affine_k_bit_quantize(4, y, 1)", BadParameter, ["'y'", "name"]),
        ("affine_k_bit_quantize(4, 1, grad_output)", BadParameter, ["'grad_output'"]),
        ("affine_k_bit_quantize(4, 1, nan)", BadParameter, ["'nan'"]),
        ("affine_k_bit_quantize(4, " + "w" * 65 + ", 1)", BadParameter, ["at most 64"]),
        ("clamp_by_linear(-1e-9)", BadParameter, ["'eps'", "a finite number >= 0"]),
        ("clamp_by_linear(inf)", BadParameter, ["'eps'", "finite"]),
        ("|".join(["round"] * (MAX_CHAIN_LENGTH + 1)), ChainTooLong, ["32"]),
        ("x" * (MAX_EXPRESSION_LENGTH + 1), BadExpression, [str(MAX_EXPRESSION_LENGTH + 1), str(MAX_EXPRESSION_LENGTH)]),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else None,
)
def test_a_mistake_has_its_error_and_the_message_names_it_and_what_is_allowed(
    text: str, error: type[RequestError], fragments: list[str]
) -> None:
    with pytest.raises(error) as caught:
        parse(text)
    assert type(caught.value) is error
    assert caught.value.status == 422
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("cls", REGISTRY.values(), ids=lambda cls: cls.name)
def test_every_required_parameter_is_asked_for_and_every_other_refused(cls: type[Operator]) -> None:
    values = dict.fromkeys(cls.parameters(), 1)
    for name, field in cls.parameters().items():
        rest = [(key, value) for key, value in values.items() if key != name]
        if field.is_required():
            with pytest.raises(MissingParameter, match=f"'{name}'"):
                build(cls.name, (), rest)
        else:
            assert getattr(build(cls.name, (), rest), name) == field.default
        with pytest.raises(RepeatedParameter, match=f"'{name}'"):
            build(cls.name, (), [*values.items(), (name, 1)])
        with pytest.raises(BadParameter, match=f"'{name}'.*{allowed_values(cls, name)[:8]}"):
            build(cls.name, (), [*rest, (name, math.nan)])
    with pytest.raises(UnknownParameter, match="'surplus'"):
        build(cls.name, (), [*values.items(), ("surplus", 1)])


def test_a_chain_may_have_as_many_operators_as_allowed() -> None:
    assert len(parse("|".join(["round"] * MAX_CHAIN_LENGTH)).operators) == MAX_CHAIN_LENGTH


@pytest.mark.parametrize(
    "text", ["9" * 8000, "(" * 8000, "clamp(" * 1000, "round|" * 31 + "k_bit_quantize(" + "9" * 7000 + ")", "-" * 8000]
)
def test_hostile_text_is_refused_quickly(text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(RequestError):
        parse(text)
    assert time.perf_counter() - start < 2  # what grows with the square of the length takes far longer


@pytest.mark.parametrize(
    ("text", "value"),
    [("4", 4), ("4.0", 4.0), ("-0", -0.0), (" 1e2 ", 100.0), ("inf", math.inf), ("-inf", -math.inf), ("scale", "scale")],
)
def test_a_single_value_is_read_with_its_kind(text: str, value: float | str) -> None:
    got = parse_value(text)
    assert (type(got), str(got)) == (type(value), str(value))


@pytest.mark.parametrize("text", ["", "4 5", "a=4", "4)", "'a'"])
def test_a_single_value_has_nothing_around_it(text: str) -> None:
    with pytest.raises(BadExpression):
        parse_value(text)


def test_a_bare_name_is_told_from_an_expression() -> None:
    assert is_bare_name("clamp")
    assert is_bare_name(" round ")
    assert not any(map(is_bare_name, ["round()", "round|round", "", "4", "a b"]))
