"""Expressions, query strings and heads: read as Python and its libraries read them, or refused."""

from __future__ import annotations

import ast
import fnmatch
import io
import keyword
import re
from email.message import Message as Mail
from http.client import parse_headers
from urllib.parse import parse_qsl

from fuzz_checks import unless_refused

from service import head as heads
from service import wire
from service.dtypes import DTYPES
from service.head import Head
from service.oip.request import JSON_LENGTH_HEADER, json_length
from service.ops import Expression, parse

_WORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)

# Expressions ----------------------------------------------------------------------------------------------


def check_expression(data: bytes) -> None:
    """An expression prints what reads as itself, and its numbers are those that Python reads in it."""
    text = data.decode("utf-8", "surrogateescape")
    expression = unless_refused(lambda: parse(text))
    if expression is None:
        return
    assert parse(str(expression)) == expression
    assert str(parse(str(expression))) == str(expression)
    for dtype in DTYPES.values():
        unless_refused(lambda dtype=dtype: expression.check(dtype))
    _assert_as_python_reads(text, expression)


def _assert_as_python_reads(text: str, expression: Expression) -> None:
    if any(keyword.iskeyword(word) for word in _WORD.findall(text)):
        return  # a tensor may be called `if`, a variable of Python may not
    steps = re.sub(r"[\t\r\n]", " ", text).split("|")
    for step, operator in zip(steps, expression.operators, strict=True):
        tree = ast.parse(step.strip(" "), mode="eval").body
        if isinstance(tree, ast.Name):
            assert tree.id == operator.name
            continue
        assert isinstance(tree, ast.Call)
        assert isinstance(tree.func, ast.Name)
        assert tree.func.id == operator.name
        given = dict(zip(operator.parameters(), map(_number, tree.args), strict=False))
        given |= {str(one.arg): _number(one.value) for one in tree.keywords}
        for name, value in given.items():
            read = getattr(operator, name)
            assert repr(read) == repr(type(read)(value)), f"{name} is {read!r} for {value!r}"


def _number(node: ast.expr) -> float | int | str:
    if isinstance(node, ast.UnaryOp):
        value = _number(node.operand)
        assert not isinstance(value, str)
        return -float(value) if value == 0 else -value
    if isinstance(node, ast.Name):
        return float("inf") if node.id == "inf" else node.id
    assert isinstance(node, ast.Constant)
    assert isinstance(node.value, int | float)
    return node.value


# Query strings ----------------------------------------------------------------------------------------------


def check_query(data: bytes) -> None:
    """A query string asks for what `urllib` finds in it."""
    expression = unless_refused(lambda: heads.parse_query(data))
    if expression is None:
        return
    # In front of digits of an exponent, a plus is no blank.
    text = re.sub(r"(?<=[0-9][eE])\+(?=[0-9])", "%2B", data.decode("latin-1"))
    if not text.isascii():
        return  # urllib takes text, not bytes
    pairs = parse_qsl(text, keep_blank_values=True, errors="strict")
    ((_, op),) = [pair for pair in pairs if pair[0] == "op"]
    beside = [f"{key}={value}" for key, value in pairs if key != "op"]
    assert expression == parse(f"{op}({','.join(beside)})" if beside else op)


# Heads ------------------------------------------------------------------------------------------------------


def check_head(data: bytes) -> None:
    """Header fields are those that the standard library finds; a format for the answer is one that was accepted."""
    first, _, rest = data.partition(b"\n")
    lines = [line.strip(b"\r") for line in rest.split(b"\n")]
    pairs = [(name.lower(), value.strip()) for name, colon, value in (line.partition(b":") for line in lines) if colon]
    head = Head("POST", "/quantize", first, pairs, "1.0" if first[:1] == b"0" else "1.1")
    found = unless_refused(lambda: heads.fields(head))
    if found is None:
        return
    mail = _mail(pairs)
    for name, value in (("host", found.host), ("content-type", found.content_type), ("authorization", found.authorization)):
        if mail is not None:
            assert mail.get_all(name, []) == ([] if value is None else [value]), name
    unless_refused(lambda: heads.check_encoding(found))
    unless_refused(lambda: heads.check_length_is_announced(head, found))
    limit_s = unless_refused(lambda: heads.timeout_s(found))
    assert limit_s is None or 0 < limit_s <= 86_400
    _assert_json_length(unless_refused(lambda: json_length(head)), [value for name, value in pairs if name == JSON_LENGTH_HEADER])
    request_format = unless_refused(lambda: wire.of_content_type(found.content_type))
    _assert_accepted(found.accept, request_format or wire.FORMATS["npy"])


def _assert_json_length(found: int | None, given: list[bytes]) -> None:
    assert found is None or (len(given) == 1 and given[0].isdigit() and found == int(given[0]))


def _mail(pairs: list[tuple[bytes, bytes]]) -> Mail | None:
    """The headers as the standard library's parser of mail and HTTP reads them, where they are such that it can."""
    if not all(re.fullmatch(rb"[a-z0-9-]+", name) and re.fullmatch(rb"[!-~]([ -~]*[!-~])?", value) for name, value in pairs):
        return None
    return parse_headers(io.BytesIO(b"".join(b"%b: %b\r\n" % pair for pair in pairs[:90]) + b"\r\n")) if len(pairs) <= 90 else None


def _assert_accepted(accept: str | None, request_format: wire.Format) -> None:
    choices = unless_refused(lambda: wire.negotiate(accept, request_format))
    ranges = [item.partition(";")[0].strip().lower() for item in (accept or "").split(",")] if (accept or "").strip() else ["*/*"]
    known = [one for one in ranges if one in (*wire.BY_MEDIA_TYPE, "application/*", "*/*")]
    if choices is None:
        assert not known or "q" in (accept or "").lower(), "what was accepted without a quality is refused"
        return
    assert choices
    assert len({media_type for _, media_type in choices}) == len(choices)
    for one, media_type in choices:
        assert wire.BY_MEDIA_TYPE[media_type] is one
        assert any(fnmatch.fnmatchcase(media_type, pattern) for pattern in known), media_type
