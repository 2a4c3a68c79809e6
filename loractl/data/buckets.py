"""Aspect-ratio buckets: the few sizes at which pictures of many shapes are trained.

A bucket's sides are multiples of a step and its area is at most resolution², so that every batch, which comes from one
bucket, costs about the same and little of a picture is cut away.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from loractl.data.images import Size, picture_size
from loractl.errors import InputError

STEP = 64
LONGEST = 2  # times the resolution: shapes from 1 : 4 to 4 : 1


def frames(paths: Sequence[Path], resolution: int, step: int | None = None, upscale: bool = False) -> list[Size]:
    """The size at which each picture is trained: the square of the resolution, or with a step its bucket's.

    InputError names all pictures that are smaller than a bucket, unless they may be enlarged.
    """
    if step is None:
        return [(resolution, resolution)] * len(paths)
    sizes = bucket_sizes(resolution, step)
    found = [bucket(picture_size(path), sizes, step, upscale) for path in paths]
    small = [str(path) for path, size in zip(paths, found, strict=True) if not all(size)]
    if small:
        raise InputError(
            f"{len(small)} pictures have a side of less than {step} pixels (set data.upscale = true, or remove them):\n"
            + "\n".join(small)
        )
    return found


def bucket_sizes(resolution: int, step: int = STEP) -> list[Size]:
    """All (width, height) of a resolution: for each side the largest other side, and the square."""
    if resolution < step:
        raise InputError(f"buckets are multiples of {step} pixels: data.resolution = {resolution} is less")
    shortest, longest = -(-resolution // LONGEST // step) * step, resolution * LONGEST
    sides = range(max(shortest, step), longest + 1, step)
    halves = [(side, min(resolution**2 // side, longest) // step * step) for side in sides]
    sizes = {size for width, height in halves if height for size in ((width, height), (height, width))}
    return sorted({*sizes, (resolution // step * step,) * 2})


def bucket(picture: Size, sizes: Sequence[Size], step: int, upscale: bool) -> Size:
    """The size of nearest aspect ratio. A picture that is smaller keeps its own size, rounded down to the step, unless
    it may be enlarged.
    """
    aspect = math.log(picture[0] / picture[1])
    width, height = min(sizes, key=lambda size: (abs(math.log(size[0] / size[1]) - aspect), -size[0] * size[1], size))
    if upscale or (picture[0] >= width and picture[1] >= height):
        return width, height
    return min(picture[0], width) // step * step, min(picture[1], height) // step * step
