"""The progress grid: every picture in its place, every heading over its own column."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont

from loractl.sample.denoise import Request
from loractl.sample.grid import headings, lines_of, progress_grid
from loractl.sample.picture import LABEL, MARGIN, sheet

CELL = 64
FONT = ImageFont.load_default(LABEL)


def rows(*labels: str) -> list[tuple[str, list[Image.Image]]]:
    """Three flat pictures for each label, all of different colors."""
    return [
        (label, [Image.new("RGB", (32, 32), (80 * row, 80 * column, 200)) for column in range(3)])
        for row, label in enumerate(labels)
    ]


def test_rows_are_checkpoints_and_columns_are_requests() -> None:
    made = rows("step 0", "step 250", "the result")
    plain = np.asarray(progress_grid(made, cell=CELL))
    assert np.array_equal(plain, np.asarray(sheet(made, CELL)))
    requests = [Request("a sks", seed, 5, 3.0, 32) for seed in range(3)]
    grid = np.asarray(progress_grid(made, headings(requests), cell=CELL))
    top = grid.shape[0] - plain.shape[0]
    assert top > 0 and np.array_equal(grid[top:], plain)
    for row, (_, pictures) in enumerate(made):
        for column, picture in enumerate(pictures):
            y = top + MARGIN + row * (LABEL + CELL + 2 * MARGIN) + LABEL + MARGIN // 2 + CELL // 2
            x = MARGIN + column * (CELL + MARGIN) + CELL // 2
            assert tuple(grid[y, x]) == picture.getpixel((0, 0))


def test_a_long_heading_stays_over_its_column() -> None:
    long = "a photo of sks " + "x" * 40 + " on the beach"
    grid = np.asarray(progress_grid(rows("step 0"), ["", long, ""], cell=CELL))
    top = grid.shape[0] - sheet(rows("step 0"), CELL).height
    inked = np.flatnonzero((grid[:top] < 255).any(axis=(0, 2)))
    left = MARGIN + CELL + MARGIN
    assert inked.size and left - 1 <= inked.min() and inked.max() <= left + CELL
    assert (grid[top - MARGIN // 2 : top] == 255).all(), "the last line is whole"


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(codec="ascii"), max_size=60), st.integers(20, 200))
def test_lines_are_narrow_and_lose_nothing(text: str, width: int) -> None:
    lines = list(lines_of(text, FONT, width))
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(line and FONT.getlength(line) <= width for line in lines)
