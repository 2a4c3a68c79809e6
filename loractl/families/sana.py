"""Sana: Gemma 2's text; a transformer with linear attention on a flow; an autoencoder that shrinks pictures 32 times.

Xie et al. 2024, "SANA: Efficient High-Resolution Image Synthesis with Linear Diffusion Transformers".
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

from torch import Tensor

from loractl.device import upload
from loractl.families.family import Family
from loractl.families.targets import ATTENTION, preset_table


class Sana(Family):
    """The text is the last hidden state of a fixed length, with a mask, after an instruction that is cut away."""

    title = "Sana"
    guidance_default = 4.5
    version = "sana"
    presets = preset_table(ATTENTION, ("ff.conv_inverted",), ("ff.conv_point",))
    text_length = 300

    @property
    def resolution(self) -> int:
        return int(self.pipeline.transformer.config.sample_size) * int(self.pipeline.vae_scale_factor)

    @property
    def multiple(self) -> int:
        return int(self.pipeline.vae_scale_factor)

    def reads(self, token: str) -> bool:
        """The pipeline puts texts into lower case."""
        return token == token.lower()

    @cached_property
    def instruction(self) -> Sequence[str] | None:
        """What the pipeline says before a prompt unless it is told otherwise; captions are read after the same."""
        parameter = inspect.signature(self.pipeline.__call__).parameters["complex_human_instruction"]
        return cast(Sequence[str] | None, parameter.default)

    def moments(self, pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        encoded = self.vae.encode(pictures)
        return (encoded.latent if hasattr(encoded, "latent") else encoded.latents), None

    def encode_text(self, captions: Sequence[str]) -> Mapping[str, Tensor]:
        text, mask, *_ = self.pipeline.encode_prompt(
            self.written_out(captions),
            do_classifier_free_guidance=False,
            device=self.text_device,
            max_sequence_length=self.text_length,
            complex_human_instruction=self.instruction,
        )
        return {"text": text, "mask": mask}

    def predict(self, noisy: Tensor, t: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        said = self.pipeline.transformer(
            hidden_states=noisy,
            timestep=t * self.pipeline.transformer.config.timestep_scale,
            encoder_hidden_states=conditioning["text"],
            encoder_attention_mask=upload(conditioning["mask"], noisy.device),
        )
        return cast(Tensor, said.sample)

    def request(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Pictures of the very size that is asked for, not of the nearest that Sana was trained at."""
        own = {"complex_human_instruction": self.instruction, "use_resolution_binning": False}
        return {**super().request(wanted), **own}
