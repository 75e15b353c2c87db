"""The documentation is true: its code runs, shows what it shows, and its tables are those of the code.

The blocks of the README are run in their order in one folder, against a server of their own. `sh` blocks
are commands, `python` blocks share one namespace, and a `text` block is what the block before it prints.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from service.errors import BY_CODE
from service.ops import REGISTRY
from service.settings import Settings
from service.wire import BY_MEDIA_TYPE

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = sorted([README, ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")])
# What the README says of the server's address; the test's server has another port.
ADDRESS = "127.0.0.1:8000"
# These set an environment up; a test cannot run them, but it knows that what they name exists.
NOT_RUN = {
    "make serve",
    "make test",
    "make clean",
    "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make serve",
    "pip install .",
    "pip install '.[server]'",
    ". .venv/bin/activate",
    "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 stequant serve",
}
START_S = 60
BLOCK_S = 60


class Block(NamedTuple):
    """A code block, and what it is said to print."""

    document: Path
    line: int
    language: str
    code: str
    prints: str | None

    def __str__(self) -> str:
        return f"{self.document.name}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether it is neither one of the commands that are not run, nor what another block prints."""
        return self.language != "text" and self.code.strip() not in NOT_RUN


class Printed(NamedTuple):
    """What became of a block: its standard output, or what went wrong."""

    output: str
    error: str


def blocks(document: Path) -> list[Block]:
    """The code blocks of a document, in order."""
    text = document.read_text(encoding="utf-8")
    fences = list(re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    found = []
    for fence, follower in itertools.zip_longest(fences, fences[1:]):
        follows = follower is not None and follower[1] == "text" and not text[fence.end() : follower.start()].strip()
        prints = follower[2] if follower is not None and follows else None
        found.append(Block(document, text.count("\n", 0, fence.start()) + 2, fence[1], fence[2], prints))
    return found


BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]


