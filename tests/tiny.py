"""Pipelines of random weights, one of each family, small enough to build in a test, with all kinds of layers."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

P = TypeVar("P", bound=DiffusionPipeline)
WIDTH = 32  # of the text encoder, and of the UNet's cross-attention


def tiny_tokenizer() -> CLIPTokenizer:
    """Spells every word letter by letter."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    ids = {token: index for index, token in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=ids, merges=[], model_max_length=77, pad_token="<|endoftext|>")


def tiny_text_encoder(tokenizer: CLIPTokenizer, kind: type[Any] = CLIPTextModel) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return kind(config).eval()


def tiny_autoencoder() -> AutoencoderTiny:
    return AutoencoderTiny(encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8))


def tiny_unet(**changes: Any) -> UNet2DConditionModel:
    config = {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "norm_num_groups": 8,
        "attention_head_dim": 4,
        "cross_attention_dim": WIDTH,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**config | changes).eval()


def tiny_sd3_transformer(**changes: Any) -> SD3Transformer2DModel:
    config = {
        "sample_size": 8,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "caption_projection_dim": 32,
        "joint_attention_dim": WIDTH,
        "pooled_projection_dim": WIDTH,
        "pos_embed_max_size": 32,
    }
    return SD3Transformer2DModel(**config | changes).eval()


def tiny_flux_transformer(**changes: Any) -> FluxTransformer2DModel:
    config = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": WIDTH,
        "pooled_projection_dim": WIDTH,
        "axes_dims_rope": (4, 6, 6),
        "guidance_embeds": True,
    }
    return FluxTransformer2DModel(**config | changes).eval()


def seeded(make: Callable[[], P], seed: int = 0) -> P:
    """The pipeline that is made with this seed, always the same; torch's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = make()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_sd(seed: int = 0, **unet: Any) -> StableDiffusionPipeline:
    """A pipeline that depends on `seed` and what is changed in the UNet."""
    return seeded(lambda: _sd(**unet), seed)


def _sd(**unet: Any) -> StableDiffusionPipeline:
    tokenizer = tiny_tokenizer()
    return StableDiffusionPipeline(
        vae=tiny_autoencoder(),
        text_encoder=tiny_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=tiny_unet(**unet),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_sdxl() -> StableDiffusionXLPipeline:
    """Two text encoders, two residual blocks in a level as in the real one, two transformer blocks in an attention."""
    tokenizer = tiny_tokenizer()
    return StableDiffusionXLPipeline(
        vae=tiny_autoencoder(),
        text_encoder=tiny_text_encoder(tokenizer),
        text_encoder_2=tiny_text_encoder(tokenizer, CLIPTextModelWithProjection),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=tiny_unet(
            layers_per_block=2,
            cross_attention_dim=2 * WIDTH,
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        scheduler=DDIMScheduler(),
        add_watermarker=False,
    )


def tiny_sd3() -> StableDiffusion3Pipeline:
    """Without T5, as many use it."""
    tokenizer = tiny_tokenizer()
    return StableDiffusion3Pipeline(
        transformer=tiny_sd3_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=tiny_text_encoder(tokenizer, CLIPTextModelWithProjection),
        tokenizer=tokenizer,
        text_encoder_2=tiny_text_encoder(tokenizer, CLIPTextModelWithProjection),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def tiny_flux() -> FluxPipeline:
    """Without T5."""
    tokenizer = tiny_tokenizer()
    return FluxPipeline(
        transformer=tiny_flux_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=tiny_text_encoder(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=None,
        tokenizer_2=None,
    )


# Of each family a pipeline; Stable Diffusion 2 has linear layers around its attention.
TINY: Mapping[str, Callable[[], Any]] = {
    "sd_v1": tiny_sd,
    "sd_v2": lambda: tiny_sd(use_linear_projection=True),
    "sdxl_base_v1-0": tiny_sdxl,
    "sd3": tiny_sd3,
    "flux1": tiny_flux,
}


def tiny(version: str, seed: int = 0) -> Any:
    """The pipeline of a base model's version."""
    return seeded(TINY[version], seed)
