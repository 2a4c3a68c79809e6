"""How much learns, and beside how much."""

from typing import cast

from torch import nn

from loractl.families.family import Family
from loractl.inject.layers import LoraInjected, weight_shape
from loractl.train.loop import Group


def count(groups: list[Group]) -> int:
    return sum(parameter.numel() for group in groups for parameter in group.parameters)


def matrix_size(layer: nn.Module) -> int:
    """Entries of the weight that an injected layer adapts."""
    return weight_shape(cast(LoraInjected, layer)).numel()


def whole(model: Family) -> int:
    """Parameters of all the model's networks, however few bits they are kept in, without the adapter's own."""
    return sum(
        entries(network, name, parameter)
        for network in model.networks.values()
        for name, parameter in network.named_parameters()
        if ".adapters." not in name
    )


def entries(network: nn.Module, name: str, parameter: nn.Parameter) -> int:
    """Of a parameter; the weight of a linear layer may be packed, several entries to a byte."""
    path, _, last = name.rpartition(".")
    layer = network.get_submodule(path)
    return weight_shape(layer).numel() if last == "weight" and isinstance(layer, nn.Linear) else parameter.numel()
