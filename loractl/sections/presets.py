"""What `memory.preset` stands for: settings for a GPU of that size, by the size of the base model.

A preset is resolved as the job is read, so the resolved job says what it became; keys that are set beside it win. What
fits is judged by `loractl plan`, for one picture at a step of the model's own size: tests/plan/test_presets.py.
"""

from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar

from loractl.bases import configuration, is_single_file, pipeline_of
from loractl.sections.cards import gigabytes
from loractl.specs import Section

S = TypeVar("S", bound=Section)
Settings = Mapping[str, Any]

PresetName = Literal["auto", "8gb", "12gb", "24gb"]
PRESET = (
    "settings for the model on a GPU of this size, or with auto by the memory of the GPU here; keys that are set "
    "beside it win"
)

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
    "pickle": "3B",  # what is younger than SDXL comes as safetensors
    "": "12B",  # a hub id: it may be a UNet, whose blocks can't be offloaded
}
_LARGEST = "20B"
# Pipelines that models of several sizes have: those with more layers than this are called deep.
_LAYERS = {"StableDiffusion3Pipeline": 24, "Flux2KleinPipeline": 5, "SanaPipeline": 28}

# Kinds of models whose text encoders leave room for themselves on a GPU of this size; those of the others read on the
# CPU.
_SMALL = {"StableDiffusionPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionXLPipeline"}
_SMALL |= {"SanaPipeline", "SanaPipeline, deep", "Lumina2Pipeline", "pickle"}
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


# The same for jobs that make pictures, whose networks do not take turns: the autoencoder decodes beside the denoiser,
# and beside the text encoders too where these kinds of models leave room for them.
_OFFLOADED: Settings = {"offload": "blocks"}
PICTURES: Mapping[str, Mapping[str, Settings]] = {
    "8gb": {"1B": {}, "3B": {"quantize": "fp8"}, "6B": _OFFLOADED, "12B": _OFFLOADED, _LARGEST: _OFFLOADED},
    "12gb": {"1B": {}, "3B": {}, "6B": {"quantize": "nf4"}, "12B": {"quantize": "nf4"}, _LARGEST: _OFFLOADED},
    "24gb": {"1B": {}, "3B": {}, "6B": {}, "12B": {"quantize": "fp8"}, _LARGEST: {"quantize": "nf4"}},
}
_BESIDE_8GB = {"StableDiffusionPipeline", "StableDiffusionInpaintPipeline"}
_BESIDE_12GB = {*_BESIDE_8GB, "StableDiffusionXLPipeline", "pickle"}
_BESIDE_24GB = {*_BESIDE_12GB, "StableDiffusion3Pipeline", "SanaPipeline", "Lumina2Pipeline", "Flux2KleinPipeline"}
_BESIDE = {"8gb": _BESIDE_8GB, "12gb": _BESIDE_12GB, "24gb": _BESIDE_24GB}


# GiB of a card → the preset that "auto" stands for, the first that fits; with more, none is needed. What a card has
# and not what is free, which changes: an interrupted run shall go on with the settings that it began with. A driver
# counts a little less than the maker: 11.99 for 12, and 22.5 for 24 with error correction.
_ROOM = ((11.5, "8gb"), (22, "12gb"), (72, "24gb"))


def with_preset(memory: S, preset: str | None, source: str) -> S:
    """The section with a preset's settings for the model `source`, where it is silent."""
    preset = _meant(memory, preset)
    if preset is None:
        return memory
    found = _unsaid(memory, {**PRESETS[preset][size(source)], **_of_texts(_TEXTS_FIT, preset, source)}, source)
    if not found.get("phases", getattr(memory, "phases", False)):
        found.pop("text_encoders", None)  # it is for networks that take turns
    return memory.model_copy(update=found)


def with_picture_preset(memory: S, preset: str | None, source: str) -> S:
    """The same for a job that makes pictures."""
    preset = _meant(memory, preset)
    if preset is None:
        return memory
    settings = {"precision": "bf16", **PICTURES[preset][size(source)], **_of_texts(_BESIDE, preset, source)}
    found = _unsaid(memory, settings, source)
    either = ("quantize", "offload")  # of which the job may have said one
    if any(getattr(memory, key) != "none" for key in either):
        found = {key: value for key, value in found.items() if key not in either}
    return memory.model_copy(update=found)


def _meant(memory: Section, preset: str | None) -> str | None:
    if preset != "auto":
        return preset
    return None if getattr(memory, "device", "auto") == "cpu" else fitting(gigabytes())


def _unsaid(memory: Section, settings: Settings, source: str) -> dict[str, Any]:
    """Those of the settings that the section is silent about, as they can be for this model."""
    if is_single_file(source) and settings.get("quantize") == "nf4":  # which is made as a folder is loaded
        settings = {**{key: each for key, each in settings.items() if key != "quantize"}, **_OFFLOADED}
    return {key: settings[key] for key in settings.keys() - memory.model_fields_set}


def fitting(memory: float | None) -> str | None:
    """The preset for a GPU of so many GiB, if it needs one and there is one."""
    return None if memory is None else next((preset for most, preset in _ROOM if memory < most), None)


def _of_texts(fit: Mapping[str, Collection[str]], preset: str, source: str) -> Settings:
    kind = kind_of(source)
    return {} if source == "lab" or kind in fit.get(preset, {kind}) else {"text_encoders": "cpu"}


def size(source: str) -> str:
    """How large a model's denoiser is, by what tells its kind."""
    return "1B" if source == "lab" else _SIZES.get(kind_of(source), _LARGEST)


def kind_of(source: str) -> str:
    """A model's pipeline, called deep if it is of the larger ones of its family; nothing where it can't be told."""
    pipeline = pipeline_of(source)
    if not pipeline and source.endswith(".ckpt"):
        return "pickle"
    if pipeline not in _LAYERS:
        return pipeline
    layers = configuration(source, "transformer/config.json").get("num_layers")
    return f"{pipeline}, deep" if isinstance(layers, int) and layers > _LAYERS[pipeline] else pipeline
