"""Small models on disk, in both layouts, for the tests of checkpoints."""

import json
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from loractl.formats.natives import natives, row_ranges
from loractl.formats.safefile import write_tensors
from loractl.formats.sgm import to_sgm
from loractl.inject.targets import resolve
from loractl.tensors.adapter import Adapter
from tests.formats.adapters import random_update

NATIVE = "model.diffusion_model."
OPEN_CLIP = "cond_stage_model.model.transformer.resblocks"
WIDTH = 8  # of the text encoders


def small_unet(seed: int = 0) -> UNet2DConditionModel:
    """Two residual layers a level, as every UNet in the single-file layout has."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=2,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=2,
            norm_num_groups=4,
        )
    return model.eval()


def native(name: str) -> str:
    """A parameter of a UNet in Stable Diffusion 1 and 2, whose first level going up has no attention."""
    path, _, part = name.rpartition(".")
    return f"{to_sgm(path)}.{part}".replace("output_blocks.2.2.conv", "output_blocks.2.1.conv")


def open_clip(layers: int = 2) -> dict[str, Tensor]:
    """The matrices of a text encoder as OpenCLIP has them."""
    generator = torch.Generator().manual_seed(7)
    shapes = {
        "attn.in_proj_weight": (3 * WIDTH, WIDTH),
        "attn.in_proj_bias": (3 * WIDTH,),
        "attn.out_proj.weight": (WIDTH, WIDTH),
        "mlp.c_fc.weight": (4 * WIDTH, WIDTH),
        "mlp.c_proj.weight": (WIDTH, 4 * WIDTH),
    }
    return {
        f"{OPEN_CLIP}.{layer}.{name}": torch.randn(shape, generator=generator)
        for layer in range(layers)
        for name, shape in shapes.items()
    }


def write_single(path: Path, unet: nn.Module, dtype: torch.dtype = torch.float32) -> Path:
    """A file like those of Stable Diffusion 2, with a tensor that is none of an adapter's business."""
    tensors = {f"{NATIVE}{native(name)}": tensor for name, tensor in unet.state_dict().items()} | open_clip()
    tensors["first_stage_model.decoder.conv_in.weight"] = torch.ones(4, 4, 3, 3)
    write_tensors(path, {key: tensor.to(dtype) for key, tensor in tensors.items()}, {"kept": "yes", "sshs_hash": "old"})
    return path


def write_native(path: Path, transformer: nn.Module, base: str) -> Path:
    """A transformer's weights in one file as its maker has them; `base` is "sd3" or "flux"."""
    weights = {
        f"transformer.{name}": layer.weight.detach()
        for name, layer in transformer.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }
    tensors = {}
    for name, module in natives(weights, base).items():
        assert module
        first = weights[module.paths[0]]
        whole = first.new_empty(sum(len(weights[part]) for part in module.paths), *first.shape[1:])
        for part, ranges in row_ranges(module, len(whole), first.shape[1]).items():
            pieces = weights[part].split([len(rows) for rows in ranges])
            for rows, piece in zip(ranges, pieces, strict=True):
                whole[rows.start : rows.stop] = piece
        tensors[f"{NATIVE}{name}.weight"] = whole
    write_tensors(path, tensors, {})
    return path


def write_folder(path: Path, unet: UNet2DConditionModel) -> Path:
    unet.save_pretrained(path / "unet")
    (path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}), encoding="utf-8")
    return path


def unet_adapter(unet: nn.Module, rank: int = 2) -> Adapter:
    """Random updates of attention and convolutions, alpha unlike the rank."""
    generator = torch.Generator().manual_seed(3)
    modules = {}
    for path in resolve(unet, ["extended", "downsamplers.*", "upsamplers.*"], rank):
        shape = tuple(unet.get_parameter(f"{path}.weight").shape)
        modules[f"unet.{path}"] = random_update(shape, rank, 0.1, generator)
    return Adapter(modules)
