"""The page, driven in a real browser: the sliders lead to the right picture, without any network."""

import base64
import json
import re
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

from loractl.sample.axes import Axis
from loractl.sample.page import page
from tests.browser import one

AXES = (
    Axis("weight", ("0", "0.5", "1")),
    Axis("prompt", ("a </script><b>red</b> critter", "a “blue” fish")),
    Axis("adapter", ("one", "two")),
)
PLACES = list(product(range(2), range(2), range(3)))  # (z, y, x), in the order of the pictures
PIXEL = """
const picture = document.querySelector("figure img"), canvas = document.createElement("canvas");
canvas.getContext("2d").drawImage(picture, 0, 0);
return [...canvas.getContext("2d").getImageData(1, 1, 1, 1).data].slice(0, 3);
"""
FETCH = """
const refusal = new Promise(resolve => document.addEventListener("securitypolicyviolation", resolve));
fetch("https://example.org").catch(() => {});
return refusal.then(event => event.effectiveDirective);
"""


def color(z: int, y: int, x: int) -> tuple[int, int, int]:
    return 100 * z, 100 * y, 100 * x


def png(z: int, y: int, x: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (16, 16), color(z, y, x)).save(file, "PNG")
    return file.getvalue()


def html(axes: tuple[Axis, Axis, Axis] = AXES) -> str:
    return page("my <grid>", {"model": "lab", "steps": 4}, axes, [png(*place) for place in PLACES])


def test_the_page_holds_everything_and_asks_for_nothing() -> None:
    text = html()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    data = json.loads(found[1])
    assert [base64.b64decode(picture) for picture in data["pictures"]] == [png(*place) for place in PLACES]
    assert tuple(Axis(axis["name"], tuple(axis["labels"])) for axis in data["axes"]) == AXES
    assert "default-src 'none'" in text and not re.search(r"https?:|@import|<link|src=", text)
    assert html() == text


def opened(browser: Any, tmp_path: Path, axes: tuple[Axis, Axis, Axis] = AXES) -> Any:
    (tmp_path / "grid.html").write_text(html(axes), encoding="utf-8")
    browser.get((tmp_path / "grid.html").as_uri())
    return browser


def shows(browser: Any, z: int, y: int, x: int) -> bool:
    """Whether the picture, what is said of it, and the sliders are all those of a place."""
    labels = (AXES[0].says(x), AXES[1].says(y), AXES[2].says(z))
    spoken = one(browser, "figcaption").text == one(browser, "figure img").get_attribute("alt") == ", ".join(labels)
    sliders = [one(browser, f"#{axis}") for axis in "xyz"]
    there = [slider.get_attribute("value") for slider in sliders] == [str(x), str(y), str(z)]
    said = [f"{axis.name} {slider.get_attribute('aria-valuetext')}" for axis, slider in zip(AXES, sliders, strict=True)]
    browser.execute_async_script("document.querySelector('figure img').decode().then(arguments[0])")
    return spoken and there and said == list(labels) and browser.execute_script(PIXEL) == list(color(z, y, x))


def test_arrows_slide_through_every_picture(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, tmp_path)
    assert one(browser, "h1").text == browser.title == "my <grid>"
    assert shows(browser, 0, 0, 0)
    sliders = {axis: one(browser, f"#{axis}") for axis in "xyz"}
    for z, y, x in PLACES:
        for axis, place in zip("zyx", (z, y, x), strict=True):
            sliders[axis].send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * place)
        assert shows(browser, z, y, x)
        assert [each.text for each in browser.find_elements("css selector", "output")] == [
            axis.labels[place] for axis, place in zip(AXES, (x, y, z), strict=True)
        ]


def test_the_table_is_whole_and_leads_to_its_pictures(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, tmp_path)
    one(browser, "#z").send_keys(Keys.END)
    assert one(browser, "caption").text == "adapter two"
    cells = browser.find_elements("css selector", "td button")
    shown = [one(cell, "img").get_attribute("src").partition(",")[2] for cell in cells]
    assert [base64.b64decode(text) for text in shown] == [png(1, y, x) for y, x in product(range(2), range(3))]
    cells[4].click()
    assert shows(browser, 1, 1, 1)
    assert [cell.get_attribute("aria-pressed") for cell in cells] == ["false"] * 4 + ["true", "false"]
    heads = [each.text for each in browser.find_elements("css selector", "thead th")]
    assert heads == ["prompt", "weight 0", "weight 0.5", "weight 1"]
    assert [each.text for each in browser.find_elements("css selector", "tbody th")] == list(AXES[1].labels)


def test_it_fits_a_phone_and_a_screen_reader(browser: Any, tmp_path: Path) -> None:
    opened(browser, tmp_path)
    wide = "return [document.documentElement.scrollWidth, innerWidth]"
    scroll, inner = browser.execute_script(wide)
    assert scroll <= inner == 375
    assert one(browser, "figure img").size["width"] > 300
    images = browser.find_elements("css selector", "img")
    assert len(images) == 7 and all(image.get_attribute("alt") and image.accessible_name for image in images)
    named = {slider.accessible_name: slider for slider in browser.find_elements("css selector", "input")}
    assert list(named) == [axis.name for axis in AXES]
    assert all(slider.size["height"] >= 40 for slider in named.values()), "a thumb can grasp it"


def test_nothing_is_fetched_and_nothing_fails(browser: Any, tmp_path: Path) -> None:
    opened(browser, tmp_path)
    fetched = browser.execute_script("return performance.getEntriesByType('resource').map(each => each.name)")
    assert [name for name in fetched if not name.startswith("data:")] == []
    assert browser.get_log("browser") == []
    assert browser.execute_script(FETCH) == "connect-src", "the page's own policy forbids it, network or not"


def test_an_axis_that_is_not_there_has_no_slider(browser: Any, tmp_path: Path) -> None:
    opened(browser, tmp_path, (Axis("seed", ("1", "2")), Axis(), Axis()))
    assert [one(browser, f"#{axis}").is_displayed() for axis in "xyz"] == [True, False, False]
    assert one(browser, "figcaption").text == "seed 1"
    assert one(browser, "caption").text == "The whole table"
