"""What `memory.preset` stands for: settings for a GPU of that size, by the size of the base model.

A preset is resolved as the job is read, so the resolved job says what it became; keys that are set beside it win. What
fits is judged by `loractl plan`, for one picture at a step of the model's own size.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from loractl.bases import configuration, pipeline_of
from loractl.sections.cards import gigabytes
from loractl.specs import Section

S = TypeVar("S", bound=Section)
Settings = Mapping[str, Any]

_LEAN: Settings = {"precision": "bf16", "phases": True, "cache_latents": True}
_LEANER: Settings = {**_LEAN, "gradient_checkpointing": True}

# Pipelines by the size of their denoisers; all others are as large as they come.
_SIZES: Mapping[str, str] = {
    "StableDiffusionPipeline": "1B",
    "StableDiffusionInpaintPipeline": "1B",
    "StableDiffusionXLPipeline": "3B",
    "StableDiffusion3Pipeline": "3B",
    "SanaPipeline": "3B",
    "Lumina2Pipeline": "3B",
    "Flux2KleinPipeline": "6B",
    "ZImagePipeline": "6B",
}
_LARGEST = "20B"
_LAYERS_OF_SD35_LARGE = 38  # 8B, where Stable Diffusion 3 and 3.5 medium have 24 layers, Sana and Lumina 2 fewer

# Pipelines whose text encoders leave room for themselves on a GPU of this size; those of the others read on the CPU.
_SMALL = {"StableDiffusionPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionXLPipeline"}
_SMALL |= {"SanaPipeline", "Lumina2Pipeline"}
_TEXTS_FIT = {"8gb": _SMALL, "12gb": _SMALL | {"FluxPipeline", "Flux2KleinPipeline", "ZImagePipeline"}}

PRESETS: Mapping[str, Mapping[str, Settings]] = {
    "8gb": {
        "1B": _LEAN,
        "3B": {**_LEANER, "quantize": "fp8"},
        "6B": {**_LEANER, "quantize": "nf4"},
        _LARGEST: {**_LEANER, "quantize": "nf4", "offload": "blocks"},
    },
    "12gb": {
        "1B": _LEAN,
        "3B": _LEANER,
        "6B": {**_LEANER, "quantize": "fp8"},
        _LARGEST: {**_LEANER, "quantize": "nf4"},
    },
    "24gb": {
        "1B": {"precision": "bf16", "cache_latents": True},
        "3B": {"precision": "bf16", "cache_latents": True, "gradient_checkpointing": True},
        "6B": _LEANER,
        _LARGEST: {**_LEANER, "quantize": "fp8"},
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
    fit = source == "lab" or pipeline_of(source) in _TEXTS_FIT.get(preset, {pipeline_of(source)})
    return {} if fit else {"text_encoders": "cpu"}


def size(source: str) -> str:
    """How large a model's denoiser is, by its pipeline; what can't be told from here is large."""
    if source == "lab":
        return "1B"
    found = _SIZES.get(pipeline_of(source), _LARGEST)
    deep = configuration(source, "transformer/config.json").get("num_layers") == _LAYERS_OF_SD35_LARGE
    return "6B" if found == "3B" and deep else found
