"""Latents as a sequence: 2 × 2 patches one after the other, row by row, and where each of them stands."""

import torch
import torch.nn.functional as F
from torch import Tensor

PATCH = 2


def pack(latents: Tensor) -> Tensor:
    """(n, c, h, w) → (n, h/2 · w/2, 4c), the four pixels of a channel side by side."""
    return sequence(F.pixel_unshuffle(latents, PATCH))


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """(n, h/2 · w/2, 4c) → (n, c, h, w)."""
    return F.pixel_shuffle(grid(tokens, height // PATCH, width // PATCH), PATCH)


def sequence(latents: Tensor) -> Tensor:
    """(n, c, h, w) → (n, h · w, c)."""
    return latents.flatten(2).transpose(1, 2)


def grid(tokens: Tensor, height: int, width: int) -> Tensor:
    """(n, h · w, c) → (n, c, h, w)."""
    found: Tensor = tokens.transpose(1, 2).unflatten(2, (height, width))
    return found


def places(height: int, width: int, axes: int, device: torch.device) -> Tensor:
    """Of each token of a grid its row on axis 1 and its column on axis 2: (h · w, axes), zero on all others."""
    found = torch.zeros(height, width, axes, device=device)
    found[..., 1] = torch.arange(height, device=device)[:, None]
    found[..., 2] = torch.arange(width, device=device)
    return found.flatten(0, 1)
