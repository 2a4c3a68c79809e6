"""The format of ai-toolkit, ComfyUI and others: the makers' names with dots, `diffusion_model.<name>.lora_A.weight`.

Text encoders are `text_encoders.clip_l.transformer.…`. Some tools leave out the prefix of the denoiser.
"""

import re
from collections.abc import Mapping

from loractl.formats.modules import Contents, Place, Source, cut, gather, is_part
from loractl.formats.names import canonical, with_component
from loractl.formats.natives import Native, find, find_own
from loractl.formats.sgm import from_sgm

OWNED = re.compile(r"(?!)")

_DENOISER = "diffusion_model."
_ENCODER = re.compile(r"(?:text_encoders\.)?(clip_l|clip_g|t5xxl)\.(?:transformer\.)?(.+)")
_ENCODERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
_BLOCKS = "double_blocks|single_blocks|joint_blocks|input_blocks|middle_block|output_blocks"
_KEY = re.compile(rf"(diffusion_model|text_encoders|clip_l|clip_g|t5xxl|{_BLOCKS})\..+")


def knows(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return any(is_part(key) and _KEY.fullmatch(key) for key in shapes)


def read(source: Source) -> Contents:
    """The modules of a file, natively named or as in diffusers, or named in its model's paths."""
    known = {path.partition(".")[2]: path for path in source.paths if not path.startswith("text_encoder")}
    t5 = (
        "text_encoder_3"
        if any("clip_g" in key or "joint_blocks" in key for key in source.tensors)
        else "text_encoder_2"
    )

    def locate(key: str) -> Place | None:
        place = cut(key)
        module = _find(place[0], known, t5) if place else None
        return Place(module, place[1]) if place and module else None

    return gather(source.tensors, locate)


def _find(name: str, known: Mapping[str, str], t5: str) -> Native | None:
    if encoder := _ENCODER.fullmatch(name):
        return Native((canonical(f"{_ENCODERS.get(encoder[1], t5)}.{encoder[2]}"),))
    module = name.removeprefix(_DENOISER)
    if module in known:
        return Native((known[module],))
    unet = from_sgm(module)
    path = f"unet.{unet}" if unet else with_component(module)
    return find(module) or find_own(module) or (Native((path,)) if path else None)
