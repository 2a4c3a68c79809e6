"""Which module each of a list of LoRA pairs belongs to. The original knows only the order of the model's modules.

The list is [up0, down0, up1, down1, …], a pair for every linear layer and convolution inside modules of some classes.
diffusers up to 0.14 had the ff of a transformer block between attn1 and attn2, and lists written there are in that
order; the shapes tell, because GEGLU's alone has eight times as many outputs as inputs.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import Tensor, nn

from loractl.compat.wrappers import Wrapper
from loractl.errors import JobError, MismatchError
from loractl.inject.layers import Layer, LoraInjected
from loractl.inject.targets import injectable
from loractl.tensors.lowrank import LowRank

UNET_DEFAULT_TARGET_REPLACE = frozenset({"CrossAttention", "Attention", "GEGLU"})
UNET_EXTENDED_TARGET_REPLACE = UNET_DEFAULT_TARGET_REPLACE | {"ResnetBlock2D"}
TEXT_ENCODER_DEFAULT_TARGET_REPLACE = frozenset({"CLIPAttention"})
TEXT_ENCODER_EXTENDED_TARGET_REPLACE = TEXT_ENCODER_DEFAULT_TARGET_REPLACE
DEFAULT_TARGET_REPLACE = UNET_DEFAULT_TARGET_REPLACE

_RENAMED = {"CrossAttention": "Attention"}  # since diffusers 0.15; files name the class as it was
_BLOCK = re.compile(r"(.*\btransformer_blocks\.\d+)\.(attn1|ff|attn2)\..*")
_LEGACY = ("attn1", "ff", "attn2")


def within(model: nn.Module, classes: Collection[str]) -> dict[str, Layer]:
    """Path → linear layer or convolution inside modules of these classes, in the model's order; a wrapper stands for
    its layer.
    """
    names = {*classes, *(_RENAMED.get(name, name) for name in classes)}
    layers = injectable(model)
    roots = [f"{path}." if path else "" for path, module in model.named_modules() if type(module).__name__ in names]
    return {path: layer for root in roots for path, layer in layers.items() if path.startswith(root)}


def wrappers(model: nn.Module) -> dict[str, Wrapper]:
    """Path → wrapper, all over the model."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Wrapper)}


def injected(model: nn.Module, classes: Collection[str]) -> dict[str, Wrapper]:
    """Path → wrapper, inside modules of these classes. JobError if there is none."""
    found = {path: layer for path, layer in within(model, classes).items() if isinstance(layer, Wrapper)}
    if not found:
        raise JobError(
            f"there is no LoRA in modules of the classes {', '.join(sorted(classes))}: "
            "call inject_trainable_lora or patch_pipe first, or name other classes"
        )
    return found


def pairs(tensors: Sequence[Tensor]) -> list[LowRank]:
    """[up0, down0, …] → updates, with alpha = rank."""
    if len(tensors) % 2:
        raise MismatchError(f"a list of {len(tensors)} tensors is not of pairs of up and down")
    return [_pair(up.detach(), down.detach()) for up, down in zip(tensors[::2], tensors[1::2], strict=True)]


def match(layers: Mapping[str, Layer], lows: Sequence[LowRank]) -> dict[str, LowRank]:
    """Path → its update, in the order of `layers`. Those of convolutions are passed over when the list has none, and
    the reverse. MismatchError unless the rest are as many as the updates, and of their shapes in either order; JobError
    for layers that the core has wrapped.
    """
    if any(isinstance(layer, LoraInjected) and not isinstance(layer, Wrapper) for layer in layers.values()):
        raise JobError("the model has adapters of loractl.inject: remove them first, or go on with loractl.inject")
    dims = {low.down.ndim for low in lows}
    shapes = {path: layer.weight.shape for path, layer in layers.items() if layer.weight.ndim in dims}
    if len(shapes) != len(lows):
        raise MismatchError(
            f"{len(lows)} pairs of up and down are not for the {len(shapes)} layers in the target classes: "
            "the LoRA was made for other classes or another model"
        )
    placed = [dict(zip(order, lows, strict=True)) for order in (shapes, _legacy(shapes))]
    wrong = [[path for path, low in found.items() if low.shape != shapes[path]] for found in placed]
    found, misfits = min(zip(placed, wrong, strict=True), key=lambda each: len(each[1]))
    if misfits:
        path = misfits[0]
        raise MismatchError(
            f"{path} has a weight {tuple(shapes[path])} and its pair of up and down changes one of "
            f"{tuple(found[path].shape)}: the LoRA was made for another model"
        )
    return {path: found[path] for path in shapes}


def _legacy(paths: Iterable[str]) -> list[str]:
    """The same modules in the order of diffusers up to 0.14."""
    seen: dict[str, int] = {}

    def key(path: str) -> tuple[int, int]:
        inner = _BLOCK.fullmatch(path)
        block, part = (inner[1], _LEGACY.index(inner[2])) if inner else (path, 0)
        return seen.setdefault(block, len(seen)), part

    return sorted(paths, key=key)


def _pair(up: Tensor, down: Tensor) -> LowRank:
    rank = len(down)
    if down.ndim not in (2, 4) or up.shape[1:] != (rank, *(1 for _ in down.shape[2:])):
        raise MismatchError(f"{tuple(up.shape)} and {tuple(down.shape)} are no up (out, r, *1) and down (r, in, *k)")
    return LowRank(down, up, float(rank))
