"""Captions to conditioning: encoded once each while the text encoder and its tokens rest, anew while they learn."""

from collections.abc import Iterable, Sequence

import torch

from loractl.families.conditioning import Conditioning, joined
from loractl.families.family import Family


class Conditioner:
    """Keeps what it is told to expect: captions whose tags are shuffled would fill the device, and hardly come back."""

    def __init__(self, model: Family) -> None:
        self._model = model
        self._expected: set[str] = set()
        self._kept: dict[str, Conditioning] = {}

    def __call__(self, captions: Sequence[str], learns: bool) -> Conditioning:
        """Of n captions, n rows. `learns`: the text encoder or its tokens train in this step."""
        if learns:
            self._kept.clear()
            return self._model.told(captions)
        said = self._said(captions)
        return joined([said[caption] for caption in captions])

    def expect(self, captions: Iterable[str]) -> None:
        """These are kept when they come up."""
        self._expected.update(captions)

    def prepare(self, captions: Sequence[str]) -> None:
        """Encodes those that are new, and keeps them."""
        self.expect(captions)
        self._said(captions)

    def _said(self, captions: Sequence[str]) -> dict[str, Conditioning]:
        """By caption. A text encoder that is a guest on the device, and is needed for new ones, leaves again."""
        said = {caption: self._kept[caption] for caption in captions if caption in self._kept}
        missing = [caption for caption in dict.fromkeys(captions) if caption not in said]
        if not missing:
            return said
        there = self._model.guests
        self._model.bring(*there, *self._model.text_encoder_names)
        with torch.no_grad():
            said |= {caption: self._model.told([caption]) for caption in missing}
        self._model.bring(*there)
        self._kept |= {caption: said[caption] for caption in missing if caption in self._expected}
        return said
