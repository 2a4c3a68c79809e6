"""Stable Diffusion 3 and 3.5: two CLIP text encoders and T5, which may be left out; a transformer on a flow.

Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis".
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

from torch import Tensor

from loractl.families.family import Family
from loractl.families.targets import ATTENTION, TEXT_ATTENTION, preset_table


class StableDiffusion3(Family):
    """The text is CLIP's hidden states but the last, filled up to T5's width, then T5's, which are zeros without it;
    "pooled" is the projections of both CLIPs.
    """

    title = "Stable Diffusion 3"
    encoders: ClassVar[Mapping[str, str]] = {
        "text_encoder": "tokenizer",
        "text_encoder_2": "tokenizer_2",
        "text_encoder_3": "tokenizer_3",
    }
    adaptable = ("text_encoder", "text_encoder_2")
    guidance_default = 7.0
    version = "sd3"
    has_kohya_names = True
    presets = preset_table(
        ATTENTION + TEXT_ATTENTION, ("ff.net.0.proj", "ff_context.net.0.proj"), ("ff.net.2", "ff_context.net.2")
    )
    text_length = 256  # of T5

    def encode_text(self, captions: Sequence[str]) -> Mapping[str, Tensor]:
        text, _, pooled, _ = self.pipeline.encode_prompt(
            self.written_out(captions),
            None,
            None,
            device=self.text_device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_length,
        )
        return {"text": text, "pooled": pooled}

    def predict(self, noisy: Tensor, t: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        said = self.pipeline.transformer(
            hidden_states=noisy,
            timestep=t,
            encoder_hidden_states=conditioning["text"],
            pooled_projections=conditioning["pooled"],
        )
        return cast(Tensor, said.sample)
