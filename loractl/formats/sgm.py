"""The UNet as Stability's generative-models (and the first Stable Diffusion code) name it, beside diffusers' names.

Blocks are counted through: `input_blocks.4.1.proj_in` is diffusers' `down_blocks.1.attentions.0.proj_in`. kohya uses
these names for SDXL, ComfyUI for every UNet.
"""

import re

from loractl.formats.names import flatten, unflatten

_LAYERS = 2  # residual blocks of a level, in every public model

_TOP = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
_SAMPLERS = {"op": "downsamplers", "conv": "upsamplers"}
_KINDS = {"resnets": "0", "attentions": "1"}

_TOP_BACK = {native: own for own, native in _TOP.items()}
_TOP_FLAT = {flatten(native): own for native, own in _TOP_BACK.items()}
_RESNET_BACK = {native: own for own, native in _RESNET.items()}
_MIDDLE_BACK = {native: own for own, native in _MIDDLE.items()}

_OWN = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)")
_OWN_MIDDLE = re.compile(r"mid_block\.((?:resnets|attentions)\.\d+)\.(.+)")
_OWN_SAMPLER = re.compile(r"(down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\.conv")
_NATIVE = re.compile(r"(input|output)_blocks\.(\d+)\.([012])\.(.+)")
_NATIVE_MIDDLE = re.compile(r"middle_block\.([012])\.(.+)")


def to_sgm(path: str) -> str | None:
    """The native name of a UNet's module in SDXL, whose levels with an upsampler all have attention."""
    if path in _TOP:
        return _TOP[path]
    if found := _OWN_SAMPLER.fullmatch(path):
        last = (_LAYERS + 1) * (int(found[2]) + 1)
        return f"input_blocks.{last}.0.op" if found[1] == "down" else f"output_blocks.{last - 1}.2.conv"
    if found := _OWN_MIDDLE.fullmatch(path):
        return f"middle_block.{_MIDDLE[found[1]]}.{_RESNET.get(found[2], found[2])}" if found[1] in _MIDDLE else None
    if found := _OWN.fullmatch(path):
        side, block, kind, layer, rest = found.groups()
        number = (_LAYERS + 1) * int(block) + int(layer)
        block = f"input_blocks.{number + 1}" if side == "down" else f"output_blocks.{number}"
        return f"{block}.{_KINDS[kind]}.{_RESNET.get(rest, rest)}"
    return None


def from_sgm(name: str) -> str | None:
    """diffusers' name of the module that has this native name."""
    if name in _TOP_BACK:
        return _TOP_BACK[name]
    if found := _NATIVE_MIDDLE.fullmatch(name):
        return f"mid_block.{_MIDDLE_BACK[found[1]]}.{_RESNET_BACK.get(found[2], found[2])}"
    if found := _NATIVE.fullmatch(name):
        side, number, slot, rest = found.groups()
        level, layer = divmod(int(number) - (side == "input"), _LAYERS + 1)
        block = ("down" if side == "input" else "up") + f"_blocks.{level}"
        if rest in _SAMPLERS:
            return f"{block}.{_SAMPLERS[rest]}.0.conv"
        kind = {"0": "resnets", "1": "attentions"}.get(slot)
        return f"{block}.{kind}.{layer}.{_RESNET_BACK.get(rest, rest)}" if kind and level >= 0 else None
    return None


def from_flat_sgm(flat: str) -> str | None:
    """The same for a native name with underscores for its dots."""
    if flat in _TOP_FLAT:
        return _TOP_FLAT[flat]
    name = unflatten("sgm", flat)
    return from_sgm(name) if name else None
