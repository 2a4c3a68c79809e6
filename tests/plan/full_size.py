"""The public models at their full size, as diffusers folders of configurations without weights.

What loractl has itself is copied; the values of the others are those of the files that their publishers give, as far as
shapes follow from them:

    black-forest-labs/FLUX.2-klein-4B      Alpha-VLLM/Lumina-Image-2.0      Qwen/Qwen-Image
    Efficient-Large-Model/Sana_1600M_1024px_diffusers                       Tongyi-MAI/Z-Image-Turbo

`python -m tests.plan.full_size` prints the table of planned peaks in docs/plan.md.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from loractl.cli.plan import Planned, planned
from loractl.families.single_file import configurations
from loractl.job import override, read_job
from loractl.plugins import load_plugins
from loractl.sections.presets import PRESETS
from tests.methods.lab_job import JOBS

Config = Mapping[str, Any]

_DOWN, _UP = ["DownEncoderBlock2D"] * 4, ["UpDecoderBlock2D"] * 4
_LEVELS = {"block_out_channels": [128, 256, 512, 512], "down_block_types": _DOWN, "up_block_types": _UP}
_KL = {"layers_per_block": 2, "norm_num_groups": 32, "sample_size": 1024, "force_upcast": True, **_LEVELS}
_FLUX_VAE = {
    "_class_name": "AutoencoderKL",
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    **_KL,
}
_FLUX2_VAE = {"_class_name": "AutoencoderKLFlux2", "latent_channels": 32, "patch_size": [2, 2], **_KL}
_QWEN_VAE = {
    "_class_name": "AutoencoderKLQwenImage",
    "base_dim": 96,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
}
_DC_LEVELS = [128, 256, 512, 512, 1024, 1024]
_DC_BLOCKS = ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3
_DC_VAE = {
    "_class_name": "AutoencoderDC",
    "latent_channels": 32,
    "attention_head_dim": 32,
    "encoder_block_types": _DC_BLOCKS,
    "decoder_block_types": _DC_BLOCKS,
    "encoder_block_out_channels": _DC_LEVELS,
    "decoder_block_out_channels": _DC_LEVELS,
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    "decoder_layers_per_block": [3] * 6,
    "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "downsample_block_type": "Conv",
    "upsample_block_type": "interpolate",
    "scaling_factor": 0.41407,
}
_QWEN3_4B = {
    "model_type": "qwen3",
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}
_GEMMA2_2B = {
    "model_type": "gemma2",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 256000,
    "max_position_embeddings": 8192,
}
_QWEN25_VL_7B = {
    "model_type": "qwen2_5_vl",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 128000,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "tie_word_embeddings": False,
    "vision_config": {
        "model_type": "qwen2_5_vl",
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
    },
}

# Model → its pipeline, the class of its text encoder, and the configurations of its networks.
_OTHERS: Mapping[str, tuple[str, str, Mapping[str, Config]]] = {
    "flux2_klein_4b": (
        "Flux2KleinPipeline",
        "Qwen3ForCausalLM",
        {
            "transformer": {
                "_class_name": "Flux2Transformer2DModel",
                "patch_size": 1,
                "in_channels": 128,
                "num_layers": 5,
                "num_single_layers": 20,
                "attention_head_dim": 128,
                "num_attention_heads": 24,
                "joint_attention_dim": 7680,
                "mlp_ratio": 3.0,
                "axes_dims_rope": [32, 32, 32, 32],
                "rope_theta": 2000,
                "guidance_embeds": False,
            },
            "text_encoder": _QWEN3_4B,
            "vae": _FLUX2_VAE,
        },
    ),
    "qwen_image": (
        "QwenImagePipeline",
        "Qwen2_5_VLForConditionalGeneration",
        {
            "transformer": {
                "_class_name": "QwenImageTransformer2DModel",
                "patch_size": 2,
                "in_channels": 64,
                "out_channels": 16,
                "num_layers": 60,
                "attention_head_dim": 128,
                "num_attention_heads": 24,
                "joint_attention_dim": 3584,
                "axes_dims_rope": [16, 56, 56],
            },
            "text_encoder": _QWEN25_VL_7B,
            "vae": _QWEN_VAE,
        },
    ),
    "z_image": (
        "ZImagePipeline",
        "Qwen3Model",
        {
            "transformer": {
                "_class_name": "ZImageTransformer2DModel",
                "all_patch_size": [2],
                "all_f_patch_size": [1],
                "in_channels": 16,
                "dim": 3840,
                "n_layers": 30,
                "n_refiner_layers": 2,
                "n_heads": 30,
                "n_kv_heads": 30,
                "cap_feat_dim": 2560,
                "axes_dims": [32, 48, 48],
                "axes_lens": [1536, 512, 512],
                "qk_norm": True,
            },
            "text_encoder": _QWEN3_4B,
            "vae": _FLUX_VAE,
        },
    ),
    "sana_1.6b": (
        "SanaPipeline",
        "Gemma2Model",
        {
            "transformer": {
                "_class_name": "SanaTransformer2DModel",
                "sample_size": 32,
                "patch_size": 1,
                "in_channels": 32,
                "out_channels": 32,
                "num_layers": 20,
                "num_attention_heads": 70,
                "attention_head_dim": 32,
                "num_cross_attention_heads": 20,
                "cross_attention_head_dim": 112,
                "cross_attention_dim": 2240,
                "caption_channels": 2304,
                "mlp_ratio": 2.5,
            },
            "text_encoder": _GEMMA2_2B,
            "vae": _DC_VAE,
        },
    ),
    "lumina2": (
        "Lumina2Pipeline",
        "Gemma2Model",
        {
            "transformer": {
                "_class_name": "Lumina2Transformer2DModel",
                "sample_size": 128,
                "patch_size": 2,
                "in_channels": 16,
                "hidden_size": 2304,
                "num_layers": 26,
                "num_refiner_layers": 2,
                "num_attention_heads": 24,
                "num_kv_heads": 8,
                "multiple_of": 256,
                "axes_dim_rope": [32, 32, 32],
                "axes_lens": [300, 512, 512],
                "cap_feat_dim": 2304,
            },
            "text_encoder": _GEMMA2_2B,
            "vae": _FLUX_VAE,
        },
    ),
}
# Preset → a GPU of the table that has so much memory.
GPUS = {"8gb": "RTX 3070", "12gb": "RTX 3060", "24gb": "RTX 3090"}
_JOB = """
method = "dreambooth"
model = "{folder}"
data.path = "{pictures}"
subject.prompt = "a photo of a sks cat"
adapter.rank = 16
train.batch_size = {batch}
memory.preset = "{preset}"
"""
_OWN = ("sd_v1", "sdxl", "sd3", "sd35_medium", "sd35_large", "flux_dev")
MODELS = (*_OWN, *_OTHERS)


def full_size(model: str, folder: Path) -> Path:
    """A diffusers folder of one of the models, written below `folder`."""
    path = folder / model
    if model in _OWN:
        return Path(shutil.copytree(configurations(model), path))
    pipeline, encoder, networks = _OTHERS[model]
    index = {name: ["diffusers", config.get("_class_name")] for name, config in networks.items()}
    index["text_encoder"] = ["transformers", encoder]
    for name, config in networks.items():
        _write(path / name / "config.json", config)
    _write(path / "model_index.json", {"_class_name": pipeline, **index})
    return path


def plan(folder: Path, preset: str, batch: int, *changes: str) -> Planned:
    """What `loractl plan` says of a DreamBooth job at the model's own size, on the GPU that the preset is for."""
    job = folder / f"{preset}-{batch}.toml"
    values = {"folder": folder, "pictures": JOBS / "data/subject", "batch": batch, "preset": preset}
    job.write_text(_JOB.format(**values), encoding="utf-8")
    return planned(read_job(job, load_plugins().methods, [override(change) for change in changes]), GPUS[preset])


def batch(model: str) -> int:
    """Pictures of a step for which presets are meant: the smallest models have room for more than one."""
    return 4 if model == "sd_v1" else 1


def _write(file: Path, values: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values), encoding="utf-8")


def main() -> None:
    """A row for each model: GiB with each preset, for one picture at a step and for two, or as many as there may be."""
    with TemporaryDirectory() as temporary:
        for model in MODELS:
            folder, most = full_size(model, Path(temporary)), max(batch(model), 2)
            cells = (" / ".join(_peak(folder, preset, pictures) for pictures in (1, most)) for preset in PRESETS)
            print(f"| {model} | {' | '.join(cells)} |", flush=True)


def _peak(folder: Path, preset: str, pictures: int) -> str:
    return f"{plan(folder, preset, pictures)['peak_bytes'] / 2**30:.1f}"


if __name__ == "__main__":
    main()
