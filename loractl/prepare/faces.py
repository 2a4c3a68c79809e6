"""Faces, by the cascades of Viola and Jones (2001) that OpenCV 4's package carries: frontal, and both profiles.

They are small, fast and need no network, and they miss faces that are turned or hidden. The extra is `faces`; OpenCV 5
has the cascades no more.
"""

from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image

from loractl.errors import InputError
from loractl.prepare.boxes import Box, Size, area, overlap

_CASCADES = {"frontalface_alt2": (False,), "profileface": (False, True)}  # profiles look left; mirrored ones right
_SIDE = 512  # faces are looked for at about this size
_SMALLEST = 24  # pixels at that size
_SURENESS = 5  # neighboring finds that make a face
_SAME = 0.4  # finds that overlap by more are one face


def faces(image: Image.Image) -> list[Box]:
    """The boxes of the faces in an RGB picture, the largest first. InputError where OpenCV is missing."""
    scale = max(1.0, max(image.size) / _SIDE)
    small = image.resize((max(1, round(image.width / scale)), max(1, round(image.height / scale))))
    gray = np.asarray(small.convert("L"))
    found = [box for name, sides in _CASCADES.items() for mirrored in sides for box in _detect(name, gray, mirrored)]
    found.sort(key=lambda box: (-area(box), box))
    distinct: list[Box] = []
    for box in found:
        if all(overlap(box, other) <= _SAME * area(box) for other in distinct):
            distinct.append(box)
    return [_enlarged(box, scale, image.size) for box in distinct]


def _detect(name: str, gray: np.ndarray[Any, Any], mirrored: bool) -> list[Box]:
    pixels = np.ascontiguousarray(gray[:, ::-1]) if mirrored else gray
    finds = _cascade(name).detectMultiScale(pixels, 1.1, _SURENESS, minSize=(_SMALLEST, _SMALLEST))
    boxes = [(int(x), int(y), int(x + width), int(y + height)) for x, y, width, height in finds]
    side = gray.shape[1]
    return [(side - right, top, side - left, bottom) for left, top, right, bottom in boxes] if mirrored else boxes


@cache
def _cascade(name: str) -> Any:
    try:
        cv2 = import_module("cv2")
        cv2.setNumThreads(1)  # files are prepared side by side already
        return cv2.CascadeClassifier(f"{cv2.data.haarcascades}haarcascade_{name}.xml")
    except (ImportError, AttributeError):
        raise InputError('finding faces needs OpenCV 4: pip install "loractl[faces]"') from None


def _enlarged(box: Box, scale: float, size: Size) -> Box:
    left, top, right, bottom = (round(side * scale) for side in box)
    return (left, top, min(right, size[0]), min(bottom, size[1]))
