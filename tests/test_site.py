"""The site of the documentation: built, followed link by link, and used in a real browser."""

from __future__ import annotations

import functools
import http.server
import os
import posixpath
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from test_browser import BROWSER, DRIVER, NARROW, WIDE, browser, wait_for  # noqa: F401  `browser` is a fixture

import keras_graft

pytest.importorskip("mkdocs")
pytest.importorskip("selenium")
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.once

CONFIG = Path(__file__).parent.parent / "docs" / "site" / "mkdocs.yml"
AXE = CONFIG.parents[2] / "build" / "node_modules" / "axe-core" / "axe.min.js"
MAIN_PAGES = ["index", "start", "guide/compose", "notebooks/uncertainty", "api/freeze_and_merge", "keras"]
# What a page loads by itself, and not when a reader follows a link.
LOADED = {"link": "href", "script": "src", "img": "src", "source": "src", "iframe": "src"}


class Page(HTMLParser):
    """What a page loads, where it links to, and what can be linked to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.anchors.update(given[key] for key in ("id", "name") if key in given)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif LOADED.get(tag, "") in given and given.get("rel") != "canonical":
            self.loaded.append(given[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--config-file", CONFIG]
    done = subprocess.run(
        [*command, "--site-dir", folder],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    # The page that a server gives for an address that there is not has links from the root of the server.
    paths = [path for path in site.rglob("*.html") if path.name != "404.html"]
    return {path.relative_to(site).as_posix(): Page(path) for path in paths}


def test_every_public_name_has_a_page_of_its_own(pages: dict[str, Page]) -> None:
    names = {
        path: {name for name in keras_graft.__all__ if f"keras_graft.{name}" in pages[path].anchors} for path in pages
    }
    found = {path: shown for path, shown in names.items() if shown}
    assert sorted(name for shown in found.values() for name in shown) == sorted(keras_graft.__all__)
    assert all(len(shown) == 1 and path.startswith("api/") for path, shown in found.items()), found


def test_examples_in_docstrings_are_blocks_of_code(site: Path) -> None:
    prompt, quote = '<code><span class="gp">&gt;&gt;&gt; </span>', "<blockquote>"
    texts = {path.stem: path.read_text(encoding="utf-8") for path in (site / "api").glob("*.html")}
    del texts["index"]
    assert not [name for name, text in texts.items() if prompt not in text or quote in text]


def test_a_public_name_in_a_docstring_is_a_link(pages: dict[str, Page]) -> None:
    assert "split.html#keras_graft.split" in pages["api/fit_head.html"].links


def test_nothing_comes_from_the_network(site: Path, pages: dict[str, Page]) -> None:
    loaded = {address for page in pages.values() for address in page.loaded}
    assert not [address for address in loaded if urlsplit(address).netloc]
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert "url(http" not in styles and "url(//" not in styles and "@import" not in styles


def test_every_internal_link_leads_somewhere(site: Path, pages: dict[str, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for address in [*page.links, *page.loaded]:
            to = urlsplit(address)
            if to.scheme or to.netloc:
                continue
            target = posixpath.normpath(posixpath.join(posixpath.dirname(path), unquote(to.path))) if to.path else path
            if not (site / target).exists() or (target in pages and unquote(to.fragment) not in pages[target].anchors):
                broken.append((path, address))
    assert not broken


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the site is served: the search reads its index from a server alone."""
    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


needs_a_browser = pytest.mark.skipif(not (DRIVER and BROWSER), reason="chromium or its driver is not installed")


def opened(driver: Any, address: str, size: tuple[int, int] = WIDE, scheme: str = "light") -> Any:
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width == NARROW[0]}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    driver.get(address)
    return driver


@needs_a_browser
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_no_page_is_wider_than_the_window(browser: Any, address: str, pages: dict[str, Page], size: Any) -> None:  # noqa: F811
    width = "return document.documentElement.scrollWidth"
    wide = {path: opened(browser, f"{address}/{path}", size).execute_script(width) for path in pages}
    assert {path: seen for path, seen in wide.items() if seen > size[0]} == {}


@needs_a_browser
def test_a_browser_asks_no_other_server(browser: Any, address: str) -> None:  # noqa: F811
    page = opened(browser, f"{address}/index.html")
    asked = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert asked and all(name.startswith(address) for name in asked)


@needs_a_browser
def test_the_scheme_is_that_of_the_system(browser: Any, address: str) -> None:  # noqa: F811
    scheme = "return document.body.getAttribute('data-md-color-scheme')"
    seen = [opened(browser, address, scheme=system).execute_script(scheme) for system in ("light", "dark")]
    assert seen == ["default", "slate"]


@needs_a_browser
def test_the_keyboard_skips_to_the_content_and_searches(browser: Any, address: str) -> None:  # noqa: F811
    page = opened(browser, f"{address}/index.html")
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert page.switch_to.active_element.get_attribute("textContent").strip() == "Skip to content"
    page.find_element(By.TAG_NAME, "body").send_keys("/")
    wait_for(lambda: page.switch_to.active_element.get_attribute("class").startswith("md-search__input"))
    page.switch_to.active_element.send_keys("gradual unfreezing")
    results = ".md-search-result__link"
    wait_for(lambda: page.find_elements(By.CSS_SELECTOR, results))
    found = [link.get_attribute("href") for link in page.find_elements(By.CSS_SELECTOR, results)]
    assert any("Unfreezing.html" in link for link in found)
    assert page.get_log("browser") == []


@needs_a_browser
def test_the_keyboard_opens_the_menu_of_a_narrow_screen(browser: Any, address: str) -> None:  # noqa: F811
    page = opened(browser, f"{address}/guide/compose.html", NARROW)
    home = page.find_element(By.CSS_SELECTOR, ".md-nav--primary .md-nav__link")
    assert not home.is_displayed()
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    page.switch_to.active_element.send_keys(Keys.TAB)
    assert page.switch_to.active_element.get_attribute("title") == "Menu"
    page.switch_to.active_element.send_keys(Keys.ENTER)
    wait_for(home.is_displayed)


@needs_a_browser
def test_what_scrolls_sideways_can_be_scrolled_by_the_keyboard(browser: Any, address: str) -> None:  # noqa: F811
    page = opened(browser, f"{address}/guide/ship.html", NARROW)
    wait_for(lambda: page.execute_script(SCROLLING))
    assert all(page.execute_script(SCROLLING))


# Whether each part of the page that is wider inside than outside takes the focus.
SCROLLING = """
return [...document.querySelectorAll("pre > code, .md-typeset__scrollwrap")]
  .filter(part => part.scrollWidth > part.clientWidth).map(part => part.tabIndex == 0);
"""


@needs_a_browser
@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: .ci/install-axe")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("path", MAIN_PAGES)
def test_axe_finds_no_serious_fault(browser: Any, address: str, path: str, size: Any, scheme: str) -> None:  # noqa: F811
    page = opened(browser, f"{address}/{path}.html", size, scheme)
    page.execute_script(AXE.read_text(encoding="utf-8"))
    faults = page.execute_async_script("axe.run(document).then(found => arguments[0](found.violations))")
    assert [(fault["id"], fault["help"]) for fault in faults if fault["impact"] in ("serious", "critical")] == []
