"""Names, vectors and presets of block weights are those that people know."""

import json
from pathlib import Path

import pytest
import torch
from loractl_merge.blocks import PRESETS, VECTORS, block_of, factors


def test_blocks_are_those_of_the_original_code() -> None:
    """The short vectors name the blocks with attention, 17 those of SD 1.5 and 12 those of SDXL; the long name all."""
    from diffusers import UNet2DConditionModel

    folder = Path(__file__).parents[1] / "data" / "sd15"
    xl = {"down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2]}
    xl |= {"up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"], "block_out_channels": [32, 64, 64]}
    for config, short, long in ((json.loads((folder / "unet.json").read_text()), 17, 26), (xl, 12, 20)):
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(config)
        names = [name for name, module in unet.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)]
        blocks = {name: block_of(f"unet.{name}") for name in names}
        assert {block for name, block in blocks.items() if ".attn" in name} == {*VECTORS[short]} - {"BASE"}
        assert {block for block in blocks.values() if block} == {*VECTORS[long]} - {"BASE"}
        assert {name.partition(".")[0] for name, block in blocks.items() if not block} == {"conv_out", "time_embedding"}


@pytest.mark.parametrize(
    ("path", "block"),
    [
        ("text_encoder_2.encoder.layers.3.mlp.fc1", "BASE"),
        ("unet.down_blocks.0.downsamplers.0.conv", "IN03"),
        ("unet.down_blocks.1.attentions.0.proj_in", "IN04"),
        ("unet.down_blocks.3.resnets.1.conv2", "IN11"),
        ("unet.up_blocks.0.upsamplers.0.conv", "OUT02"),
        ("unet.up_blocks.1.attentions.0.proj_in", "OUT03"),
        ("unet.up_blocks.3.resnets.2.conv1", "OUT11"),
    ],
)
def test_a_block_by_its_name(path: str, block: str) -> None:
    assert block_of(path) == block


def test_a_short_vector_leaves_the_rest_at_nothing() -> None:
    assert {block for block, factor in factors(PRESETS["INS"]).items() if factor} == {"BASE", "IN01", "IN02", "IN04"}
    assert len(factors([1.0] * 12)) == 26 and sum(factors([1.0] * 12).values()) == 12
    assert {len(vector) for vector in PRESETS.values()} == {17}
