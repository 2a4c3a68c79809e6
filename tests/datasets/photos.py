"""Pictures on disk for the tests of training data."""

from pathlib import Path

import numpy as np
from PIL import Image


def save_photo(path: Path, size: tuple[int, int] = (24, 16), seed: int = 0) -> Path:
    """Smooth colors, no two parts alike, so that cuts and mirror images differ."""
    width, height = size
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path
