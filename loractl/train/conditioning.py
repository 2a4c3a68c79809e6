"""Captions to conditioning: encoded once each while the text encoder is frozen, at every step when it learns."""

from collections.abc import Sequence

import torch
from torch import Tensor

from loractl.families.sd import StableDiffusion


class Conditioner:
    def __init__(self, model: StableDiffusion, learns: bool) -> None:
        self._model, self._learns = model, learns
        self._kept: dict[str, Tensor] = {}

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """(n, tokens, width)."""
        if self._learns:
            return self._model.encode_text(captions)
        for caption in dict.fromkeys(captions):
            if caption not in self._kept:
                with torch.no_grad():
                    self._kept[caption] = self._model.encode_text([caption])
        return torch.cat([self._kept[caption] for caption in captions])
