"""Tiny models for the tests of injection."""

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from loractl.inject.inject import adapter_parameters


def tiny_unet(dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """A UNet with every kind of layer that SD 1.5 has, and 90,000 parameters."""
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return model.eval().to(dtype)


def denoise(model: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    """The UNet's output for a fixed input."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 8, 8, generator=generator).to(dtype)
    context = torch.randn(2, 5, 16, generator=generator).to(dtype)
    output: Tensor = model(latents, torch.tensor([3, 700]), context).sample
    return output


def disturb(model: nn.Module, name: str = "default") -> None:
    """Makes every factor of an adapter random, so that it shows in the output."""
    generator = torch.Generator().manual_seed(2)
    for parameter in adapter_parameters(model, name).values():
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
