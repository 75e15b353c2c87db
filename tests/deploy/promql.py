"""Just enough of PromQL to say which series a query asks for; whether it is valid is promtool's to say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<range>\[[^\]]*\])
      | (?P<number>[0-9][0-9a-zA-Z.]*)
      | (?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
      | (?P<sign>=~|!~|!=|==|<=|>=|[-+*/%^=<>(){},@])
      | (?P<blank>\s+|\#[^\n]*)""",
    re.VERBOSE,
)
_BEFORE_LABELS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_AFTER_FUNCTIONS = {"(", "by", "without"}
_WORDS = _BEFORE_LABELS | {"and", "or", "unless", "bool", "offset", "inf", "nan"}


class Matcher(NamedTuple):
    """`label op "value"`, as in `{route=~"/quantize|/grad"}`."""

    label: str
    op: str
    value: str


class Selector(NamedTuple):
    """The name of a metric, and what its labels have to be."""

    metric: str
    matchers: tuple[Matcher, ...]


class Query(NamedTuple):
    """What a query asks for: its selectors, and the labels by which it groups or joins."""

    selectors: tuple[Selector, ...]
    labels: frozenset[str]


def parse(text: str) -> Query:
    """The selectors and labels of a query; `ValueError` where it is not what this understands."""
    tokens = list(_tokens(text))
    selectors: list[Selector] = []
    labels: set[str] = set()
    at = 0
    while at < len(tokens):
        kind, token = tokens[at]
        following = tokens[at + 1][1] if at + 1 < len(tokens) else ""
        at += 1
        if token == "{":
            raise ValueError(f"a selector without a metric in {text!r}")
        if kind != "name":
            continue
        if token.lower() in _BEFORE_LABELS and following == "(":
            names, at = _until(tokens, at + 1, ")")
            labels.update(name for name in names if name != ",")
        elif following == "{":
            inside, at = _until(tokens, at + 1, "}")
            selectors.append(Selector(token, tuple(_matchers(inside))))
        elif token.lower() not in _WORDS and following not in _AFTER_FUNCTIONS:
            selectors.append(Selector(token, ()))
    return Query(tuple(selectors), frozenset(labels))


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"{text[at : at + 20]!r} is not understood in {text!r}")
        at = match.end()
        if match.lastgroup not in (None, "blank", "range"):
            yield str(match.lastgroup), match[0]


def _until(tokens: list[tuple[str, str]], at: int, end: str) -> tuple[list[str], int]:
    """The tokens before the next `end`, and the place after it."""
    inside = []
    while tokens[at][1] != end:
        inside.append(tokens[at][1])
        at += 1
    return inside, at + 1


def _matchers(inside: list[str]) -> Iterator[Matcher]:
    for start in range(0, len(inside), 4):
        label, op, value = inside[start : start + 3]
        yield Matcher(label, op, value[1:-1])
