"""Where a person would look first, without a learned model.

The mean of two maps at 64 × 64. The image signature (Hou, Harel and Koch 2012, which refines the spectral residual of
Hou and Zhang 2007): with signs of the DCT alone, what is sparse stands out from what is spread. And the distance to the
background: how far a color lies from those at the picture's edge, in their own standard deviations (Mahalanobis, as in
Zhang et al. 2015). The center is preferred a little, since photographers do so.
"""

import numpy as np
from PIL import Image

from loractl.prepare.spectra import Array, cosines, smoothing

_SIZE = 64
_BLUR = 0.045 * _SIZE  # the signature's, as the paper has it
_EDGE = 6  # pixels at each side that are taken for background
_CENTER = 0.4  # how much less the corners count


def saliency(image: Image.Image) -> Array:
    """(height, width) of the picture, in [0, 1]."""
    small = np.asarray(image.convert("RGB").resize((_SIZE, _SIZE), Image.Resampling.BOX), np.float32)
    colors = _opponents(small)
    found = _stretched((_signature(colors) + _distance(colors)) * _center())
    large = Image.fromarray(found).resize(image.size, Image.Resampling.BILINEAR)
    return np.asarray(large, np.float32)


def _opponents(rgb: Array) -> Array:
    """Lightness, red – green and blue – yellow."""
    red, green, blue = np.moveaxis(rgb, 2, 0)
    return np.stack([(red + green + blue) / 3, red - green, blue - (red + green) / 2], axis=2)


def _signature(colors: Array) -> Array:
    transform, blur = cosines(_SIZE), smoothing(_SIZE, _BLUR)
    channels = np.moveaxis(colors, 2, 0)
    back = transform.T @ np.sign(transform @ channels @ transform.T) @ transform
    # A channel without contrast has only the signs of rounding errors.
    weight = channels.std(axis=(1, 2)) > 1
    return _stretched(blur @ (back**2 * weight[:, None, None]).sum(axis=0) @ blur.T)


def _distance(colors: Array) -> Array:
    inside = np.zeros((_SIZE, _SIZE), bool)
    inside[_EDGE:-_EDGE, _EDGE:-_EDGE] = True
    edge = colors[~inside]
    spread = np.cov(edge, rowvar=False) + 25 * np.eye(3)  # 5 of 255 are noise
    away = colors - edge.mean(axis=0)
    squares = np.einsum("hwi,ij,hwj->hw", away, np.linalg.inv(spread), away)
    blur = smoothing(_SIZE, 1)
    return _stretched(blur @ np.sqrt(squares.clip(0)).astype(np.float32) @ blur.T)


def _center() -> Array:
    line = np.linspace(-1, 1, _SIZE, dtype=np.float32)
    squares = (line[:, None] ** 2 + line**2) / 2
    return np.asarray(1 - _CENTER * squares, np.float32)


def _stretched(values: Array) -> Array:
    """To [0, 1]; 0 where all are equal."""
    least, most = values.min(), values.max()
    return np.asarray((values - least) / max(float(most - least), 1e-6), np.float32).clip(0, 1)
