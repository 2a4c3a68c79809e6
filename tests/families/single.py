"""Tiny pipelines as single files in the layout of A1111, named by loractl's own maps."""

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from loractl.formats.natives import natives
from loractl.formats.safefile import write_tensors
from loractl.formats.sgm import to_sgm
from tests.families import tiny
from tests.formats.models import NATIVE, native
from tests.tiny import (
    WIDTH,
    tiny_flux_transformer,
    tiny_sd,
    tiny_sd3_transformer,
    tiny_sdxl,
    tiny_text_encoder,
    tiny_tokenizer,
    tiny_unet,
)

NARROW = 24  # of the second text encoder: by their widths diffusers tells two apart
_VAE = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
    "mid_block.attentions.0.to_q": "mid.attn_1.q",
    "mid_block.attentions.0.to_k": "mid.attn_1.k",
    "mid_block.attentions.0.to_v": "mid.attn_1.v",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "down_blocks.": "down.",
    "up_blocks.0.": "up.1.",  # the decoder's levels are counted from the picture's size
    "up_blocks.1.": "up.0.",
    "resnets.": "block.",
}
_OPEN_CLIP = {
    "encoder.layers.": "transformer.resblocks.",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
}

_FLUX_NORMS = {
    "single_transformer_blocks.": "single_blocks.",
    "transformer_blocks.": "double_blocks.",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "0.attn.norm_q.weight": "0.img_attn.norm.query_norm.scale",
    "0.attn.norm_k.weight": "0.img_attn.norm.key_norm.scale",
}


def autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=64,
    ).eval()


def sd() -> Any:
    """As real ones: two residual layers a level, an autoencoder with a posterior."""
    pipeline = tiny_sd(layers_per_block=2)
    pipeline.register_modules(vae=autoencoder())
    return pipeline


def sd2() -> Any:
    pipeline = tiny_sd(layers_per_block=2, use_linear_projection=True)
    pipeline.register_modules(vae=autoencoder())
    return pipeline


def sdxl() -> Any:
    pipeline = tiny_sdxl()
    torch.manual_seed(1)
    config = CLIPTextConfig.from_dict(pipeline.text_encoder_2.config.to_dict() | {"hidden_size": NARROW})
    unet = tiny_unet(**dict(pipeline.unet.config) | {"cross_attention_dim": WIDTH + NARROW})
    pipeline.register_modules(vae=autoencoder(), text_encoder_2=CLIPTextModelWithProjection(config).eval(), unet=unet)
    return pipeline


def sd3() -> Any:
    """Without T5, which is optional. Diffusers gives the first encoder of a file a projection that changes nothing."""
    tokenizers = [tiny_tokenizer(), tiny_tokenizer()]
    torch.manual_seed(2)
    first = tiny_text_encoder(tokenizers[0], CLIPTextModelWithProjection)
    torch.nn.init.eye_(first.text_projection.weight)
    config = CLIPTextConfig.from_dict(first.config.to_dict() | {"hidden_size": NARROW})
    return StableDiffusion3Pipeline(
        transformer=tiny_sd3_transformer(num_layers=2),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(),
        text_encoder=first,
        tokenizer=tokenizers[0],
        text_encoder_2=CLIPTextModelWithProjection(config).eval(),
        tokenizer_2=tokenizers[1],
        text_encoder_3=None,
        tokenizer_3=None,
    )


def flux() -> Any:
    """As wide as the real one, whatever its depth: diffusers takes the fused layers of a file apart at that width."""
    pipeline = tiny.flux()
    with torch.device("meta"):
        transformer = tiny_flux_transformer(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=128,
            num_attention_heads=24,
            axes_dims_rope=(16, 56, 56),
        )
    transformer = transformer.to(torch.bfloat16).to_empty(device="cpu")
    for number, parameter in enumerate(transformer.parameters()):  # quicker than to draw half a billion numbers
        rows = torch.arange(parameter.shape[0], dtype=torch.float32).add(number).sin().div(100)
        parameter.data.copy_(rows.view(-1, *[1] * (parameter.ndim - 1)).expand_as(parameter))
    pipeline.register_modules(transformer=transformer, vae=autoencoder())
    return pipeline


def renamed(name: str, table: dict[str, str]) -> str:
    for own, theirs in table.items():
        name = name.replace(own, theirs)
    return name


def sd_tensors(pipeline: Any) -> dict[str, Tensor]:
    return {
        **{NATIVE + native(name): value for name, value in state(pipeline.unet)},
        **vae_tensors(pipeline.vae),
        **{f"cond_stage_model.transformer.{name}": value for name, value in clip(pipeline.text_encoder)},
    }


