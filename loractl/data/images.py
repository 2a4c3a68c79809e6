"""Reads a person's pictures: finds them in a folder, opens them the right way round, names those that can't be read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from loractl.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"}
ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 are quarter turns

Size = tuple[int, int]  # width and height in pixels


@dataclass(frozen=True)
class BadPicture:
    path: Path
    reason: str


def find_pictures(path: Path, apart: Path | None = None) -> list[Path]:
    """The picture itself, or all pictures below a folder in order of their names, less those below `apart`. Hidden
    files and `__MACOSX` don't count.

    Raises InputError when there is none.
    """
    if path.is_file():
        return [path]
    pictures = only_pictures(path, path.rglob("*"))
    pictures = [picture for picture in pictures if apart is None or not picture.is_relative_to(apart)]
    if not pictures:
        raise InputError(f"{path} holds no pictures ({kinds()})")
    return pictures


def only_pictures(root: Path, files: Iterable[Path]) -> list[Path]:
    """Those of the files below `root` that are pictures by their names, sorted, without the clutter of some systems."""
    found = [file for file in sorted(files) if file.suffix.lower() in SUFFIXES and file.is_file()]
    return [file for file in found if not _is_clutter(file.relative_to(root))]


def kinds() -> str:
    return ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))


def _is_clutter(path: Path) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def read_picture(path: Path, background: str = "white") -> Image.Image:
    """An RGB picture, turned as its EXIF data says; transparency is laid on the background. Raises InputError with
    the reason.
    """
    picture = _open(path)
    if _is_transparent(picture):
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, background), picture)
    return picture.convert("RGB")


def read_alpha(path: Path) -> Image.Image | None:
    """How opaque a picture is, mode "L"; None when it has no alpha channel."""
    picture = _open(path)
    return picture.convert("RGBA").getchannel("A") if _is_transparent(picture) else None


def picture_size(path: Path) -> Size:
    """Of the picture the right way round, from the file's first bytes alone."""
    try:
        with Image.open(path) as file:
            width, height = file.size
            is_turned = file.getexif().get(ORIENTATION, 1) >= 5
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} can't be read: {error}") from error
    return (height, width) if is_turned else (width, height)


def _open(path: Path) -> Image.Image:
    """The decoded picture, the right way round, with at most 8 bits in a channel."""
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
    return picture


def _is_transparent(picture: Image.Image) -> bool:
    return "A" in picture.getbands() or "transparency" in picture.info


def cut(
    picture: Image.Image,
    size: Size,
    x: float = 0.5,
    y: float = 0.5,
    filtering: Image.Resampling = Image.Resampling.LANCZOS,
) -> Image.Image:
    """The largest part of the picture that has the shape of `size`, at a position from 0 (left, top) to 1 (right,
    bottom), resized to it.
    """
    return picture.resize(size, filtering, box=part(picture.size, size, x, y))


def part(whole: Size, size: Size, x: float, y: float) -> tuple[int, int, int, int]:
    """That part's left, top, right and bottom, in the picture's own pixels."""
    scale = min(whole[0] / size[0], whole[1] / size[1])
    width, height = round(size[0] * scale), round(size[1] * scale)
    left, top = round(x * (whole[0] - width)), round(y * (whole[1] - height))
    return left, top, left + width, top + height


def square(picture: Image.Image, resolution: int, x: float = 0.5, y: float = 0.5) -> Image.Image:
    """The largest square of the picture, cut as `cut` does and resized to the resolution."""
    return cut(picture, (resolution, resolution), x, y)


def to_tensor(pictures: Sequence[Image.Image]) -> "Tensor":
    """RGB pictures of one size → (n, 3, height, width) in [-1, 1]."""
    import torch  # here, since worker processes handle pictures without it

    arrays = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1
