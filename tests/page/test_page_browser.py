"""The page in a real browser, against a real server; values are held to NumPy."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from browsing import DOREFA, address, drawn, figures, number, opened, readout, settled
from server_process import ROOT, ServerProcess, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

X = np.random.default_rng(0).normal(0.5, 0.4, (16, 20)).astype(np.float32)


def dorefa(x: np.ndarray) -> np.ndarray:
    """`clamp(0, 1) | k_bit_quantize(4)`, by the contract's formula, every step rounded to x's dtype."""
    s = x.dtype.type(15)
    return np.rint(np.clip(x, 0, 1) * s) / s


def upload(page: Page, name: str, body: bytes) -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "application/octet-stream", "buffer": body})


def saved(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


# The curve --------------------------------------------------------------------------------------------------


def test_the_page_begins_with_a_staircase_of_sixteen_levels(browser: Browser, server: ServerProcess) -> None:
    with opened(browser, server.url) as page:
        settled(page)
        assert page.input_value("#expression") == DOREFA
        assert "16 levels, from 0 to 1" in page.inner_text("#summary")
        assert page.inner_text("#state-text") == "ready on cpu"
        assert figures(page, "error-figures")["levels"] == "16"


def test_the_lines_that_are_drawn_are_the_values_and_the_gradient(browser: Browser, server: ServerProcess) -> None:
    with opened(browser, address(server.url, DOREFA, **{"from": -0.25, "to": 1.25})) as page:
        for dtype in ("float32", "float16", "float64"):
            page.select_option("#dtype", dtype)
            settled(page)
            x, y = drawn(page, "value-plot")
            _, gradient = drawn(page, "gradient-plot")
            # In the column of pixels of a jump the line is on both levels; elsewhere it lies on the right one.
            in_a_jump = np.abs((x * 15) % 1 - 0.5) < 15 * 1.5 / 400
            assert (~in_a_jump).mean() > 0.3
            np.testing.assert_allclose(y[~in_a_jump], dorefa(x)[~in_a_jump], atol=3e-3)
            assert np.abs(y[:, None] - np.arange(16) / 15).min(axis=1).max() < 3e-3
            assert np.abs(gradient[:, None] - [0, 1]).min(axis=1).max() < 0.02
            passes = (x > 0.01) & (x < 0.99)
            assert (y[x < -0.01] < 0.01).all()
            assert passes.any()


def test_the_slider_reads_the_curve_by_keyboard_and_by_mouse(browser: Browser, server: ServerProcess) -> None:
    with opened(browser, address(server.url, DOREFA, **{"from": -0.5, "to": 1.5})) as page:
        settled(page)
        slider = page.get_by_role("slider", name="Read the curve at x")
        slider.focus()
        page.keyboard.press("Home")
        assert readout(page) == {"x": -0.5, "y": 0, "gradient": 0, "y − x": 0.5}
        for _ in range(3):
            page.keyboard.press("PageUp")
        found = readout(page)
        assert found["x"] > -0.5
        assert slider.get_attribute("aria-valuetext").startswith("x ")
        box = page.locator("#value-plot").bounding_box()
        page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 20)
        pointed = readout(page)
        assert 0.5 < pointed["x"] < 0.8
        np.testing.assert_allclose(pointed["y"], dorefa(np.float32([pointed["x"]]))[0], atol=1e-5)
        assert pointed["gradient"] == 1


def test_the_table_has_a_row_for_each_tread(browser: Browser, server: ServerProcess) -> None:
    with opened(browser, address(server.url, "step_quantize(step=0.5)", **{"from": -1, "to": 1})) as page:
        settled(page)
        page.get_by_text("The curve as a table").click()
        rows = page.locator("#rows tr").all()
        values = [[number(text) for text in row.locator("td").all_text_contents()] for row in rows]
    assert [row[2] for row in values] == [-1, -0.5, 0, 0.5, 1]
    assert {row[3] for row in values} == {1}
    np.testing.assert_allclose([row[1] for row in values], [-0.75, -0.25, 0.25, 0.75, 1], atol=2 / 8192)


def test_odd_curves_are_told_in_words(browser: Browser, server: ServerProcess) -> None:
    with opened(browser, address(server.url, DOREFA, **{"from": -2, "to": 2})) as page:
        for op, said in [
            ("clamp_by_linear | affine_k_bit_quantize(3, 2, -1)", "8 levels, from −1 to 1"),
            ("clamp(inf, inf) | clamp_by_linear", "no finite value"),
            ("clamp(-inf, inf)", "without steps"),
            ("affine_k_bit_quantize(k=2, w=-3e38, b=0)", "NaN or infinite"),
            ("clamp(0.5, 0.5)", "1 level, from 0.5 to 0.5"),
        ]:
            page.fill("#expression", op)
            settled(page)
            assert said in page.inner_text("#summary"), op


def test_errors_are_those_of_the_chosen_input(browser: Browser, server: ServerProcess) -> None:
    with opened(browser, address(server.url, DOREFA, **{"from": 0, "to": 1})) as page:
        settled(page)
        x = ((np.arange(65536) + 0.5) / 65536).astype(np.float32)
        error = dorefa(x).astype(np.float64) - x
        found = figures(page, "error-figures")
        assert number(found["SNR"].removesuffix(" dB")) == round(
            10 * np.log10((x.astype(np.float64) ** 2).sum() / (error**2).sum()), 1
        )
        assert number(found["largest error"]) == pytest.approx(np.abs(error).max(), rel=1e-3)
        page.select_option("#input", "normal")
        page.wait_for_function("(text) => document.getElementById('error-figures').textContent !== text", arg=_text(page))
        settled(page)
        assert "input=normal" in page.url


def _text(page: Page) -> str:
    return page.locator("#error-figures").text_content() or ""


# The chain --------------------------------------------------------------------------------------------------


def test_operators_come_from_the_server(browser: Browser, server: ServerProcess) -> None:
    extra = {
        "name": "newly_made",
        "parameters": [
            {"name": "depth", "type": "int", "required": True, "default": None, "description": "…", "minimum": 2, "maximum": 6}
        ],
        "formula": "y = x",
        "gradient": "grad_x = grad_output",
        "elementwise": True,
        "sources": [],
    }

    def answer(route: Route) -> None:
        route.fulfill(json={"operators": [extra]})

    with opened(browser, server.url) as page:
        page.route("**/operators", answer)
        page.reload()
        page.wait_for_selector("#main:not([hidden])")
        assert page.locator("#add option").all_text_contents() == ["newly_made"]
        assert page.locator("#presets button").count() == 0
        page.fill("#expression", "newly_made(7)")
        assert "a whole number ≥ 2 and ≤ 6, not '7'" in page.inner_text("#expression-problem")


def test_a_chain_is_made_with_the_keyboard_alone(browser: Browser, server: ServerProcess) -> None:
    with opened(browser, server.url) as page:
        settled(page)

        def press(*keys: str) -> None:
            for key in keys:
                page.keyboard.press(key)

        def tab_to(name: str) -> None:
            for _ in range(60):
                press("Tab")
                if page.evaluate("(document.activeElement.ariaLabel ?? document.activeElement.innerText).trim()") == name:
                    return
            raise AssertionError(f"{name} cannot be reached with the Tab key")

        tab_to("Step")
        press("Enter")
        settled(page)
        tab_to("Remove step_quantize")
        press("Enter")
        assert "at least one operator" in page.inner_text("#expression-problem")
        page.wait_for_function("() => document.activeElement.id === 'add'")
        page.keyboard.type("clamp")
        press("Tab", "Enter")
        page.keyboard.press("Control+A")
        page.keyboard.type("-1")
        tab_to("Add")
        press("Enter")
        tab_to("Remove clamp")
        tab_to("Move up clamp")
        press("Enter")
        settled(page)
        assert page.input_value("#expression") == ("clamp(min_value=0, max_value=1) | clamp(min_value=-1, max_value=1)")
        assert page.evaluate("document.activeElement.closest('li').querySelector('h3').innerText") == "clamp"


def test_what_is_shown_is_in_the_address_and_an_address_shows_it(browser: Browser, server: ServerProcess) -> None:
    with opened(browser, server.url) as page:
        settled(page)
        page.get_by_role("button", name="Ternary").click()
        page.select_option("#dtype", "float64")
        page.fill("#from", "-3")
        settled(page)
        link = page.url
    fragment = unquote(urlsplit(link).fragment)
    assert fragment == "op=clamp(min_value=-1,max_value=1)|round&from=-3&to=2&dtype=float64&input=uniform"
    with opened(browser, link) as page:
        settled(page)
        assert "3 levels, from −1 to 1" in page.inner_text("#summary")
        assert page.input_value("#dtype") == "float64"
        page.evaluate("location.hash = 'op=floor&from=0&to=4'")
        page.wait_for_function("() => document.getElementById('expression').value === 'floor'")
        settled(page)
        assert "5 levels, from 0 to 4" in page.inner_text("#summary")


def test_a_chain_that_cannot_be_sent_is_not_sent(browser: Browser, server: ServerProcess) -> None:
    with opened(browser, server.url) as page:
        settled(page)
        calls: list[str] = []
        page.on("request", lambda request: calls.append(request.url) if "?op=" in request.url else None)
        for op, said in [
            ("affine_k_bit_quantize(4, scale, 0)", "w=scale names a tensor"),
            ("k_bit_quantize(0)", "k takes a whole number ≥ 1 and ≤ 1023, not '0'"),
            ("sharpen(2)", "There is no operator 'sharpen'"),
            ("round |", "Expected the name of an operator where the expression ends"),
            ("", "Expected the name of an operator"),
        ]:
            page.fill("#expression", op)
            assert said in page.inner_text("#expression-problem")
            assert page.get_attribute("#expression", "aria-invalid") == "true"
        page.fill("#expression", "round")
        settled(page)
        assert page.inner_text("#expression-problem") == ""
        assert calls
        assert all("op=round" in url for url in calls)


def test_a_bound_is_checked_while_it_is_typed(browser: Browser, server: ServerProcess) -> None:
    with opened(browser, server.url) as page:
        settled(page)
        k = page.get_by_label("k", exact=True)
        k.fill("0")
        assert "k takes a whole number ≥ 1" in page.inner_text("#step-1-k-problem")
        k.fill("2")
        page.wait_for_function("() => document.getElementById('summary').textContent.includes('4 levels')")
        assert page.input_value("#expression").endswith("k_bit_quantize(k=2)")
        page.fill("#to", "-1")
        assert "smaller one first" in page.inner_text("#range-problem")


def test_what_the_server_refuses_is_told_in_its_words(browser: Browser, server: ServerProcess) -> None:
    with opened(browser, address(server.url, "k_bit_quantize(20)", dtype="float16"), refusals=True) as page:
        page.wait_for_selector("#curve-problem .notice")
        told = page.inner_text("#curve-problem")
        assert "A parameter does not fit the dtype of a tensor" in told
        assert "422 parameter_does_not_fit" in told
        assert "float16" in told
        page.select_option("#dtype", "float32")
        settled(page)
        assert page.inner_text("#curve-problem") == ""


# A file -----------------------------------------------------------------------------------------------------


def test_a_file_comes_back_with_the_contracts_bits(browser: Browser, server: ServerProcess) -> None:
    arrays = {
        "weights": X,
        "fortran": np.asfortranarray(X),
        "big_endian": X.astype(">f4"),
        "half": X.astype(np.float16),
        "scalar": np.array(X[0, 0]),
    }
    with opened(browser, address(server.url, DOREFA)) as page:
        settled(page)
        for name, array in arrays.items():
            upload(page, f"{name}.npy", saved(array))
            link = page.locator(f"#file-result a[download='{name}.clamp_0_1_k_bit_quantize_4.npy']")
            with page.expect_download() as download:
                link.click()
            y = np.load(download.value.path())
            native = array.astype(array.dtype.newbyteorder("="))
            np.testing.assert_array_equal(y, dorefa(native), strict=True)
            assert y.flags.f_contiguous == array.flags.f_contiguous
            shown = figures(page, "file-result")
            assert (shown["shape"], shown["dtype"]) == (str(array.shape), native.dtype.name)
            assert number(shown["largest error"]) == pytest.approx(np.abs(y.astype(np.float64) - native).max(), rel=1e-3)
            assert int(shown["levels"]) == len(np.unique(y))
            assert page.input_value("#input") == "file"


def test_a_file_follows_the_chain(browser: Browser, server: ServerProcess) -> None:
    with opened(browser, address(server.url, DOREFA)) as page:
        settled(page)
        upload(page, "weights.npy", saved(X))
        page.wait_for_selector("#file-result a")
        page.fill("#expression", "round")
        page.wait_for_selector("#file-result a[download='weights.round.npy']")
        settled(page)
        assert figures(page, "error-figures")["levels"] == str(len(np.unique(np.rint(X))))


def test_a_file_is_dropped_anywhere_on_the_page(browser: Browser, server: ServerProcess) -> None:
    with opened(browser, address(server.url, DOREFA)) as page:
        settled(page)
        page.evaluate(
            """(bytes) => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([Uint8Array.from(bytes)], "dropped.npy"));
                document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
            }""",
            list(saved(X)),
        )
        page.wait_for_selector("#file-result a[download^='dropped.']")


def test_a_file_that_cannot_be_quantized_is_told_why(browser: Browser, server: ServerProcess) -> None:
    with opened(browser, address(server.url, DOREFA), refusals=True) as page:
        settled(page)
        for body, said in [
            (b"not an array", "not a .npy file"),
            (saved(np.arange(5)), "Quantizers take floating numbers only"),
            (saved(X)[:-1], "400 malformed_body"),
            (b"", "not a .npy file"),
        ]:
            upload(page, "wrong.npy", body)
            page.locator("#file-problem .notice", has_text=said).wait_for()
            assert page.locator("#file-result a").count() == 0
            upload(page, "right.npy", saved(X))
            page.wait_for_selector("#file-result a")
            assert page.inner_text("#file-problem") == ""


# The same call elsewhere ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["values", pytest.param("gradient", marks=pytest.mark.slow)])
def test_what_is_copied_runs_and_gives_the_same_bits(browser: Browser, server: ServerProcess, tmp_path: Path, kind: str) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "grad_output.npy", np.full_like(X, 3))
    origin = {"permissions": ["clipboard-read", "clipboard-write"]}
    with opened(browser, address(server.url, DOREFA), **origin) as page:
        settled(page)
        page.get_by_label(kind, exact=True).check()
        texts = {}
        for name in ("curl", "Python", "Command line"):
            page.get_by_role("button", name=f"Copy {name}").click()
            page.wait_for_function("(name) => document.getElementById('copied').textContent.includes(name)", arg=name)
            texts[name] = page.evaluate("navigator.clipboard.readText()")
    out, expected = ("y.npy", dorefa(X)) if kind == "values" else ("grad_x.npy", np.where((X >= 0) & (X <= 1), np.float32(3), 0))
    (tmp_path / "stequant").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m service "$@"\n')
    (tmp_path / "stequant").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    for name, text in texts.items():
        command = [sys.executable, "-c", text] if name == "Python" else ["sh", "-eu", "-c", text]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{text}\n{done.stderr}"
        np.testing.assert_array_equal(np.load(tmp_path / out), expected, strict=True)
        (tmp_path / out).unlink()


# The server, now --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_figures_of_the_server_are_shown_while_somebody_looks(browser: Browser, server: ServerProcess) -> None:
    with opened(browser, server.url) as page:
        settled(page)
        page.wait_for_function("() => document.querySelector('#live-figures dd')?.textContent.includes('/s')")
        shown = figures(page, "live-figures")
        assert shown["in flight"] == "0 B of 1 GiB"
        assert int(shown["connections"]) >= 1
        assert re.match(r"[\d\u202f]+ calls and [\d\u202f]+ refusals? since its start; 1 worker\.", page.inner_text("#live-note"))
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.evaluate(
            "Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )
        page.wait_for_timeout(2500)
        assert asked == []
        page.evaluate(
            "Object.defineProperty(document, 'hidden', {value: false}); document.dispatchEvent(new Event('visibilitychange'))"
        )
        page.wait_for_function("() => performance.getEntriesByName(new URL('metrics', location).href).length > 2")


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_told_and_asked_again(browser: Browser, server: ServerProcess) -> None:
    with opened(browser, server.url, refusals=True) as page:
        settled(page)
        page.context.set_offline(True)
        page.fill("#to", "2")
        page.wait_for_selector("#curve-problem .notice")
        assert "The server does not answer" in page.inner_text("#curve-problem")
        page.wait_for_selector("#lamp.off")
        page.context.set_offline(False)
        settled(page)
        assert page.inner_text("#curve-problem") == ""
        page.wait_for_selector("#lamp.on")


# Keys, limits and proxies -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> ServerProcess:
    """A server with a key, and a small limit."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("the-key\n")
    with serving("--api-keys-file", str(keys), "--max-body-bytes", "600000") as running:
        yield running


