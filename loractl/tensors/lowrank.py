"""One module's low-rank update: ΔW = (alpha / rank) · up · down (Hu et al. 2021, LoRA, section 4.1)."""

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

    def to(self, dtype: torch.dtype) -> "LowRank":
        return replace(self, down=self.down.to(dtype), up=self.up.to(dtype))
