"""Adapters on a model (one component of a pipeline): injected, loaded, collected, weighted, removed.

The base never changes. Paths are always those of the bare model; the wrappers in between are nobody's business.
One model carries any number of adapters, told apart by their names.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from loractl.errors import JobError, MismatchError
from loractl.inject.layers import Form, Layer, LoraFactors, LoraInjected, weight_shape, wrap
from loractl.inject.targets import Target, injectable
from loractl.inject.tokens import TokenEmbedding
from loractl.tensors.adapter import content_hash
from loractl.tensors.lowrank import LowRank


def inject(
    model: nn.Module,
    targets: Mapping[str, Target],
    name: str = "default",
    generator: torch.Generator | None = None,
    form: Form = "auto",
    device: torch.device | None = None,
) -> list[str]:
    """Gives each target a fresh adapter and returns the paths; the output stays what it was, because `up` is zero.

    Freezes the parameters of the wrapped layers and no others. A layer that is wrapped already keeps its form. Factors
    are on the `device`, by default on that of the layer's weight, which may visit another to compute.
    """
    layers = _layers(model, targets)
    modules = {path: _fresh(weight_shape(layers[path]), target, generator) for path, target in targets.items()}
    _add(model, layers, modules, name, form, device)
    return list(modules)


def load_into(
    model: nn.Module,
    modules: Mapping[str, LowRank],
    name: str = "default",
    weight: float = 1.0,
    device: torch.device | None = None,
) -> None:
    """Gives the model an adapter that exists. Checks every module first: after a MismatchError nothing has changed."""
    _add(model, _layers(model, modules), fitted(model, modules), name, "auto", device)
    set_weight(model, weight, name)


def fitted(model: nn.Module, modules: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """The modules in the shapes of their layers. MismatchError names the first that has no layer or does not fit it."""
    shapes = {path: weight_shape(layer) for path, layer in _layers(model, modules).items()}
    found = {path: low.fitted(shapes[path]) for path, low in modules.items()}
    for path, low in found.items():
        _check_shape(path, low, shapes[path])
    return found


def collect(model: nn.Module, name: str = "default") -> dict[str, LowRank]:
    """Path → a copy of the adapter's factors on the CPU. The run-time weight is left out."""
    return {
        path: LowRank(_on_cpu(factors.down), _on_cpu(factors.up), factors.alpha)
        for path, factors in adapter(model, name).items()
    }


def set_weight(model: nn.Module, weight: float, name: str = "default") -> None:
    """Scales the adapter's share of the output; 0 switches it off, 1 is how it was trained."""
    with torch.no_grad():
        for factors in adapter(model, name).values():
            factors.weight.fill_(weight)


def bind_weights(model: nn.Module, weights: Mapping[str, Tensor], name: str = "default") -> None:
    """Scales each module's share, by path, with a 0-d tensor, through which gradients flow to what it is made of."""
    factors = adapter(model, name)
    for path, weight in weights.items():
        factors[path].weight = weight.clone()  # of its own: `set_weight` writes into it


def remove(model: nn.Module, name: str | None = None) -> None:
    """Takes one adapter off, or all of them. Where the last one goes, the very layer that was wrapped is put back."""
    if name is not None:
        adapter(model, name)
    for path, layer in injected(model).items():
        for each in [each for each in layer.adapters if name in (None, each)]:
            del layer.adapters[each]
        if not layer.adapters:
            model.set_submodule(path, layer.unwrap())


def adapter_parameters(model: nn.Module, name: str = "default") -> dict[str, nn.Parameter]:
    """What an optimizer trains, by name: "<path>.down" and "<path>.up"."""
    return {
        f"{path}.{part}": parameter
        for path, factors in adapter(model, name).items()
        for part, parameter in factors.named_parameters()
    }


def hash_of(model: nn.Module) -> str:
    """SHA-256 of every base tensor: the same before injection, under any adapters and after their removal."""
    return content_hash(base_tensors(model))


def base_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict the model would have without adapters and learned tokens."""
    tensors: dict[str, Tensor] = dict(model.state_dict())
    for path, layer in model.named_modules():
        if isinstance(layer, LoraInjected | TokenEmbedding):
            for key in layer.state_dict(prefix=f"{path}."):
                del tensors[key]
            tensors |= layer.base.state_dict(prefix=f"{path}.")
    return tensors


def injected(model: nn.Module) -> dict[str, LoraInjected]:
    """Path → wrapper, in the model's order."""
    return {path: module for path, module in model.named_modules() if isinstance(module, LoraInjected)}


def adapter(model: nn.Module, name: str = "default") -> dict[str, LoraFactors]:
    """Path → the factors of one adapter, live. JobError when the model has no adapter of this name."""
    layers = injected(model)
    found = {path: cast(LoraFactors, layer.adapters[name]) for path, layer in layers.items() if name in layer.adapters}
    if not found:
        there = sorted({each for layer in layers.values() for each in layer.adapters})
        raise JobError(f'there is no adapter "{name}" on the model, which has {", ".join(there) or "none"}')
    return found


def _fresh(shape: torch.Size, target: Target, generator: torch.Generator | None) -> LowRank:
    """`up` = 0 and `down` ~ N(0, 1/r²), on the CPU, so that a seed means the same factors on every device.

    The LoRA paper says Gaussian (section 4.1); cloneofsimo/lora and diffusers' training scripts take 1/r as standard
    deviation, and the learning rates people know were found with it. peft's default is Kaiming-uniform with a = √5.
    """
    out, *inner = shape
    down = torch.randn(target.rank, *inner, generator=generator) / target.rank
    up = torch.zeros(out, target.rank, *(1 for _ in inner[1:]))
    return LowRank(down, up, target.alpha)


def _layers(model: nn.Module, paths: Iterable[str]) -> dict[str, Layer]:
    """The layers at these paths. MismatchError names the first path that is missing, and what comes nearest to it."""
    layers = injectable(model)
    for path in paths:
        if path not in layers:
            near = difflib.get_close_matches(path, layers, n=1)
            hint = f"the nearest is {near[0]}" if near else "it belongs to another base model"
            raise MismatchError(f"the model has no linear layer or convolution {path}: {hint}")
    return {path: layers[path] for path in paths}


def _check_shape(path: str, low: LowRank, shape: torch.Size) -> None:
    pointwise = (low.rank, *(1 for _ in shape[2:]))
    if low.shape != shape or low.up.shape[1:] != pointwise:
        down, up, layer = (tuple(each) for each in (low.down.shape, low.up.shape, shape))
        raise MismatchError(
            f"{path}: the adapter's down {down} and up {up} do not fit the layer's weight {layer}, "
            "so it was made for another base model"
        )


def _add(
    model: nn.Module,
    layers: Mapping[str, Layer],
    modules: Mapping[str, LowRank],
    name: str,
    form: Form,
    device: torch.device | None,
) -> None:
    _check_name(model, name)
    for path, low in modules.items():
        layer = wrap(layers[path], form)
        layer.adapters[name] = LoraFactors(low, device or layer.weight.device)
        model.set_submodule(path, layer)


def _check_name(model: nn.Module, name: str) -> None:
    if not name or "." in name or hasattr(nn.ModuleDict(), name):
        raise JobError(
            f'"{name}" cannot name an adapter: choose a name without dots that is not a method of torch either'
        )
    if any(name in layer.adapters for layer in injected(model).values()):
        raise JobError(f'the model has an adapter "{name}" already: remove it first, or give this one another name')


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