def test_a_key_is_asked_for_sent_along_and_kept_in_memory_only(browser: Browser, locked: ServerProcess) -> None:
    with opened(browser, locked.url, refusals=True) as page:
        page.wait_for_selector("#key-form:not([hidden])")
        assert page.inner_text("#key-problem") == ""
        assert page.evaluate("document.activeElement.id") == "key"
        for wrong, said in [("wrong", "401 unauthorized"), ("nö", "printable ASCII")]:
            page.keyboard.press("Control+A")
            page.keyboard.type(wrong)
            page.keyboard.press("Enter")
            page.wait_for_function("(said) => document.getElementById('key-problem').innerText.includes(said)", arg=said)
        page.fill("#key", "the-key")
        page.keyboard.press("Enter")
        settled(page)
        assert page.locator("#key-form").is_hidden()
        assert '"Authorization: Bearer $STEQUANT_API_KEY"' in page.inner_text("#calls")
        kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
        assert "the-key" not in kept + page.inner_text("body")
        page.wait_for_function("() => document.querySelector('#live-figures dd') !== null")


def test_a_file_above_the_limit_is_not_sent(browser: Browser, locked: ServerProcess) -> None:
    with opened(browser, locked.url, refusals=True) as page:
        page.fill("#key", "the-key")
        page.keyboard.press("Enter")
        settled(page)
        page.wait_for_selector("#lamp.on")
        sent: list[str] = []
        page.on("request", lambda request: sent.append(request.url) if "?op=" in request.url else None)
        upload(page, "large.npy", saved(np.zeros(200_000, np.float32)))
        page.wait_for_selector("#file-problem .notice")
        assert "large.npy has 781 KiB; this server takes at most 586 KiB" in page.inner_text("#file-problem")
        assert sent == []


