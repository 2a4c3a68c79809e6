"""Captions to conditioning: encoded once each while the text encoder and its tokens rest, anew while they learn."""

from collections.abc import Sequence

import torch

from loractl.families.conditioning import Conditioning, joined
from loractl.families.family import Family


class Conditioner:
    def __init__(self, model: Family) -> None:
        self._model = model
        self._kept: dict[str, Conditioning] = {}

    def __call__(self, captions: Sequence[str], learns: bool) -> Conditioning:
        """Of n captions, n rows. `learns`: the text encoder or its tokens train in this step."""
        if learns:
            self._kept.clear()
            return self._model.told(captions)
        self.prepare(captions)
        return joined([self._kept[caption] for caption in captions])

    def prepare(self, captions: Sequence[str]) -> None:
        """Encodes those that are new; a text encoder that is a guest on the device leaves again."""
        missing = [caption for caption in dict.fromkeys(captions) if caption not in self._kept]
        if not missing:
            return
        there = self._model.guests
        self._model.bring(*there, *self._model.text_encoder_names)
        for caption in missing:
            with torch.no_grad():
                self._kept[caption] = self._model.told([caption])
        self._model.bring(*there)
