"""diffusers' format of a learned embedding, `learned_embeds.safetensors`: the token is the key, its tensor (n, dim).

diffusers refuses two tokens in one file, and has no such file for two encoders. Reading is the same as for A1111's.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from loractl.errors import MismatchError
from loractl.formats import embeddings
from loractl.formats.embeddings import one_token
from loractl.tensors.adapter import Adapter

OWNED = re.compile(r"(?!)")

read = embeddings.read


def knows(_shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Never: `embeddings` knows them all."""
    return False


def write(adapter: Adapter, dtype: torch.dtype, _name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensor and the metadata of a file."""
    token, encoders = one_token(adapter, "learned_embeds")
    if encoders.keys() != {"text_encoder"}:
        raise MismatchError(f"diffusers' format of embeddings has one text encoder, {token} has another: choose a1111")
    return {token: encoders["text_encoder"].to(dtype)}, dict(adapter.metadata)
