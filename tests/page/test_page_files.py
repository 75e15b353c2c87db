"""What the page is made of: served with the right headers, all of it, from here alone, and small."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
from http_app import Service

from service import page

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "service" / "page"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
MOST_BYTES = 120_000


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """The application with its default settings."""
    with Service() as running:
        yield running


class Tags(HTMLParser):
    """Every tag of a document with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called for every tag."""
        self.found.append((tag, dict(attrs)))


def tags() -> list[tuple[str, dict[str, str | None]]]:
    return Tags((PAGE / "index.html").read_text(encoding="utf-8")).found


def test_the_page_and_all_its_files_are_served(service: Service) -> None:
    paths = {"/": PAGE / "index.html"} | {f"/page/{file.name}": file for file in PAGE.iterdir() if file.suffix in MEDIA_TYPES}
    assert len(paths) > 20
    for path, file in paths.items():
        response = service.get(path)
        assert response.status_code == 200
        assert response.content == file.read_bytes()
        assert response.headers["content-type"].split(";")[0] == MEDIA_TYPES[file.suffix]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        policy = dict(one.strip().split(" ", 1) for one in response.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert "unsafe" not in response.headers["content-security-policy"]


def test_a_browser_that_has_a_file_is_told_so(service: Service) -> None:
    first = service.get("/page/main.js")
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "no-cache"
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = service.get("/page/main.js", headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    for unknown in ('"other"', tag.strip('"'), ""):
        assert service.get("/page/main.js", headers={"if-none-match": unknown}).status_code == 200


def test_files_that_differ_have_different_tags() -> None:
    assert len({file.etag for file in page.files().values()}) == len(page.files())


def test_the_page_is_open_where_keys_are_needed_and_what_computes_is_not(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("key\n")
    with Service(api_keys_file=tmp_path / "keys") as locked:
        assert [locked.get(path).status_code for path in ("/", "/page/main.js", "/operators")] == [200, 200, 401]


def test_readyz_says_how_large_a_body_may_be() -> None:
    with Service(max_body_bytes=4096) as small:
        assert small.get("/readyz").json()["max_body_bytes"] == 4096


def test_every_address_is_relative_and_leads_to_what_the_service_has(service: Service) -> None:
    links = [value for _, attributes in tags() for name, value in attributes.items() if name in ("src", "href") and value]
    assert len(links) >= 6
    for link in links:
        parts = urlsplit(link)
        assert not parts.scheme
        assert not parts.netloc
        assert not link.startswith("/"), f"{link} does not hold behind a proxy's path"
        assert service.get(urljoin("/", link)).status_code == 200


def test_nothing_is_written_into_the_document_that_its_policy_forbids() -> None:
    for tag, attributes in tags():
        assert tag != "style"
        assert tag != "script" or attributes.get("src")
        assert not [name for name in attributes if name == "style" or name.startswith("on")]


def test_modules_make_no_html_and_no_styles_from_text_and_name_no_other_origin() -> None:
    for module in PAGE.glob("*.js"):
        text = module.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|cssText", text), (
            module.name
        )
        addresses = set(re.findall(r"https?://[^\s\"'`)]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, module.name
    assert not re.search(r"@import|url\(", (PAGE / "style.css").read_text(encoding="utf-8"))


def test_every_module_is_used_and_every_import_is_there() -> None:
    imported = {"main.js"}
    for module in PAGE.glob("*.js"):
        for name, source in re.findall(r"import \{([^}]+)\} from \"\./([\w.]+)\"", module.read_text(encoding="utf-8")):
            exported = set(
                re.findall(r"export (?:async )?(?:function|class|const) (\w+)", (PAGE / source).read_text(encoding="utf-8"))
            )
            assert {one.strip() for one in name.split(",")} <= exported, module.name
            imported.add(source)
    assert imported == {module.name for module in PAGE.glob("*.js")}


def test_every_id_that_a_module_asks_for_is_in_the_document() -> None:
    ids = [attributes["id"] for _, attributes in tags() if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for module in PAGE.glob("*.js"):
        asked = set(re.findall(r"byId\(\"([\w-]+)\"\)", module.read_text(encoding="utf-8")))
        assert asked <= set(ids), module.name


def test_the_page_is_small() -> None:
    assert sum(len(file.body) for file in page.files().values()) < MOST_BYTES


def test_an_installed_package_has_all_files_of_the_page(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "service", source / "service", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    code = "from setuptools import setup; setup()"
    build = [sys.executable, "-W", "ignore", "-c", code, "-q", "build_py", "--build-lib", str(tmp_path / "built")]
    subprocess.run(build, cwd=source, check=True, capture_output=True, timeout=60)
    built = {file.name for file in (tmp_path / "built" / "service" / "page").iterdir()}
    assert built >= {file.name for file in PAGE.iterdir() if file.suffix in MEDIA_TYPES}


# Colours ----------------------------------------------------------------------------------------------------


def palettes() -> dict[str, dict[str, str]]:
    """The colours by name, for light and for dark."""
    light, _, dark = (PAGE / "style.css").read_text(encoding="utf-8").partition("prefers-color-scheme: dark")
    return {
        scheme: dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", text)) for scheme, text in {"light": light, "dark": dark}.items()
    }


def luminance(colour: str) -> float:
    """The relative luminance of WCAG 2."""
    channels = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_and_controls_can_be_seen(scheme: str) -> None:
    palette = palettes()[scheme]
    for text in ("ink", "soft", "value", "gradient", "bad"):
        for ground in ("paper", "card"):
            assert contrast(palette[text], palette[ground]) >= 4.5, (text, ground)
    assert contrast(palette["soft"], palette["bad-paper"]) >= 4.5
    for part in ("edge", "good"):
        assert contrast(palette[part], palette["paper"]) >= 3, part
