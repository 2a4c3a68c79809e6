"""The discrete cosine transform, and cells that average: small pictures as matrices, times matrices."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@cache
def cosines(size: int) -> Array:
    """(size, size): the orthonormal DCT-II. C @ x transforms, C.T @ y transforms back."""
    row, column = np.ogrid[:size, :size]
    matrix = np.cos(np.pi * row * (2 * column + 1) / (2 * size)) * np.sqrt(2 / size)
    matrix[0] /= np.sqrt(2)
    return np.asarray(matrix, np.float32)


def cells(start: float, stop: float, count: int, size: int) -> Array:
    """(count, size): the means of `count` equal cells between two positions, in [0, 1], along `size` pixels."""
    edges = np.linspace(start, stop, count + 1) * size
    pixel = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return np.asarray(overlap.clip(0) * count / ((stop - start) * size), np.float32)


def smoothing(size: int, sigma: float) -> Array:
    """(size, size): a Gaussian blur along one axis that keeps what is even, even at the edges."""
    pixel = np.arange(size)
    kernel = np.exp(-((pixel[:, None] - pixel) ** 2) / (2 * sigma**2))
    return np.asarray(kernel / kernel.sum(axis=1, keepdims=True), np.float32)
