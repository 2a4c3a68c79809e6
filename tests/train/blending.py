"""Two random adapters of a tiny model, for tests that blend them."""

import torch

from loractl.families.sd import StableDiffusion
from loractl.inject.targets import resolve
from loractl.tensors.lowrank import LowRank
from tests.tensors.updates import random_update
from tests.tiny import tiny_sd

# Of each adapter, what it changes; both change the values.
TARGETS = {
    "one": {"unet": ["to_q", "to_v"]},
    "two": {"unet": ["to_k", "to_v"], "text_encoder": ["v_proj"]},
}


def tiny_model() -> StableDiffusion:
    """At rest, as a loaded one is."""
    model = StableDiffusion(tiny_sd(), torch.float32)
    for network in model.networks.values():
        network.requires_grad_(False)
    return model


def random_modules(model: StableDiffusion, name: str, seed: int) -> dict[str, LowRank]:
    shapes = {
        f"{component}.{path}": network.get_submodule(path).weight.shape
        for component, patterns in TARGETS[name].items()
        for network in [model.components[component]]
        for path in resolve(network, patterns, 2)
    }
    return {path: random_update(tuple(shape), 2, 0.2, seed + i) for i, (path, shape) in enumerate(shapes.items())}


ADAPTERS = {name: random_modules(tiny_model(), name, 100 * i) for i, name in enumerate(TARGETS)}
