"""The size of what an adapter has learnt, module by module and while it trains: ‖ΔW‖ without ΔW and without waiting
for the device.
"""

from collections.abc import Collection

import torch
from torch import Tensor

from loractl.inject.layers import LoraFactors


@torch.no_grad()
def delta_norms(layers: Collection[LoraFactors]) -> Tensor:
    """‖ΔW‖, Frobenius, of an adapter in each of its layers: (layers,) in fp64."""
    return torch.stack([_delta_norm(factors) for factors in layers])


@torch.no_grad()
def limit_norms(layers: Collection[LoraFactors], max_norm: float) -> Tensor:
    """Scales the factors of each layer down, both alike, to ‖ΔW‖ ≤ max_norm; how many it scaled, as a tensor.

    Keeps ΔW's direction (`scale_weight_norms` in sd-scripts). A layer within the bound keeps its bits.
    """
    norms = delta_norms(layers)
    shares = (max_norm / norms).clamp(max=1.0).sqrt()  # 1 where the norm is 0
    for factors, share in zip(layers, shares.unbind(), strict=True):
        factors.down.mul_(share)
        factors.up.mul_(share)
    return (norms > max_norm).sum()


def _delta_norm(factors: LoraFactors) -> Tensor:
    """scale · √tr((upᵀ·up)(down·downᵀ)), in O((out + in)·r²)."""
    up, down = factors.up.flatten(1).double(), factors.down.flatten(1).double()
    return ((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt() * abs(factors.alpha / len(down))
