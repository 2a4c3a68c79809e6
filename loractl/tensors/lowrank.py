"""One module's low-rank update: ΔW = (alpha / rank) · up · down (Hu et al. 2021, LoRA, section 4.1).

Other parametrizations are low-rank updates too, of another rank, and the functions below say of which: each result has
exactly the ΔW of its definition. Where that rank would be full, ΔW itself becomes one factor and I the other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """`down` (r, in, *k), `up` (out, r, *1). For a convolution k is its kernel and `in` its input channels per
    group.
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def shape(self) -> torch.Size:
        """The shape of ΔW and of the weight it fits: (out, in, *k)."""
        return torch.Size([self.up.shape[0], *self.down.shape[1:]])

    def delta(self) -> Tensor:
        """ΔW (out, in, *k), in the factors' dtype."""
        return (self.scale * self.up.flatten(1) @ self.down.flatten(1)).view(self.shape)

    def fitted(self, shape: Sequence[int]) -> "LowRank":
        """The same update for a weight of this shape, if only 1s at the end make the difference; else as it is.

        A linear layer and a 1×1 convolution have the same ΔW, and some files have that of a convolution flattened.
        """
        own, wanted = tuple(self.shape), tuple(shape)
        if own == wanted or own[:2] != wanted[:2] or {*own[2:], *wanted[2:]} != {1}:
            return self
        down, up = self.down.flatten(1), self.up.flatten(1)
        return replace(self, down=down.reshape(*down.shape, *wanted[2:]), up=up.reshape(*up.shape, *wanted[2:]))

    def rows(self, begin: int, end: int) -> "LowRank":
        """The update of some of the weight's rows, from `begin` up to `end`."""
        return replace(self, up=self.up[begin:end])

    def transposed(self) -> "LowRank":
        """ΔWᵀ (in, out) of a linear layer's."""
        return replace(self, down=self.up.T, up=self.down.T)

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> "LowRank":
        return replace(self, down=self.down.to(device, dtype), up=self.up.to(device, dtype))


def factored(up: Tensor, down: Tensor, scale: float = 1.0) -> LowRank:
    """ΔW = scale · up · down, for up (out, r) and down (r, in, *k)."""
    return LowRank(down, up.reshape(*up.shape, *[1] * (down.ndim - 2)), scale * len(down))


def dense(delta: Tensor) -> LowRank:
    """ΔW (out, in, *k) itself, of rank min(out, in·k): one factor is the identity."""
    flat = delta.flatten(1)
    out, inner = flat.shape
    if out <= inner:
        return factored(torch.eye(out, dtype=delta.dtype), delta)
    return factored(flat, torch.eye(inner, dtype=delta.dtype).view(inner, *delta.shape[1:]))


def tucker(up: Tensor, mid: Tensor, down: Tensor) -> LowRank:
    """ΔW = mid ×₁ up ×₂ down for up (out, r), mid (r, s, *k), down (s, in); of rank r (Yeh et al. 2023, LyCORIS).

    ΔW has no rank beyond out, so factors that claim one make nothing larger than ΔW.
    """
    if len(mid) > len(up):
        core = torch.einsum("or,rs...->os...", up, mid)
        return dense(torch.einsum("os...,si->oi...", core, down))
    return factored(up, torch.einsum("rs...,si->ri...", mid, down))


def hadamard(a: LowRank, b: LowRank) -> LowRank:
    """ΔW = ΔW_a ∘ ΔW_b, of rank r_a · r_b: the columns multiply pair by pair (Hyeon-Woo et al. 2021, FedPara)."""
    rank = a.rank * b.rank
    if rank >= _full_rank(a.shape):
        return dense(a.delta() * b.delta())
    up = torch.einsum("oi,oj->oij", a.up.flatten(1), b.up.flatten(1)).flatten(1)
    down = torch.einsum("in,jn->ijn", a.down.flatten(1), b.down.flatten(1)).reshape(rank, *a.shape[1:])
    return factored(up, down, a.scale * b.scale)


def kronecker(a: LowRank, b: LowRank) -> LowRank:
    """ΔW = ΔW_a ⊗ ΔW_b for linear a, of rank r_a · r_b (Yeh et al. 2023, LyCORIS): (out_a·out_b, in_a·in_b, *k)."""
    rank = a.rank * b.rank
    up = torch.einsum("ai,bj->abij", a.up, b.up.flatten(1)).reshape(-1, rank)
    down = torch.einsum("im,jn...->ijmn...", a.down, b.down).reshape(rank, -1, *b.shape[2:])
    product = factored(up, down, a.scale * b.scale)
    return product if product.rank < _full_rank(product.shape) else dense(product.delta())


def _full_rank(shape: torch.Size) -> int:
    return min(shape[0], math.prod(shape[1:]))
