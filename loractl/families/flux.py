"""Flux.1, dev and schnell: CLIP's summary and T5's text; a transformer on a flow that sees 2 × 2 patches."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor

from loractl.families.family import Family
from loractl.families.packing import PATCH, pack, places, unpack
from loractl.families.targets import ATTENTION, TEXT_ATTENTION, preset_table

TRAINING_GUIDANCE = 1.0
"""What dev is told in training: it was distilled from pictures of every guidance, and 1 is that of plain pictures."""


class Flux(Family):
    """The text is T5's last hidden state; "pooled" is CLIP's."""

    title = "Flux.1"
    encoders: ClassVar[Mapping[str, str]] = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    adaptable = ("text_encoder",)
    guidance_default = 3.5
    version = "flux1"
    has_kohya_names = True
    presets = preset_table(
        ATTENTION + TEXT_ATTENTION,
        ("ff.net.0.proj", "ff_context.net.0.proj", "proj_mlp"),
        ("ff.net.2", "ff_context.net.2", "single_transformer_blocks.*.proj_out"),
    )

    @property
    def text_length(self) -> int:  # type: ignore[override]  # nobody sets it
        """Schnell was made with shorter texts than dev, which alone is told a guidance."""
        return 512 if self.pipeline.transformer.config.guidance_embeds else 256

    def unpacked(self, latents: Tensor, width: int, height: int) -> Tensor:
        return unpack(latents, height // self.multiple * PATCH, width // self.multiple * PATCH)

    def encode_text(self, captions: Sequence[str]) -> Mapping[str, Tensor]:
        text, pooled, _ = self.pipeline.encode_prompt(
            list(captions), device=self.text_device, max_sequence_length=self.text_length
        )
        return {"text": text, "pooled": pooled}

    def predict(self, noisy: Tensor, t: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        height, width = noisy.shape[2:]
        said = self.pipeline.transformer(
            hidden_states=pack(noisy),
            timestep=t / self.path.steps,
            guidance=self._guidance(noisy),
            pooled_projections=conditioning["pooled"],
            encoder_hidden_states=conditioning["text"],
            txt_ids=torch.zeros(conditioning["text"].shape[1], 3, device=noisy.device),
            img_ids=places(height // PATCH, width // PATCH, 3, noisy.device),
        )
        return unpack(cast(Tensor, said.sample), height, width)

    def _guidance(self, noisy: Tensor) -> Tensor | None:
        if not self.pipeline.transformer.config.guidance_embeds:
            return None
        return torch.full((len(noisy),), TRAINING_GUIDANCE, device=noisy.device)
