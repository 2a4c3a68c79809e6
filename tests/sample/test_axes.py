"""The drawn table: every picture whole and in its place, every label beside what it names; files told apart by name."""

from pathlib import PurePath
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from loractl.sample.axes import Axis, draw_table, short_names
from loractl.sample.picture import MARGIN

CELL = 40
LONG = "a picture of a red critter with incomprehensibilities"


def pictures(count: int) -> list[Image.Image]:
    """Flat ones, all of different colors."""
    return [Image.new("RGB", (8, 8), (200, 10, 20 + index)) for index in range(count)]


def place(table: Any, color: tuple[int, int, int]) -> tuple[int, int]:
    """Top and left of the one square of a color."""
    down, across = np.nonzero((table == color).all(axis=2))
    top, left = int(down.min()), int(across.min())
    assert (table[top : top + CELL, left : left + CELL] == color).all(), "no label is written over it"
    assert down.size == CELL**2
    return top, left


@pytest.mark.parametrize("heading", ["", "adapter one", LONG])
@pytest.mark.parametrize("labels", [("1", "2"), (LONG, "2"), ("", "2")])
def test_x_goes_right_and_y_goes_down(labels: tuple[str, str], heading: str) -> None:
    x, y = Axis("weight", ("0", LONG, "1")), Axis("seed", labels)
    made = pictures(6)
    table = np.asarray(draw_table(x, y, made, heading, CELL))
    corners = [place(table, picture.getpixel((0, 0))) for picture in made]  # type: ignore[arg-type]
    tops, lefts = zip(*corners, strict=True)
    assert tops[0] == tops[1] == tops[2] < tops[3] - CELL and tops[3] == tops[4] == tops[5]
    assert lefts[:3] == lefts[3:] and lefts[1] - lefts[0] == lefts[2] - lefts[1] == CELL + MARGIN


def test_labels_stand_over_their_columns_and_beside_their_rows() -> None:
    """Found as the ink that changes when a label is left out."""
    x, y = Axis("weight", ("0", LONG, "1")), Axis("seed", ("1", "2"))
    table = np.asarray(draw_table(x, y, pictures(6), cell=CELL), int)
    top, left = place(table, (200, 10, 21))
    without = np.asarray(draw_table(Axis("weight", ("0", "", "1")), y, pictures(6), cell=CELL), int)
    lower = table.shape[0] - without.shape[0]
    assert lower > 0, "a long label has more lines"
    down, across = np.nonzero((table[:top] < 128).all(axis=2))
    ink = across[(across >= left - MARGIN // 2) & (across < left + CELL + MARGIN // 2) & (down > top // 2)]
    assert ink.size and left - 1 <= ink.min() and ink.max() <= left + CELL
    other = np.asarray(draw_table(x, Axis("seed", ("1", "7")), pictures(6), cell=CELL), int)
    down, across = np.nonzero((table != other).any(axis=2))
    second, first = place(table, (200, 10, 23))
    assert down.size and second <= down.min() and down.max() < second + CELL and across.max() < first


def test_an_axis_that_is_not_there_takes_no_room() -> None:
    table = np.asarray(draw_table(Axis("seed", ("1", "2")), Axis(), pictures(2), cell=CELL))
    assert place(table, (200, 10, 20))[1] == MARGIN
    assert Axis().says(0) == "" and Axis("seed", ("1", "2")).says(1) == "seed 2"


def test_files_have_the_shortest_names_that_tell_them_apart() -> None:
    steps = [PurePath(f"out/run/step-{step}/adapter.safetensors") for step in (1, 2)]
    assert short_names(steps) == ("step-1/adapter", "step-2/adapter")
    assert short_names([PurePath("a/one.safetensors"), PurePath("a/v1.2.pt")]) == ("one", "v1.2")
    assert short_names([PurePath("a/one.pt"), PurePath("a/one.safetensors")]) == ("a/one.pt", "a/one.safetensors")


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map("/".join), min_size=1, unique=True))
def test_names_are_distinct_ends_of_their_paths(paths: list[str]) -> None:
    names = short_names([PurePath(f"{path}.safetensors") for path in paths])
    assert len(set(names)) == len(paths)
    assert all(path.endswith(name) for path, name in zip(paths, names, strict=True))