class Reader:
    """Runs the blocks as a reader would: one after the other, in one folder, each once."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.address = address
        self.namespace: dict[str, Any] = {}
        self.printed: dict[Block, Printed] = {}

    def read(self, wanted: Block) -> Printed:
        """What a block prints, when those before it were run."""
        for block in BLOCKS[: BLOCKS.index(wanted) + 1]:
            if block.is_run and block not in self.printed:
                code = block.code.replace(ADDRESS, self.address)
                self.printed[block] = self._python(code, block) if block.language == "python" else self._sh(code)
        return self.printed[wanted]

    def _python(self, code: str, block: Block) -> Printed:
        output = io.StringIO()
        # Blank lines in front, so that a traceback names the line of the document.
        compiled = compile("\n" * (block.line - 1) + code, str(block.document), "exec", dont_inherit=True)
        try:
            with contextlib.chdir(self.folder), contextlib.redirect_stdout(output):
                exec(compiled, self.namespace)
        except Exception:
            return Printed(output.getvalue(), traceback.format_exc())
        return Printed(output.getvalue(), "")

    def _sh(self, code: str) -> Printed:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("STEQUANT_")}
        environment |= {"PATH": f"{self.folder}/bin:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        # Files in place of pipes: a server that a failed block leaves behind would hold a pipe open.
        with (self.folder / "out").open("wb+") as out, (self.folder / "err").open("wb+") as err:
            process = subprocess.Popen(
                ["sh", "-eu", "-c", code], cwd=self.folder, env=environment, stdout=out, stderr=err, start_new_session=True
            )
            try:
                status: int | str = process.wait(BLOCK_S)
            except subprocess.TimeoutExpired:
                status = f"none within {BLOCK_S} s"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            out.seek(0)
            err.seek(0)
            return Printed(out.read().decode(), f"exit status {status}\n{err.read().decode()}" if status != 0 else "")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A reader with `stequant` and `python` at hand, and a server that is told to stop at the end."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "bin").mkdir()
    for name, arguments in {"python": "", "stequant": " -m service"}.items():
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n')
        script.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("STEQUANT_")]:
            patch.delenv(name)
        for name in ("no_proxy", "NO_PROXY"):
            patch.setenv(name, "127.0.0.1")
        log = folder / "serve.log"
        with log.open("wb") as stderr:
            server = subprocess.Popen(
                [sys.executable, "-m", "service", "serve", "--port", "0", "--log-level", "info"], cwd=ROOT, stderr=stderr
            )
        try:
            yield Reader(folder, _address(server, log))
        finally:
            server.terminate()
            status = server.wait(START_S)
        assert status == 0, f"serve ended with {status} after SIGTERM:\n{log.read_text()}"


def _address(server: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + START_S
    while time.monotonic() < end and server.poll() is None:
        if found := re.search(r"serves on http://(\S+)", log.read_text()):
            return found[1]
        time.sleep(0.05)
    server.kill()
    raise AssertionError(f"the server did not start:\n{log.read_text()}")


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.is_run], ids=str)
def test_a_block_runs_and_prints_what_follows_it(block: Block, reader: Reader) -> None:
    if re.search(r"\bcurl\b", block.code) and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    printed = reader.read(block)
    assert not printed.error, f"{block}: {printed.error}"
    if block.prints is not None:
        assert printed.output.rstrip("\n") == block.prints.rstrip("\n"), f"{block} prints something else"


def test_every_block_is_run_or_shown_or_known_not_to_run() -> None:
    for block in BLOCKS:
        assert block.language in ("sh", "python", "text"), f"{block} is of the language {block.language!r}"
    shown = sum(block.prints is not None for block in BLOCKS)
    texts = [block for block in BLOCKS if block.language == "text"]
    assert shown == len(texts), f"one of these does not follow the block that prints it: {', '.join(map(str, texts))}"
    fences = sum(document.read_text(encoding="utf-8").count("```") for document in DOCUMENTS)
    assert fences == 2 * len(BLOCKS), "a block is not closed, or stands indented"


def test_every_command_that_is_not_run_is_in_the_readme_and_names_what_exists() -> None:
    codes = {block.code.strip() for block in BLOCKS}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    for command in NOT_RUN:
        assert command in codes
        for target in re.findall(r"\bmake (\S+)", command):
            assert target in targets
        for extra in re.findall(r"\[(\w+)\]", command):
            assert extra in extras


def test_make_targets_in_the_text_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for document in DOCUMENTS for name in re.findall(r"`make ([a-z-]+)", document.read_text(encoding="utf-8"))}
    assert {"serve", "test"} <= named <= targets


def test_the_first_screen_has_the_two_commands_and_what_they_need() -> None:
    screen = "\n".join(README.read_text(encoding="utf-8").splitlines()[:24])
    assert all(words in screen for words in ("\nmake serve\n", "\nmake test\n", "Python 3.11", "make, nothing else"))


# Tables ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    """`docs/tables.py`, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("docs_tables", ROOT / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_that_the_code_gives(tables: ModuleType) -> None:
    readme = README.read_text(encoding="utf-8")
    assert tables.rewritten(readme) == readme, "make them anew with: python docs/tables.py"


def test_a_stale_table_is_made_anew_and_the_rest_is_left(tables: ModuleType) -> None:
    readme = README.read_text(encoding="utf-8")
    stale = readme.replace("| `clamp`<br>`Clamp` |", "| `crop`<br>`Crop` |")
    assert stale != readme
    assert tables.rewritten(stale) == readme


def test_the_command_finds_a_stale_table_and_makes_it_anew(tables: ModuleType, tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    copy.write_text(README.read_text(encoding="utf-8").replace("| `STEQUANT_PORT` |", "| `STEQUANT_PROT` |"), encoding="utf-8")
    assert tables.main(["--check"], copy) == 1
    assert tables.main([], copy) == 0
    assert tables.main(["--check"], copy) == 0
    assert copy.read_text(encoding="utf-8") == README.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["operators", "settings", "media-types", "errors"])
def test_a_table_without_its_comments_is_an_error(name: str, tables: ModuleType) -> None:
    with pytest.raises(LookupError, match=name):
        tables.rewritten(README.read_text(encoding="utf-8").replace(f"<!-- {name}:end -->", ""))


@pytest.mark.parametrize(
    ("name", "column", "expected"),
    [
        ("operators", 0, sorted(f"`{name}`<br>`{cls.__name__}`" for name, cls in REGISTRY.items())),
        ("settings", 0, sorted(f"`STEQUANT_{name.upper()}`" for name in Settings.model_fields)),
        ("settings", 1, sorted(f"`--{name.replace('_', '-')}`" for name in Settings.model_fields)),
        ("errors", 1, sorted(f"`{code}`" for code in BY_CODE)),
    ],
)
def test_a_table_has_one_row_for_each_thing_there_is(name: str, column: int, expected: list[str]) -> None:
    assert sorted(row[column] for row in _rows(name)) == expected


def test_the_table_of_media_types_has_each_once() -> None:
    listed = [media_type for row in _rows("media-types") for media_type in re.findall(r"`([^`]+)`", f"{row[0]} {row[1]}")]
    assert sorted(listed) == sorted(BY_MEDIA_TYPE)


def test_every_parameter_stands_beside_its_operator() -> None:
    for row in _rows("operators"):
        name = row[0].split("`")[1]
        assert re.findall(r"(?:^|<br>)`(\w+)`:", row[2]) == list(REGISTRY[name].parameters())


def test_every_row_has_as_many_cells_as_its_table() -> None:
    for name, cells in {"operators": 5, "settings": 4, "media-types": 5, "errors": 4}.items():
        assert {len(row) for row in _rows(name)} == {cells}


def test_every_error_stands_under_its_status() -> None:
    assert {row[1]: row[0] for row in _rows("errors")} == {f"`{code}`": str(error.status) for code, error in BY_CODE.items()}


def _rows(name: str) -> list[list[str]]:
    """The cells of a table of the README, without its head."""
    region = README.read_text(encoding="utf-8").partition(f"<!-- {name}:begin -->")[2].partition(f"<!-- {name}:end -->")[0]
    _head, _rule, *rows = region.strip().splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip("|"))] for row in rows]


