"""peft's own format, `base_model.model.<path>.lora_A.weight`, and the same without the prefix.

No component is named, so the first words of the paths tell it. alpha = rank unless the header has peft's configuration.
"""

import re
from collections.abc import Mapping

from loractl.formats.diffusers import configured_alpha, read_config
from loractl.formats.modules import Contents, Place, Source, cut, gather, is_part
from loractl.formats.names import with_component
from loractl.formats.natives import Native

OWNED = re.compile(r"(?!)")

_PREFIX = "base_model.model."


def knows(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return any(is_part(key) and _locate(key) for key in shapes)


def read(source: Source) -> Contents:
    """The modules of a file. What its configuration says of "" it says of every component."""
    config = read_config(source.metadata)

    def alpha(path: str, rank: int) -> float:
        component = path.partition(".")[0]
        own = {key if "." in key else f"{component}.{key}": value for key, value in config.items()}
        return configured_alpha(own, path, rank)

    contents = gather(source.tensors, _locate, alpha)
    if not config and not any(key.endswith(".alpha") for key in source.tensors):
        contents.notes.append("it does not say its alpha, so alpha = rank; adapter_config.json may say another")
    return contents


def _locate(key: str) -> Place | None:
    place = cut(key)
    path = with_component(place[0].removeprefix(_PREFIX)) if place else None
    return Place(Native((path,)), place[1]) if place and path else None
