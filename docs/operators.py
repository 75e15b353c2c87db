"""What docs/operators.md says of each operator, made from its class: `python docs/operators.py` rewrites it.

`--check` says whether it would. Between `<!-- NAME:begin -->` and `<!-- NAME:end -->` stands what the
docstring and the parameters of the operator say; what is between them is replaced.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from service.ops import REGISTRY
from service.ops.base import Operator
from service.ops.catalogue import describe, paragraph, summary
from service.ops.parameters import allowed_values

PAGE = Path(__file__).with_name("operators.md")


def section(cls: type[Operator]) -> str:
    """One operator: its picture, and a table of what its class says."""
    described = describe(cls)
    rows = [("formula", f"`{described['formula']}`"), ("gradient", f"`{described['gradient']}`")]
    for parameter in described["parameters"]:
        name = parameter["name"]
        default = "" if parameter["required"] else f"; default `{parameter['default']}`"
        rows.append((f"`{name}`", f"{allowed_values(cls, name)}{default}; {parameter['description']}"))
    shapes, _, cases = paragraph(cls, "Shapes:").removeprefix("Shapes: ").partition(". ")
    rows += [
        ("shapes", f"{shapes}."),
        ("edge cases", cases),
        ("one element at a time", "yes" if cls.is_elementwise else "no: all of a tensor is needed at once"),
        ("source", "; ".join(map(_linked, described["sources"]))),
        ("in Python", f"`service.ops.{cls.__name__}`, `service.quantize.{cls.name}`"),
    ]
    table = "\n".join(f"| {head} | {cell.replace('|', chr(92) + '|')} |" for head, cell in rows)
    picture = f"![{cls.name}: y over x, and its gradient](images/operators/{cls.name}.svg)"
    return f"{summary(cls)}\n\n{picture}\n\n| `{cls.name}` | |\n| --- | --- |\n{table}"


def _linked(source: str) -> str:
    return re.sub(r"arXiv:([0-9]{4}\.[0-9]{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", source)


def rewritten(text: str) -> str:
    """The page with every section made anew; `LookupError` for an operator whose two comments are not there, once each."""
    for name, cls in REGISTRY.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise LookupError(f"the page needs one {begin} and, after it, one {end}")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{section(cls)}\n{end}{rest.partition(end)[2]}"
    return text


def main(arguments: Sequence[str] | None = None, page: Path = PAGE) -> int:
    """Rewrite the page, or only look; returns the exit status."""
    parser = argparse.ArgumentParser(description="Make docs/operators.md from the operators.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where the page is out of date")
    options = parser.parse_args(arguments)
    old = page.read_text(encoding="utf-8")
    new = rewritten(old)
    if new == old:
        return 0
    if options.check:
        print("docs/operators.md is out of date; make it anew with: python docs/operators.py", file=sys.stderr)
        return 1
    page.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
