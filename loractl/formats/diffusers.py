"""The format of diffusers and peft: `unet.<module>.lora_A.weight` (down) and `.lora_B.weight` (up).

Alpha is no tensor here but part of `lora_adapter_metadata` in the header: the JSON of each component's peft LoraConfig,
with the component before its keys ("unet.lora_alpha"). Without it, alpha = rank.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from loractl.errors import FormatError, MismatchError
from loractl.formats.modules import Contents, Place, Source, cut, gather, is_part, refuse_beyond
from loractl.formats.names import canonical, nested
from loractl.formats.natives import Native
from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank

KEY = re.compile(r"(?:unet|transformer(?:_2)?|text_encoder(?:_\d)?|prior)\.[\w.]+")
OWNED = re.compile(r"format|lora_adapter_metadata")

_CONFIG = "lora_adapter_metadata"
_PATTERN = re.compile(r"(\^?)(?:text_model\.)?([\w.]+)")


def knows(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return any(KEY.fullmatch(key) and is_part(key) for key in shapes)


def read(source: Source) -> Contents:
    """The modules of a file, whose keys spell out the paths."""
    config = read_config(source.metadata)
    return gather(source.tensors, locate, lambda path, rank: configured_alpha(config, path, rank))


def write(adapter: Adapter, dtype: torch.dtype, _name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file; there is no place in it for a title."""
    refuse_beyond(adapter, "diffusers", "modules", "magnitudes")
    tensors = {}
    for path, low in adapter.modules.items():
        saved = low.to(dtype)
        tensors[f"{nested(path)}.lora_A.weight"] = saved.down
        tensors[f"{nested(path)}.lora_B.weight"] = saved.up
    for path, magnitude in adapter.magnitudes.items():
        tensors[f"{nested(path)}.lora_magnitude_vector"] = _by_output(path, magnitude).to(dtype)
    config = json.dumps(_settings(adapter), sort_keys=True)
    return tensors, {**adapter.metadata, "format": "pt", _CONFIG: config}


def _by_output(path: str, magnitude: Tensor) -> Tensor:
    """(out,), of a convolution (1, out, *1)."""
    if magnitude.numel() != len(magnitude):
        raise MismatchError(f"peft has DoRA's magnitudes by output and {path} has them by input: choose kohya's format")
    return magnitude.transpose(0, 1) if magnitude.ndim > 2 else magnitude.flatten()


def locate(key: str) -> Place | None:
    """The place of a tensor by its key."""
    place = cut(key)
    return Place(Native((canonical(place[0]),)), place[1]) if place and KEY.fullmatch(key) else None


def _settings(adapter: Adapter) -> dict[str, Any]:
    """The arguments of every component's LoraConfig."""
    dora = {path.partition(".")[0] for path in adapter.magnitudes}
    return {
        f"{component}.{key}": value
        for component in adapter.components()
        for key, value in {
            **_lora_config(adapter.component(component), "" if component.startswith("text_encoder") else "^"),
            **({"use_dora": True} if component in dora else {}),
        }.items()
    }


def _lora_config(modules: Mapping[str, LowRank], anchor: str) -> dict[str, Any]:
    """One component's: the usual rank and alpha, and by name the modules that have others.

    peft takes a name for the end of a path unless `anchor` forbids it. In a text encoder `text_model` may come before.
    """
    rank = _usual(low.rank for low in modules.values())
    alpha = _usual(low.alpha for low in modules.values())
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"{anchor}{path}": low.rank for path, low in modules.items() if low.rank != rank},
        "alpha_pattern": {f"{anchor}{path}": low.alpha for path, low in modules.items() if low.alpha != alpha},
        "target_modules": sorted(modules),
    }


def _usual(values: Iterable[float]) -> float:
    counts = Counter(values)
    return max(counts, key=lambda value: (counts[value], value))


def read_config(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What peft says of each component, with the component before its keys."""
    try:
        config = json.loads(metadata.get(_CONFIG, "{}"), parse_int=float)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict) or not all(_is_sound(key, value) for key, value in config.items()):
        raise FormatError(f"its {_CONFIG} is not the JSON that peft writes: make the file again")
    return config


def _is_sound(key: str, value: Any) -> bool:
    if key.endswith(".alpha_pattern"):
        return isinstance(value, dict) and all(isinstance(alpha, float) for alpha in value.values())
    return isinstance(value, float) or not key.endswith(".lora_alpha")


def configured_alpha(config: Mapping[str, Any], path: str, rank: int) -> float:
    """The alpha that peft would use; with rsLoRA (Kalajdzievski 2023) the scale is alpha / √rank."""
    component, _, module = path.partition(".")
    patterns = config.get(f"{component}.alpha_pattern", {})
    alphas = (alpha for pattern, alpha in patterns.items() if _matches(pattern, module))
    alpha: float = next(alphas, config.get(f"{component}.lora_alpha", rank))
    return alpha * math.sqrt(rank) if config.get(f"{component}.use_rslora") else alpha


def _matches(pattern: str, module: str) -> bool:
    """Whether peft's pattern means `module`. It is a path or its end; a regular expression from a file is not run."""
    found = _PATTERN.fullmatch(pattern)
    if found is None:
        raise FormatError(f"its {_CONFIG} has {pattern!r} where a module path is expected: make the file again")
    return module == found[2] or (not found[1] and module.endswith(f".{found[2]}"))
