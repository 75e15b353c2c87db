"""docs/batch.md, the help and the code say the same."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from service.batch.report import BAD_INPUTS, DONE, GAVE_UP, USAGE
from service.cli.main import build_parser

DOCUMENT = Path(__file__).parents[2] / "docs/batch.md"


def parser() -> argparse.ArgumentParser:
    """The parser of `stequant batch`."""
    (commands,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    found = commands.choices["batch"]
    assert isinstance(found, argparse.ArgumentParser)
    return found


def rows(name: str) -> list[list[str]]:
    """The cells of a table of the document, without its head."""
    region = DOCUMENT.read_text(encoding="utf-8").partition(f"<!-- {name}:begin -->")[2].partition(f"<!-- {name}:end -->")[0]
    _head, _rule, *lines = region.strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def options() -> list[list[str]]:
    """What the table of options has to say."""
    told = []
    for action in parser()._actions:
        if action.option_strings and action.dest != "help":
            name = " ".join([action.option_strings[0], *([action.metavar or action.dest.upper()] if action.nargs != 0 else [])])
            told.append([f"`{name}`", str(action.help) % {"default": action.default}])
    return told


def test_the_table_of_options_is_that_of_the_help() -> None:
    expected = options()
    assert rows("options") == expected, "\n".join(f"| {name} | {text} |" for name, text in expected)


def test_the_table_of_exit_codes_is_that_of_the_help() -> None:
    _, _, listed = (parser().epilog or "").partition("exit status:\n")
    text = re.sub(r"\n {7}(?=\S)", " ", listed.partition("\n\n")[0])
    of_help = re.findall(r"^  (\d+) +(.+)$", text, re.MULTILINE)
    assert [(code, told) for code, told, _ in rows("exit-codes")] == of_help
    assert [int(code) for code, _ in of_help] == [DONE, BAD_INPUTS, USAGE, GAVE_UP, 128 + 2, 128 + 15]


def test_every_option_that_the_text_names_exists() -> None:
    known = {name for action in parser()._actions for name in action.option_strings}
    assert set(re.findall(r"`(--[a-z-]+)", DOCUMENT.read_text(encoding="utf-8"))) <= known
