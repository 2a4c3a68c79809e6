"""The denoisers whose training step is measured, of random weights, and what they are called with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from torch import nn

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A model by its configuration, what it is called with, and at most how many frozen steps a step of ours takes."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    goal: float | None = None


def unet(**config: Any) -> Callable[[], nn.Module]:
    return lambda: UNet2DConditionModel(**config)


def small(channels: tuple[int, ...], heads: int, context: int) -> Callable[[], nn.Module]:
    """As the lab's: convolutions at the first level, attention below."""
    middle = ("CrossAttnDownBlock2D",) * (len(channels) - 1), ("CrossAttnUpBlock2D",) * (len(channels) - 1)
    return unet(
        block_out_channels=channels,
        layers_per_block=1,
        attention_head_dim=heads,
        cross_attention_dim=context,
        norm_num_groups=16,
        down_block_types=("DownBlock2D", *middle[0]),
        up_block_types=(*middle[1], "UpBlock2D"),
    )


def pictures(batch: int, side: int, context: int, tokens: int = 77) -> Callable[[], Inputs]:
    def make() -> Inputs:
        return {
            "sample": torch.randn(batch, 4, side, side),
            "timestep": torch.arange(batch) * 100,
            "encoder_hidden_states": torch.randn(batch, tokens, context),
        }

    return make


def sdxl_pictures(batch: int) -> Inputs:
    more = {"text_embeds": torch.randn(batch, 1280), "time_ids": torch.full((batch, 6), 1024.0)}
    return {**pictures(batch, 128, 2048)(), "added_cond_kwargs": more}


def flux_pictures(batch: int, side: int = 64, words: int = 512) -> Inputs:
    return {
        "hidden_states": torch.randn(batch, side * side // 4, 64),
        "encoder_hidden_states": torch.randn(batch, words, 4096),
        "pooled_projections": torch.randn(batch, 768),
        "timestep": torch.full((batch,), 0.5),
        "guidance": torch.full((batch,), 3.5),
        "img_ids": torch.zeros(side * side // 4, 3),
        "txt_ids": torch.zeros(words, 3),
    }


SDXL = {
    "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
CPU_CASES = {
    "0.8 M": Case(small((32, 32, 48), 4, 32), pictures(8, 16, 32), 1.30),
    "17.5 M": Case(small((96, 160, 240), 4, 96), pictures(4, 32, 96), 1.03),
}
GPU_CASES = {
    "SD 1.5": Case(unet(cross_attention_dim=768), pictures(4, 64, 768)),
    "SDXL": Case(unet(**SDXL), lambda: sdxl_pictures(1)),
    "Flux": Case(lambda: FluxTransformer2DModel(guidance_embeds=True), lambda: flux_pictures(1)),
}