def test_the_page_works_below_a_path_that_a_proxy_adds(browser: Browser, server: ServerProcess) -> None:
    def passed_on(route: Route) -> None:
        route.fulfill(response=route.fetch(url=server.url + route.request.url.removeprefix("http://front.test/tools/stequant")))

    context = browser.new_context()
    context.route("http://front.test/tools/stequant/**", passed_on)
    page = context.new_page()
    page.goto("http://front.test/tools/stequant/")
    settled(page)
    assert "16 levels" in page.inner_text("#summary")
    assert "http://front.test/tools/stequant/quantize?op=" in page.inner_text("#calls")
    context.close()


# For everybody ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(browser: Browser, server: ServerProcess, scheme: str) -> None:
    long = "clamp(min_value=-1234567.890625, max_value=1234567.890625) | affine_k_bit_quantize(k=2, w=-0.333333333, b=0.1) | "
    with opened(browser, address(server.url, 3 * long + "round"), color_scheme=scheme) as page:
        settled(page)
        for width in (320, 390, 1024, 1600):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        lightness = sum(int(part) for part in re.findall(r"\d+", ground)[:3]) / 3
        assert (lightness < 64) == (scheme == "dark")


def test_every_control_has_a_name_and_every_region_too(browser: Browser, server: ServerProcess) -> None:
    with opened(browser, address(server.url, DOREFA)) as page:
        settled(page)
        upload(page, "weights.npy", saved(X))
        page.wait_for_selector("#file-result a")
        tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    roles: dict[str, list[str]] = {}
    for node in tree:
        if not node.get("ignored"):
            roles.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    for role in ("button", "link", "textbox", "spinbutton", "combobox", "slider", "radio", "region", "image"):
        assert all(name.strip() for name in roles[role] if role != "image"), f"a {role} has no name"
    assert {"banner", "navigation", "main"} <= set(roles)
    assert {"Chain", "Staircase", "Error", "Your tensor", "The same call elsewhere", "The server, now"} <= set(roles["region"])
    assert roles["heading"][0] == "stequant"
    assert len(roles["slider"]) == 1
    assert len(roles["textbox"]) >= 5
    assert set(roles["radio"]) == {"values", "gradient"}


def test_the_focus_can_be_seen_and_motion_is_left_out_for_those_who_ask(browser: Browser, server: ServerProcess) -> None:
    with opened(browser, server.url, reduced_motion="reduce") as page:
        settled(page)
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert page.evaluate("getComputedStyle(document.getElementById('curve')).transitionProperty") == "none"
