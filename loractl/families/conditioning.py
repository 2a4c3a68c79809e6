"""What a denoiser is told of captions: one tensor (n, tokens, width), or several by name, n rows each.

    {"text": (n, tokens, width), "mask": (n, tokens), "pooled": (n, width)}

What two captions are told by can be of different lengths; side by side, the shorter is filled up with zeros. A family
whose captions differ in length has a mask among its tensors, 0 where nothing is said; `padded` leaves it on the CPU,
where it can be looked at without waiting for a GPU.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Conditioning: TypeAlias = Tensor | Mapping[str, Tensor]


def joined(rows: Sequence[Conditioning]) -> Conditioning:
    """All rows, one after the other."""
    named = [row for row in rows if not isinstance(row, Tensor)]
    if not named:
        return torch.cat([row for row in rows if isinstance(row, Tensor)])
    return {name: _stacked([row[name] for row in named]) for name in named[0]}


def on_device(told: Conditioning, device: torch.device) -> Conditioning:
    """The same on the device, but for a mask, which may stay on the CPU."""
    if isinstance(told, Tensor):
        return told.to(device)
    return {name: tensor if name == "mask" else tensor.to(device) for name, tensor in told.items()}


def padded(texts: Sequence[Tensor]) -> dict[str, Tensor]:
    """Texts (tokens, width) of different lengths as "text" (n, longest, width) and "mask" (n, longest), 1 or 0."""
    masks = [torch.ones(1, len(text), dtype=torch.int64) for text in texts]
    return {"text": _stacked([text.unsqueeze(0) for text in texts]), "mask": _stacked(masks)}


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """(nᵢ, tokensᵢ, …) → (Σ nᵢ, longest, …); what has no tokens, (nᵢ, width), is as wide everywhere."""
    longest = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, 0) * (part.dim() - 2) + (0, longest - part.shape[1])) for part in parts])
