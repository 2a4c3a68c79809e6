"""Adapter files on a loaded model, and the pictures that are asked of it: what methods that make pictures share."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from loractl.errors import JobError, MismatchError
from loractl.families.family import Family
from loractl.formats import load_adapter
from loractl.inject.inject import load_into, remove
from loractl.inject.tokens import add_tokens, remove_tokens
from loractl.sample.canvas import Canvas, Size
from loractl.sample.denoise import Request
from loractl.tensors.adapter import Adapter


def apply(model: Family, path: Path, name: str, weight: float = 1.0, *, allow_pickle: bool = False) -> Adapter:
    """Loads a file into the model's networks, its learned tokens into their vocabularies, and returns what it holds.

    The weight is for the modules: a token counts as it is written in a prompt. MismatchError when a part of the file
    belongs to no network of the model, or does not fit it.
    """
    adapter = read(model, path, allow_pickle)
    try:
        teach(model, adapter)
    except (JobError, MismatchError) as error:
        raise type(error)(f"{path}: {error}") from error
    for component in adapter.components():
        load_into(model.components[component], adapter.component(component), name, weight, model.device)
    return adapter


def read(model: Family, path: Path, allow_pickle: bool = False) -> Adapter:
    """An adapter for this model. MismatchError when a part of the file belongs to no network of the model."""
    adapter = load_adapter(path, model.module_paths(), allow_pickle=allow_pickle)
    strangers = sorted({*adapter.components(), *_tokens(adapter)} - set(model.components))
    if strangers:
        raise MismatchError(f"{path} adapts {', '.join(strangers)}, which this model does not have")
    return adapter


def teach(model: Family, adapter: Adapter) -> None:
    """Adds the adapter's learned tokens to the model's vocabularies."""
    for component, vectors in _tokens(adapter).items():
        add_tokens(model.tokenizers[component], model.components[component], vectors)


def forget(model: Family) -> None:
    """Takes every learned token off the model."""
    for component, tokenizer in model.tokenizers.items():
        remove_tokens(tokenizer, model.components[component])


def remove_all(model: Family) -> None:
    """Takes every adapter and every learned token off the model."""
    for network in model.components.values():
        remove(network)
    forget(model)


def _tokens(adapter: Adapter) -> dict[str, dict[str, Tensor]]:
    """Component → token → rows."""
    tokens: dict[str, dict[str, Tensor]] = {}
    for path, rows in adapter.tokens.items():
        component, _, token = path.partition(".")
        tokens.setdefault(component, {})[token] = rows
    return tokens


def requests(
    model: Family,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    guidance: float | None,
    size: int | Size | None,
    negative: str,
    scheduler: str = "",
    clip_skip: int = 1,
    canvas: Canvas | None = None,
) -> list[Request]:
    """One for each prompt and seed, the seeds of a prompt in a row; guidance and size are the model's own if None."""
    scale = model.guidance if guidance is None else guidance
    shared = (steps, scale, size or model.resolution, negative, scheduler, clip_skip, canvas)
    return [Request(prompt, seed, *shared) for prompt in prompts for seed in seeds]
