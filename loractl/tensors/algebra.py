"""Sums and inner products of low-rank updates, exact, and without ever forming ΔW.

Σ wᵢ·ΔWᵢ = [w₁s₁·up₁ … wₖsₖ·upₖ] · [down₁; …; downₖ], s = alpha / rank: the factors stand side by side along the rank.
Adding `up` to `up` and `down` to `down` is not the sum: it makes cross terms upᵢ·downⱼ and squares the weights.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from loractl.errors import MismatchError
from loractl.tensors.lowrank import LowRank

Modules = Mapping[str, LowRank]


def scaled(low: LowRank, weight: float) -> LowRank:
    """weight · ΔW, with the same factors."""
    return replace(low, alpha=weight * low.alpha)


def stack(parts: Sequence[LowRank]) -> LowRank:
    """Σ ΔWᵢ, in fp32 or wider: rank Σ rᵢ, alpha = rank. Updates of alpha 0 take no room; one alone stays as it is."""
    live = [_wide(low) for low in parts if low.alpha] or [_wide(parts[0])]
    if len(live) == 1:
        return live[0]
    down = torch.cat([low.down for low in live], dim=0)  # (Σr, in, *k)
    up = torch.cat([low.scale * low.up for low in live], dim=1)  # (out, Σr, *1)
    return LowRank(down, up, float(len(down)))


def weighted(parts: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """Σ wᵢ·ΔWᵢ."""
    return stack([scaled(low, weight) for low, weight in zip(parts, weights, strict=True)])


def combine(adapters: Sequence[Modules], weights: Sequence[float]) -> dict[str, LowRank]:
    """Σ wᵢ·ΔWᵢ for every module of any adapter, but for those to which none contributes."""
    sums = {path: weighted(parts, weights) for path, parts in align(adapters).items()}
    return {path: low for path, low in sums.items() if low.alpha}


def add_vectors(adapters: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """Σ wᵢ·vᵢ for every vector of any adapter, but for those to which none contributes.

    MismatchError names the first whose lengths differ.
    """
    sums: dict[str, Tensor] = {}
    for path in sorted({path for adapter in adapters for path in adapter}):
        terms = [w * adapter[path] for adapter, w in zip(adapters, weights, strict=True) if w and path in adapter]
        sizes = list(dict.fromkeys(len(adapter[path]) for adapter in adapters if path in adapter))
        if len(sizes) > 1:
            raise MismatchError(f"{path} has {sizes[0]} numbers in one adapter and {sizes[1]} in another")
        if terms:
            sums[path] = torch.stack(terms).sum(0)
    return sums


def align(adapters: Sequence[Modules]) -> dict[str, list[LowRank]]:
    """Path → one update from each adapter; one that lacks the module gives zero, which is an update of alpha 0.

    MismatchError names the first module whose shapes differ.
    """
    paths = sorted({path for adapter in adapters for path in adapter})
    return {path: _row([adapter.get(path) for adapter in adapters], path) for path in paths}


def inner(a: LowRank, b: LowRank) -> float:
    """⟨ΔWₐ, ΔW_b⟩ = sₐ·s_b·tr((upₐᵀ·up_b)(down_b·downₐᵀ)), in fp64 and O((out + in)·rₐ·r_b)."""
    ups = a.up.flatten(1).double().T @ b.up.flatten(1).double()  # (rₐ, r_b)
    downs = a.down.flatten(1).double() @ b.down.flatten(1).double().T  # (rₐ, r_b)
    return a.scale * b.scale * float((ups * downs).sum())


def gram(parts: Sequence[LowRank]) -> Tensor:
    """All inner products of the updates: (n, n) in fp64."""
    return torch.tensor([[inner(a, b) for b in parts] for a in parts], dtype=torch.float64)


def norm(low: LowRank) -> float:
    """‖ΔW‖, Frobenius."""
    return math.sqrt(max(inner(low, low), 0.0))


def _row(found: Sequence[LowRank | None], path: str) -> list[LowRank]:
    longest = max((low.shape for low in found if low is not None), key=len)
    row = [low and low.fitted(longest) for low in found]
    present = [low for low in row if low is not None]
    shapes = list(dict.fromkeys(tuple(low.shape) for low in present))
    if len(shapes) > 1:
        raise MismatchError(f"{path} is {shapes[0]} in one adapter and {shapes[1]} in another: their models differ")
    return [scaled(present[0], 0.0) if low is None else low for low in row]


def _wide(low: LowRank) -> LowRank:
    return low.to(torch.promote_types(low.down.dtype, torch.float32))
