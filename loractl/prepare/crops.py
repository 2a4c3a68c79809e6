"""Which part of a picture is taken: boxes of a given shape, in the middle, at random, or where the subject is.

A crop never cuts a face: each face that is given lies wholly inside or wholly outside. Where no place is left, there is
no crop. A box is as large as the shape allows, but for random ones.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from loractl.data.buckets import STEP, bucket, bucket_sizes
from loractl.prepare.boxes import Box, Size, cuts
from loractl.prepare.seeds import between
from loractl.prepare.spectra import Array

Places = NDArray[np.int64]  # (n, 2): left and top

_PLACES = 128  # tried along each side, beside those where a crop ends at a face
_TRIES = 32  # for each random crop
_PULL = 0.1  # what a crop's distance from the subject's middle counts, beside the share of the subject in it


def largest(within: Box, shape: Size) -> Size:
    """The largest size of this shape that fits into the box."""
    width, height = within[2] - within[0], within[3] - within[1]
    scale = min(width / shape[0], height / shape[1])
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def bucket_shape(size: Size, resolution: int, upscale: bool = False) -> Size | None:
    """The bucket, of sides in steps of 64, that a picture of this size is for; None where it is smaller than any and
    may not be enlarged.
    """
    width, height = bucket(size, bucket_sizes(resolution), STEP, upscale)
    return (width, height) if width and height else None


def center(within: Box, shape: Size, faces: Sequence[Box] = ()) -> Box | None:
    """The crop that lies nearest to the middle."""
    size = largest(within, shape)
    places = _places(within, size, faces)
    return _best(places, size, -_distances(places, size, _middle(within)))


def subject(within: Box, shape: Size, weights: Array, faces: Sequence[Box] = ()) -> Box | None:
    """The crop that holds the most of the weights, (height, width) of the picture, with their middle near its own.
    Without weights in the box it is the center.
    """
    left, top, right, bottom = within
    inner = weights[top:bottom, left:right].astype(np.float64)
    total = float(inner.sum())
    if total <= 0:
        return center(within, shape, faces)
    size = largest(within, shape)
    places = _places(within, size, faces)
    middle = (
        left + float(inner.sum(axis=0) @ np.arange(0.5, inner.shape[1])) / total,
        top + float(inner.sum(axis=1) @ np.arange(0.5, inner.shape[0])) / total,
    )
    shares = _sums(inner, places - (left, top), size) / total
    return _best(places, size, shares - _PULL * _distances(places, size, middle) / max(size))


def several(
    within: Box, shape: Size, count: int, seed: int, least: float = 0.6, faces: Sequence[Box] = ()
) -> list[Box]:
    """Random crops, all different, of sides from `least` to all of the largest. There may be fewer where faces are in
    their way. With a larger count the first ones stay.
    """
    draws = iter(between(seed, 3 * _TRIES * count, 0, 1))
    found: list[Box] = []
    for share, x, y in zip(draws, draws, draws, strict=True):
        box = _random(within, shape, least + (1 - least) * share, x, y)
        if len(found) < count and box not in found and not any(cuts(box, face) for face in faces):
            found.append(box)
    return found


def face_weights(faces: Sequence[Box], size: Size) -> Array:
    """(height, width): 1 in each face. Every face counts by its area."""
    canvas = Image.new("F", size)
    draw = ImageDraw.Draw(canvas)
    for left, top, right, bottom in faces:
        draw.rectangle((left, top, right - 1, bottom - 1), fill=1.0)
    return np.asarray(canvas, np.float32)


def _random(within: Box, shape: Size, share: float, x: float, y: float) -> Box:
    width, height = (max(1, round(side * share)) for side in largest(within, shape))
    left = within[0] + round(x * (within[2] - within[0] - width))
    top = within[1] + round(y * (within[3] - within[1] - height))
    return (left, top, left + width, top + height)


def _places(within: Box, size: Size, faces: Sequence[Box]) -> Places:
    """Where a crop of this size may lie in the box without cutting a face."""
    lefts = _along(within[0], within[2] - size[0], size[0], [(face[0], face[2]) for face in faces])
    tops = _along(within[1], within[3] - size[1], size[1], [(face[1], face[3]) for face in faces])
    places = np.stack(np.meshgrid(lefts, tops), axis=-1).reshape(-1, 2)
    boxes = [(int(left), int(top), int(left) + size[0], int(top) + size[1]) for left, top in places]
    good = [not any(cuts(box, face) for face in faces) for box in boxes]
    return places[good]


def _along(first: int, last: int, side: int, spans: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Starts from first to last: evenly spread, in the middle, and those at which a crop meets an end of a span."""
    even = np.linspace(first, last, min(last - first + 1, _PLACES))
    ends = [start for low, high in spans for start in (low, high, low - side, high - side)]
    starts = np.rint([*even, (first + last) / 2, *ends]).astype(np.int64)
    return np.unique(starts[(starts >= first) & (starts <= last)])


def _middle(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _distances(places: Places, size: Size, point: tuple[float, float]) -> NDArray[np.float64]:
    """Of the crops' middles from a point, in pixels."""
    away: NDArray[np.float64] = places + np.array(size) / 2 - np.array(point)
    return np.hypot(away[:, 0], away[:, 1])


def _sums(values: NDArray[np.float64], places: Places, size: Size) -> NDArray[np.float64]:
    """What the values sum to in the crop at each place, by their summed-area table."""
    table = np.pad(values.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    x, y = places.T
    right, bottom = x + size[0], y + size[1]
    sums: NDArray[np.float64] = table[bottom, right] - table[y, right] - table[bottom, x] + table[y, x]
    return sums


def _best(places: Places, size: Size, scores: NDArray[np.float64]) -> Box | None:
    if not len(places):
        return None
    left, top = (int(each) for each in places[int(np.argmax(scores))])
    return (left, top, left + size[0], top + size[1])
