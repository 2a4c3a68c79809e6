"""Stable Diffusion XL: two CLIP text encoders, and a UNet that is also told the second one's summary and the sizes.

Podell et al. 2023, "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis", section 2.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from loractl.device import upload
from loractl.errors import MismatchError
from loractl.families.family import Family


class StableDiffusionXL(Family):
    """The text is both encoders' hidden states but the last, side by side; "pooled" is the second's projection."""

    title = "Stable Diffusion XL"
    denoiser_name = "unet"
    encoders: ClassVar[Mapping[str, str]] = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    adaptable = ("text_encoder", "text_encoder_2")
    guidance_default = 5.0
    version = "sdxl_base_v1-0"
    has_kohya_names = True

    def __init__(self, pipeline: Any, *arguments: Any, **more: Any) -> None:
        if pipeline.text_encoder is None or getattr(pipeline.config, "requires_aesthetics_score", False):
            raise MismatchError(
                "this is the refiner of Stable Diffusion XL, which only retouches pictures that are nearly done: train "
                "the base model"
            )
        super().__init__(pipeline, *arguments, **more)

    @property
    def multiple(self) -> int:
        return 1  # its UNet takes any size

    def encode_text(self, captions: Sequence[str]) -> Mapping[str, Tensor]:
        text, _, pooled, _ = self.pipeline.encode_prompt(
            list(captions), device=self.text_device, do_classifier_free_guidance=False
        )
        return {"text": text, "pooled": pooled}

    def told_of_sizes(self, conditioning: Any, sizes: Tensor) -> Mapping[str, Tensor]:
        return {**conditioning, "sizes": sizes}

    def predict(self, noisy: Tensor, t: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        """Without other sizes it is told that the picture is not cut, as the pipeline tells it of what it makes."""
        sizes = conditioning["sizes"] if "sizes" in conditioning else self._uncut(noisy)
        extra = {"text_embeds": conditioning["pooled"], "time_ids": sizes}
        return cast(Tensor, self.pipeline.unet(noisy, t, conditioning["text"], added_cond_kwargs=extra).sample)

    def _uncut(self, noisy: Tensor) -> Tensor:
        height, width = (int(self.pipeline.vae_scale_factor) * side for side in noisy.shape[2:])
        sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
        return upload(sizes, noisy.device).repeat(len(noisy), 1)
