"""Block weights as merge users know them: a vector of factors for the blocks of a Stable Diffusion UNet.

Names, vectors and presets are those of github.com/hako-mikan/sd-webui-lora-block-weight (scripts/lora_block_weight.py:
BLOCKID12 to BLOCKID26, DEF_WEIGHT_PRESET). The numbers of the blocks are those of the original Stable Diffusion code:
input_blocks, middle_block, output_blocks.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

_IN = [f"IN{number:02}" for number in range(12)]
_OUT = [f"OUT{number:02}" for number in range(12)]
ALL = ["BASE", *_IN, "M00", *_OUT]

# Which blocks a vector names, by its length; what it does not name gets 0. The short ones are for attention alone.
VECTORS: Mapping[int, Sequence[str]] = {
    12: ["BASE", *_IN[4:6], *_IN[7:9], "M00", *_OUT[:6]],  # SDXL
    17: ["BASE", *_IN[1:3], *_IN[4:6], *_IN[7:9], "M00", *_OUT[3:]],  # SD 1 and 2
    20: ["BASE", *_IN[:9], "M00", *_OUT[:9]],  # SDXL
    26: ALL,  # SD 1 and 2
}

PRESETS: Mapping[str, Sequence[float]] = {
    "NONE": [0] * 17,
    "ALL": [1] * 17,
    "INS": [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    "IND": [1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    "INALL": [1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    "MIDD": [1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
    "OUTD": [1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0],
    "OUTS": [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1],
    "OUTALL": [1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    "ALL0.5": [0.5] * 17,
}

_LAYER = re.compile(r"unet\.(down|up)_blocks\.(\d+)\.(?:attentions|resnets)\.(\d+)\..+")
_SAMPLER = re.compile(r"unet\.(down|up)_blocks\.(\d+)\.(?:down|up)samplers\..+")
_PREFIXES = {"text_encoder": "BASE", "unet.conv_in": "IN00", "unet.mid_block": "M00"}


def factors(vector: Sequence[float]) -> dict[str, float]:
    """Block → factor."""
    named = dict(zip(VECTORS[len(vector)], vector, strict=True))
    return {block: named.get(block, 0.0) for block in ALL}


def block_of(path: str) -> str | None:
    """The block of a module; None for time embeddings and conv_out, which no block weight touches.

    diffusers counts levels and their layers, the original code goes on counting, with three entries for each level. The
    third is the downsampler on the way in, and on the way out the third layer, which takes the upsampler with it.
    """
    for prefix, block in _PREFIXES.items():
        if path.startswith(prefix):
            return block
    if found := _LAYER.fullmatch(path):
        return _numbered(found[1], 3 * int(found[2]) + int(found[3]))
    if found := _SAMPLER.fullmatch(path):
        return _numbered(found[1], 3 * int(found[2]) + 2)
    return None


def have_blocks(paths: Iterable[str]) -> bool:
    """Whether block weights mean anything for these modules: one is in a UNet's block, or all are text encoders'."""
    blocks = [block_of(path) for path in paths]
    return any(block not in (None, "BASE") for block in blocks) or None not in blocks


def _numbered(way: str, index: int) -> str:
    """On the way in, conv_in has the number 0."""
    return f"IN{index + 1:02}" if way == "down" else f"OUT{index:02}"
