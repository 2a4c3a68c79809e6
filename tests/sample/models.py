"""A tiny model, random adapters for it, and what its denoiser says while a session makes pictures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from loractl.families.sd import StableDiffusion
from loractl.inject.targets import resolve
from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank
from tests.tiny import tiny_sd

PROMPT = "a cat"
SPIED = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def tiny_model() -> StableDiffusion:
    model = StableDiffusion(tiny_sd(), torch.float32)
    for network in model.networks.values():
        network.requires_grad_(False)
    return model


def random_adapter(model: StableDiffusion, seed: int = 0, text: bool = False) -> Adapter:
    rng, modules = torch.Generator().manual_seed(seed), {}
    for component, preset in [("unet", "attention"), ("text_encoder", "text-encoder")][: 1 + text]:
        for path in resolve(model.components[component], [preset], 2):
            out, inner = model.components[component].get_parameter(f"{path}.weight").shape
            down, up = torch.randn(2, inner, generator=rng) / 5, torch.randn(out, 2, generator=rng)
            modules[f"{component}.{path}"] = LowRank(down, up, 1.0)
    return Adapter(modules)


@contextmanager
def recording(model: StableDiffusion) -> Iterator[list[Tensor]]:
    """What the denoiser says, call by call."""
    said: list[Tensor] = []
    hook: Any = model.denoiser.register_forward_hook(lambda *args: said.append(args[-1][0].clone()))
    try:
        yield said
    finally:
        hook.remove()


def outputs(model: StableDiffusion, make: Callable[[], object]) -> Tensor:
    with recording(model) as said:
        make()
    return torch.stack(said)


def merge(model: StableDiffusion, adapter: Adapter, weight: float) -> None:
    for component in adapter.components():
        for path, low in adapter.component(component).items():
            model.components[component].get_parameter(f"{path}.weight").data += weight * low.delta()
