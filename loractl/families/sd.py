"""Stable Diffusion 1.x and 2.x, and the lab: one CLIP text encoder, a UNet, an autoencoder, a DDPM noise path."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

from torch import Tensor

from loractl.device import upload
from loractl.families.family import Family


class StableDiffusion(Family):
    """The text is CLIP's last hidden state, as the pipeline's configuration has it."""

    title = "Stable Diffusion 1 and 2"
    denoiser_name = "unet"
    adaptable = ("text_encoder",)
    guidance_default = 7.5
    has_kohya_names = True
    loading: ClassVar[Mapping[str, Any]] = {"safety_checker": None}

    @property
    def resolution(self) -> int:
        return int(self.pipeline.unet.config.sample_size) * int(self.pipeline.vae_scale_factor)

    @property
    def is_inpainting(self) -> bool:
        return int(self.pipeline.unet.config.in_channels) == 2 * int(self.vae.config.latent_channels) + 1

    @property
    def multiple(self) -> int:
        return 1  # its UNet takes any size

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """(n, tokens, width)."""
        tokens = self.tokenizer(
            self.pipeline.maybe_convert_prompt(list(captions), self.tokenizer),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return cast(Tensor, self.pipeline.text_encoder(upload(tokens.input_ids, self.text_device))[0])

    def predict(self, noisy: Tensor, t: Tensor, conditioning: Tensor) -> Tensor:
        return cast(Tensor, self.pipeline.unet(noisy, t, conditioning).sample)
