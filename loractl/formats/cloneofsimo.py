"""cloneofsimo's format (lora_diffusion): `unet:3:up` (out, r, *1) and `unet:3:down` (r, in, *k), numbered in the order
of the model's modules, and learned tokens under their own names (dim,). The scale is folded in: alpha = rank.

Which module a number means depends on the diffusers version that wrote it: up to 0.14 a transformer block had its ff
between attn1 and attn2 (legacy), later behind them (modern). The shapes tell: ff.net.0.proj alone has eight times as
many outputs as inputs. Every shape is held against the network's, since most pairs fit several modules.
"""

import json
import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from loractl.errors import FormatError, MismatchError
from loractl.formats.modules import Contents, Place, Source, Token, gather, refuse_beyond
from loractl.formats.natives import Native
from loractl.tensors.adapter import Adapter

KEY = re.compile(r"(unet|text_encoder):(\d{1,6}):(up|down)")
OWNED = re.compile(r"unet|text_encoder|(unet|text_encoder):\d+:rank|<.+>|loractl\.absent")

Shapes = Mapping[str, tuple[int, ...]]

_ATTENTION = [f"attn{n}.to_{each}" for n in (1, 2) for each in ("q", "k", "v", "out.0")]
_GEGLU = "ff.net.0.proj"
_ORDERS = {
    "legacy": [*_ATTENTION[:4], _GEGLU, *_ATTENTION[4:]],
    "modern": [*_ATTENTION, _GEGLU],
    "attention": _ATTENTION,
}
_LEVELS = (1, 2, 4, 4)  # widths, as multiples of the first
_TEXT = ("k_proj", "v_proj", "q_proj", "out_proj")
# What the writer calls the classes it has taken modules from, for each set of modules.
_CLASSES = {
    "attention": ["CrossAttention", "Attention"],
    "legacy": ["CrossAttention", "Attention", "GEGLU"],
    "extended": ["ResnetBlock2D", "CrossAttention", "Attention", "GEGLU"],
}

_ABSENT = "loractl.absent"  # our own: which modules are there only to keep the numbers


def knows(shapes: Shapes) -> bool:
    return any(KEY.fullmatch(key) for key in shapes)


def read(source: Source) -> Contents:
    """The modules of a file, whose numbers are told by the order that its shapes agree with."""
    names: dict[str, str] = {}
    for component in ("unet", "text_encoder"):
        shapes = _shapes(source.tensors, component)
        if shapes:
            names |= {f"{component}:{number}": path for number, path in enumerate(_resolve(component, shapes))}

    def locate(key: str) -> Place | Token | None:
        found = KEY.fullmatch(key)
        if found is None:
            return Token(f"text_encoder.{key}") if ":" not in key and source.tensors[key].ndim <= 2 else None
        return Place(Native((names[f"{found[1]}:{int(found[2])}"],)), found[3])

    contents = gather(source.tensors, locate)
    for name in source.metadata.get(_ABSENT, "").split():
        contents.modules.pop(names.get(name, ""), None)
    return contents


