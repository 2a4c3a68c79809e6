"""Names of parameters in single-file checkpoints, in the layout of A1111 and ComfyUI, for Stable Diffusion 1, 2, XL
and 3 and for Flux.

A UNet has its native names after `model.diffusion_model.`, and so has a transformer, or nothing before them. Text
encoders are CLIP and T5 as transformers names them, or OpenCLIP, which keeps the rows of q, k and v in one tensor and
its projection transposed.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from loractl.formats.names import canonical
from loractl.formats.natives import find, row_ranges
from loractl.formats.sgm import from_sgm


class Share(NamedTuple):
    """The part of a tensor that is one module's parameter: `rows`, in the parameter's order, or all of it transposed.

    `path` ends in the parameter's own name, "unet.conv_in.weight".
    """

    path: str
    rows: tuple[range, ...]
    transposed: bool = False


_DENOISER = "model.diffusion_model."
_BLOCKS = ("double_blocks.", "joint_blocks.")
_ENCODERS = {
    "cond_stage_model.transformer.": "text_encoder.",
    "conditioner.embedders.0.transformer.": "text_encoder.",
    "text_encoders.clip_l.transformer.": "text_encoder.",
    "text_encoders.clip_g.transformer.": "text_encoder_2.",
}
_T5 = "text_encoders.t5xxl.transformer."
# Stable Diffusion 2 takes the output of OpenCLIP's last layer but one, so diffusers does not have the last, number 23,
# and no projection.
_OPEN_CLIP = {
    re.compile(r"cond_stage_model\.model\.(?!transformer\.resblocks\.23\.|text_projection)(.+)"): "text_encoder.",
    re.compile(r"conditioner\.embedders\.1\.model\.(.+)"): "text_encoder_2.",
}
_OPEN_CLIP_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")
_OPEN_CLIP_NAMES = {
    "attn.in_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.out_proj": ("self_attn.out_proj",),
    "mlp.c_fc": ("mlp.fc1",),
    "mlp.c_proj": ("mlp.fc2",),
    "ln_1": ("layer_norm1",),
    "ln_2": ("layer_norm2",),
}
_OPEN_CLIP_TOP = {f"ln_final.{part}": f"final_layer_norm.{part}" for part in ("weight", "bias")}


def places(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Share]]:
    """Key and share of every weight and bias of a denoiser or a text encoder in a file with tensors of these shapes."""
    t5 = "text_encoder_3." if any("joint_blocks." in key for key in shapes) else "text_encoder_2."
    prefix = "" if any(key.startswith(_BLOCKS) for key in shapes) else _DENOISER
    for key, shape in shapes.items():
        if shape:
            yield from ((key, share) for share in _shares(key, shapes, prefix, t5))


def module_path(name: str) -> str | None:
    """The path in memory of a module called `name` here; None where it belongs to no UNet and no CLIP."""
    if name.startswith(_DENOISER):
        inner = from_sgm(name.removeprefix(_DENOISER))
        return f"unet.{inner}" if inner else None
    for prefix, component in _ENCODERS.items():
        if name.startswith(prefix):
            return canonical(component + name.removeprefix(prefix))
    return None


def _shares(key: str, shapes: Mapping[str, tuple[int, ...]], prefix: str, t5: str) -> tuple[Share, ...]:
    shape = shapes[key]
    for pattern, component in _OPEN_CLIP.items():
        if found := pattern.fullmatch(key):
            return _open_clip(found[1], component, shape)
    module, _, part = key.rpartition(".")
    if part not in ("weight", "bias"):
        return ()
    native = find(module.removeprefix(prefix)) if module.startswith(prefix) else None
    if native:
        ranges = row_ranges(native, shape[0], (*shapes.get(f"{module}.weight", ()), None, None)[1])
        return tuple(Share(f"{path}.{part}", rows) for path, rows in ranges.items())
    path = t5 + module.removeprefix(_T5) if module.startswith(_T5) else module_path(module)
    return (Share(f"{path}.{part}", (range(shape[0]),)),) if path else ()


def _open_clip(name: str, component: str, shape: tuple[int, ...]) -> tuple[Share, ...]:
    if name == "text_projection":
        return (Share(f"{component}text_projection.weight", (range(shape[-1]),), transposed=True),)
    if name in _OPEN_CLIP_TOP:
        return (Share(f"{component}{_OPEN_CLIP_TOP[name]}", (range(shape[0]),)),)
    found = _OPEN_CLIP_LAYER.fullmatch(name)
    names = _OPEN_CLIP_NAMES.get(found[2], ()) if found else ()
    if found is None or not names:
        return ()
    layer, size = f"{component}encoder.layers.{found[1]}", shape[0] // len(names)
    return tuple(
        Share(f"{layer}.{own}.{found[3]}", (range(number * size, (number + 1) * size),))
        for number, own in enumerate(names)
    )
