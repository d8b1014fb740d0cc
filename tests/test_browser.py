"""The page of an audit, in a real browser: opened, read, and used by mouse and by keyboard."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import pytest
from keras import layers

from keras_graft import Branch, audit, freeze_and_merge

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium")
pytestmark = [
    pytest.mark.skipif(not (DRIVER and BROWSER), reason="chromium or its driver is not installed"),
    pytest.mark.once,
]

WIDE, NARROW = (1400, 1000), (390, 844)


def base(name: str) -> keras.Model:
    x = keras.Input((16,))
    h = shortcut = layers.Dense(16, name="dense")(x)
    inner = keras.Sequential([keras.Input((16,)), layers.Dense(16), layers.Dropout(0.5)], name="inner")
    h = layers.Add(name="add")([inner(h), shortcut])
    return keras.Model(x, layers.Dropout(0.5, name="drop")(h), name=name)


def merged() -> keras.Model:
    branches = {"a": Branch(base("a"), dropout="keep"), "b": Branch(base("b"), dropout="off")}
    return freeze_and_merge(branches, [layers.Dense(3, name="logits")], loss="mse", name="model_ab")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    audit(merged()).save_html(path)
    return path


@pytest.fixture
def page(browser: Any, path: Path) -> Any:
    return opened(browser, path, WIDE)


def opened(browser: Any, path: Path, size: tuple[int, int]) -> Any:
    # The size of the window is not that of the page on a small screen: no browser window is 390 pixels wide.
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width == NARROW[0]}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(path.as_uri())
    return browser


def label(page: Any, name: str, number: int = 0) -> Any:
    found = [tag for tag in page.find_elements(By.CSS_SELECTOR, "main .name") if tag.text == name]
    return found[number].find_element(By.XPATH, "..")


def shown(page: Any) -> dict[str, str]:
    """The row in the panel."""
    terms, values = (page.find_elements(By.CSS_SELECTOR, f"aside {tag}") for tag in ("dt", "dd"))
    row = {term.text: value.text for term, value in zip(terms, values)}
    row["Layer"], _, row["Type"] = row["Layer"].rstrip(")").partition(" (")
    return row


def edges(page: Any) -> int:
    return len(page.find_elements(By.CSS_SELECTOR, "#edges path"))


def test_the_console_is_silent(page: Any) -> None:
    label(page, "drop").click()
    assert page.get_log("browser") == []


def test_branches_stand_side_by_side_above_the_head(page: Any) -> None:
    a, b, head = (label(page, name).rect for name in ("a", "b", "logits"))
    assert a["y"] == b["y"]
    assert a["x"] + a["width"] <= b["x"]
    assert head["y"] > a["y"]


def test_every_call_is_an_edge(page: Any) -> None:
    within_a_branch = 1 + 1 + 2 + 1 + 2  # dense, inner, add, drop; and in inner: dense and dropout
    assert edges(page) == 2 + 2 * within_a_branch + 2 + 1


def test_a_click_shows_the_row_of_a_layer(page: Any) -> None:
    label(page, "drop").click()
    row = shown(page)
    assert (row["Layer"], row["In fit"]) == ("a/drop", "drops 50%")
    assert row["Why"] == "`trainable=False` does not stop Dropout"
    label(page, "drop", 1).click()
    assert shown(page)["In fit"] == "what it does in inference mode"


def test_a_nested_model_closes_and_opens(page: Any) -> None:
    before = edges(page)
    label(page, "a").click()
    wait_for(lambda: edges(page) < before)
    label(page, "a").click()
    wait_for(lambda: edges(page) == before)


def test_the_keyboard_follows_the_layers(page: Any) -> None:
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    first = page.switch_to.active_element
    assert shown(page)["Type"] == "InputLayer"
    first.send_keys(Keys.ARROW_DOWN)
    assert shown(page)["Layer"] == "a"
    page.switch_to.active_element.send_keys(Keys.ARROW_LEFT)  # closes it
    page.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert shown(page)["Layer"] == "b"
    page.switch_to.active_element.send_keys(Keys.ARROW_DOWN, Keys.TAB)
    assert shown(page)["Layer"].startswith("b/")
    page.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    assert shown(page)["Layer"] == "b"


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_can_be_read(browser: Any, path: Path, size: tuple[int, int], scheme: str, tmp_path: Path) -> None:
    feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
    page = opened(browser, path, size)
    assert page.execute_script("return document.documentElement.scrollWidth") <= size[0]
    assert page.execute_script("return document.querySelector('main').scrollWidth") <= size[0]
    for node in page.find_elements(By.CSS_SELECTOR, "main .node, main summary"):
        assert node.rect["x"] >= 0
    contrasts = page.execute_script(CONTRASTS)
    assert min(contrasts) >= 4.5, contrasts
    assert page.save_screenshot(str(tmp_path / "page.png"))


# The contrast between the text of each node and its background, after WCAG 2.
CONTRASTS = """
const light = colour => {
  const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = element => {
  for (let at = element; at; at = at.parentElement) {
    const colour = getComputedStyle(at).backgroundColor;
    if (!/, 0\\)$/.test(colour)) return colour;
  }
  return 'rgb(255, 255, 255)';
};
return [...document.querySelectorAll('.name, .type, .tag, header p, header li, aside dt')].map(element => {
  const [a, b] = [light(getComputedStyle(element).color), light(behind(element))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
});
"""


def wait_for(condition: Any) -> None:
    """What a click brings about is drawn with the next frame."""
    for _ in range(50):
        if condition():
            return
        time.sleep(0.05)
    assert condition()


def test_a_model_of_a_thousand_layers_stays_usable(browser: Any, tmp_path: Path) -> None:
    x = keras.Input((4,))
    chains = [x] * 4
    for number in range(125):  # Keras cannot build deeper ones
        chains = [layers.Add()([layers.Dense(4, name=f"dense_{number}_{n}")(h), h]) for n, h in enumerate(chains)]
    deep = keras.Model(x, layers.Add()(chains), name="deep")
    y = keras.Input((4,))
    audit(keras.Model(y, deep(y))).save_html(tmp_path / "page.html")
    page = opened(browser, tmp_path / "page.html", WIDE)
    label(page, "deep").click()
    wait_for(lambda: edges(page) > 1000)
    page.execute_script("document.querySelectorAll('main button')[700].click()")
    assert shown(page)["Layer"].startswith("deep/")
    assert page.get_log("browser") == []


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_what_a_notebook_shows_is_no_wider_than_the_cell(browser: Any, size: tuple[int, int], tmp_path: Path) -> None:
    found = audit(merged())
    path = tmp_path / "cell.html"
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    path.write_text(f'<!doctype html><meta charset="utf-8">{viewport}{found._repr_html_()}', encoding="utf-8")
    page = opened(browser, path, size)
    page.execute_script("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    assert page.execute_script("return document.documentElement.scrollWidth") <= size[0]
    tables = page.find_elements(By.TAG_NAME, "table")
    assert [len(table.find_elements(By.TAG_NAME, "td")) % 4 for table in tables] == [0] * 3
    assert sum(len(table.find_elements(By.TAG_NAME, "tr")) - 1 for table in tables) == sum(
        row.type != "InputLayer" for row in found.rows
    )
