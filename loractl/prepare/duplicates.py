"""Near-duplicates among pictures: one picture resized, compressed anew, mirrored, cropped, or several of these; and how
much the backgrounds of pictures differ.

Only looks are compared, `LOOK` × `LOOK` pixels in RGB (`measures.look`), by their normalized correlation: brightness
and contrast don't count. First, coarsely: the whole of one picture and its mirror image, each as 6 × 6 cells, with 169
windows of the other. Where that is promising, the window is moved to where it fits best, and the two are one picture if
they correlate almost fully there. Of 26 photographs, all random crops scored at least 0.97, other photographs at most
0.82, and parts of them that don't overlap 0.95. Crops are found down to half of each side, and not in textures that
repeat.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from loractl.prepare.measures import LOOK, look_pixels
from loractl.prepare.spectra import Array, cells

PROMISING = 0.78  # in the nearest window of the grid, coarsely
SAME = 0.965  # in the window that fits best

_COARSE, _FINE = 6, 16  # cells along each side of a window
_LENGTHS = {1.0: 1, 0.85: 3, 0.7: 4, 0.55: 5}  # of a window's side, and how many places it has
_SHORTEST = 0.45
_STEPS = (0.06, 0.03, 0.015)  # by which a window's edges are moved
_FAINT = 2.0  # of 255: a window whose contrast is less looks like nothing else
_LEVELS = 6  # of each primary, in telling backgrounds apart
_CROP = 0.9  # of the area: a window of less is called a crop

Window = tuple[float, float, float, float]  # left, top, right, bottom, in [0, 1]
_WHOLE: Window = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Twins:
    """Two pictures, by their indices, that are one: `how` is "same", "flipped", "crop" or "flipped crop"."""

    first: int
    second: int
    how: str
    likeness: float


def twins(looks: Sequence[str]) -> list[Twins]:
    """All pairs that are near-duplicates. Takes n² times some 50 µs for n photographs."""
    pictures = [look_pixels(look).astype(np.float32) for look in looks]
    if len(pictures) < 2:
        return []
    wholes = np.stack([_windows(each)[0] for picture in pictures for each in (picture, _mirrored(picture))])
    best: dict[tuple[int, int], Twins] = {}
    for index, picture in enumerate(pictures):
        scores = _windows(picture) @ wholes.T  # (windows, 2 n): the others, plain and mirrored in turn
        for column in np.flatnonzero(scores.max(axis=0) >= PROMISING):
            other, is_flipped = divmod(int(column), 2)
            if other != index:
                part = _mirrored(pictures[other]) if is_flipped else pictures[other]
                window, likeness = _fit(picture, part, _grid()[int(scores[:, column].argmax())])
                pair = (min(index, other), max(index, other))
                if likeness >= max(SAME, best[pair].likeness if pair in best else 0):
                    best[pair] = Twins(*pair, _how(window, bool(is_flipped)), round(likeness, 4))
    return [best[pair] for pair in sorted(best)]


def groups(count: int, pairs: Sequence[Twins]) -> list[tuple[int, ...]]:
    """The pictures of 0 … count - 1 that hang together by such pairs, in groups of two and more."""
    group = list(range(count))
    for pair in pairs:
        one, other = group[pair.first], group[pair.second]
        group = [one if each == other else each for each in group]
    found = (tuple(index for index in range(count) if group[index] == name) for name in sorted({*group}))
    return [each for each in found if len(each) > 1]


def variety(looks: Sequence[str]) -> float:
    """How much the backgrounds differ: the mean, over all pairs, of the share of colors at the pictures' edges that one
    has and the other has not. 0: all alike; 1: nothing in common. A single picture has 0.
    """
    if len(looks) < 2:
        return 0.0
    edges = np.stack([_edge_colors(look_pixels(look).astype(np.float32)) for look in looks])
    shared = np.array([np.minimum(edges, each).sum() for each in edges])
    count = len(looks)
    return float(1 - (shared.sum() - count) / (count * (count - 1)))


def _mirrored(picture: Array) -> Array:
    return picture[:, ::-1]


def _how(window: Window, is_flipped: bool) -> str:
    is_crop = (window[2] - window[0]) * (window[3] - window[1]) < _CROP
    return " ".join(["flipped"] * is_flipped + ["crop"] * is_crop) or "same"


@cache
def _spans() -> list[tuple[float, float]]:
    starts = {length: np.linspace(0, 1 - length, count) for length, count in _LENGTHS.items()}
    return [(float(start), float(start) + length) for length in starts for start in starts[length]]


@cache
def _grid() -> list[Window]:
    """All windows that are tried, the whole first."""
    return [(left, top, right, bottom) for top, bottom in _spans() for left, right in _spans()]


@cache
def _averages() -> Array:
    """(spans · _COARSE, LOOK)"""
    return np.concatenate([cells(start, stop, _COARSE, LOOK) for start, stop in _spans()])


def _windows(picture: Array) -> Array:
    """(windows, _COARSE² · 3): the colors in each window of the grid, as vectors of length 1 about 0."""
    rows = (_averages() @ picture.reshape(LOOK, -1)).reshape(-1, LOOK, 3)
    count = len(_spans())
    found = (_averages() @ rows).reshape(count, _COARSE, count, _COARSE, 3)
    return _normal(found.transpose(0, 2, 1, 3, 4).reshape(count * count, -1))


def _normal(vectors: Array) -> Array:
    about = vectors - vectors.mean(axis=-1, keepdims=True)
    faint = np.float32(_FAINT * vectors.shape[-1] ** 0.5)
    return np.asarray(about / np.maximum(np.linalg.norm(about, axis=-1, keepdims=True), faint))


@lru_cache(4096)
def _fine(start: float, stop: float) -> Array:
    return cells(start, stop, _FINE, LOOK)


def _colors(picture: Array, window: Window) -> Array:
    """(_FINE² · 3): the colors in one window, as `_windows` has them."""
    left, top, right, bottom = window
    rows, columns = _fine(round(top, 3), round(bottom, 3)), _fine(round(left, 3), round(right, 3))
    return _normal((columns @ (rows @ picture.reshape(LOOK, -1)).reshape(_FINE, LOOK, 3)).reshape(-1))


def _fit(picture: Array, part: Array, window: Window) -> tuple[Window, float]:
    """The window of the picture that is most like the whole of the part, from a first guess, and how like it is."""
    aim = _colors(part, _WHOLE)
    best = float(_colors(picture, window) @ aim)
    for step in _STEPS:
        is_better = True
        while is_better:
            moved = [(float(_colors(picture, near) @ aim), near) for near in _near(window, step)]
            likeness, near = max(moved, default=(best, window))
            is_better = likeness > best + 1e-4
            best, window = (likeness, near) if is_better else (best, window)
    return window, best


def _near(window: Window, step: float) -> Iterator[Window]:
    """The windows that have one edge elsewhere."""
    for edge in range(4):
        for move in (-step, step):
            left, top, right, bottom = (side + move * (edge == index) for index, side in enumerate(window))
            is_inside = min(left, top) >= 0 and max(right, bottom) <= 1 + 1e-9
            if is_inside and min(right - left, bottom - top) >= _SHORTEST:
                yield left, top, right, bottom


def _edge_colors(picture: Array) -> Array:
    """(_LEVELS³): how often each color occurs in the outer eighth of a picture, summing to 1. A color counts for the
    levels on both of its sides, by their nearness, so that a slight change of light is a slight change here.
    """
    edge = np.ones((LOOK, LOOK), bool)
    edge[LOOK // 8 : -LOOK // 8, LOOK // 8 : -LOOK // 8] = False
    levels = np.arange(_LEVELS) * 255 / (_LEVELS - 1)
    near = (1 - np.abs(picture[edge][:, :, None] - levels) * (_LEVELS - 1) / 255).clip(0)  # (pixels, RGB, levels)
    red, green, blue = near.transpose(1, 0, 2)
    counts: Array = np.einsum("pr,pg,pb->rgb", red, green, blue, optimize=True) / edge.sum()
    return counts.reshape(-1)
