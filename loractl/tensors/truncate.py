"""Singular values of an update, and the best update of lower rank (Eckart & Young 1936).

Of factors they cost a QR of each: up = Q₁R₁, downᵀ = Q₂R₂, then the SVD of the small core R₁R₂ᵀ, O((out + in)·r² + r³).
The dense product, with a full SVD of it, gives the same and takes some hundred times as long.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from loractl.errors import JobError
from loractl.tensors.lowrank import LowRank

ROUNDING = 1e-12  # the share of the energy that fp32 leaves in singular values that should be 0


@dataclass(frozen=True)
class Decomposed:
    """ΔW (out, in·k) = left · diag(values) · right, the singular values in falling order; `shape` is that of ΔW.

    Of the vectors those of the last values may be missing: `held` of r are there.
    """

    left: Tensor  # (out, held)
    values: Tensor  # (r,)
    right: Tensor  # (held, in·k)
    shape: torch.Size

    @property
    def cost(self) -> int:
        """Parameters that one rank takes."""
        return len(self.left) + self.right.shape[1]

    def keep(self, rank: int) -> LowRank:
        """The best update of this rank, with alpha = rank; the roots of the singular values go into both factors."""
        rank = min(rank, len(self.right))
        root = self.values[:rank].sqrt()
        up = (self.left[:, :rank] * root).reshape(-1, rank, *[1] * (len(self.shape) - 2))
        down = (root[:, None] * self.right[:rank]).reshape(rank, *self.shape[1:])
        return LowRank(down, up, float(rank))


@dataclass(frozen=True)
class Size:
    """How much of an adapter is kept. Everything that is given holds; with nothing given, all of it is.

    `rank`: at most so many singular values of a module. `energy`: the fewest that have this share of its squared norm.
    `ratio`: those of at least this share of its largest. `parameters`: of the whole adapter, spent where they buy most.
    """

    rank: int | None = None
    energy: float | None = None
    ratio: float | None = None
    parameters: int | None = None


def decompose(low: LowRank) -> Decomposed:
    """The SVD of an update, by QR of its factors."""
    left, up_core = torch.linalg.qr(low.up.flatten(1))
    right, down_core = torch.linalg.qr(low.down.flatten(1).T)
    u, values, v = torch.linalg.svd(low.scale * up_core @ down_core.T, full_matrices=False)
    return Decomposed(left @ u, values, v @ right.T, low.shape)


def decompose_dense(delta: Tensor) -> Decomposed:
    """The SVD of a whole ΔW (out, in, *k), by the eigenvectors of ΔW·ΔWᵀ in fp64: a sixth of the time of an SVD."""
    matrix = delta.flatten(1)
    if matrix.shape[0] > matrix.shape[1]:
        turned = decompose_dense(matrix.T)
        return Decomposed(turned.right.T, turned.values, turned.left.T, delta.shape)
    wide = matrix.double()
    vectors = torch.linalg.eigh(wide @ wide.T).eigenvectors.flip(1)  # (out, out), the largest first
    rows = vectors.T @ wide  # values · right
    values = rows.norm(dim=1)
    right = rows / values.clamp_min(torch.finfo(values.dtype).tiny)[:, None]
    return Decomposed(vectors.to(delta.dtype), values.to(delta.dtype), right.to(delta.dtype), delta.shape)


def choose_ranks(modules: Mapping[str, Decomposed], size: Size) -> dict[str, int]:
    """The rank of each module under `size`; 0 for one that is not worth any. JobError when nothing is left at all."""
    ranks = {path: _own_rank(each.values, size) for path, each in modules.items()}
    if size.parameters is not None:
        ranks = _ranks_within(modules, ranks, size.parameters)
    if not any(ranks.values()):
        raise JobError("nothing is left of the adapter at this size: allow a larger one")
    return ranks


def trimmed(each: Decomposed, size: Size) -> Decomposed:
    """The same without the vectors for which `choose_ranks` under `size` has no use; all singular values stay."""
    rank = _own_rank(each.values, size)
    if size.parameters is not None:
        rank = min(rank, size.parameters // each.cost)
    return replace(each, left=each.left[:, :rank].clone(), right=each.right[:rank].clone())


def truncate(modules: Mapping[str, Decomposed], ranks: Mapping[str, int]) -> dict[str, LowRank]:
    """The best update of each module's rank; modules of rank 0 are left out."""
    return {path: each.keep(ranks[path]) for path, each in modules.items() if ranks[path]}


def captured(modules: Mapping[str, Decomposed], ranks: Mapping[str, int]) -> float:
    """The share of the squared norm of all ΔW together that these ranks keep."""
    kept = sum(float(_squares(each)[: ranks[path]].sum()) for path, each in modules.items())
    total = sum(float(_squares(each).sum()) for each in modules.values())
    return kept / total if total else 1.0


def _own_rank(values: Tensor, size: Size) -> int:
    """The rank that suits a module by itself, without regard to the others."""
    rank = len(values) if size.rank is None else min(size.rank, len(values))
    if size.ratio is not None:
        rank = min(rank, int((values >= size.ratio * values[0]).sum()))
    if size.energy is not None:
        reached = values.double().square().cumsum(0)
        short = reached < (size.energy - ROUNDING) * reached[-1]
        rank = min(rank, int(short.sum()) + bool(reached[-1]))
    return rank


def _ranks_within(modules: Mapping[str, Decomposed], most: Mapping[str, int], parameters: int) -> dict[str, int]:
    """Singular values, of each module `most` at most, bought in the order of s² per parameter until all are spent."""
    offered = {path: _squares(each)[: most[path]] for path, each in modules.items()}
    worth = torch.cat([squares / modules[path].cost for path, squares in offered.items()])
    costs = torch.cat([torch.full_like(s, modules[path].cost, dtype=torch.int64) for path, s in offered.items()])
    order = worth.argsort(descending=True, stable=True)
    bought = torch.zeros_like(costs, dtype=torch.bool)
    bought[order] = costs[order].cumsum(0) <= parameters
    bought &= worth > 0
    counts = torch.split(bought, [len(squares) for squares in offered.values()])
    return {path: int(count.sum()) for path, count in zip(modules, counts, strict=True)}


def _squares(each: Decomposed) -> Tensor:
    return each.values.double().square()
