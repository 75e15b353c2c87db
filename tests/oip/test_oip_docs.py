"""The page about the protocol: its code runs in order against a server that offers shared memory, and prints what it shows."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from pathlib import Path
from typing import Any

from server_process import serving

from service.app import create_app
from service.oip.regions import MAX_REGIONS
from service.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "open-inference.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^(```|~~~)(\w+)\n(.*?)^\1\n", re.MULTILINE | re.DOTALL)


def test_the_python_of_the_page_prints_what_the_page_shows() -> None:
    blocks = [(found[2], found[3]) for found in BLOCK.finditer(PAGE)]
    names: dict[str, Any] = {}
    ran = 0
    with serving("--shared-memory-names", "demo-*") as server:
        for (language, code), (_, shown) in itertools.pairwise(blocks):
            if language == "python":
                printed = io.StringIO()
                with contextlib.redirect_stdout(printed):
                    exec(code.replace("127.0.0.1:8000", server.url.removeprefix("http://")), names)
                assert printed.getvalue() == shown
                ran += 1
    assert ran == sum(language == "python" for language, _ in blocks) == 5


def test_the_page_names_every_path() -> None:
    paths = [path for path in create_app(Settings(device="cpu")).openapi()["paths"] if path.startswith("/v2")]
    assert len(paths) > 12
    for path in paths:
        model, _, ending = path.partition("/{model}/")
        assert path in PAGE or (f"`…/{ending}`" in PAGE and f"{model}/{{model}}`" in PAGE) or path.endswith("/unregister"), path


def test_the_numbers_of_the_page_are_those_of_the_code() -> None:
    assert f"At most {MAX_REGIONS} regions" in PAGE
