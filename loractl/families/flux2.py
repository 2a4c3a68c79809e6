"""Flux.2 Klein: three hidden states of Qwen 3; a transformer on a flow that sees 2 × 2 patches of whitened latents."""

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from loractl.errors import MismatchError
from loractl.families.family import Family
from loractl.families.packing import PATCH, grid, places, sequence
from loractl.families.prediction import DiffusionPath, noise_path
from loractl.families.targets import ATTENTION, TEXT_ATTENTION, preset_table

AXES = 4  # of positions: time, row, column, and the place in the text


class Flux2Klein(Family):
    """The text is the hidden states after layers 9, 18 and 27, side by side, of a text of fixed length, padding and
    all. The latents' four pixels of a patch are channels of their own, each with its mean and spread in the
    autoencoder's batch norm.
    """

    title = "Flux.2 Klein"
    guidance_default = 4.0
    version = "flux2"
    presets = preset_table(
        (*ATTENTION, *TEXT_ATTENTION, "to_qkv_mlp_proj"),  # the last is the first layer of the feed-forward as well
        ("ff.linear_in", "ff_context.linear_in"),
        ("ff.linear_out", "ff_context.linear_out", "single_transformer_blocks.*.attn.to_out"),
    )
    text_length = 512

    @cached_property
    def path(self) -> DiffusionPath:
        """The shift falls with the steps of a run as well: that of a picture of the model's own size in as many steps
        as the pipeline takes by itself.
        """
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        tokens = (self.resolution // self.multiple) ** 2
        steps = inspect.signature(self.pipeline.__call__).parameters["num_inference_steps"].default
        return noise_path(self.scheduler, mu=compute_empirical_mu(tokens, steps)).to(self.device)

    @property
    def shift(self) -> Tensor:
        return cast(Tensor, self.vae.bn.running_mean).float().view(1, -1, 1, 1)

    @property
    def scale(self) -> Tensor:
        variance = cast(Tensor, self.vae.bn.running_var).float().view(1, -1, 1, 1)
        return (variance + float(self.vae.config.batch_norm_eps)).rsqrt()

    def moments(self, pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        """(n, 4c, h/2, w/2). The spread is left out, as the model's makers do."""
        return F.pixel_unshuffle(self.vae.encode(pictures).latent_dist.mean, PATCH), None

    def decoded(self, latents: Tensor) -> Tensor:
        return super().decoded(F.pixel_shuffle(latents, PATCH))

    def unpacked(self, latents: Tensor, width: int, height: int) -> Tensor:
        return grid(latents, height // self.multiple, width // self.multiple)

    def encode_text(self, captions: Sequence[str]) -> Mapping[str, Tensor]:
        text, _ = self.pipeline.encode_prompt(
            self.written_out(captions), device=self.text_device, max_sequence_length=self.text_length
        )
        return {"text": text}

    def predict(self, noisy: Tensor, t: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        height, width = noisy.shape[2:]
        length = conditioning["text"].shape[1]
        in_text = torch.zeros(length, AXES, device=noisy.device)
        in_text[:, -1] = torch.arange(length, device=noisy.device)
        said = self.pipeline.transformer(
            hidden_states=sequence(noisy),
            timestep=t / self.path.steps,
            guidance=None,
            encoder_hidden_states=conditioning["text"],
            txt_ids=in_text,
            img_ids=places(height, width, AXES, noisy.device),
        )
        return grid(cast(Tensor, said.sample), height, width)

    def request(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        if any(wanted["negative_prompt"]):
            raise MismatchError(f"{self.title} takes no negative prompt: leave sample.negative out")
        return super().request({name: value for name, value in wanted.items() if name != "negative_prompt"})
