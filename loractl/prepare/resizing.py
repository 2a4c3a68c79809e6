"""Resizes with Lanczos, in gamma light as nearly all programs do, or in linear light, which keeps small lights bright.

sRGB's curve: linear = s / 12.92 up to 0.04045, else ((s + 0.055) / 1.055)^2.4.
"""

from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loractl.prepare.boxes import Box, Size
from loractl.prepare.spectra import Array

Light = Literal["gamma", "linear"]

_GAP = 3.0  # larger pictures are first averaged to this many times the size; no difference is to be seen


def resize(image: Image.Image, size: Size, light: Light = "gamma", box: Box | None = None) -> Image.Image:
    """The picture, or the part of it in the box, at this size. Masks have no light: they are for "gamma"."""
    # Pillow's own box would let pixels from outside in, where it averages first.
    part = image if box is None else image.crop(box)
    return _in_linear_light(part, size) if light == "linear" else _lanczos(part, size)


def _lanczos(image: Image.Image, size: Size) -> Image.Image:
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=_GAP)


def _in_linear_light(image: Image.Image, size: Size) -> Image.Image:
    channels = [Image.fromarray(_linear()[np.asarray(channel)]) for channel in image.split()]
    sized = [_encoded(np.asarray(_lanczos(channel, size))) for channel in channels]
    return Image.merge(image.mode, [Image.fromarray(channel) for channel in sized])


@cache
def _linear() -> Array:
    """(256,): the light of each gray level, in [0, 1]."""
    levels = np.arange(256) / 255
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4).astype(np.float32)


def _encoded(light: Array) -> NDArray[np.uint8]:
    light = light.clip(0, 1)
    levels = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(levels * 255), np.uint8)
