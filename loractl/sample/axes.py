"""A table of pictures along axes: their labels, and the table drawn with them.

Pictures are in one row, x fastest, then y, then z: that of (x, y, z) is number (z·|y| + y)·|x| + x.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from pathlib import PurePath

from PIL import Image, ImageDraw, ImageFont

from loractl.sample.grid import LINE, lines_of
from loractl.sample.picture import LABEL, MARGIN, brought_to

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Axis:
    """What varies ("seed"), and how each value is called. An axis that is not there has no name and one empty label."""

    name: str = ""
    labels: tuple[str, ...] = ("",)

    def says(self, place: int) -> str:
        """ "seed 3"."""
        return f"{self.name} {self.labels[place]}".strip()


def short_names(files: Sequence[PurePath]) -> tuple[str, ...]:
    """Files without their endings, and with as many folders in front as tell them apart."""
    bare = [file.with_suffix("").parts for file in files]
    longest = max(map(len, bare))
    named = (tuple("/".join(parts[-length:]) for parts in bare) for length in range(1, longest + 1))
    whole = tuple(map(str, files))
    return next((names for names in named if len(set(names)) == len(files)), whole)


def draw_table(x: Axis, y: Axis, pictures: Sequence[Image.Image], heading: str = "", cell: int = 128) -> Image.Image:
    """The pictures of one place on z, the longer side of each `cell` pixels, under labels of x and beside those of y.

    Labels are broken into lines as wide as a picture; the heading stands above everything.
    """
    font = ImageFont.load_default(LABEL)
    above, beside = ([list(lines_of(label, font, cell)) for label in axis.labels] for axis in (x, y))
    widest = max(font.getlength(line) for lines in [[y.name], *beside] for line in lines or [""])
    left = MARGIN + (math.ceil(widest) + MARGIN if widest else 0)
    width = left + len(above) * (cell + MARGIN)
    title = list(lines_of(heading, font, width - 2 * MARGIN))
    names = MARGIN + (LINE * len(title) + MARGIN if title else 0)
    top = names + LINE * (1 + max(map(len, above)))
    tops = [*accumulate((max(cell, LINE * len(lines)) + MARGIN for lines in beside), initial=top)]
    whole = Image.new("RGB", (width, tops[-1]), "white")
    columns = [left + column * (cell + MARGIN) for column in range(len(above))]
    texts = [(MARGIN, MARGIN, title), (MARGIN, names, [y.name]), (left, names, [x.name])]
    texts += [(across, names + LINE, lines) for across, lines in zip(columns, above, strict=True)]
    texts += [(MARGIN, down, lines) for down, lines in zip(tops, beside, strict=False)]
    _write(ImageDraw.Draw(whole), texts, font)
    for picture, (down, across) in zip(pictures, product(tops[:-1], columns), strict=True):
        whole.paste(brought_to(picture, cell), (across, down))
    return whole


def _write(pen: ImageDraw.ImageDraw, texts: Iterable[tuple[int, int, Sequence[str]]], font: Font) -> None:
    """Lines below one another, each group from its left and its top on."""
    for left, top, lines in texts:
        for row, line in enumerate(lines):
            pen.text((left, top + row * LINE), line, fill="black", font=font)
