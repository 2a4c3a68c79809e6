"""Learned embeddings by themselves, as A1111, diffusers and the trainers of SDXL write them, and bundled in a LoRA.

A1111: `emb_params` (n, dim), or in a pickle `string_to_param` {"*": (n, dim)}; the token is the file's name.
Several encoders: `clip_l`, `clip_g`, `t5`; the token is the file's name here too. T5 is the second encoder of Flux, the
third of Stable Diffusion 3, which has a `clip_g` before it.
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
}
_T5 = {"t5", "t5xxl"}
_NAMES = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5"}
_BUNDLED = re.compile(r"bundle_emb\.([^.]+)\.(.+)")
_TOKEN = re.compile(r"<[^<>]+>|[^.:]+")
_T5_WIDTH = 4096  # of T5-XXL
_WIDTHS = {768, 1024, 1280, _T5_WIDTH}  # the others are those of CLIP-L, OpenCLIP-H and OpenCLIP-bigG


def knows(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the keys are an encoder's, or all words with tensors as wide as a text encoder."""
    if any(map(_is_encoder, shapes)):
        return True
    return bool(shapes) and all(
        _TOKEN.fullmatch(key) and len(shape) in (1, 2) and (shape[-1] in _WIDTHS or key.startswith("<"))
        for key, shape in shapes.items()
    )


def read(source: Source) -> Contents:
    """The tokens of a file: its keys, or its name where the keys are those of encoders."""
    named = any(map(_is_encoder, source.tensors))
    t5 = "text_encoder_3" if "clip_g" in source.tensors else "text_encoder_2"

    def locate(key: str) -> Token | None:
        if named:
            return Token(f"{_ENCODERS.get(key, t5)}.{source.stem}") if _is_encoder(key) else None
        return Token(f"text_encoder.{key}")

    return gather(source.tensors, locate)


def bundled(key: str, t5: str = "text_encoder_2") -> Token | None:
    """The token that a key of a bundle means; `t5` is the component of T5."""
    found = _BUNDLED.fullmatch(key)
    return Token(f"{_ENCODERS.get(found[2], t5)}.{found[1]}") if found and _is_encoder(found[2]) else None


def in_bundle(tokens: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a bundle: one encoder's as in A1111's own files, several encoders' by their names."""
    several = any(not path.startswith("text_encoder.") for path in tokens)
    tensors = {}
    for path, embeddings in tokens.items():
        component, token = _parts(path)
        if "." in token:
            raise MismatchError(f"the token {token} has a dot, which none in a bundle may have: rename the token")
        key = _called(component, embeddings) if several else "string_to_param.*"
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
    return {_called(component, each): each.to(dtype) for component, each in encoders.items()}, dict(adapter.metadata)


def _is_encoder(key: str) -> bool:
    return key in _ENCODERS or key in _T5


def _called(component: str, embeddings: Tensor) -> str:
    """What files call the encoder of embeddings (n, dim): a second one as wide as T5 is Flux's."""
    is_t5 = component == "text_encoder_2" and embeddings.shape[-1] == _T5_WIDTH
    return "t5" if is_t5 else _NAMES[component]


def _parts(path: str) -> tuple[str, str]:
    component, _, token = path.partition(".")
    if component not in _NAMES:
        raise MismatchError(f"no format of embeddings has a place for those of {component}")
    return component, token
