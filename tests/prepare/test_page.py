"""The page of a set, driven in a real browser: every file is there, and can be found, without any network."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loractl.prepare.page import page
from loractl.prepare.sheet import CELL, COLUMNS, ROWS, sheets
from loractl.prepare.table import Output, Row
from tests.browser import one

SHOWN = """
const shown = [...document.querySelectorAll("article")].filter(each => !each.hidden);
return shown.map(each => each.querySelector("h2").textContent);
"""
FETCHED = (
    "return performance.getEntriesByType('resource').map(each => each.name).filter(name => !name.startsWith('data:'))"
)
# Where the crop box lies on the picture, in hundredths of its sides.
BOX = """
const whole = document.querySelector(".whole > img").getBoundingClientRect();
const box = document.querySelector(".box").getBoundingClientRect();
const across = (x) => Math.round(100 * (x - whole.left) / whole.width);
const down = (y) => Math.round(100 * (y - whole.top) / whole.height);
return [across(box.left), down(box.top), across(box.right), down(box.bottom)];
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small files of the rows below."""
    folder = tmp_path_factory.mktemp("page")
    Image.new("RGB", (200, 100), "red").save(folder / "small.jpg")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    mask.save(folder / "mask.png")
    return folder


def rows() -> list[Row]:
    crop = Output("images/a.png", "", (100, 0, 300, 200), (32, 32), mask="mask.png", caption="sks, a </script> dog")
    flipped = Output("images/a-2.png", "", (100, 0, 300, 200), (32, 32), ("flipped",), "mask.png", caption="sks")
    scores = {"blur": 312.3456, "exposure": 0.5, "hash": 2**63, "look": "AAAA"}
    shown = {"size": (400, 200), "scores": scores, "thumbnail": "small.jpg"}
    return [
        Row("a <b>.jpg", "kept", **shown, notes=("16-bit",), outputs=(crop, flipped)),  # type: ignore[arg-type]
        Row("twin.jpg", "skipped", "it fails a check", **shown, twin="a <b>.jpg"),  # type: ignore[arg-type]
        Row("dim.jpg", "kept", **shown, verdict=("too dark: 0.01 < 0.05",), outputs=(crop,)),  # type: ignore[arg-type]
        Row("broken.jpg", "unreadable", "it is empty (0 bytes)"),
        Row("notes.txt", "ignored", "a sidecar (.txt)"),
    ]


@pytest.fixture
def opened(browser: Any, root: Path) -> Any:
    (root / "page.html").write_text(page("my <set>", rows(), lambda name: root / name), encoding="utf-8")
    browser.get((root / "page.html").as_uri())
    return browser


def shown(browser: Any) -> list[str]:
    """The names of the files that can be seen."""
    found: list[str] = browser.execute_script(SHOWN)
    return found


def test_the_page_is_the_same_for_the_same_rows_and_asks_for_nothing(root: Path) -> None:
    text = page("a", rows(), lambda name: root / name)
    assert text == page("a", rows(), lambda name: root / name)
    assert "default-src 'none'" in text and not re.search(r"https?:|@import|<link|src=", text)


def test_every_file_is_there_with_all_that_is_known_of_it(opened: Any) -> None:
    assert opened.title == one(opened, "h1").text == "my <set>"
    assert shown(opened) == [row.source for row in rows()]
    first = one(opened, "article")
    for text in ("kept", "sks, a </script> dog", "images/a.png · 32 × 32", "flipped", "312.3", "400 × 200", "16-bit"):
        assert text in first.text
    assert "AAAA" not in first.text and str(2**63) not in first.text
    twin = opened.find_elements("css selector", "article")[1]
    assert one(twin, ".verdict").text == "near-duplicate: of a <b>.jpg"
    assert opened.execute_script(BOX) == [25, 0, 75, 100]
    pictures = opened.find_elements("css selector", "article:first-child img")
    assert len(pictures) == 2, "a flipped copy's mask would not lie on the whole"
    assert all(picture.get_attribute("naturalWidth") != "0" and picture.accessible_name for picture in pictures)


def test_files_are_found_by_text_and_by_kind(opened: Any) -> None:
    from selenium.webdriver.support.ui import Select

    one(opened, "#text").send_keys("EMPTY")
    assert shown(opened) == ["broken.jpg"] and one(opened, "#count").text == "1 of 5 files"
    one(opened, "#text").clear()
    kind = Select(one(opened, "#kind"))
    assert [option.text for option in kind.options] == [
        *("all files", "kept (2)", "skipped (1)", "near-duplicate (1)", "too dark (1)", "unreadable (1)", "ignored (1)")
    ]
    for value, names in (
        ("kept", ["a <b>.jpg", "dim.jpg"]),
        ("near-duplicate", ["twin.jpg"]),
        ("ignored", ["notes.txt"]),
    ):
        kind.select_by_value(value)
        one(opened, "#text").send_keys(" ")
        assert shown(opened) == names


def test_keys_do_what_they_say(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    def press(key: str) -> None:
        opened.switch_to.active_element.send_keys(key)

    def focused() -> str:
        found: str = opened.execute_script("return document.activeElement.querySelector('h2')?.textContent")
        return found

    one(opened, "body").send_keys(Keys.ARROW_RIGHT)
    visited = [focused()]
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT):
        press(key)
        visited.append(focused())
    assert visited == ["a <b>.jpg", "twin.jpg", "dim.jpg", "twin.jpg"]
    for key, name, css in (("m", "unmasked", ".box img"), ("b", "plain", ".box")):
        press(key)
        assert name in one(opened, "body").get_attribute("class")
        assert one(opened, css).value_of_css_property("visibility" if key == "m" else "border-top-color") in (
            *("hidden", "rgba(0, 0, 0, 0)"),
        )
    press("/")
    press("broken m b")  # typed, not obeyed
    assert shown(opened) == [] and one(opened, "#text").get_attribute("value") == "broken m b"
    press(Keys.ESCAPE)
    assert len(shown(opened)) == 5 and one(opened, "#text").get_attribute("value") == ""


def test_it_fits_a_phone_in_the_dark_and_fetches_nothing(opened: Any) -> None:
    scroll, inner = opened.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert scroll <= inner == 375
    assert opened.execute_script(FETCHED) == [] == opened.get_log("browser")
    colors = []
    for scheme in ("light", "dark"):
        features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
        colors.append(one(opened, ".verdict").value_of_css_property("color"))
    assert colors[0] != colors[1]


def test_sheets_show_pictures_with_boxes_and_what_masks_hide(root: Path) -> None:
    (sheet,) = sheets(rows(), lambda name: root / name)
    pixels = np.asarray(sheet)
    assert sheet.width == 8 + 3 * (CELL + 8), "three files have a picture"
    middle, left = 8 + CELL // 2, 8
    assert tuple(pixels[middle, left + 10]) > (200, 0, 0), "outside of the crop all is as it was"
    assert pixels[middle, left + CELL * 3 // 8][0] > 200 > 100 > pixels[middle, left + CELL * 5 // 8][0], "the mask"
    assert tuple(pixels[middle, left + CELL // 4]) == (255, 255, 0), "the box"
    many = [*sheets([rows()[0]] * (COLUMNS * ROWS + 1), lambda name: root / name)]
    assert [each.width for each in many] == [8 + COLUMNS * (CELL + 8), 8 + CELL + 8]
