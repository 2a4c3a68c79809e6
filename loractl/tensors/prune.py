"""Merges that drop single entries of ΔW. They are about the matrix, never its factors: one ΔW is formed at a time.

A rule takes the updates of one module (out, in, *k), a weight for each, the density (the share of entries each keeps)
and a generator, and returns the merged update. Its rank is full: `truncate` brings it back to factors.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Rule = Callable[[Sequence[Tensor], Sequence[float], float, torch.Generator], Tensor]

OUTLIERS = 0.01  # the share of largest entries that breadcrumbs drops; the paper's tables have 0.007 to 0.01


def ties(deltas: Sequence[Tensor], weights: Sequence[float], density: float, _generator: torch.Generator) -> Tensor:
    """Trim, elect a sign for each entry, average what agrees with it; the weights count relative to each other.

    Yadav et al. 2023, "TIES-Merging", arXiv 2306.01708, algorithm 1 with λ = 1.
    """
    shares = torch.stack([w * _keep_largest(delta, density) for delta, w in zip(deltas, weights, strict=True)])
    agree = shares.sign() == shares.sum(0).sign()
    agree &= shares != 0
    heights = torch.tensor(weights).to(shares).abs().view(-1, *[1] * deltas[0].ndim)
    count = (agree * heights).sum(0)
    return (agree * shares).sum(0) / torch.where(count > 0, count, 1.0)


def dare(deltas: Sequence[Tensor], weights: Sequence[float], density: float, generator: torch.Generator) -> Tensor:
    """Drops entries by chance and divides the others by the density, which keeps the mean; then the weighted sum.

    Yu et al. 2023, "Language models are super Mario", arXiv 2311.03099, section 3.2.
    """
    kept = [delta * (torch.rand(delta.shape, generator=generator).to(delta) < density) / density for delta in deltas]
    return _sum(kept, weights)


def prune(deltas: Sequence[Tensor], weights: Sequence[float], density: float, _generator: torch.Generator) -> Tensor:
    """Keeps the largest entries of each, then the weighted sum.

    The first step of TIES-Merging, then task arithmetic (Ilharco et al. 2022, arXiv 2212.04089, section 2).
    """
    return _sum([_keep_largest(delta, density) for delta in deltas], weights)


def breadcrumbs(
    deltas: Sequence[Tensor], weights: Sequence[float], density: float, _generator: torch.Generator
) -> Tensor:
    """Drops the largest entries of each as outliers, keeps those next in size, then the weighted sum.

    Davari & Belilovsky 2023, "Model Breadcrumbs", arXiv 2312.06795, section 3.2.
    """
    return _sum([_keep_largest(delta, density, OUTLIERS) for delta in deltas], weights)


def generator_for(seed: int, path: str) -> torch.Generator:
    """A generator of the module's own, so that its entries do not depend on which others there are."""
    digest = hashlib.sha256(f"{seed} {path}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


def _keep_largest(delta: Tensor, density: float, skip: float = 0.0) -> Tensor:
    """The density · n entries of largest size, after the skip · n that are larger still; zero elsewhere."""
    first, count = round(skip * delta.numel()), round(density * delta.numel())
    order = delta.abs().flatten().argsort(descending=True, stable=True)
    kept = torch.zeros_like(delta).flatten()
    chosen = order[first : first + count]
    kept[chosen] = delta.flatten()[chosen]
    return kept.view_as(delta)


def _sum(deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([weight * delta for delta, weight in zip(deltas, weights, strict=True)]).sum(0)


RULES: Mapping[str, Rule] = {"ties": ties, "dare": dare, "prune": prune, "breadcrumbs": breadcrumbs}
