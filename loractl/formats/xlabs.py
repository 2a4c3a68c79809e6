"""XLabs' format for Flux: `double_blocks.0.processor.qkv_lora1.down.weight`; 1 is the picture's stream, 2 the text's.

alpha = rank. In a single block qkv_lora adapts queries, keys and values of linear1, and proj_lora is linear2's.
"""

import re
from collections.abc import Mapping

from loractl.formats.modules import Contents, Place, Source, gather
from loractl.formats.natives import Native, find

OWNED = re.compile(r"(?!)")

_KEY = re.compile(
    r"(?:diffusion_model\.)?(double|single)_blocks\.(\d+)\.processor\.(qkv|proj)_lora([12]?)\.(down|up)\.weight"
)
_STREAMS = {"1": "img", "2": "txt"}


def knows(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return any(_KEY.fullmatch(key) for key in shapes)


def read(source: Source) -> Contents:
    """The modules of a file."""
    return gather(source.tensors, _locate)


def _locate(key: str) -> Place | None:
    found = _KEY.fullmatch(key)
    if found is None or (found[1] == "double") != bool(found[4]):
        return None
    kind, number, which, stream, part = found.groups()
    if kind == "double":
        module = find(f"double_blocks.{number}.{_STREAMS[stream]}_attn.{which}")
    elif which == "proj":
        module = find(f"single_blocks.{number}.linear2")
    else:
        fused = find(f"single_blocks.{number}.linear1")
        module = Native(fused.paths[:3], native=True) if fused else None
    return Place(module, part) if module else None
