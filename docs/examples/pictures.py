"""Takes the pictures of an audit that the documentation shows, in a browser: see `.ci/install-browser`.

python docs/examples/pictures.py
"""

import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from keras import layers
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By

from keras_graft import Branch, audit, freeze_and_merge

DOCS = Path(__file__).parents[1]
# For each picture: the size of the window, and whether the page is light or dark.
PICTURES = {"audit.png": (1400, 1270, "light"), "audit-narrow.png": (390, 1270, "dark")}


def base():
    """A residual block, and dropout."""
    x = keras.Input((16, 16, 3))
    tensor = layers.Conv2D(16, 3, padding="same", name="conv")(x)
    shortcut = layers.Activation("relu", name="relu")(layers.BatchNormalization(name="bn")(tensor))
    tensor = layers.Conv2D(16, 3, padding="same", name="conv2")(shortcut)
    tensor = layers.GlobalAveragePooling2D(name="pool")(layers.Add(name="add")([tensor, shortcut]))
    return keras.Model(x, layers.Dropout(0.5, name="drop")(tensor))


def merged():
    policies = {"a": "keep", "b": "off", "c": "remove"}
    head = [
        layers.Dense(32, "relu", name="hidden"),
        layers.Dropout(0.2, name="head_drop"),
        layers.Dense(3, name="logits"),
    ]
    branches = {name: Branch(base(), dropout=policy) for name, policy in policies.items()}
    return freeze_and_merge(branches, head, loss="mse", name="model_ab")


def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars"):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def take(driver, page, picture):
    width, height, scheme = PICTURES[picture]
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    driver.get(page.as_uri())
    drop = next(tag for tag in driver.find_elements(By.CSS_SELECTOR, "main .name") if tag.text == "drop")
    drop.click()
    driver.execute_script("scrollTo(0, 0)")
    driver.save_screenshot(str(DOCS / picture))
    # A few colours: a palette makes it a third as large.
    Image.open(DOCS / picture).convert("RGB").quantize(64).save(DOCS / picture, optimize=True)


with tempfile.TemporaryDirectory() as folder:
    page = Path(folder, "page.html")
    audit(merged()).save_html(page)
    driver = browser()
    for picture in PICTURES:
        take(driver, page, picture)
    driver.quit()