def test_the_table_of_exit_statuses_has_each_once() -> None:
    cli = importlib.import_module("service.cli.main")
    table = README.read_text(encoding="utf-8").partition("| exit status |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| ([0-9]+) \|", table, re.MULTILINE) == [
        str(s) for s in (cli.DONE, cli.FAILED, cli.USAGE, cli.UNREACHABLE)
    ]


# Text -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), f"{document.name} links to {target}"
        if anchor:
            assert anchor in _anchors(file), f"{document.name} links to {target}"


def _anchors(file: Path) -> set[str]:
    """The headings of a document, as they are called in links."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_setting_that_the_text_names_exists() -> None:
    known = {f"STEQUANT_{name.upper()}" for name in Settings.model_fields} | {"STEQUANT_API_KEY"}
    for document in DOCUMENTS:
        named = set(re.findall(r"\bSTEQUANT_[A-Z_]*[A-Z]\b", document.read_text(encoding="utf-8")))
        assert named <= known, f"{document.name} names {named - known}"


def test_every_path_of_the_service_stands_in_the_readme() -> None:
    from service.app import create_app

    app = create_app(Settings(device="cpu"))
    paths = [*app.openapi()["paths"], app.openapi_url, "/docs"]
    readme = README.read_text(encoding="utf-8")
    assert [path for path in paths if f"`{path}`" not in readme and f"POST {path}`" not in readme] == []


def test_the_changelog_begins_with_this_version_or_the_unreleased_one() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        version = tomllib.load(file)["project"]["version"]
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] in ("Unreleased", version)
    assert version in headings
