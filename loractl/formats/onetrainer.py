"""OneTrainer's format: kohya's with diffusers' names in a transformer, `lora_transformer_….lora_down.weight`."""

import re
from collections.abc import Mapping

from loractl.formats import kohya

OWNED = re.compile(r"(?!)")

read = kohya.read


def knows(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return any(key.startswith("lora_transformer_") for key in shapes)
