"""Dropout of an adapter while it trains: of its inputs, of its hidden units, of whole modules.

What is left out is drawn once for a step and shared by all its samples, so that it is a mask on `down`: both forms of
a layer obey it alike, recomputed activations see the same one, and accumulated batches are still one big batch.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from loractl.device import upload
from loractl.inject.layers import LoraFactors


@dataclass(frozen=True)
class Dropout:
    """Chances in [0, 1): of an input feature (Lin et al. 2024, "LoRA Dropout as a Sparsity Regularizer for Overfitting
    Control"), of one of the r hidden units, and of the whole module.
    """

    input: float = 0.0
    rank: float = 0.0
    module: float = 0.0

    def keep(self, down: Tensor, drawn: Tensor) -> Tensor:
        """(r, in, *1) for down (r, in, *k), of mean 1, from r + in + 1 uniform draws."""
        rank, inner = down.shape[:2]
        units, features, module = drawn.split([rank, inner, 1])
        kept = _kept(units, self.rank)[:, None] * _kept(features, self.input) * _kept(module, self.module)
        return kept.view(rank, inner, *(1 for _ in down.shape[2:]))


def set_dropout(layers: Collection[LoraFactors], dropout: Dropout, generator: Generator) -> None:
    """Draws what an adapter of these layers leaves out from now on, until the next call or `end_dropout`."""
    sizes = [sum(factors.down.shape[:2]) + 1 for factors in layers]
    drawn = upload(torch.rand(sum(sizes), generator=generator), next(iter(layers)).down.device)
    for factors, own in zip(layers, drawn.split(sizes), strict=True):
        factors.keep = dropout.keep(factors.down, own)


def end_dropout(layers: Iterable[LoraFactors]) -> None:
    """The whole adapter again, to sample with it: the outputs are those of before `set_dropout`, to the bit."""
    for factors in layers:
        factors.keep = None


def _kept(drawn: Tensor, chance: float) -> Tensor:
    return (drawn >= chance) / (1 - chance)
