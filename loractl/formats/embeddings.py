"""Learned embeddings by themselves, as A1111, diffusers and the trainers of SDXL write them, and bundled in a LoRA.

A1111: `emb_params` (n, dim), or in a pickle `string_to_param` {"*": (n, dim)}; the token is the file's name.
Several encoders: `clip_l`, `clip_g`, `t5`; the token is the file's name here too.
diffusers: the token is the key, its tensor (n, dim) or (dim,). In a bundle the key is `bundle_emb.<token>.…`.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from loractl.errors import MismatchError
from loractl.formats.modules import Contents, Source, Token, gather, refuse_beyond
from loractl.tensors.adapter import Adapter

OWNED = re.compile(r"(?!)")

_ENCODERS = {
    "emb_params": "text_encoder",
    "string_to_param.*": "text_encoder",
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
    "t5": "text_encoder_3",
    "t5xxl": "text_encoder_3",
}
_NAMES = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5"}
_BUNDLED = re.compile(r"bundle_emb\.([^.]+)\.(.+)")
_TOKEN = re.compile(r"<[^<>]+>|[^.:]+")
_WIDTHS = {768, 1024, 1280, 4096}  # of CLIP-L, OpenCLIP-H, OpenCLIP-bigG and T5-XXL


def knows(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the keys are an encoder's, or all words with tensors as wide as a text encoder."""
    if any(key in _ENCODERS for key in shapes):
        return True
    return bool(shapes) and all(
        _TOKEN.fullmatch(key) and len(shape) in (1, 2) and (shape[-1] in _WIDTHS or key.startswith("<"))
        for key, shape in shapes.items()
    )


def read(source: Source) -> Contents:
    """The tokens of a file: its keys, or its name where the keys are those of encoders."""
    named = any(key in _ENCODERS for key in source.tensors)

    def locate(key: str) -> Token | None:
        if named:
            return Token(f"{_ENCODERS[key]}.{source.stem}") if key in _ENCODERS else None
        return Token(f"text_encoder.{key}")

    return gather(source.tensors, locate)


def bundled(key: str) -> Token | None:
    """The token that a key of a bundle means."""
    found = _BUNDLED.fullmatch(key)
    return Token(f"{_ENCODERS[found[2]]}.{found[1]}") if found and found[2] in _ENCODERS else None


def in_bundle(tokens: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a bundle: one encoder's as in A1111's own files, several encoders' by their names."""
    several = any(not path.startswith("text_encoder.") for path in tokens)
    tensors = {}
    for path, embeddings in tokens.items():
        component, token = _parts(path)
        if "." in token:
            raise MismatchError(f"the token {token} has a dot, which none in a bundle may have: rename the token")
        key = _NAMES[component] if several else "string_to_param.*"
        tensors[f"bundle_emb.{token}.{key}"] = embeddings.to(dtype)
    return tensors


def tokens_of(adapter: Adapter) -> dict[str, dict[str, Tensor]]:
    """Token → component → embeddings."""
    tokens: dict[str, dict[str, Tensor]] = {}
    for path, embeddings in adapter.tokens.items():
        component, token = _parts(path)
        tokens.setdefault(token, {})[component] = embeddings
    return tokens


def one_token(adapter: Adapter, form: str) -> tuple[str, dict[str, Tensor]]:
    """The only token of an adapter that has nothing else, for formats with one token in a file."""
    refuse_beyond(adapter, form, "tokens")
    tokens = tokens_of(adapter)
    if len(tokens) != 1:
        raise MismatchError(
            f"a file of the format {form!r} holds one token, not {len(tokens)}: write one file for each"
        )
    return next(iter(tokens.items()))


def write(adapter: Adapter, dtype: torch.dtype, _name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A1111's file: `emb_params`, or `clip_l` and `clip_g`. The token is how the file will be called."""
    _, encoders = one_token(adapter, "a1111")
    if encoders.keys() == {"text_encoder"}:
        return {"emb_params": encoders["text_encoder"].to(dtype)}, dict(adapter.metadata)
    return {_NAMES[component]: each.to(dtype) for component, each in encoders.items()}, dict(adapter.metadata)


def _parts(path: str) -> tuple[str, str]:
    component, _, token = path.partition(".")
    if component not in _NAMES:
        raise MismatchError(f"no format of embeddings has a place for those of {component}")
    return component, token
