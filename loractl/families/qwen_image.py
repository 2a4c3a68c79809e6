"""Qwen-Image: Qwen 2.5-VL's text; a transformer on a flow that sees 2 × 2 patches; an autoencoder for videos."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from loractl.device import upload
from loractl.families.conditioning import padded
from loractl.families.family import Family
from loractl.families.packing import PATCH, pack, unpack
from loractl.families.targets import ATTENTION, TEXT_ATTENTION, preset_table


class QwenImage(Family):
    """The text is the last hidden state, as long as the caption, without the sentence that introduces it."""

    title = "Qwen-Image"
    guidance_default = 4.0
    version = "qwen-image"
    presets = preset_table(
        ATTENTION + TEXT_ATTENTION,
        ("img_mlp.net.0.proj", "txt_mlp.net.0.proj"),
        ("img_mlp.net.2", "txt_mlp.net.2"),
    )
    text_length = 512

    @property
    def shift(self) -> Tensor:
        return self._by_channel(self.vae.config.latents_mean)

    @property
    def scale(self) -> Tensor:
        return 1 / self._by_channel(self.vae.config.latents_std)

    def _by_channel(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=self.device).view(1, -1, 1, 1)

    def moments(self, pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of videos of one frame."""
        posterior = self.vae.encode(pictures.unsqueeze(2)).latent_dist
        return posterior.mean.squeeze(2), posterior.std.squeeze(2)

    def decoded(self, latents: Tensor) -> Tensor:
        return super().decoded(latents.unsqueeze(2))[:, :, 0]

    def unpacked(self, latents: Tensor, width: int, height: int) -> Tensor:
        return unpack(latents, height // self.multiple * PATCH, width // self.multiple * PATCH)

    def encode_text(self, captions: Sequence[str]) -> Mapping[str, Tensor]:
        text, mask = self.pipeline.encode_prompt(
            self.written_out(captions), device=self.text_device, max_sequence_length=self.text_length
        )
        return padded(list(text)) if mask is None else {"text": text, "mask": mask.cpu()}

    def predict(self, noisy: Tensor, t: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        height, width = noisy.shape[2:]
        mask = conditioning["mask"]
        said = self.pipeline.transformer(
            hidden_states=pack(noisy),
            timestep=t / self.path.steps,
            encoder_hidden_states=conditioning["text"],
            encoder_hidden_states_mask=None if mask.all() else upload(mask, noisy.device),
            img_shapes=[[(1, height // PATCH, width // PATCH)]] * len(noisy),
        )
        return unpack(cast(Tensor, said.sample), height, width)

    def request(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Guidance is the true one here."""
        others = {name: value for name, value in wanted.items() if name != "guidance_scale"}
        return {**super().request(others), "true_cfg_scale": wanted["guidance_scale"]}
