"""Stable Diffusion 1.x and 2.x, and the lab: one CLIP text encoder, a UNet, an autoencoder, a DDPM noise path."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from loractl.errors import MismatchError
from loractl.families.prediction import DiffusionPath, NoisePath, noise_path


@dataclass(frozen=True)
class Posterior:
    """What the autoencoder says of pictures: means and, unless it is deterministic, spreads (n, c, h, w), scaled
    for the denoiser.
    """

    mean: Tensor
    spread: Tensor | None

    def sample(self, noise: Tensor) -> Tensor:
        return self.mean if self.spread is None else self.mean + self.spread * noise


class StableDiffusion:
    """A loaded pipeline and what training needs to know about it."""

    denoiser_name = "unet"
    text_encoder_names = ("text_encoder",)

    def __init__(
        self, pipeline: Any, dtype: torch.dtype, guidance: float = 7.5, guest_of: torch.device | None = None
    ) -> None:
        """`dtype` is the precision of the arithmetic; parameters that learn may be kept in fp32 all the same.

        The networks stay where they are; or they wait in main memory, and visit the device `guest_of` when `bring`
        calls them.
        """
        self.pipeline, self.dtype, self.guidance = pipeline, dtype, guidance
        self.vae, self.tokenizer, self.scheduler = pipeline.vae, pipeline.tokenizer, pipeline.scheduler
        self._guest_of = guest_of
        self.guests: frozenset[str] = frozenset()

    def bring(self, *names: str) -> None:
        """Has these networks on the device and no others, if they are guests there; otherwise all of them stay."""
        if self._guest_of is None or self.guests == frozenset(names):
            return
        for name in sorted(self.networks, key=names.__contains__):  # those that leave go first
            self.networks[name].to(self._guest_of if name in names else "cpu")
        self.guests = frozenset(names)

    @property
    def denoiser(self) -> nn.Module:
        return cast(nn.Module, self.pipeline.unet)

    @property
    def components(self) -> dict[str, nn.Module]:
        """The networks an adapter may change, by the pipeline's names for them."""
        return {"unet": self.pipeline.unet, "text_encoder": self.pipeline.text_encoder}

    @property
    def tokenizers(self) -> dict[str, Any]:
        """What splits a text into words, for each text encoder."""
        return {"text_encoder": self.tokenizer}

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {**self.components, "vae": self.vae}

    @property
    def device(self) -> torch.device:
        return self._guest_of or next(self.denoiser.parameters()).device

    def autocast(self) -> torch.autocast:
        """The context in which the networks compute: lower precision where it was asked for, fp32 parameters or not."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @cached_property
    def path(self) -> DiffusionPath:
        return noise_path(self.scheduler).to(self.device)

    @property
    def resolution(self) -> int:
        """The model's own picture size, in pixels."""
        return int(self.pipeline.unet.config.sample_size) * int(self.pipeline.vae_scale_factor)

    @property
    def is_inpainting(self) -> bool:
        """Whether the denoiser sees a mask and the masked picture beside the noise."""
        return int(self.pipeline.unet.config.in_channels) == 2 * int(self.vae.config.latent_channels) + 1

    def module_paths(self) -> list[str]:
        """Component and dotted path of every module that an adapter could name."""
        return [f"{name}.{path}" for name, part in self.components.items() for path, _ in part.named_modules() if path]

    def end_in_pure_noise(self) -> None:
        """Trains and samples along a path whose last step has no signal. MismatchError for a model that predicts ε."""
        if not isinstance(self.path, NoisePath):
            raise MismatchError("a flow model ends in pure noise as it is: leave noise.zero_terminal_snr out")
        self.path = self.path.with_zero_terminal_snr()
        config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        self.scheduler = self.pipeline.scheduler = type(self.scheduler).from_config(self.scheduler.config, **config)

    def enable_gradient_checkpointing(self) -> None:
        self.pipeline.unet.enable_gradient_checkpointing()

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> Posterior:
        """Pictures (n, 3, height, width) in [-1, 1] → their posterior in the denoiser's scale.

        Contiguous, as it will be when it comes from a file: arithmetic rounds otherwise in other memory layouts.
        """
        encoded = self.vae.encode(pictures.to(self.device, self.vae.dtype))
        scale = self.vae.config.scaling_factor
        if hasattr(encoded, "latent_dist"):  # AutoencoderKL; AutoencoderTiny is deterministic
            mean, spread = encoded.latent_dist.mean.float() * scale, encoded.latent_dist.std.float() * scale
            return Posterior(mean.contiguous(), spread.contiguous())
        return Posterior((encoded.latents.float() * scale).contiguous(), None)

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Captions → conditioning (n, tokens, width). Gradients flow where the text encoder has parameters that
        train. A learned token of several vectors takes up several words, as when the pipeline makes a picture.
        """
        tokens = self.tokenizer(
            self.pipeline.maybe_convert_prompt(list(captions), self.tokenizer),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return cast(Tensor, self.pipeline.text_encoder(tokens.input_ids.to(self.device))[0])

    def predict(self, noisy: Tensor, t: Tensor, conditioning: Tensor) -> Tensor:
        """The denoiser's output for x_t (n, c, h, w) at timesteps t (n,)."""
        return cast(Tensor, self.pipeline.unet(noisy, t, conditioning).sample)
