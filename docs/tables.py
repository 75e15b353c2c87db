"""The README's tables, made from the code: `python docs/tables.py` rewrites them, `--check` says whether it would.

A table stands between two comments, `<!-- NAME:begin -->` and `<!-- NAME:end -->`; what is between
them is replaced. What a table says is written once, in the code: change it there.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from service.cli.serving import flag
from service.errors import BY_CODE
from service.ops import REGISTRY
from service.ops.catalogue import describe, summary
from service.ops.parameters import allowed_values
from service.settings import MIB, Settings
from service.wire import FORMATS

README = Path(__file__).parents[1] / "README.md"


def operators() -> str:
    """One row an operator, in the order of the registry."""
    rows = []
    for name, cls in REGISTRY.items():
        described = describe(cls)
        parameters = []
        for parameter in described["parameters"]:
            default = "" if parameter["required"] else f" (default `{parameter['default']}`)"
            parameters.append(
                f"`{parameter['name']}`: {allowed_values(cls, parameter['name'])}{default}; {parameter['description']}"
            )
        y = described["formula"].removeprefix("y = ")
        gradient = described["gradient"].removeprefix("grad_x = ")
        rows.append((f"`{name}`<br>`{cls.__name__}`", summary(cls), "<br>".join(parameters) or "none", f"`{y}`", gradient))
    return table(("operator, and its class", "what it does", "parameters", "`y`", "`grad_x`"), rows)


def settings() -> str:
    """One row a setting."""
    rows = (
        (f"`{Settings.model_config['env_prefix']}{name.upper()}`", f"`{flag(name)}`", _default(field), _meaning(field))
        for name, field in Settings.model_fields.items()
    )
    return table(("variable", "flag", "default", "meaning"), rows)


def media_types() -> str:
    """One row a format."""
    rows = []
    for name, form in FORMATS.items():
        limit = "STEQUANT_MAX_JSON_BYTES" if name == "json" else "STEQUANT_MAX_BODY_BYTES"
        about = (inspect.getdoc(sys.modules[form.decode.__module__]) or "").partition("\n")[0]
        also = ", ".join(f"`{alias}`" for alias in form.aliases)
        rows.append((f"`{form.media_type}`", also, about, "yes" if form.holds_names else "no", f"`{limit}`"))
    return table(("media type", "also", "body and answer", "names", "limit of a body"), rows)


def errors() -> str:
    """One row a code, by status."""
    as_written = reversed(BY_CODE.values())  # there, a class stands before its base
    by_status = sorted(as_written, key=lambda error: error.status)
    rows = ((str(error.status), f"`{error.code}`", error.title, f"`{error.__name__}`") for error in by_status)
    return table(("status", "`code`", "`title`", "class in Python"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "operators": operators,
    "settings": settings,
    "media-types": media_types,
    "errors": errors,
}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; a bar within a cell is escaped."""
    head = tuple(head)
    lines = (head, ("---",) * len(head), *rows)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def rewritten(text: str) -> str:
    """The text with every table made anew; `LookupError` for a table whose two comments are not there, once each."""
    for name, make in TABLES.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise LookupError(f"the README needs one {begin} and, after it, one {end}")
        before, _, rest = text.partition(begin)
        after = rest.partition(end)[2]
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    return text


def main(arguments: Sequence[str] | None = None, readme: Path = README) -> int:
    """Rewrite the README, or only look; returns the exit status."""
    parser = argparse.ArgumentParser(description="Make the README's tables from the code.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where a table is out of date")
    options = parser.parse_args(arguments)
    old = readme.read_text(encoding="utf-8")
    new = rewritten(old)
    if new == old:
        return 0
    if options.check:
        print("the tables of README.md are out of date; make them anew with: python docs/tables.py", file=sys.stderr)
        return 1
    readme.write_text(new, encoding="utf-8")
    return 0


def _default(field: FieldInfo) -> str:
    if field.default is None:
        return "none"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    if isinstance(field.default, int) and field.default >= MIB:
        return f"`{field.default}` ({field.default // MIB} MiB)"
    return f"`{field.default}`"


def _meaning(field: FieldInfo) -> str:
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return f"{field.description}" + (f" ({', '.join(f'`{choice}`' for choice in choices)})" if choices else "")


if __name__ == "__main__":
    sys.exit(main())
