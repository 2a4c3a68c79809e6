"""Decoded pictures of any mode as 8-bit sRGB, and how opaque they are.

What was changed on the way is told in notes. Depths scale their whole range to 0–255; nothing is clipped.
"""

from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageCms

Notes = tuple[str, ...]

_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # a profile's color space and the mode that it describes


def to_srgb(picture: Image.Image, bits: int = 16) -> tuple[Image.Image, Image.Image | None, Notes]:
    """The picture in mode "RGB", its alpha in mode "L" (None where all of it is opaque), and what was done.

    bits: how many of the bits of a channel are used, where there are more than 8.
    """
    profile = picture.info.get("icc_profile")
    picture, deep = _shallow(picture, bits)
    picture, alpha = _part_alpha(picture)
    picture, notes = _by_profile(picture, profile) if profile else (picture, ())
    if picture.mode != "RGB":
        notes += (f"{picture.mode} converted",) if picture.mode in {"CMYK", "LAB", "YCbCr", "HSV"} else ()
        picture = picture.convert("RGB")
    return picture, alpha, deep + notes


def _shallow(picture: Image.Image, bits: int) -> tuple[Image.Image, Notes]:
    """Gray pictures of more than 8 bits as mode "L"."""
    if not picture.mode.startswith(("I", "F")):
        return picture, ()
    values = np.nan_to_num(np.asarray(picture, np.float32), posinf=0, neginf=0)
    is_float = picture.mode == "F"
    full, note = (1.0, "float") if is_float else (2.0**bits - 1, f"{bits}-bit")
    low, high = float(values.min()), float(values.max())
    # Nobody uses all of 32 bits, nor knows what an odd float's white is.
    if low >= 0 and high <= full and (is_float or bits <= 16):
        low, high = 0.0, full
    else:
        note += ", scaled to its range"
    gray = (values - low) * (255 / max(high - low, 1e-12))
    return Image.fromarray(np.rint(gray).astype(np.uint8)), (note,)


def _part_alpha(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colors without their transparency, and the transparency; palettes become colors."""
    if not picture.has_transparency_data:
        plain = {"P": "RGB", "1": "L"}.get(picture.mode)
        return (picture.convert(plain) if plain else picture), None
    gray = picture.mode in {"1", "L", "LA", "La"}
    both = picture.convert("LA" if gray and picture.mode != "1" else "RGBA")
    alpha = both.getchannel("A")
    colors = both.getchannel("L") if both.mode == "LA" else both.convert("RGB")
    return colors, None if alpha.getextrema() == (255, 255) else alpha


def _by_profile(picture: Image.Image, profile: bytes) -> tuple[Image.Image, Notes]:
    """Colors as their ICC profile means them; a profile that is broken or of other colors is left out."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return picture, ()
        if _SPACES.get(source.profile.xcolor_space) != picture.mode:
            return picture, ("ICC profile of other colors ignored",)
        converted = ImageCms.profileToProfile(picture, source, _srgb(), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return picture, ("broken ICC profile ignored",)
    return converted or picture, ("ICC profile converted",)


@cache
def _srgb() -> Any:
    return ImageCms.createProfile("sRGB")


def lay_on(picture: Image.Image, alpha: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """The picture in front of a color, which shows where it is not opaque."""
    return Image.composite(picture, Image.new("RGB", picture.size, background), alpha)
