"""Masks: where the subject is. Mode "L" in the size of the picture, white on it, black beside it, gray in part.

A mask is a photo's `alpha`, or comes from a folder, from saliency or from a network (`mask_models`). It is cut and
resized with its picture, and then `finish`ed in the output's pixels.
"""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from loractl.errors import InputError
from loractl.prepare.reading import Photo, Unreadable, members, read_photo

BINS = 256  # of the histogram that the threshold is found in

Values = NDArray[np.floating[Any]]


def mask_files(folder: Path) -> dict[str, Path]:
    """The masks of a folder by their relative names, without endings."""
    if not folder.is_dir():
        raise InputError(f"there is no folder of masks {folder}: check the path")
    found = [member for member in members(folder) if member.ignored is None]
    return {str(PurePosixPath(member.name).with_suffix("")): member.path for member in found}


def file_for(name: str, files: Mapping[str, Path]) -> Path | None:
    """The mask of the picture of this relative name: in the same place below its folder, or else of the same stem."""
    picture = PurePosixPath(name)
    return files.get(str(picture.with_suffix(""))) or files.get(picture.stem)


def from_file(path: Path, photo: Photo, *, max_pixels: int) -> Image.Image:
    """The mask in a file, as large as the photo was decoded. Raises Unreadable where it is no picture, or was made for
    one of another size.
    """
    try:
        mask = read_photo(path, max_pixels=max_pixels, background=(0, 0, 0))
    except Unreadable as error:
        raise type(error)(f"its mask {path.name} can't be read: {error}") from None
    if mask.size != photo.size:
        sizes = (f"{width} × {height}" for width, height in (mask.size, photo.size))
        raise Unreadable("its mask {} has {} pixels and the picture {}: make them equal".format(path.name, *sizes))
    return mask.image.convert("L").resize(photo.image.size, Image.Resampling.BILINEAR)


def from_values(values: Values, size: tuple[int, int], threshold: float | None = None) -> Image.Image:
    """White where values (h, w) in [0, 1], enlarged to the size, exceed the threshold; None is Otsu's."""
    least = otsu(values) if threshold is None else threshold
    enlarged = Image.fromarray(np.asarray(values, np.float32)).resize(size, Image.Resampling.BILINEAR)
    return Image.fromarray(np.where(np.asarray(enlarged) > least, np.uint8(255), np.uint8(0)))


def otsu(values: Values) -> float:
    """The threshold that parts values in [0, 1] into the two classes whose means differ most for their sizes, that is,
    the maximum of w₀ w₁ (μ₀ - μ₁)² (Otsu 1979, doi:10.1109/TSMC.1979.4310076).
    """
    counts, edges = np.histogram(values, BINS, (0.0, 1.0))
    middles = (edges[:-1] + edges[1:]) / 2
    below, total = np.cumsum(counts), counts.sum()
    sums = np.cumsum(counts * middles)
    above = total - below
    means = sums / np.maximum(below, 1), (sums[-1] - sums) / np.maximum(above, 1)
    between = below * above * (means[0] - means[1]) ** 2
    # Between two classes that lie apart, every threshold is as good: the middle one.
    best = np.flatnonzero(between >= between.max() * (1 - 1e-9))
    return float(edges[1:][best].mean()) if between.max() > 0 else 1.0


def finish(mask: Image.Image, *, feather: float = 0.0, invert: bool = False) -> Image.Image:
    """The mask as it is written: inverted when asked, its edges softened by a Gaussian of `feather` pixels' standard
    deviation.
    """
    turned = ImageOps.invert(mask) if invert else mask
    return turned.filter(ImageFilter.GaussianBlur(feather)) if feather > 0 else turned
