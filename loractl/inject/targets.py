"""Which layers of a model get an adapter, and of which rank: presets and patterns of dotted module paths.

A pattern matches a whole path or its end from a dot on, with * ? [] as in a shell, and * crosses dots: "attn2.to_k",
"*.to_q", "down_blocks.*". Only linear layers and 2-D convolutions are matched, and an injected layer keeps its path.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from loractl.errors import MismatchError
from loractl.inject.layers import Layer, LoraInjected

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_GEGLU = ("ff.net.0.proj",)
_RESNET = ("resnets.*.conv1", "resnets.*.time_emb_proj", "resnets.*.conv2", "resnets.*.conv_shortcut")

PRESETS: Mapping[str, tuple[str, ...]] = {
    "attention": _ATTENTION,
    "attention+geglu": _ATTENTION + _GEGLU,
    "extended": _ATTENTION + _GEGLU + _RESNET,
    "text-encoder": ("k_proj", "v_proj", "q_proj", "out_proj"),
}
"""What the denoisers and CLIP call their layers. A preset fits a model that has any of its layers."""


@dataclass(frozen=True)
class Target:
    rank: int
    alpha: float


Settings = Mapping[str, tuple[int | None, float | None]]


def resolve(
    model: nn.Module, targets: Sequence[str] | Settings, rank: int, alpha: float | None = None
) -> dict[str, Target]:
    """Path → `Target`, in the model's order, for a list of presets and patterns or a table of them → rank and alpha.

    None in the table means the default, and the default of alpha is the rank. Where several patterns match a layer, the
    last one wins. MismatchError when one matches nothing.
    """
    settings = targets if isinstance(targets, Mapping) else dict.fromkeys(targets, (None, None))
    paths = list(injectable(model))
    found: dict[str, Target] = {}
    for name, (own_rank, own_alpha) in settings.items():
        matched = [path for path in paths if any(matches(path, pattern) for pattern in PRESETS.get(name, (name,)))]
        if not matched:
            raise MismatchError(_nothing_matches(name, paths))
        r = own_rank or rank
        found |= dict.fromkeys(matched, Target(r, own_alpha or alpha or r))
    return {path: found[path] for path in paths if path in found}


def injectable(model: nn.Module) -> dict[str, Layer]:
    """Path → layer for everything that can be a target; a wrapper stands for its base."""
    modules = dict(model.named_modules())
    wrapped = {path for path, module in modules.items() if isinstance(module, LoraInjected)}
    return {
        path: module
        for path, module in modules.items()
        if path and isinstance(module, Layer) and path.rpartition(".")[0] not in wrapped
    }


def matches(path: str, pattern: str) -> bool:
    """Whether the pattern matches the path or one of its dotted ends."""
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"*.{pattern}")


def _nothing_matches(pattern: str, paths: Sequence[str]) -> str:
    """The sentence for it, with up to three names that look like the pattern: ends of paths as long, or presets."""
    length = pattern.count(".") + 1
    ends = {".".join(path.split(".")[-length:]) for path in paths}
    presets = PRESETS.keys() if pattern not in PRESETS else ()
    near = difflib.get_close_matches(pattern, ends.union(presets), n=3)
    if near:
        return f'no layer matches "{pattern}", did you mean {" or ".join(near)}?'
    example = f"such as {paths[0]}" if paths else "and this model has none"
    return f'no layer matches "{pattern}": patterns are for paths of linear layers and convolutions, {example}'
