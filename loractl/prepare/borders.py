"""Letterbox and other plain borders, with or without a watermark in them.

A border is a band of one color along an edge of the picture that ends in a straight line. What is plain without such
an end, as a sky or a studio's backdrop, is none.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loractl.prepare.boxes import Box, area

_SIDE = 512  # borders are looked for at about this size: twice as exact would be four times as slow
_TOLERANCE = 16  # of 255: JPEG's noise
_WIDEST = 0.4  # of the picture's side, for each border
_OUTERMOST = 0.95  # how much of the outermost line has the border's color
_PLAIN = 0.6  # how much of every other line: the rest is a watermark
_EDGE = 12  # of 255: the least step at its end, in at least half of the line


def trim(image: Image.Image) -> Box:
    """The part of an RGB picture that lies within its borders; all of it where it has none."""
    factor = max(1, max(image.size) // _SIDE)
    lines = np.asarray(image.reduce(factor), np.int16)
    across = lines.transpose(1, 0, 2)
    left, top, right, bottom = (factor * _band(each) for each in (across, lines, across[::-1], lines[::-1]))
    return (left, top, image.width - right, image.height - bottom)


def border_share(image: Image.Image) -> float:
    """How much of the picture's area is border."""
    return 1 - area(trim(image)) / (image.width * image.height)


def _band(lines: NDArray[np.int16]) -> int:
    """How many of the first lines, (n, m, 3), are border."""
    color = np.median(lines[0], axis=0)
    if (np.abs(lines[0] - color).max(axis=1) <= _TOLERANCE).mean() < _OUTERMOST:
        return 0
    widest = int(len(lines) * _WIDEST)
    plain = (np.abs(lines[: widest + 1] - color).max(axis=2) <= _TOLERANCE).mean(axis=1)
    width = int(np.argmax(plain < _PLAIN))  # 0 as well where all of them are plain
    if width == 0:
        return 0
    inside, outside = lines[min(width + 1, len(lines) - 1)], lines[max(width - 2, 0)]
    is_sharp = np.median(np.abs(inside - outside).max(axis=1)) >= _EDGE
    return width + 1 if is_sharp else 0  # the first line after it may hold some of both
