"""Which sizes a model draws pictures in."""

import math

from loractl.errors import MismatchError
from loractl.families.family import Family
from loractl.sample.canvas import Size

UNET_UNIT = 8  # pixels: the pipelines of UNets take no other sizes, however much their autoencoders shrink


def pixels(model: Family, said: int | str | None) -> Size:
    """Width and height of the pictures, which a job says as 512 or "768x512"; the model's own where it says nothing.

    MismatchError where the model can't draw such.
    """
    sides = [int(side) for side in str(said or model.resolution).split("x")]
    unit = math.lcm(model.multiple, int(model.pipeline.vae_scale_factor), UNET_UNIT if _is_unet(model) else 1)
    if any(side % unit for side in sides):
        near = "x".join(str(side - side % unit or unit) for side in sides)
        raise MismatchError(
            f"this model's pictures have sides of a multiple of {unit} pixels: set sample.size = {near}, not {said}"
        )
    return sides[0], sides[-1]


def _is_unet(model: Family) -> bool:
    return model.denoiser_name == "unet"