def sd2_tensors(pipeline: Any) -> dict[str, Tensor]:
    """The projection is there, though nothing reads it."""
    encoder = {f"cond_stage_model.model.{name}": value for name, value in open_clip(pipeline.text_encoder)}
    rest = without(sd_tensors(pipeline), "cond_stage_model.")
    return rest | encoder | {"cond_stage_model.model.text_projection": torch.eye(WIDTH)}


def sd3_tensors(pipeline: Any) -> dict[str, Tensor]:
    transformer = dict(state(pipeline.transformer))
    found = {"pos_embed": transformer.pop("pos_embed.pos_embed"), **fused(transformer, "sd3")}
    return {
        **{NATIVE + name: value for name, value in found.items()},
        **texts(clip_l=state(pipeline.text_encoder), clip_g=state(pipeline.text_encoder_2)),
        **vae_tensors(pipeline.vae),
    }


def flux_tensors(pipeline: Any) -> dict[str, Tensor]:
    transformer = dict(state(pipeline.transformer))
    norms = {name: transformer.pop(name) for name in list(transformer) if ".attn.norm_" in name}
    named = {renamed(name, _FLUX_NORMS): value for name, value in norms.items()}
    found = {re.sub(r"^(single_blocks\.\d+\.)img_attn\.", r"\1", name): each for name, each in named.items()}
    found |= fused(transformer, "flux")
    return {
        **{NATIVE + name: value for name, value in found.items()},
        **texts(clip_l=clip(pipeline.text_encoder), t5xxl=state(pipeline.text_encoder_2)),
        **vae_tensors(pipeline.vae),
    }


def fused(transformer: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """A transformer's tensors as its makers name them; the halves of the last modulation change places."""
    found = {}
    for name, module in natives(sorted({f"transformer.{key.rpartition('.')[0]}" for key in transformer}), kind).items():
        assert module is not None
        turned = "adaLN" in name and ("final" in name or name.startswith("joint_blocks.1.context"))
        for part in ("weight", "bias"):
            rows = [transformer[f"{path.removeprefix('transformer.')}.{part}"] for path in module.paths]
            found[f"{name}.{part}"] = torch.cat(rows[0].chunk(2)[::-1] if turned else rows)
    return found


def texts(**encoders: list[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {
        f"text_encoders.{short}.transformer.{name}": value
        for short, tensors in encoders.items()
        for name, value in tensors
    }


def clip(encoder: nn.Module) -> list[tuple[str, Tensor]]:
    """As all files have it, and transformers had it before 5."""
    return [(f"text_model.{name.removeprefix('text_model.')}", value) for name, value in state(encoder)]


def sdxl_tensors(pipeline: Any) -> dict[str, Tensor]:
    unet = {}
    for name, value in state(pipeline.unet):
        path, _, part = name.rpartition(".")
        unet[f"{NATIVE}{to_sgm(path)}.{part}"] = value
    first = {f"conditioner.embedders.0.transformer.{name}": value for name, value in clip(pipeline.text_encoder)}
    second = {f"conditioner.embedders.1.model.{name}": value for name, value in open_clip(pipeline.text_encoder_2)}
    return unet | vae_tensors(pipeline.vae) | first | second


def open_clip(encoder: nn.Module) -> list[tuple[str, Tensor]]:
    """Rows of q, k and v in one tensor; the projection transposed."""
    tensors = {name.removeprefix("text_model."): value for name, value in state(encoder)}
    projection = tensors.pop("text_projection.weight", None)
    found = [] if projection is None else [("text_projection", projection.T.contiguous())]
    for name in [name for name in tensors if ".q_proj." in name]:
        rows = torch.cat([tensors.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")])
        fused = name.replace("self_attn.q_proj.", "attn.in_proj_")
        found.append((renamed(fused, _OPEN_CLIP), rows))
    return found + [(renamed(name, _OPEN_CLIP), value) for name, value in tensors.items()]


def vae_tensors(vae: nn.Module) -> dict[str, Tensor]:
    """Attention as 1 × 1 convolutions, which it was."""
    found = {}
    for name, value in state(vae):
        theirs = renamed(name, _VAE)
        is_matrix = ".attn_1." in theirs and value.ndim == 2
        found[f"first_stage_model.{theirs}"] = value[:, :, None, None] if is_matrix else value
    return found


def state(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, value.detach().contiguous()) for name, value in network.state_dict().items()]


def configurations_of(pipeline: Any, folder: Path, keep: tuple[str, ...] = ()) -> Path:
    """A diffusers folder of the pipeline without weights but those of `keep`."""
    pipeline.save_pretrained(folder)
    for file in folder.glob("*/*.safetensors"):
        if file.parent.name not in keep:
            file.unlink()
    return folder


def write(path: Path, tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> Path:
    if path.suffix == ".ckpt":
        torch.save({"state_dict": tensors}, path)
    else:
        write_tensors(path, {key: value.to(dtype) for key, value in tensors.items()}, {})
    return path


def without(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if not key.startswith(prefix)}