def write(adapter: Adapter, dtype: torch.dtype, _name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a file in legacy order. Modules without an update are there as zeros of rank 1."""
    refuse_beyond(adapter, "cloneofsimo", "modules", "tokens")
    tensors, metadata, absent = {}, dict(adapter.metadata), []
    for component in adapter.components():
        own = {path: low for path, low in adapter.modules.items() if path.startswith(f"{component}.")}
        classes, places = _fit(component, {path: tuple(low.shape) for path, low in own.items()})
        metadata[component] = json.dumps(classes)
        for number, (path, shape) in enumerate(places.items()):
            low, name = own.get(path), f"{component}:{number}"
            if low is None:
                absent.append(name)
            up = torch.zeros(shape[0], 1, *[1] * len(shape[2:])) if low is None else low.up.float() * low.scale
            down = torch.zeros(1, *shape[1:]) if low is None else low.down
            tensors[f"{name}:up"], tensors[f"{name}:down"] = up.to(dtype), down.to(dtype)
            metadata[f"{name}:rank"] = str(len(down))
    for path, embeddings in adapter.tokens.items():
        tensors |= _token(path, embeddings, dtype)
        metadata[path.partition(".")[2]] = "<embed>"
    return tensors, metadata | ({_ABSENT: " ".join(absent)} if absent else {})


def unet_layers(width: int, context: int, order: str, extended: bool = False) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Path and weight's shape of each module in the order of the numbers, for Stable Diffusion 1 and 2.

    `width` is that of the first level, `context` the text encoder's. The extended set has the residual blocks as well.
    """
    skips = [width]
    last = width
    for level, factor in enumerate(_LEVELS):
        wide, block = width * factor, f"unet.down_blocks.{level}"
        if level < 3:
            for layer in range(2):
                yield from _transformer(f"{block}.attentions.{layer}", wide, context, order)
        for layer in range(2 if extended else 0):
            yield from _resnet(f"{block}.resnets.{layer}", last if layer == 0 else wide, wide, 4 * width)
        last = wide
        skips += [wide, wide] + ([wide] if level < 3 else [])
    for level, factor in enumerate(reversed(_LEVELS)):
        wide, block = width * factor, f"unet.up_blocks.{level}"
        if level > 0:
            for layer in range(3):
                yield from _transformer(f"{block}.attentions.{layer}", wide, context, order)
        for layer in range(3 if extended else 0):
            inner = (last if layer == 0 else wide) + skips.pop()
            yield from _resnet(f"{block}.resnets.{layer}", inner, wide, 4 * width)
        last = wide
    wide = width * _LEVELS[-1]
    yield from _transformer("unet.mid_block.attentions.0", wide, context, order)
    for layer in range(2 if extended else 0):
        yield from _resnet(f"unet.mid_block.resnets.{layer}", wide, wide, 4 * width)


def text_layers(width: int, depth: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The same of a CLIP text encoder."""
    for layer in range(depth):
        for name in _TEXT:
            yield f"text_encoder.encoder.layers.{layer}.self_attn.{name}", (width, width)


def _transformer(block: str, width: int, context: int, order: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name in _ORDERS[order]:
        inner = context if name in ("attn2.to_k", "attn2.to_v") else width
        yield f"{block}.transformer_blocks.0.{name}", (8 * width if name == _GEGLU else width, inner)


def _resnet(block: str, inner: int, width: int, time: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{block}.conv1", (width, inner, 3, 3)
    yield f"{block}.time_emb_proj", (width, time)
    yield f"{block}.conv2", (width, width, 3, 3)
    if inner != width:
        yield f"{block}.conv_shortcut", (width, inner, 1, 1)


def _shapes(tensors: Mapping[str, Tensor], component: str) -> list[tuple[int, ...]]:
    """The shapes of a component's updates by number, which must run from 0 without a gap."""
    parts = {(int(m[2]), m[3]): tensors[key] for key in tensors if (m := KEY.fullmatch(key)) and m[1] == component}
    count = len({number for number, _ in parts})
    whole = {(number, part) for number in range(count) for part in ("up", "down")}
    if parts.keys() != whole:
        raise FormatError(f"its modules of the {component} are not numbered from 0 in pairs: fetch the file again")
    if any(parts[place].ndim < 2 for place in parts):
        raise FormatError(f"its modules of the {component} are not matrices: fetch the file again")
    return [(len(parts[number, "up"]), *parts[number, "down"].shape[1:]) for number in range(count)]


def _resolve(component: str, shapes: list[tuple[int, ...]]) -> list[str]:
    """The paths in the order that all shapes agree with; FormatError tells where the best order goes wrong."""
    candidates = [list(layers) for layers in _candidates(component, shapes) if len(layers) == len(shapes)]
    wrong = [[n for n, (_, shape) in enumerate(layers) if shape != shapes[n]] for layers in candidates]
    if not candidates:
        raise FormatError(f"{len(shapes)} modules are no {component} of Stable Diffusion 1 or 2")
    best = min(range(len(candidates)), key=lambda index: len(wrong[index]))
    if wrong[best]:
        number = wrong[best][0]
        path, shape = candidates[best][number]
        raise FormatError(
            f"{component}:{number} changes a weight {shapes[number]} and {path} has {shape}, so the modules are in an "
            "order that no diffusers version has written"
        )
    return [path for path, _ in candidates[best]]


def _candidates(component: str, shapes: list[tuple[int, ...]]) -> Iterator[list[tuple[str, tuple[int, ...]]]]:
    width = shapes[0][0]
    if component == "text_encoder":
        yield list(text_layers(width, len(shapes) // 4))
        return
    contexts = {768, 1024, *(shape[1] for shape in shapes[:9] if shape[1] != width)}
    for context in sorted(contexts):
        yield list(unet_layers(width, context, "attention"))
        for order in ("legacy", "modern"):
            for extended in (False, True):
                yield list(unet_layers(width, context, order, extended))


def _fit(component: str, shapes: Shapes) -> tuple[list[str], dict[str, tuple[int, ...]]]:
    """The smallest set of modules that has all of these, as its classes and path → shape."""
    for classes, layers in _sets(component, shapes):
        if all(layers.get(path) == shape for path, shape in shapes.items()):
            return classes, layers
    raise MismatchError(
        f"cloneofsimo's format numbers the modules of Stable Diffusion 1 and 2, and the {component} of this adapter is "
        "another or has modules that are not among them: choose another format"
    )


def _sets(component: str, shapes: Shapes) -> Iterator[tuple[list[str], dict[str, tuple[int, ...]]]]:
    if component == "text_encoder":
        width = next(iter(shapes.values()))[0]
        depths = [int(path.split(".")[3]) + 1 for path in shapes if path.startswith("text_encoder.encoder.layers.")]
        for depth in (12, 23, max(depths, default=0)):
            yield ["CLIPAttention"], dict(text_layers(width, depth))
    elif component == "unet":
        contexts = {shape[1] for path, shape in shapes.items() if path.endswith("attn2.to_k")} or {768, 1024}
        for context in sorted(contexts):
            for width in sorted({320, *(min(shape[:2]) for shape in shapes.values())}):
                yield _CLASSES["attention"], dict(unet_layers(width, context, "attention"))
                yield _CLASSES["legacy"], dict(unet_layers(width, context, "legacy"))
                yield _CLASSES["extended"], dict(unet_layers(width, context, "legacy", extended=True))


def _token(path: str, embeddings: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    component, _, token = path.partition(".")
    if component != "text_encoder" or len(embeddings) != 1:
        raise MismatchError(f"cloneofsimo's format holds tokens of one vector in one encoder, unlike {token}")
    return {token: embeddings[0].to(dtype)}
