"""The format of diffusers before peft: `[unet.]….attn1.processor.to_q_lora.down.weight`, at first without a component.

Text encoders have `….self_attn.to_q_lora.…` for q_proj, later the keys of today's diffusers in the same file. There is
no alpha, unless a tensor says so.
"""

import re
from collections.abc import Mapping

from loractl.formats import diffusers
from loractl.formats.modules import Contents, Place, Source, gather
from loractl.formats.names import canonical, with_component
from loractl.formats.natives import Native

OWNED = re.compile(r"(?!)")

_KEY = re.compile(r"(.+?)(?:\.processor)?\.to_(q|k|v|out)_lora\.(?:(down|up)\.weight|(alpha))")
_HAS_COMPONENT = re.compile(r"(unet|text_encoder(_2)?|transformer)\..+")
_CLIP = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}
_UNET = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}


def knows(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return any(_KEY.fullmatch(key) for key in shapes)


def read(source: Source) -> Contents:
    """The modules of a file."""
    return gather(source.tensors, _locate)


def _locate(key: str) -> Place | None:
    found = _KEY.fullmatch(key)
    if found is None:
        return diffusers.locate(key)
    names = _CLIP if found[1].endswith("self_attn") else _UNET
    path = f"{found[1]}.{names[found[2]]}"
    whole = canonical(path) if _HAS_COMPONENT.fullmatch(path) else with_component(path)
    return Place(Native((whole,)), found[3] or found[4]) if whole else None
