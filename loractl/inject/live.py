"""The adapter that a pipeline in memory wears, put on by peft, as diffusers does it, or by `inject`.

from loractl.formats import save_adapter
from loractl.inject.live import take

save_adapter(Path("style.safetensors"), take(pipeline, "style"), "diffusers", name="style")
"""

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from loractl.errors import JobError, MismatchError
from loractl.formats.names import canonical
from loractl.inject.layers import LoraInjected
from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank


def take(pipeline: Any, name: str | None = None) -> Adapter:
    """Copies, on the CPU, of the factors of the adapter called `name`, or of the only one; the pipeline stays as it is.

    `pipeline.components` are its networks by name. Weights at run time, as of `set_adapters`, are left out, and so are
    learned tokens, which `collect_tokens` has. JobError when it isn't clear which adapter is meant, MismatchError where
    a layer wears something that's no LoRA.
    """
    layers = dict(_layers(pipeline))
    chosen = _choose(name, sorted({each for layer in layers.values() for each in _worn(layer)}))
    worn = {path: layer for path, layer in layers.items() if chosen in _worn(layer)}
    modules = {path: _factors(path, layer, chosen) for path, layer in worn.items()}
    found = {path: _magnitude(layer, chosen) for path, layer in worn.items()}
    magnitudes = {path: magnitude for path, magnitude in found.items() if magnitude is not None}
    return Adapter(modules, magnitudes=magnitudes)


def _layers(pipeline: Any) -> Iterator[tuple[str, nn.Module]]:
    """Path in memory and wrapper, of every layer that wears something."""
    for component, network in pipeline.components.items():
        if isinstance(network, nn.Module):
            for path, layer in network.named_modules():
                if _worn(layer):
                    yield canonical(f"{component}.{path}"), layer


def _worn(layer: Any) -> set[str]:
    """The names of the layer's adapters. Every wrapper of peft says in which of its tables they are."""
    if isinstance(layer, LoraInjected):
        return set(layer.adapters)
    return {name for table in getattr(layer, "adapter_layer_names", ()) for name in getattr(layer, table, {})}


def _choose(name: str | None, names: list[str]) -> str:
    if not names:
        raise JobError("the pipeline wears no adapter: to compare it with its base, use `loractl distill`")
    if name is None and len(names) > 1:
        raise JobError(f"the pipeline wears the adapters {', '.join(names)}: choose one by its name")
    if name is not None and name not in names:
        raise JobError(f"the pipeline wears no adapter {name}, but {', '.join(names)}")
    return name or names[0]


def _factors(path: str, layer: Any, name: str) -> LowRank:
    """With rsLoRA (Kalajdzievski 2023) the scale is alpha / √rank."""
    if isinstance(layer, LoraInjected):
        factors: Any = layer.adapters[name]
        return LowRank(_copy(factors.down), _copy(factors.up), factors.alpha)
    if name not in getattr(layer, "lora_A", ()) or layer.lora_bias.get(name):
        kind = type(layer).__name__
        raise MismatchError(
            f"{path} wears {name} as {kind}, which isn't LoRA alone: save it with peft and convert that"
        )
    down, up = _copy(layer.lora_A[name].weight), _copy(layer.lora_B[name].weight)
    return LowRank(down, up, layer.lora_alpha[name] * (math.sqrt(len(down)) if layer.use_rslora.get(name) else 1))


def _magnitude(layer: Any, name: str) -> Tensor | None:
    """DoRA's magnitudes (out, 1, *1), if there are any."""
    tables = getattr(layer, "lora_magnitude_vector", {})
    if name not in tables:
        return None
    ones = [1] * (layer.lora_A[name].weight.ndim - 1)
    return _copy(tables[name].weight).reshape(-1, *ones)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
