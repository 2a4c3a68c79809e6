"""Base models as plain data: what tells which one a source is, without torch and without a network.

A diffusers folder says it in model_index.json, a checkpoint in one file by the names of its tensors. Of hub ids those
of the models themselves are known by heart: what the cache holds would tell more, but then a job would be another one
as soon as its first run has fetched the model, and could not go on.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loractl.errors import MismatchError

SUFFIXES = (".safetensors", ".ckpt")
DENOISER = "model.diffusion_model."
_CONFIGS = Path(__file__).parent / "families/configs"
_HEADER_LIMIT = 100_000_000  # bytes, the safetensors library's own bound


@dataclass(frozen=True)
class Layout:
    """`parts` tells how the keys of each network begin, `optional` which the pipeline does without."""

    parts: Mapping[str, tuple[str, ...]]
    optional: tuple[str, ...] = ()


_VAE = ("first_stage_model.", "vae.")
_SD = Layout({"unet": (DENOISER,), "vae": _VAE, "text_encoder": ("cond_stage_model.",)})
_SDXL = Layout(
    {
        "unet": (DENOISER,),
        "vae": _VAE,
        "text_encoder": ("conditioner.embedders.0.",),
        "text_encoder_2": ("conditioner.embedders.1.",),
    }
)
_SD3 = Layout(
    {
        "transformer": (DENOISER, "joint_blocks."),
        "vae": _VAE,
        "text_encoder": ("text_encoders.clip_l.",),
        "text_encoder_2": ("text_encoders.clip_g.",),
        "text_encoder_3": ("text_encoders.t5xxl.",),
    },
    optional=("text_encoder_3",),
)
_FLUX = Layout(
    {
        "transformer": (DENOISER, "double_blocks."),
        "vae": _VAE,
        "text_encoder": ("text_encoders.clip_l.",),
        "text_encoder_2": ("text_encoders.t5xxl.",),
    }
)


@dataclass(frozen=True)
class Base:
    """A base model: how the keys begin that it alone has, a name for people, and the hub's model of its kind."""

    sign: str
    title: str
    repo: str
    layout: Layout


# The first row whose sign begins a key, its denoiser's prefix taken off, tells the base; the names are those of the
# folders of configurations. That Stable Diffusion 2 predicts v, as 2.1 does, is assumed: no key tells it.
BASES: Mapping[str, Base] = {
    "sdxl": Base("conditioner.embedders.1.", "Stable Diffusion XL", "stabilityai/stable-diffusion-xl-base-1.0", _SDXL),
    "sd_v2_v": Base("cond_stage_model.model.", "Stable Diffusion 2", "stabilityai/stable-diffusion-2-1", _SD),
    "sd_v1": Base(
        "cond_stage_model.transformer.", "Stable Diffusion 1", "stable-diffusion-v1-5/stable-diffusion-v1-5", _SD
    ),
    "sd35_large": Base(
        "joint_blocks.37.", "Stable Diffusion 3.5 large", "stabilityai/stable-diffusion-3.5-large", _SD3
    ),
    "sd35_medium": Base(
        "joint_blocks.0.x_block.attn2.", "Stable Diffusion 3.5 medium", "stabilityai/stable-diffusion-3.5-medium", _SD3
    ),
    "sd3": Base("joint_blocks.", "Stable Diffusion 3", "stabilityai/stable-diffusion-3-medium-diffusers", _SD3),
    "flux_dev": Base("guidance_in.", "Flux.1 dev", "black-forest-labs/FLUX.1-dev", _FLUX),
    "flux_schnell": Base("double_blocks.", "Flux.1 schnell", "black-forest-labs/FLUX.1-schnell", _FLUX),
}
_REFUSED = {
    "conditioner.embedders.0.model.": "the refiner of Stable Diffusion XL, which only retouches pictures that are "
    "nearly done: train the base model",
    "control_model.": "a ControlNet, which goes with a base model: train that one",
    "lora_": "an adapter, not a base model: name the model that it is for",
    "input_blocks.": "a UNet without text encoder and autoencoder, under names that lack their prefix: get the whole "
    "checkpoint",
}


def is_single_file(source: str) -> bool:
    return source.endswith(SUFFIXES)


def configurations(base: str) -> Path:
    """The diffusers folder with a base's configurations; it has no weights and no tokenizers."""
    return _CONFIGS / base


def recognize(path: Path, keys: Collection[str]) -> str:
    """The name in BASES for a checkpoint with these keys. MismatchError when it is none of them."""
    names = [key.removeprefix(DENOISER) for key in keys]

    def has(sign: str) -> bool:
        return any(name.startswith(sign) for name in names)

    refused = next((what for sign, what in _REFUSED.items() if any(key.startswith(sign) for key in keys)), None)
    found = None if refused else next((name for name, base in BASES.items() if has(base.sign)), None)
    if found is None:
        known = ", ".join(base.title for base in BASES.values())
        raise MismatchError(f"{path} is {refused or f'no checkpoint of a family that is known: there is {known}'}")
    return found


# Hub id → the name in BASES, or where there are no configurations of it here, the pipeline.
_HUB_BASES = {base.repo: name for name, base in BASES.items()} | {
    "CompVis/stable-diffusion-v1-4": "sd_v1",
    "stabilityai/stable-diffusion-2": "sd_v2_v",
}
_HUB_PIPELINES = {
    "Qwen/Qwen-Image": "QwenImagePipeline",
    "Tongyi-MAI/Z-Image-Turbo": "ZImagePipeline",
    "Efficient-Large-Model/Sana_1600M_1024px_diffusers": "SanaPipeline",
    "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers": "SanaPipeline",
    "Alpha-VLLM/Lumina-Image-2.0": "Lumina2Pipeline",
}


def pipeline_of(source: str) -> str:
    """The pipeline of a model; nothing where it can't be told."""
    index = configuration(source, "model_index.json")
    return str(index["_class_name"]) if "_class_name" in index else _HUB_PIPELINES.get(source, "")


def configuration(source: str, name: str) -> Mapping[str, Any]:
    """One of a model's configurations, as "transformer/config.json"; empty for the lab, and where it can't be told."""
    if source == "lab":
        return {}
    try:
        found = json.loads((_folder(source) / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, MismatchError):
        return {}
    return found if isinstance(found, dict) else {}


def _folder(source: str) -> Path:
    """The diffusers folder that has the configurations."""
    path = Path(source)
    if is_single_file(source) and path.is_file():
        return configurations(recognize(path, _names(path)))
    return configurations(_HUB_BASES[source]) if source in _HUB_BASES and not path.is_dir() else path


def _names(path: Path) -> Collection[str]:
    """Of the tensors of a safetensors file, whose header is checked when the file is loaded."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > _HEADER_LIMIT:
            raise ValueError(f"{path} is no safetensors file")
        header = json.loads(file.read(size))
    return header.keys() if isinstance(header, dict) else ()
