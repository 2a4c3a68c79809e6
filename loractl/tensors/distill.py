"""Low-rank updates out of full ones: ΔW ≈ up·down with the largest singular values, and how much of ΔW that is.

Randomized subspace iteration (Halko, Martinsson and Tropp 2011, "Finding structure with randomness", algorithms 4.4
and 5.1); matrices that are hardly larger than the sketch get the exact decomposition.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from loractl.tensors.lowrank import LowRank

OVERSAMPLING = 8
"""Columns of the sketch beyond the rank."""

ITERATIONS = 3
"""Passes of power iteration, which the slowly falling spectra of full fine-tunes need."""

FIRST_WIDTH = 16
"""The rank that is tried first when only the energy is given; it doubles until that is reached."""


class Distilled(NamedTuple):
    """An update and the share of ‖ΔW‖² that it holds, which is exact however the factors were found."""

    low: LowRank
    energy: float


def distill(delta: Tensor, rank: int | None = None, energy: float | None = None, seed: int = 0) -> Distilled:
    """The factors of ΔW (out, in, *k) of the smallest rank that holds the share `energy` of ‖ΔW‖², at most `rank`.

    Without `energy` the rank is `rank`, but for singular values that are zero. up = U√Σ and down = √ΣVᵀ, so both have
    numbers of like size, and alpha is the rank.
    """
    matrix = delta.flatten(1)
    total = matrix.square().sum(dtype=torch.float64)
    for width in _widths(rank, min(matrix.shape)):
        u, sigma, vt = leading(matrix, width, seed)
        held = sigma.double().square().cumsum(0) / total
        if energy is not None and held[-1] >= energy:
            break
    kept = _kept(sigma, held, energy)
    root = sigma[:kept].sqrt()
    down = (root[:, None] * vt[:kept]).view(kept, *delta.shape[1:])
    up = (u[:, :kept] * root).view(-1, kept, *(1 for _ in delta.shape[2:]))
    return Distilled(LowRank(down.contiguous(), up.contiguous(), float(kept)), float(held[kept - 1].clamp(max=1)))


def leading(matrix: Tensor, rank: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, r), σ (r) and Vᵀ (r, n) of the largest singular values of a matrix (m, n), in falling order."""
    width = rank + OVERSAMPLING
    if 2 * width >= min(matrix.shape):
        u, sigma, vt = torch.linalg.svd(matrix, full_matrices=False)
    else:
        basis = _range(matrix, width, seed)  # (m, width)
        inner, sigma, vt = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
        u = basis @ inner
    return u[:, :rank], sigma[:rank], vt[:rank]


def change(tuned: Tensor, base: Tensor) -> float:
    """‖tuned − base‖ / ‖base‖ of two weights, both rounded to the coarser of their dtypes.

    So a weight that was only saved with other precision has not changed, and one that was trained a little has.
    """
    coarse = max(tuned.dtype, base.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    base = base.to(coarse).float()
    difference = tuned.to(coarse).to(torch.float32, copy=True).sub_(base)
    return float(difference.norm() / base.norm().clamp(min=torch.finfo(torch.float32).tiny))


def _range(matrix: Tensor, width: int, seed: int) -> Tensor:
    """An orthonormal basis (m, width) of nearly all that the largest singular vectors span (algorithm 4.4)."""
    generator = torch.Generator().manual_seed(seed)
    sketch = torch.randn(matrix.shape[1], width, generator=generator).to(matrix)
    basis: Tensor = torch.linalg.qr(matrix @ sketch).Q
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    return basis


def _widths(rank: int | None, full: int) -> Iterator[int]:
    """The ranks to try: the given one, or growing ones up to full rank."""
    if rank is not None:
        yield min(rank, full)
        return
    width = FIRST_WIDTH
    while width < full:
        yield width
        width *= 2
    yield full


def _kept(sigma: Tensor, held: Tensor, energy: float | None) -> int:
    """How many singular values are kept, one at least: as many as the energy takes, and none that is only rounding."""
    real = int((sigma > sigma[0] * torch.finfo(sigma.dtype).eps).sum())
    wanted = len(sigma) if energy is None else int((held < energy).sum()) + 1
    return max(1, min(real, wanted, len(sigma)))
