"""How long an audit takes, against building the model, and the page of a large model in a real browser.

    python tests/benchmarks/audit.py [MODEL]

MODEL is a name in `keras.applications`. Where chromium and its driver are installed, the page is opened: from the start
of the navigation to the first picture with all edges, and from a click to the next frame.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from keras_graft import Audit, audit

# Each step as a user waits for it: what it draws is there with the frame after the next.
OPEN = "const t = performance.getEntriesByType('navigation')[0]; return t.loadEventEnd - t.startTime"
CLICK = """
const done = arguments[0], label = document.querySelectorAll('main [data-row]')[{number}], start = performance.now();
label.click();
requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start)));
"""


def timed(action: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = action()
    return result, time.perf_counter() - start


def browser() -> Any:
    from selenium import webdriver  # noqa: PLC0415

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def show_page(found: Audit) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        _, seconds = timed(lambda: found.save_html(path))
        print(f"writing the page    {seconds:8.2f} s   {path.stat().st_size / 1e6:.1f} MB")
        if not (shutil.which("chromium") and shutil.which("chromedriver")):
            print("opening the page: chromium or its driver is not installed")
            return
        driver = browser()
        try:
            driver.get(path.as_uri())
            print(f"opening the page    {driver.execute_script(OPEN) / 1000:8.2f} s")
            clicks = [("a click that opens the model", 1), ("a click on a layer in it", len(found.rows) // 2)]
            for what, number in clicks:
                seconds = driver.execute_async_script(CLICK.format(number=number)) / 1000
                print(f"{what:<29}{seconds:.2f} s")
        finally:
            driver.quit()


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "EfficientNetV2L"
    base, build = timed(lambda: getattr(keras.applications, name)(weights=None))
    base.trainable = False
    inputs = keras.Input(base.input_shape[1:])
    model = keras.Model(inputs, keras.layers.Dense(2)(base(inputs, training=False)))
    found, seconds = timed(lambda: audit(model))
    again, second = timed(lambda: audit(model))
    assert again == found
    layers, live = len(found.rows), len(found.live)
    print(f"{name} in a merge made by hand, {layers} layers, {live} live in fit, Keras {keras.__version__}")
    print(f"building            {build:8.2f} s")
    print(f"audit               {seconds:8.2f} s   {seconds / build:.3f} of building it")
    print(f"audit, again        {second:8.2f} s   {second / build:.3f} of building it")
    show_page(found)


if __name__ == "__main__":
    main()
