"""kohya's format (sd-scripts), which A1111, Forge and ComfyUI read: `lora_unet_down_blocks_0_…_to_q.lora_down.weight`.

A module has `lora_down.weight` (r, in, *k), `lora_up.weight` (out, r, *1) and `alpha` (), without which alpha = rank.
The dots of its path are underscores. We read and write the names of Stable Diffusion 1 and 2.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from loractl.errors import MismatchError
from loractl.formats.modules import Contents, Place, gather
from loractl.formats.names import canonical, flatten, nested, unflatten
from loractl.tensors.lowrank import LowRank

KEY = re.compile(r"lora_(unet|te\d?)_\w+\.(lora_down\.weight|lora_up\.weight|alpha)")
OWNED = re.compile(r"ss_network_.*|ss_output_name|sshs_.*|modelspec\.(sai_model_spec|implementation|title|hash_sha256)")

_PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
_PARTS = {"lora_down.weight": "down", "lora_up.weight": "up", "alpha": "alpha"}
# sd-scripts' names of base models, as ModelSpec calls them.
_ARCHITECTURES = {
    "sd_v1": "stable-diffusion-v1/lora",
    "sd_v2": "stable-diffusion-v2-512/lora",
    "sd_v2_v": "stable-diffusion-v2-768-v/lora",
}


def read(tensors: Mapping[str, Tensor], _metadata: Mapping[str, str], paths: Iterable[str]) -> Contents:
    """The modules of a file, found by name among `paths` or else by the words that such names are made of."""
    known = {_flat(path): canonical(path) for path in paths}

    def locate(key: str) -> Place | None:
        name, _, part = key.partition(".")
        path = known.get(name) or _path(name)
        return Place(path, _PARTS[part]) if path and part in _PARTS else None

    return gather(tensors, locate)


def write(
    modules: Mapping[str, LowRank], metadata: Mapping[str, str], dtype: torch.dtype, name: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file."""
    tensors: dict[str, Tensor] = {}
    for path, low in _with_one_alpha(modules).items():
        flat = _flat(path)
        if flat is None:
            raise MismatchError(f"kohya's format has no name for {path}: save the adapter in the diffusers format")
        if f"{flat}.alpha" in tensors:
            raise MismatchError(f"two modules would be called {flat}: save the adapter in the diffusers format")
        saved = low.to(dtype)
        tensors[f"{flat}.lora_down.weight"] = saved.down
        tensors[f"{flat}.lora_up.weight"] = saved.up
        tensors[f"{flat}.alpha"] = torch.tensor(low.alpha, dtype=torch.float32)
    return tensors, {**metadata, **_description(modules, metadata, name)}


def _flat(path: str) -> str | None:
    component, _, module = nested(path).partition(".")
    return f"{_PREFIXES[component]}{flatten(module)}" if component in _PREFIXES else None


def _path(name: str) -> str | None:
    for component, prefix in _PREFIXES.items():
        if name.startswith(prefix):
            module = unflatten(component, name.removeprefix(prefix))
            return canonical(f"{component}.{module}") if module else None
    return None


def _with_one_alpha(modules: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """The same updates with one alpha for each component, the usual; what another differs by goes into its `up`.

    diffusers (0.42) takes a file with different alphas without a word and gives most modules a wrong scale.
    """
    # Zero counts for nothing: no factor turns it into another alpha.
    alphas: dict[str, Counter[float]] = {}
    for path, low in modules.items():
        alphas.setdefault(path.partition(".")[0], Counter())[low.alpha] += low.alpha != 0
    common = {component: max(counts, key=lambda alpha: (counts[alpha], alpha)) for component, counts in alphas.items()}
    return {path: _rescaled(low, common[path.partition(".")[0]]) for path, low in modules.items()}


def _rescaled(low: LowRank, alpha: float) -> LowRank:
    if low.alpha == alpha:
        return low
    up = low.up.to(torch.promote_types(low.up.dtype, torch.float32))
    return replace(low, up=up * (low.alpha / alpha), alpha=alpha)


def _description(modules: Mapping[str, LowRank], metadata: Mapping[str, str], name: str) -> dict[str, str]:
    base = metadata.get("ss_base_model_version", "")
    architecture = {"modelspec.architecture": _ARCHITECTURES[base]} if base in _ARCHITECTURES else {}
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": _shared({low.rank for low in modules.values()}),
        "ss_network_alpha": _shared({low.alpha for low in modules.values()}),
        "ss_output_name": name,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": name,
        **architecture,
    }


def _shared(values: set[int] | set[float]) -> str:
    """The one value of all modules, or the word that sd-scripts writes when they differ."""
    return str(next(iter(values))) if len(values) == 1 else "Dynamic"
