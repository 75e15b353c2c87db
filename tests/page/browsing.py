"""The page in a browser, with everything noted that it must not do; and what the tests read from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import numpy as np

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DOREFA = "clamp(min_value=0, max_value=1) | k_bit_quantize(k=4)"
PATIENCE_MS = 20_000
_NOTE_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""


@contextmanager
def opened(browser: Browser, url: str, *, refusals: bool = False, **context: Any) -> Iterator[Page]:
    """The page at this address; in the end it must have logged no error, and asked no other origin for anything.

    A browser logs every answer that is an error; a test that provokes one says so with `refusals`.
    """
    # One context serves all tests that need nothing else: its cache, and half a second, are kept.
    held = browser.new_context(**context) if context or not browser.contexts else browser.contexts[0]
    page = held.new_page()
    page.set_default_timeout(PATIENCE_MS)
    wrong: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("request", lambda request: asked.append(request.url))
    page.add_init_script(_NOTE_VIOLATIONS)
    page.goto(url)
    try:
        yield page
        assert page.evaluate("violations") == []
    finally:
        page.close()
        if context:
            held.close()
    assert [text for text in wrong if not (refusals and text.startswith("Failed to load resource"))] == []
    own = urlsplit(url)[:2]
    assert {urlsplit(one)[:2] for one in asked if not one.startswith("blob:")} == {own}


def address(url: str, op: str, **fields: object) -> str:
    """The address that shows this chain."""
    return f"{url}/#op={quote(op)}" + "".join(f"&{name}={value}" for name, value in fields.items())


def settled(page: Page) -> None:
    """Wait for the curve and the errors of what was last set."""
    for section in ("curve", "errors"):
        page.wait_for_selector(f"#{section}:not([hidden]):not(.is-stale)", state="attached")


def number(text: str) -> float:
    """A number as the page writes it."""
    return float(text.replace("\u2212", "-").replace("\u202f", "").replace("∞", "inf"))


def figures(page: Page, within: str) -> dict[str, str]:
    """The figures of a description list by name."""
    return page.evaluate(
        "(id) => Object.fromEntries([...document.querySelectorAll(`#${id} div`)]"
        ".map((one) => [...one.children].map((child) => child.textContent)))",
        within,
    )


def readout(page: Page) -> dict[str, float]:
    """What stands under the plots: x, y, gradient, y − x."""
    parts = page.locator("#readout span").all_text_contents()
    return {name: number(value) for name, _, value in (part.rpartition(" ") for part in parts)}


def drawn(page: Page, plot: str) -> tuple[np.ndarray, np.ndarray]:
    """The points of a plot's line in the units of its axes, which are read from the labels of its ticks."""
    labels, path = page.evaluate(
        """(id) => [
            [...document.querySelectorAll(`#${id} .axes text`)].map((one) =>
              [one.getAttribute("text-anchor"), Number(one.getAttribute("x")), Number(one.getAttribute("y")), one.textContent]),
            document.querySelector(`#${id} .line`).getAttribute("d"),
        ]""",
        plot,
    )
    points = np.array([[float(one) for one in pair.split()] for pair in re.findall(r"[ML]([-\d.]+ [-\d.]+)", path)])
    across = [(top, number(text)) for anchor, _, top, text in labels if anchor == "end"]
    along = [(left, number(text)) for anchor, left, _, text in labels if anchor == "middle"]
    slope_x, start_x = np.polyfit(*zip(*along, strict=True), 1)
    slope_y, start_y = np.polyfit(*zip(*across, strict=True), 1)
    return points[:, 0] * slope_x + start_x, points[:, 1] * slope_y + start_y
