"""Chroma: a Flux.1 without CLIP, which is told how long the text is, and made to be guided truly."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor

from loractl.families.flux import Flux
from loractl.families.packing import PATCH, pack, places, unpack


class Chroma(Flux):
    """The text is T5's last hidden state with a mask. Latents, targets and all that is not here are as in Flux.1."""

    title = "Chroma"
    encoders: ClassVar[Mapping[str, str]] = {"text_encoder": "tokenizer"}
    adaptable = ()
    guidance_default = 5.0
    version = "chroma"
    has_kohya_names = False
    text_length = 512

    def encode_text(self, captions: Sequence[str]) -> Mapping[str, Tensor]:
        text, _, mask, *_ = self.pipeline.encode_prompt(
            list(captions),
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_length,
        )
        return {"text": text, "mask": mask}

    def predict(self, noisy: Tensor, t: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        height, width = (side // PATCH for side in noisy.shape[2:])
        text, mask = conditioning["text"], conditioning["mask"]
        said = self.pipeline.transformer(
            hidden_states=pack(noisy),
            timestep=t / self.path.steps,
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=noisy.device),
            img_ids=places(height, width, 3, noisy.device),
            attention_mask=torch.cat([mask, mask.new_ones(len(noisy), height * width)], dim=1),
        )
        return unpack(cast(Tensor, said.sample), *noisy.shape[2:])
