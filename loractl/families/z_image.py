"""Z-Image: Qwen 3's text; a transformer on a flow that runs the other way, from noise to the clean picture."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from loractl.families.conditioning import padded
from loractl.families.family import Family
from loractl.families.targets import ATTENTION, preset_table


class ZImage(Family):
    """The text is the hidden states but the last, as long as the caption in its chat template."""

    title = "Z-Image"
    guidance_default = 5.0
    version = "z-image"
    presets = preset_table(ATTENTION, ("feed_forward.w1", "feed_forward.w3"), ("feed_forward.w2",))
    text_length = 512

    @property
    def resolution(self) -> int:
        return 1024

    def encode_text(self, captions: Sequence[str]) -> Mapping[str, Tensor]:
        texts, _ = self.pipeline.encode_prompt(
            self.written_out(captions),
            device=self.text_device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_length,
        )
        return padded(texts)

    def predict(self, noisy: Tensor, t: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        """The model's time is 1 in the clean picture, and its velocity leads there."""
        lengths = conditioning["mask"].sum(1).tolist()
        texts = [text[:length] for text, length in zip(conditioning["text"], lengths, strict=True)]
        videos = list(noisy.unsqueeze(2).unbind())
        said = self.pipeline.transformer(videos, 1 - t / self.path.steps, texts).sample
        return -torch.stack(cast(list[Tensor], said)).squeeze(2)
