"""What the tests of the old names share: random LoRA on a network, and the dense updates that it has."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from loractl.compat import LoraInjectedConv2d, LoraInjectedLinear, extract_lora_ups_down

CLIP = {"CLIPAttention"}


def wrappers(model: nn.Module) -> dict[str, LoraInjectedLinear | LoraInjectedConv2d]:
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, LoraInjectedLinear | LoraInjectedConv2d)
    }


def disturb(model: nn.Module, seed: int = 0) -> None:
    """Makes every LoRA of the model random."""
    generator = torch.Generator().manual_seed(seed)
    for layer in wrappers(model).values():
        for factor in (layer.lora_up, layer.lora_down):
            factor.weight.data.copy_(0.2 * torch.randn(factor.weight.shape, generator=generator))


def deltas(model: nn.Module) -> dict[str, Tensor]:
    """Path → scale · up · diag(selector) · down in fp64, out of what a person can see of the wrappers."""
    return {path: delta(layer) for path, layer in wrappers(model).items()}


def delta(layer: LoraInjectedLinear | LoraInjectedConv2d) -> Tensor:
    up, down = (factor.weight.detach().double().flatten(1) for factor in (layer.lora_up, layer.lora_down))
    return (layer.scale * up @ torch.diag(layer.selector.double()) @ down).view(layer.weight.shape)


def pairs(model: nn.Module, classes: set[str]) -> list[Tensor]:
    """[up0, down0, …], copies, as the original's documentation has people make them."""
    found = extract_lora_ups_down(model, classes)
    return [factor.weight.detach().clone() for both in found for factor in both]


def assert_near(found: Mapping[str, Tensor], right: Mapping[str, Tensor], tolerance: float = 1e-5) -> None:
    """The same modules, and in each ‖found − right‖ ≤ tolerance · ‖right‖."""
    assert found.keys() == right.keys()
    for path, delta in right.items():
        assert (found[path] - delta).norm() <= tolerance * delta.norm(), path
