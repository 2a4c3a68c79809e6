"""Masks: which pixels of a picture count. White (255) counts, black does not, gray counts in part."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from loractl.data.images import Size, read_alpha, read_picture
from loractl.errors import InputError


def read_mask(picture: Path, mask: Path | None, from_alpha: bool = False) -> Image.Image | None:
    """The mask of a picture, mode "L", of the picture's own size: from its file, from the picture's alpha channel, or
    None when it has neither.
    """
    if mask is not None:
        return read_picture(mask, background="black").convert("L")
    return read_alpha(picture) if from_alpha else None


def check_mask(mask: Path, size: Size) -> None:
    """InputError when the mask can't be read or does not cover a picture of this size."""
    found = read_picture(mask).size
    if found != size:
        raise InputError(
            f"the mask {mask} has {found[0]} × {found[1]} pixels and its picture {size[0]} × {size[1]}: make them equal"
        )


def mask_tensor(mask: Image.Image) -> Tensor:
    """Mode "L" → (1, 1, height, width) in [0, 1]."""
    return torch.from_numpy(np.array(mask))[None, None].float() / 255


def shrink(mask: Tensor, size: torch.Size) -> Tensor:
    """(n, 1, height, width) → the latents' (n, 1, h, w), each the mean of the pixels it stands for; where all of them
    are 0 it is exactly 0.
    """
    return F.interpolate(mask, size=size, mode="area")


def nearest(mask: Tensor, size: torch.Size) -> Tensor:
    """(n, 1, height, width) → (n, 1, h, w), one pixel for each, as inpainting pipelines hand a mask to the denoiser."""
    return F.interpolate(mask, size=size, mode="nearest")
