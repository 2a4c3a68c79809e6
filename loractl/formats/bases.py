"""Which family of base models an adapter is for, from what it says of itself or from its modules and their widths."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank


class Base(NamedTuple):
    """A family as ModelSpec 1.0.1 describes it; `size` is the side of the pictures it was trained on."""

    family: str  # "sd", "sdxl", "sd3" or "flux": how kohya's format names the modules
    architecture: str
    size: int
    implementation: str = "https://github.com/Stability-AI/generative-models"


# sd-scripts' ss_base_model_version.
BASES = {
    "sd_v1": Base("sd", "stable-diffusion-v1", 512),
    "sd_v2": Base("sd", "stable-diffusion-v2-512", 512),
    "sd_v2_v": Base("sd", "stable-diffusion-v2-768-v", 768),
    "sdxl_base_v1-0": Base("sdxl", "stable-diffusion-xl-v1-base", 1024),
    "sd3": Base("sd3", "stable-diffusion-3", 1024),
    "sd3m": Base("sd3", "stable-diffusion-3-medium", 1024),
    "flux1": Base("flux", "flux-1-dev", 1024, "https://github.com/black-forest-labs/flux"),
}
_FAMILIES = {"sdxl": "sdxl", "sd3": "sd3", "flux1": "flux", "sd_": "sd"}  # by how a version begins
_BY_CONTEXT = {768: "sd_v1", 1024: "sd_v2", 2048: "sdxl_base_v1-0"}  # width of the text a UNet attends to
_BY_WIDTH = {3072: "flux1", 1536: "sd3", 2432: "sd3"}  # of a transformer's tokens


def base_version(adapter: Adapter) -> str | None:
    """The base model's version in sd-scripts' words, or None if nothing tells it."""
    said = adapter.metadata.get("ss_base_model_version")
    if said:
        return said
    components = set(adapter.components())
    if "transformer" in components:
        return _version_of_transformer(adapter)
    widths = {low.shape[1] for path, low in _ending(adapter, "attn2.to_k", "attn2.to_v") if path.startswith("unet.")}
    return (
        "sdxl_base_v1-0" if _is_xl(adapter) else next((_BY_CONTEXT[width] for width in widths & {*_BY_CONTEXT}), None)
    )


def family(adapter: Adapter) -> str | None:
    """ "sd", "sdxl", "sd3" or "flux"; without a sign of another family a UNet is Stable Diffusion's."""
    version = base_version(adapter)
    if version is None:
        return None if "transformer" in adapter.components() else "sd"
    return next((name for start, name in _FAMILIES.items() if version.startswith(start)), None)


def with_kernels(adapter: Adapter) -> Adapter:
    """The adapter with proj_in and proj_out of Stable Diffusion 1 as the 1×1 convolutions that they are there, which
    files of LyCORIS leave flattened; in the other models they are linear layers.
    """
    if base_version(adapter) != "sd_v1":
        return adapter
    flat = {path for path, low in _ending(adapter, "proj_in", "proj_out") if _is_matrix_of_unet(path, low)}
    modules = {path: low.fitted((*low.shape, 1, 1)) if path in flat else low for path, low in adapter.modules.items()}
    magnitudes = {path: each[..., None, None] if path in flat else each for path, each in adapter.magnitudes.items()}
    return replace(adapter, modules=modules, magnitudes=magnitudes)


def _is_matrix_of_unet(path: str, low: LowRank) -> bool:
    return path.startswith("unet.") and len(low.shape) == 2


def _version_of_transformer(adapter: Adapter) -> str | None:
    paths = adapter.modules.keys()
    if any(path.startswith("transformer.single_transformer_blocks.") for path in paths):
        return "flux1"
    if any(path.startswith(("text_encoder_3.", "transformer.pos_embed.")) or ".attn2." in path for path in paths):
        return "sd3"
    widths = {low.shape[1] for _, low in _ending(adapter, "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")}
    return next((_BY_WIDTH[width] for width in widths & {*_BY_WIDTH}), None)


def _is_xl(adapter: Adapter) -> bool:
    """Whether there is a second CLIP, or attention of more than one transformer block."""
    return any(
        path.startswith("text_encoder_2.encoder.layers.")
        or (path.startswith("unet.") and ".transformer_blocks.1." in path)
        for path in adapter.modules
    )


def _ending(adapter: Adapter, *ends: str) -> Iterator[tuple[str, LowRank]]:
    return ((path, low) for path, low in adapter.modules.items() if path.endswith(tuple(f".{end}" for end in ends)))
