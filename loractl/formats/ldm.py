"""Names of modules in single-file checkpoints of Stable Diffusion 1, 2 and XL, in the layout of A1111 and ComfyUI.

The UNet has its native names after `model.diffusion_model.`. Text encoders are CLIP as transformers names it, or
OpenCLIP, which keeps the rows of q, k and v in one tensor.
"""

import re
from typing import NamedTuple

from loractl.formats.names import canonical
from loractl.formats.sgm import from_sgm


class Share(NamedTuple):
    """The part of a tensor that is one module's weight: number `part` of `parts` equal blocks of its rows."""

    path: str
    part: int = 0
    parts: int = 1


_UNET = "model.diffusion_model."
_CLIP = {"cond_stage_model.transformer.": "text_encoder.", "conditioner.embedders.0.transformer.": "text_encoder."}
# Stable Diffusion 2 takes the output of OpenCLIP's last layer but one, so diffusers does not have the last, number 23.
_OPEN_CLIP = {
    re.compile(r"cond_stage_model\.model\.transformer\.resblocks\.(?!23\.)(\d+)\.(.+)"): "text_encoder.",
    re.compile(r"conditioner\.embedders\.1\.model\.transformer\.resblocks\.(\d+)\.(.+)"): "text_encoder_2.",
}
_OPEN_CLIP_LAYER = {
    "attn.in_proj_weight": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.out_proj.weight": ("self_attn.out_proj",),
    "mlp.c_fc.weight": ("mlp.fc1",),
    "mlp.c_proj.weight": ("mlp.fc2",),
}


def shares(key: str) -> tuple[Share, ...]:
    """The modules whose weights a tensor holds; none for biases, the VAE and what else adapters never touch."""
    for pattern, component in _OPEN_CLIP.items():
        if found := pattern.fullmatch(key):
            names = _OPEN_CLIP_LAYER.get(found[2], ())
            layer = f"{component}encoder.layers.{found[1]}"
            return tuple(Share(f"{layer}.{name}", part, len(names)) for part, name in enumerate(names))
    path = module_path(key.removesuffix(".weight")) if key.endswith(".weight") else None
    return (Share(path),) if path else ()


def module_path(name: str) -> str | None:
    """The path in memory of a module called `name` here; None where it belongs to no UNet and no CLIP."""
    if name.startswith(_UNET):
        inner = from_sgm(name.removeprefix(_UNET))
        return f"unet.{inner}" if inner else None
    for prefix, component in _CLIP.items():
        if name.startswith(prefix):
            return canonical(component + name.removeprefix(prefix))
    return None
