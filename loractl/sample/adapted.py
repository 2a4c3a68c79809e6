"""Adapter files on a loaded model, and the pictures that are asked of it: what methods that make pictures share."""

from collections.abc import Sequence
from pathlib import Path

from loractl.errors import MismatchError
from loractl.families.sd import StableDiffusion
from loractl.formats import load_adapter
from loractl.inject.inject import load_into, remove
from loractl.sample.denoise import Request


def apply(model: StableDiffusion, path: Path, name: str, weight: float = 1.0) -> None:
    """Loads an adapter into the model's networks. MismatchError when a part of it belongs to none of them."""
    adapter = load_adapter(path, model.module_paths())
    strangers = sorted(set(adapter.components()) - set(model.components))
    if strangers:
        raise MismatchError(f"{path} adapts {', '.join(strangers)}, which this model does not have")
    for component in adapter.components():
        load_into(model.components[component], adapter.component(component), name, weight)


def remove_all(model: StableDiffusion) -> None:
    """Takes every adapter off the model."""
    for network in model.components.values():
        remove(network)


def requests(
    model: StableDiffusion,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    guidance: float | None,
    size: int | None,
    negative: str,
) -> list[Request]:
    """One for each prompt and seed, the seeds of a prompt in a row; guidance and size are the model's own if None."""
    scale = model.guidance if guidance is None else guidance
    pixels = size or model.resolution
    return [Request(prompt, seed, steps, scale, pixels, negative) for prompt in prompts for seed in seeds]
