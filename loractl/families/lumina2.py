"""Lumina Image 2: Gemma 2's text; a transformer on a flow that runs the other way, from noise to the clean picture."""

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor

from loractl.device import upload
from loractl.families.family import Family
from loractl.families.targets import ATTENTION, preset_table


class Lumina2(Family):
    """The text is the hidden states but the last of a fixed length, with a mask, after the system's prompt."""

    title = "Lumina Image 2"
    guidance_default = 4.0
    version = "lumina2"
    presets = preset_table(ATTENTION, ("feed_forward.linear_1", "feed_forward.linear_3"), ("feed_forward.linear_2",))
    text_length = 256

    def encode_text(self, captions: Sequence[str]) -> Mapping[str, Tensor]:
        text, mask, *_ = self.pipeline.encode_prompt(
            self.written_out(captions),
            do_classifier_free_guidance=False,
            device=self.text_device,
            max_sequence_length=self.text_length,
        )
        return {"text": text, "mask": mask}

    def predict(self, noisy: Tensor, t: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        """The model's time is 1 in the clean picture, and its velocity leads there."""
        said = self.pipeline.transformer(
            hidden_states=noisy,
            timestep=1 - t / self.path.steps,
            encoder_hidden_states=conditioning["text"],
            encoder_attention_mask=upload(conditioning["mask"], noisy.device),
        )
        return -cast(Tensor, said.sample)
