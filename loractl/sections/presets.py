"""What `memory.preset` stands for: settings for a GPU of that size, by the size of the base model.

A preset is resolved as the job is read, so the resolved job says what it became; keys that are set beside it win. What
fits is judged by `loractl plan`, for one picture at a step of the model's own size: tests/plan/test_presets.py.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from loractl.sections.cards import gigabytes
from loractl.specs import Section

S = TypeVar("S", bound=Section)
T = TypeVar("T", str, int)
Settings = Mapping[str, Any]

_LEAN: Settings = {"precision": "bf16", "phases": True, "cache_latents": True}
_LEANER: Settings = {**_LEAN, "gradient_checkpointing": True}

# Kinds of models, as `kind_of` tells them, by the size of their denoisers; all others are as large as they come.
_SIZES: Mapping[str, str] = {
    "StableDiffusionPipeline": "1B",
    "StableDiffusionInpaintPipeline": "1B",
    "StableDiffusionXLPipeline": "3B",
    "StableDiffusion3Pipeline": "3B",
    "SanaPipeline": "3B",
    "Flux2KleinPipeline": "6B",
    "ZImagePipeline": "6B",
    "Lumina2Pipeline": "6B",  # by what it keeps for backward, which is as much as Z-Image's; its weights are 2.6B
    "SanaPipeline, deep": "6B",
    "StableDiffusion3Pipeline, deep": "6B",
    "Flux2KleinPipeline, deep": "12B",
    "FluxPipeline": "12B",
    "one file": "12B",  # no family that comes in one file is larger
    "": "12B",  # a hub id: it may be a UNet, whose blocks can't be offloaded
}
_LARGEST = "20B"
# Pipelines that models of several sizes have: those with more layers than this are called deep.
_LAYERS = {"StableDiffusion3Pipeline": 24, "Flux2KleinPipeline": 5, "SanaPipeline": 28}

# Kinds of models whose text encoders leave room for themselves on a GPU of this size; those of the others read on the
# CPU.
_SMALL = {"StableDiffusionPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionXLPipeline"}
_SMALL |= {"SanaPipeline", "SanaPipeline, deep", "Lumina2Pipeline"}
_TEXTS_FIT = {"8gb": _SMALL, "12gb": _SMALL | {"FluxPipeline", "Flux2KleinPipeline", "ZImagePipeline"}}

PRESETS: Mapping[str, Mapping[str, Settings]] = {
    "8gb": {
        "1B": _LEAN,
        "3B": _LEANER,
        "6B": {**_LEANER, "quantize": "nf4"},
        "12B": {**_LEANER, "quantize": "nf4", "offload": "blocks"},
        _LARGEST: {**_LEANER, "quantize": "nf4", "offload": "blocks"},
    },
    "12gb": {
        "1B": _LEAN,
        "3B": _LEANER,
        "6B": {**_LEANER, "quantize": "fp8"},
        "12B": {**_LEANER, "quantize": "nf4"},
        _LARGEST: {**_LEANER, "quantize": "nf4", "offload": "blocks"},
    },
    "24gb": {
        "1B": {"precision": "bf16", "cache_latents": True},
        "3B": {"precision": "bf16", "cache_latents": True, "gradient_checkpointing": True},
        "6B": _LEANER,
        "12B": {**_LEANER, "quantize": "fp8"},
        _LARGEST: {**_LEANER, "quantize": "nf4"},
    },
}


# GiB of a card → the preset that "auto" stands for, the first that fits; with more, none is needed. What a card has
# and not what is free, which changes: an interrupted run shall go on with the settings that it began with. A driver
# counts a little less than the maker: 11.99 for 12, and 22.5 for 24 with error correction.
_ROOM = ((11.5, "8gb"), (22, "12gb"), (72, "24gb"))


def with_preset(memory: S, preset: str | None, source: str) -> S:
    """The section with a preset's settings for the model `source`, where it is silent."""
    if preset == "auto":
        preset = None if getattr(memory, "device", "auto") == "cpu" else fitting(gigabytes())
    if preset is None:
        return memory
    settings = {**PRESETS[preset][size(source)], **_of_texts(preset, source)}
    found = {key: settings[key] for key in settings.keys() - memory.model_fields_set}
    if not found.get("phases", getattr(memory, "phases", False)):
        found.pop("text_encoders", None)  # it is for networks that take turns
    return memory.model_copy(update=found)


def fitting(memory: float | None) -> str | None:
    """The preset for a GPU of so many GiB, if it needs one and there is one."""
    return None if memory is None else next((preset for most, preset in _ROOM if memory < most), None)


def _of_texts(preset: str, source: str) -> Settings:
    kind = kind_of(source)
    return {} if source == "lab" or kind in _TEXTS_FIT.get(preset, {kind}) else {"text_encoders": "cpu"}


def size(source: str) -> str:
    """How large a model's denoiser is, by what its folder says; what has none here is as Flux.1."""
    return "1B" if source == "lab" else _SIZES.get(kind_of(source), _LARGEST)


def kind_of(source: str) -> str:
    """The pipeline that a model's folder names, called deep if it is the larger of its family; or one file."""
    if Path(source).suffix in (".safetensors", ".ckpt"):
        return "one file"
    pipeline = pipeline_of(source)
    deep = pipeline in _LAYERS and _read(Path(source, "transformer/config.json"), "num_layers", 0) > _LAYERS[pipeline]
    return f"{pipeline}, deep" if deep else pipeline


def pipeline_of(source: str) -> str:
    """The pipeline that a model's folder names; nothing where there is no such folder."""
    return _read(Path(source, "model_index.json"), "_class_name", "")


def _read(file: Path, key: str, default: T) -> T:
    """What a file of JSON says, or the default where it says nothing of that type."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError):
        return default
    return value if isinstance(value, type(default)) else default
