"""The pages below docs/ say what the code says: pictures, tables, dumps and numbers are held to it.

That their blocks run and their links lead somewhere is `tests/test_docs.py`, for every page alike.
"""

from __future__ import annotations

import importlib.util
import io
import re
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import msgpack
import numpy as np
import pytest

from service import quantize
from service.client import RetryPolicy
from service.client.configuration import CONNECT_TIMEOUT_S, DEFAULT_RETRIES, DEFAULT_TIMEOUT_S
from service.ops import REGISTRY, expression
from service.ops.base import MAX_CHAIN_LENGTH, RESERVED_NAMES
from service.ops.catalogue import describe
from service.settings import Settings
from service.wire import msgpack as msgpack_codec
from service.wire import npy

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh.md"


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def script(name: str) -> ModuleType:
    """A script of docs/, which is no part of the package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Pictures -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn() -> dict[str, bytes]:
    pinned = re.search(r"^matplotlib==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    if version("matplotlib") != pinned[1]:
        pytest.skip(f"the pictures are those of matplotlib {pinned[1]}; here is {version('matplotlib')}")
    pictures: dict[str, bytes] = script("pictures").pictures()
    return pictures


def test_the_pictures_are_those_that_the_code_draws(drawn: dict[str, bytes]) -> None:
    there = {path.name: path.read_bytes() for path in (DOCS / "images" / "operators").iterdir()}
    assert there.keys() == drawn.keys()
    stale = [name for name in drawn if there[name] != drawn[name]]
    assert stale == [], "draw them anew with: python docs/pictures.py"


def test_every_picture_has_colours_for_a_dark_page_and_none_that_it_leaves_out(drawn: dict[str, bytes]) -> None:
    for name, svg in drawn.items():
        style, _, shapes = svg.decode().partition("</style>")
        assert "prefers-color-scheme: dark" in style, name
        # Grey, of the dashed identity, is seen on both.
        assert set(re.findall(r"#[0-9a-f]{6}", shapes)) <= {"#000000", "#ffffff", "#8c8c8c"}, name


def test_every_operator_has_a_picture_of_itself_and_every_picture_is_shown() -> None:
    pictures = script("pictures")
    assert set(pictures.DRAWN) == {*REGISTRY, "chain"}
    for name in REGISTRY:
        assert [type(one) for one in expression.parse(pictures.DRAWN[name][0])] == [REGISTRY[name]]
    shown = re.findall(r"!\[[^\]]+\]\(images/operators/(\w+)\.svg\)", text_of("operators.md"))
    assert sorted(shown) == sorted(pictures.DRAWN)


# Operators ------------------------------------------------------------------------------------------


def test_the_sections_of_the_operators_are_those_that_the_code_gives() -> None:
    page = text_of("operators.md")
    assert script("operators").rewritten(page) == page, "make them anew with: python docs/operators.py"


def test_a_stale_section_is_found_and_made_anew(tmp_path: Path) -> None:
    operators = script("operators")
    copy = tmp_path / "operators.md"
    copy.write_text(text_of("operators.md").replace("| formula | `y = round(x)` |", "| formula | `y = x` |"), encoding="utf-8")
    assert operators.main(["--check"], copy) == 1
    assert operators.main([], copy) == 0
    assert operators.main(["--check"], copy) == 0
    assert copy.read_text(encoding="utf-8") == text_of("operators.md")


def test_an_operator_without_a_section_is_an_error() -> None:
    with pytest.raises(LookupError, match="floor"):
        script("operators").rewritten(text_of("operators.md").replace("<!-- floor:end -->", ""))


def test_the_syntax_of_expressions_is_that_of_the_parser() -> None:
    grammar = re.search(r"~~~text\n(chain .*?)~~~", text_of("operators.md"), re.DOTALL)
    assert grammar is not None
    assert grammar[1].split() == re.search(r"(chain .*?)\n\n", expression.__doc__ or "", re.DOTALL)[1].split()  # type: ignore[index]
    named = re.search(r"letters, digits and `_`, but not (.*?)\.", text_of("operators.md"))
    assert named is not None
    assert set(re.findall(r"`(\w+)`", named[1])) == RESERVED_NAMES


# Wire formats ---------------------------------------------------------------------------------------


def dumps() -> list[bytes]:
    """The bytes of each hexadecimal dump of the page, in order; every line says at which byte it starts."""
    found = []
    for block in re.findall(r"```text\n(.*?)```", text_of("wire.md"), re.DOTALL):
        lines = re.findall(r"^ *([0-9]+)  ((?:[0-9a-f]{2} ?)+) *\|", block, re.MULTILINE)
        if lines:
            rows = [bytes.fromhex(row) for _, row in lines]
            assert [int(at) for at, _ in lines] == [16 * index for index in range(len(rows))]
            found.append(b"".join(rows))
    return found


def test_numpy_and_msgpack_read_the_dumps_as_the_page_says() -> None:
    """The page writes its bytes by hand; here the libraries of others read them."""
    x, y, body, answer, _ = dumps()
    for array, expected in ((x, [0.3, 2]), (y, [4 / 15, 2])):
        np.testing.assert_array_equal(np.load(io.BytesIO(array)), np.float32(expected))
    for packed, name, expected in ((body, "x", [0.3, 2]), (answer, "y", [4 / 15, 2])):
        tensor = msgpack.unpackb(packed)[name]
        assert (tensor["dtype"], tensor["shape"]) == ("float32", [2])
        np.testing.assert_array_equal(np.frombuffer(tensor["data"], "<f4"), np.float32(expected))


def test_the_gradients_of_the_dump_are_those_of_the_formula() -> None:
    unpacked = msgpack.unpackb(dumps()[-1])
    x = np.float32([0.3, 2])
    grid = np.round(x * np.float32(15)) / np.float32(15)
    products = x * grid  # the page sends x as grad_output, too
    np.testing.assert_array_equal(np.frombuffer(unpacked["grad_x"]["data"], "<f4"), x * np.float32(2))
    assert unpacked["grad_scale"]["shape"] == []
    assert np.frombuffer(unpacked["grad_scale"]["data"], "<f4")[0] == products[0] + products[1]


def test_numpy_and_msgpack_write_the_dumps_of_the_page() -> None:
    x, _, body, *_ = dumps()
    written = io.BytesIO()
    np.save(written, np.float32([0.3, 2]))
    assert written.getvalue() == x
    assert msgpack.packb({"x": {"dtype": "float32", "shape": [2], "data": np.float32([0.3, 2]).tobytes()}}) == body


# Numbers in the text --------------------------------------------------------------------------------


def test_the_bounds_that_the_security_page_names_are_those_of_the_code() -> None:
    page = text_of("SECURITY.md")
    for words in (
        f"{msgpack_codec.MAX_DEPTH} levels of msgpack",
        f"{npy.MAX_HEADER_BYTES // 1000} 000 bytes for a header",
        f"{expression.MAX_EXPRESSION_LENGTH} characters, {MAX_CHAIN_LENGTH} operators",
    ):
        assert words in page


def test_every_limit_and_every_key_or_certificate_stands_on_the_security_page() -> None:
    page = text_of("SECURITY.md")
    on_it = [name for name in Settings.model_fields if re.match(r"(max|min|tls|api|trusted|shared)_|.*_timeout_s$|uds$", name)]
    # For failures of one's own, and a detail of TLS.
    elsewhere = {"device_timeout_s", "worker_start_timeout_s", "worker_timeout_s", "tls_key_password_file"}
    missing = [name for name in on_it if name not in elsewhere and f"`STEQUANT_{name.upper()}`" not in page]
    assert missing == []


def test_what_the_clients_page_says_of_retries_and_timeouts_is_the_default() -> None:
    page, policy = text_of("clients.md"), RetryPolicy()
    first, second, third = (policy.first_backoff_s * 2**n for n in range(3))
    assert policy.max_attempts == DEFAULT_RETRIES + 1
    for words in (
        f"{DEFAULT_RETRIES} by default",
        f"at most {first:g} s, {second:g} s, {third:g} s, …, {policy.max_backoff_s:g} s",
        f"connecting (at most {CONNECT_TIMEOUT_S:g} s)",
        f"| {DEFAULT_TIMEOUT_S:g} s |",
    ):
        assert words in page
    assert policy.max_retry_after_s == 60, "the page says: more than a minute"


def test_every_name_of_the_drop_in_module_stands_on_the_page_for_those_who_come_from_elsewhere() -> None:
    names = text_of("migration.md").partition("## Names")[2].partition("\n## ")[0]
    ours = {word for row in re.findall(r"^\| (`[^|]+) \|", names, re.MULTILINE) for word in re.findall(r"`(\w+)", row)}
    assert ours == set(quantize.__all__)


# The table of contents, and the README in Chinese ---------------------------------------------------


def test_the_table_of_contents_has_every_page() -> None:
    linked = set(re.findall(r"\]\(([^)#\s]+)", text_of("index.md")))
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} - {"index.md"}
    folders = {path.removesuffix("/README.md") for path in pages}
    missing = [page for page in pages if page not in linked and page.removesuffix("/README.md") not in linked & folders]
    assert missing == []


def test_the_commands_of_the_chinese_readme_are_those_of_the_english_pages() -> None:
    english = [block for page in (ENGLISH, DOCS / "clients.md") for block in _blocks(page)]
    assert [block for block in _blocks(CHINESE) if block not in english] == []
    assert len(_blocks(CHINESE)) > 10


def test_the_chinese_table_of_operators_has_their_names_parameters_formulas_and_defaults() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", CHINESE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name, _ in rows] == list(REGISTRY)
    for name, row in rows:
        _, parameters, formula, gradient = row.split(" | ")
        described = describe(REGISTRY[name])
        assert formula == f"`{described['formula'].removeprefix('y = ')}`"
        assert set(re.findall(r"`([a-z_]+)`", parameters)) == set(REGISTRY[name].parameters())
        assert re.findall(r"默认 `([^`]+)`", parameters) == [
            str(p["default"]) for p in described["parameters"] if not p["required"]
        ]
        assert ("grad_output" in gradient) == ("grad_output" in described["gradient"])


def _blocks(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
