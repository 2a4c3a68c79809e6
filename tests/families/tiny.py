"""Whole pipelines of every family, of random weights.

64 × 64 pictures; with as few layers as make every kind of module appear.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from tests.families.texts import NARROW, gemma_tokenizer, language_model, qwen_tokenizer, qwen_vl, t5, t5_tokenizer
from tests.tiny import (
    WIDTH,
    seeded,
    tiny_flux_transformer,
    tiny_sd,
    tiny_sd3_transformer,
    tiny_sdxl,
    tiny_text_encoder,
    tiny_tokenizer,
)


def autoencoder(channels: int, **more: Any) -> Any:
    """Of four levels, so 64 pixels become 8."""
    return AutoencoderKL(latent_channels=channels, sample_size=64, **_LEVELS, **more)


_LEVELS: Mapping[str, Any] = {
    "block_out_channels": (8, 8, 8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
_FLUX_SCALE = {"scaling_factor": 0.3611, "shift_factor": 0.1159}


def sdxl() -> Any:
    pipeline = tiny_sdxl()
    pipeline.register_modules(tokenizer_2=tiny_tokenizer(), vae=autoencoder(4, scaling_factor=0.13025))
    return pipeline


def sd3(with_t5: bool = True) -> Any:
    clips, tokenizer = [tiny_tokenizer(), tiny_tokenizer()], t5_tokenizer() if with_t5 else None
    return StableDiffusion3Pipeline(
        transformer=tiny_sd3_transformer(joint_attention_dim=2 * WIDTH, pooled_projection_dim=2 * WIDTH),
        text_encoder=tiny_text_encoder(clips[0], CLIPTextModelWithProjection),
        tokenizer=clips[0],
        text_encoder_2=tiny_text_encoder(clips[1], CLIPTextModelWithProjection),
        tokenizer_2=clips[1],
        text_encoder_3=t5(tokenizer, 2 * WIDTH) if with_t5 else None,
        tokenizer_3=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(16, scaling_factor=1.5305, shift_factor=0.0609),
    )


def flux(guidance: bool = True) -> Any:
    clip, tokenizer = tiny_tokenizer(), t5_tokenizer()
    return FluxPipeline(
        transformer=tiny_flux_transformer(in_channels=64, num_layers=1, num_single_layers=1, guidance_embeds=guidance),
        text_encoder=tiny_text_encoder(clip),
        tokenizer=clip,
        text_encoder_2=t5(tokenizer),
        tokenizer_2=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=autoencoder(16, **_FLUX_SCALE),
    )


def flux2_klein() -> Any:
    """The text encoder has 27 layers, since the pipeline looks at the 9th, 18th and 27th."""
    tokenizer = qwen_tokenizer()
    vae = AutoencoderKLFlux2(
        latent_channels=4, sample_size=64, use_quant_conv=False, use_post_quant_conv=False, **_LEVELS
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * NARROW,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    encoder = language_model(Qwen3ForCausalLM, Qwen3Config, tokenizer, layers=27)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return Flux2KleinPipeline(scheduler, vae, encoder, tokenizer, transformer, is_distilled=False)


def qwen_image() -> Any:
    tokenizer = qwen_tokenizer()
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, -0.4],
        latents_std=[0.5, 1.0, 1.5, 2.0],
    )
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=NARROW,
        axes_dims_rope=(8, 4, 4),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return QwenImagePipeline(scheduler, vae, qwen_vl(tokenizer), tokenizer, transformer)


def z_image() -> Any:
    tokenizer = qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=NARROW,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
    )
    with torch.no_grad():  # diffusers leaves them as the memory was
        transformer.x_pad_token.fill_(1.0)
        transformer.cap_pad_token.fill_(1.0)
    encoder = language_model(Qwen3Model, Qwen3Config, tokenizer)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return ZImagePipeline(scheduler, autoencoder(16, **_FLUX_SCALE), encoder, tokenizer, transformer)


def sana() -> Any:
    tokenizer = gemma_tokenizer()
    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=NARROW,
        sample_size=32,
    )
    vae = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        encoder_qkv_multiscales=((), (), (), ()),
        decoder_qkv_multiscales=((), (), (), ()),
        encoder_layers_per_block=(1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        scaling_factor=0.41407,
    )
    encoder = language_model(Gemma2Model, Gemma2Config, tokenizer)
    return SanaPipeline(tokenizer, encoder, vae, transformer, FlowMatchEulerDiscreteScheduler(shift=3.0))


def lumina2() -> Any:
    tokenizer = gemma_tokenizer()
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=16,
        hidden_size=16,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 64, 64),
        cap_feat_dim=NARROW,
    )
    encoder = language_model(Gemma2Model, Gemma2Config, tokenizer)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    return Lumina2Pipeline(transformer, scheduler, autoencoder(16, **_FLUX_SCALE), encoder, tokenizer)


PIPELINES: Mapping[str, Callable[[], Any]] = {
    "sd": tiny_sd,
    "sd2": lambda: tiny_sd(use_linear_projection=True),
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "flux2": flux2_klein,
    "qwen_image": qwen_image,
    "z_image": z_image,
    "sana": sana,
    "lumina2": lumina2,
}


def whole(name: str, seed: int = 0) -> Any:
    """The family's pipeline."""
    return seeded(PIPELINES[name], seed)
