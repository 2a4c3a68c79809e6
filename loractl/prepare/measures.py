"""What is measured of a photograph, whatever its size: numbers are of a copy with a shortest side of at most `SIDE`.

- blur: variance of the Laplacian of the gray levels, 0 to 255 (Pech-Pacheco et al. 2000); low is blurred.
- exposure: mean gray level, in [0, 1]; contrast: its standard deviation (Peli 1990), in [0, 0.5].
- hash: the signs, about their median, of the 8 × 8 lowest DCT coefficients of 32 × 32 gray levels (Zauner 2010).
- look: the picture squashed to 32 × 32 in RGB, as base64; `duplicates` compares them.
"""

import base64
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loractl.prepare.borders import border_share
from loractl.prepare.reading import Photo
from loractl.prepare.spectra import Array, cosines

SIDE = 512  # photographs should be read with at least this `target`
LOOK = 32
_LOW = 8


@dataclass(frozen=True)
class Measures:
    """Plain JSON values. `width` and `height` are the original's, `aspect` is width / height, `border` the share of the
    area that is plain border.
    """

    width: int
    height: int
    aspect: float
    blur: float
    exposure: float
    contrast: float
    border: float
    hash: int
    look: str


def measure(photo: Photo) -> Measures:
    image = _reduced(photo.image)
    gray = np.asarray(image.convert("L"), np.float32)
    width, height = photo.size
    return Measures(
        width=width,
        height=height,
        aspect=round(width / height, 4),
        blur=round(laplacian_variance(gray), 2),
        exposure=round(float(gray.mean()) / 255, 4),
        contrast=round(float(gray.std()) / 255, 4),
        border=round(border_share(image), 4),
        hash=perceptual_hash(image),
        look=look(image),
    )


def _reduced(image: Image.Image) -> Image.Image:
    scale = SIDE / min(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def laplacian_variance(gray: Array) -> float:
    """Of the inner pixels; 0 for a picture that has none."""
    if min(gray.shape) < 3:
        return 0.0
    around = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:]
    return float((around - 4 * gray[1:-1, 1:-1]).var())


def perceptual_hash(image: Image.Image) -> int:
    """64 bits; those of similar pictures differ in few of them."""
    gray = np.asarray(image.convert("L").resize((LOOK, LOOK), Image.Resampling.BOX), np.float32)
    low = cosines(LOOK)[:_LOW]
    values = low @ gray @ low.T
    bits = (values > np.median(values)).flatten()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def look(image: Image.Image) -> str:
    small = image.convert("RGB").resize((LOOK, LOOK), Image.Resampling.BOX)
    return base64.b64encode(small.tobytes()).decode("ascii")


def look_pixels(text: str) -> NDArray[np.uint8]:
    """(LOOK, LOOK, 3)"""
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(LOOK, LOOK, 3)
