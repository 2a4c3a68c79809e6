"""Reads a person's pictures: finds them in a folder, opens them the right way round, names those that can't be read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from loractl.errors import InputError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"}


@dataclass(frozen=True)
class BadPicture:
    path: Path
    reason: str


def find_pictures(path: Path) -> list[Path]:
    """The picture itself, or all pictures below a folder in order of their names. Hidden files and `__MACOSX` don't
    count.

    Raises InputError when there is none.
    """
    if path.is_file():
        return [path]
    found = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES and file.is_file()]
    pictures = [file for file in found if not _is_clutter(file.relative_to(path))]
    if not pictures:
        kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        raise InputError(f"{path} holds no pictures ({kinds})")
    return pictures


def _is_clutter(path: Path) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def read_picture(path: Path) -> Image.Image:
    """An RGB picture, turned as its EXIF data says; transparency is laid on white. Raises InputError with the
    reason.
    """
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            picture.load()
    except UnidentifiedImageError:
        raise InputError(f"{path} can't be read: it is not a picture") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} can't be read: {error}") from error
    if picture.mode.startswith("I;16") or picture.mode == "I":
        picture = Image.fromarray((np.asarray(picture, np.float64) / 257).clip(0, 255).astype(np.uint8))
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def survey(paths: Sequence[Path]) -> tuple[list[Path], list[BadPicture]]:
    """Decodes every picture once: those that can be read, and those that can't with the reason."""
    good, bad = [], []
    for path in paths:
        try:
            read_picture(path)
            good.append(path)
        except InputError as error:
            bad.append(BadPicture(path, str(error).partition("can't be read: ")[2]))
    return good, bad


def square(picture: Image.Image, resolution: int, x: float = 0.5, y: float = 0.5) -> Image.Image:
    """The largest square of the picture, at a position from 0 (left, top) to 1 (right, bottom), resized to the
    resolution.
    """
    side = min(picture.size)
    left, top = round(x * (picture.width - side)), round(y * (picture.height - side))
    return picture.resize((resolution, resolution), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))


def to_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size → (n, 3, height, width) in [-1, 1]."""
    arrays = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1
