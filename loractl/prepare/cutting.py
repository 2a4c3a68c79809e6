"""Which crops a job wants of a photograph, and how large each becomes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from loractl.prepare.borders import trim
from loractl.prepare.boxes import Box, Size
from loractl.prepare.crops import bucket_shape, center, face_weights, largest, several, subject
from loractl.prepare.faces import faces
from loractl.prepare.reading import Photo
from loractl.prepare.saliency import saliency
from loractl.prepare.seeds import seed_for
from loractl.prepare.spectra import Array

LEAST = 0.6  # of the largest crop's sides, for random ones


@dataclass(frozen=True)
class Cutting:
    """See the crop section of a ppim job; "none" takes the whole and brings its shorter side to the size, or with
    buckets crops no more than the bucket asks for.
    """

    how: Literal["center", "random", "subject", "none"] = "center"
    size: int = 512
    buckets: bool = False
    count: int = 1
    upscale: bool = False
    subject: Literal["saliency", "faces", "mask", "alpha"] = "saliency"
    trim: bool = False
    keep_faces: bool = False

    def subject_is(self, what: str) -> bool:
        return (self.how, self.subject) == ("subject", what)

    @property
    def target(self) -> int:
        """Pixels that the shorter side of the decoded picture should have."""
        share = LEAST if self.how == "random" else 1.0
        return math.ceil(self.size / share * (2 if self.trim else 1))


@dataclass(frozen=True)
class Crop:
    """A box of the decoded picture, the same box in the original's pixels, and the size that it is brought to."""

    box: Box
    original: Box
    size: Size


def crops(photo: Photo, cutting: Cutting, mask: Image.Image | None, seed: int, sha256: str) -> list[Crop]:
    """None where each would cut a face, or where the picture is smaller than any bucket."""
    within = trim(photo.image) if cutting.trim else (0, 0, *photo.image.size)
    shape = _shape(to_original(within, photo), cutting)
    if shape is None:
        return []
    kept = faces(photo.image) if cutting.keep_faces or cutting.subject_is("faces") else []
    match cutting.how:
        case "subject":
            boxes = [subject(within, shape, _weights(photo, cutting, mask, kept), kept)]
        case "random":
            draw = seed_for(seed, sha256, "crop")
            boxes = [*several(within, shape, cutting.count, draw, _least(within, photo, shape), kept)]
        case _:
            boxes = [center(within, shape, kept)]
    found = [(box, to_original(box, photo)) for box in boxes if box is not None]
    return [Crop(box, original, _fitted(original, shape, cutting)) for box, original in found]


def unfound(photo: Photo, cutting: Cutting, mask: Image.Image | None) -> tuple[str, ...]:
    """A note where the subject was looked for in what the picture does not have."""
    lacks_mask = cutting.subject_is("mask") and mask is None
    lacks_alpha = cutting.subject_is("alpha") and photo.alpha is None
    what = "mask" if lacks_mask else "transparency" if lacks_alpha else ""
    return (f"no {what} to find the subject by: cut at the center",) if what else ()


def to_original(box: Box, photo: Photo) -> Box:
    """A box of the decoded picture in pixels of the original."""
    across, down = (side / decoded for side, decoded in zip(photo.size, photo.image.size, strict=True))
    left, top, right, bottom = (round(side * scale) for side, scale in zip(box, (across, down) * 2, strict=True))
    return left, top, right, bottom


def _shape(within: Box, cutting: Cutting) -> Size | None:
    """The size that a crop of this part of the original should become."""
    width, height = within[2] - within[0], within[3] - within[1]
    if cutting.buckets:
        return bucket_shape((width, height), cutting.size, cutting.upscale)
    if cutting.how != "none":
        return cutting.size, cutting.size
    scale = cutting.size / min(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _least(within: Box, photo: Photo, shape: Size) -> float:
    """How small a random crop may be: not so small that it would have to be enlarged, where it need not be."""
    width, _ = largest(within, shape)
    return min(1.0, max(LEAST, shape[0] * photo.scale / width))


def _weights(photo: Photo, cutting: Cutting, mask: Image.Image | None, found: Sequence[Box]) -> Array:
    """Where the subject is, (height, width) of the decoded picture; nowhere where it has no mask, alpha or face."""
    match cutting.subject:
        case "saliency":
            return saliency(photo.image)
        case "faces":
            return face_weights(found, photo.image.size)
    cover = mask if cutting.subject == "mask" else photo.alpha
    plain = Image.new("L", photo.image.size)
    return np.asarray(plain if cover is None else cover, np.float32) / np.float32(255)


def _fitted(box: Box, shape: Size, cutting: Cutting) -> Size:
    """The shape, or the size of the crop itself where that is smaller and may not be enlarged."""
    width, height = box[2] - box[0], box[3] - box[1]
    is_large = cutting.buckets or cutting.upscale or width >= shape[0]
    return shape if is_large else (max(1, width), max(1, height))
