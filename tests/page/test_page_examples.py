"""The JavaScript of docs/examples, run by Node and by a browser against a real server."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from browsing import number
from server_process import ServerProcess

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Route

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "javascript"
MOST_LINES = 40


def node(folder: Path, *arguments: str) -> str:
    """What Node prints."""
    if shutil.which("node") is None:
        pytest.skip("there is no Node")
    done = subprocess.run(["node", *arguments], cwd=folder, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_prints_what_it_should(server: ServerProcess) -> None:
    lines = node(EXAMPLES, "example.mjs", server.url).splitlines()
    values = [[float(one) for one in "".join(part).split(",")] for part in _lists(" ".join(lines))]
    np.testing.assert_allclose(values[0], [0, 4 / 15, 10 / 15, 1], atol=1e-7)
    assert values[1] == [0, 1, 1, 0]


def _lists(text: str) -> list[str]:
    return [part.partition("]")[0] for part in text.split("[")[1:]]


def test_an_error_has_the_servers_words_code_and_status(server: ServerProcess) -> None:
    code = f"""
import {{ quantize }} from "{EXAMPLES.as_uri()}/stequant.mjs";
try {{ await quantize("{server.url}", "k_bit_quantize(0)", Float32Array.of(1)) }}
catch (error) {{ console.log(error.status, error.code, error.message) }}
"""
    said = node(EXAMPLES, "--input-type=module", "-e", code)
    assert said.startswith("422 bad_parameter A parameter's value is not allowed: parameter 'k'")


@pytest.mark.parametrize(
    "array", [np.float32([[1.5, -2], [np.inf, 0]]), np.float64(0.1), np.zeros((0, 3), np.float32)], ids=range(3)
)
def test_files_of_numpy_are_read_and_written(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array)
    code = f"""
import {{ readFileSync, writeFileSync }} from "node:fs";
import {{ decode, encode }} from "{EXAMPLES.as_uri()}/npy.mjs";
const {{ data, shape }} = decode(new Uint8Array(readFileSync("x.npy")).buffer);
writeFileSync("y.npy", encode(data, shape));
"""
    node(tmp_path, "--input-type=module", "-e", code)
    assert (tmp_path / "y.npy").read_bytes() == (tmp_path / "x.npy").read_bytes()


def test_the_example_works_in_a_browser(browser: Browser, server: ServerProcess) -> None:
    def from_disk(route: Route) -> None:
        route.fulfill(path=EXAMPLES / route.request.url.rpartition("/")[2])

    page = browser.new_page()
    page.route(f"{server.url}/examples/*", from_disk)
    page.goto(f"{server.url}/examples/example.html")
    page.wait_for_function("() => document.getElementById('y').value !== ''")
    values = [number(text) for text in page.inner_text("#y").split(", ")]
    np.testing.assert_allclose(values, [0, 4 / 15, 10 / 15, 1], atol=1e-7)
    page.context.close()


def test_the_codec_is_as_short_as_the_documentation_says() -> None:
    assert len((EXAMPLES / "npy.mjs").read_text(encoding="utf-8").splitlines()) <= MOST_LINES
