"""The original's functions on one network: LoRA injected, put in place of another, added to it, scaled, folded in.

They check all that they are given first: after an error the model is as it was. Lists of tensors are never changed,
whereas the original empties them.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from loractl.compat.files import read_list
from loractl.compat.places import (
    DEFAULT_TARGET_REPLACE,
    UNET_EXTENDED_TARGET_REPLACE,
    injected,
    match,
    pairs,
    within,
    wrappers,
)
from loractl.compat.wrappers import Factor, Wrapper, fresh, wrap
from loractl.errors import MismatchError
from loractl.inject.inject import remove
from loractl.inject.layers import Layer, LoraInjected
from loractl.tensors.algebra import weighted
from loractl.tensors.lowrank import LowRank

Injected = tuple[list[list[nn.Parameter]], list[str]]


def inject_trainable_lora(
    model: nn.Module,
    target_replace_module: Collection[str] = DEFAULT_TARGET_REPLACE,
    r: int = 4,
    loras: str | Path | None = None,
    verbose: bool = False,
    dropout_p: float = 0.0,
    scale: float = 1.0,
) -> Injected:
    """Gives the linear layers of the classes a LoRA that trains, and freezes them; `loras` is a .pt to start from.

    Returns groups of parameters, which `itertools.chain(*groups)` makes one list of, and the layers' own names.
    """
    layers = {path: layer for path, layer in within(model, target_replace_module).items() if layer.weight.ndim == 2}
    return _inject(model, layers, r, loras, verbose, dropout_p, scale)


def inject_trainable_lora_extended(
    model: nn.Module,
    target_replace_module: Collection[str] = UNET_EXTENDED_TARGET_REPLACE,
    r: int = 4,
    loras: str | Path | None = None,
) -> Injected:
    """The same for convolutions as well."""
    return _inject(model, within(model, target_replace_module), r, loras)


def extract_lora_ups_down(
    model: nn.Module, target_replace_module: Collection[str] = DEFAULT_TARGET_REPLACE
) -> list[tuple[Factor, Factor]]:
    """(`lora_up`, `lora_down`) of every LoRA in the classes, live, in the model's order. JobError if there is none."""
    return [(layer.lora_up, layer.lora_down) for layer in injected(model, target_replace_module).values()]


def monkeypatch_or_replace_lora(
    model: nn.Module,
    loras: Sequence[Tensor],
    target_replace_module: Collection[str] = DEFAULT_TARGET_REPLACE,
    r: int | list[int] = 4,  # noqa: ARG001  the tensors say their ranks
) -> None:
    """Puts [up0, down0, …] on the linear layers of the classes, at scale 1, in place of what LoRA they have."""
    layers = {path: layer for path, layer in within(model, target_replace_module).items() if layer.weight.ndim == 2}
    attach(model, match(layers, pairs(loras)))


def monkeypatch_or_replace_lora_extended(
    model: nn.Module,
    loras: Sequence[Tensor],
    target_replace_module: Collection[str] = DEFAULT_TARGET_REPLACE,
    r: int | list[int] = 4,  # noqa: ARG001  the tensors say their ranks
) -> None:
    """The same for convolutions as well."""
    attach(model, match(within(model, target_replace_module), pairs(loras)))


def monkeypatch_add_lora(
    model: nn.Module,
    loras: Sequence[Tensor],
    target_replace_module: Collection[str] = DEFAULT_TARGET_REPLACE,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> None:
    """Makes each LoRA of the model alpha · ΔW_new + beta · ΔW_old, exactly: the ranks add up. Its scale stays and now
    holds for both; a selector goes into ΔW_old.
    """
    there = injected(model, target_replace_module)
    for path, low in match(there, pairs(loras)).items():
        layer, old = there[path], there[path].update()
        new = LowRank(low.down.to(old.down), low.up.to(old.up), low.alpha)
        layer.hold(weighted([new, old], [alpha, beta]), layer.scale, layer.dropout.p)


def monkeypatch_remove_lora(model: nn.Module) -> None:
    """Puts the very layers back that were wrapped."""
    remove(model)


def tune_lora_scale(model: nn.Module, alpha: float = 1.0) -> None:
    """What ΔW is multiplied by, in every layer."""
    for layer in wrappers(model).values():
        layer.scale = alpha


def set_lora_diag(model: nn.Module, diag: Tensor) -> None:
    """Weighs the ranks of every LoRA: ΔW = up · diag · down. MismatchError unless all are of the diagonal's rank."""
    layers = wrappers(model)
    for path, layer in layers.items():
        if diag.shape != (layer.r,):
            raise MismatchError(
                f"{path} has a LoRA of rank {layer.r}, which a diagonal {tuple(diag.shape)} doesn't fit"
            )
    for layer in layers.values():
        layer.set_selector_from_diag(diag)


@torch.no_grad()
def collapse_lora(model: nn.Module, alpha: float = 1.0) -> None:
    """W ← W + alpha · scale · ΔW with the selector, for good. The wrappers stay, at scale 0: nothing counts twice."""
    for layer in wrappers(model).values():
        weight, delta = layer.base.weight, layer.update().delta()
        total = weight + alpha * layer.scale * delta.to(weight.device)
        layer.base.weight = nn.Parameter(total.to(weight.dtype), requires_grad=False)
        layer.scale = 0.0


@torch.no_grad()
def inspect_lora(model: nn.Module) -> dict[str, list[float]]:
    """Path → [the mean of |scale · ΔW|]: how far each layer has moved."""
    return {
        path: [abs(layer.scale) * float(layer.update().delta().abs().mean())] for path, layer in wrappers(model).items()
    }


def attach(
    model: nn.Module, modules: Mapping[str, LowRank], scale: float = 1.0, dropout_p: float = 0.0
) -> dict[str, Wrapper]:
    """Path → the wrapper that holds the update from now on."""
    layers = {path: wrap(model.get_submodule(path)) for path in modules}
    for path, layer in layers.items():
        layer.hold(modules[path], scale, dropout_p)
        model.set_submodule(path, layer)
    return layers


def _inject(
    model: nn.Module,
    layers: Mapping[str, Layer],
    r: int,
    loras: str | Path | None,
    verbose: bool = False,
    dropout_p: float = 0.0,
    scale: float = 1.0,
) -> Injected:
    bare = {path: layer for path, layer in layers.items() if not isinstance(layer, LoraInjected)}
    if not bare:
        raise MismatchError("the model has no layer without LoRA in modules of the target classes: name other classes")
    if loras is None:
        modules = {path: fresh(layer.weight, r) for path, layer in bare.items()}
    else:
        modules = match(bare, pairs(read_list(Path(loras))))
    if verbose:
        for path, layer in bare.items():
            print("LoRA into", path, tuple(layer.weight.shape))
    factors = [factor for w in attach(model, modules, scale, dropout_p).values() for factor in (w.lora_up, w.lora_down)]
    return [list(factor.parameters()) for factor in factors], [path.rpartition(".")[2] for path in modules]
