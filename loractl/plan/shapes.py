"""A model's networks without their numbers, built from its configurations alone.

Their tensors are torch's fake tensors: meta tensors, which have a shape and a dtype and no memory, that also know on
which device they would be. With plain meta tensors attention would take another path than it does with real ones.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from loractl.bases import configurations, is_single_file
from loractl.errors import InputError
from loractl.families.family import Family
from loractl.families.outlines import outlines
from loractl.families.pipeline import LAB, family_of, quiet
from loractl.families.single_file import recognize_file
from loractl.plan.inputs import counting_words


@contextmanager
def shapes_only() -> Iterator[None]:
    """All tensors made inside are shapes. Those of one such block can't be used in another."""
    with FakeTensorMode(), counting_words():
        yield


def model_folder(source: str, revision: str | None = None, config: str | None = None) -> Path:
    """Where the configurations of a model are: its folder, or for a hub id what the cache has or the hub gives.

    For a single file `config`, or those that loractl has for the family that its keys tell.
    """
    if source == "lab":
        return LAB
    if Path(source).is_dir():
        return Path(source)
    if is_single_file(source):
        return model_folder(config) if config else configurations(recognize_file(Path(source)))
    return _from_hub(source, revision)


def networks(folder: Path, dtype: torch.dtype) -> dict[str, nn.Module]:
    """The networks of a diffusers folder by the pipeline's names for them, frozen; call it in `shapes_only`.

    InputError when the folder lacks a configuration, MismatchError for a network that no library here has.
    """
    quiet()
    needed = family_in(folder).denoiser_name
    if not (folder / needed / "config.json").is_file():
        raise InputError(f"{folder} has no {needed}/config.json: give a whole diffusers folder")
    return outlines(folder, _index(folder), dtype)


def family_in(folder: Path) -> type[Family]:
    """The family of the model in a folder, as its index names the pipeline."""
    return family_of(folder.name, _index(folder).get("_class_name", "pipeline without a name"))


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def pixels_per_latent(parts: Mapping[str, nn.Module]) -> int:
    """By how much the autoencoder makes a side shorter: it halves it between its levels."""
    config: Any = parts["vae"].config if "vae" in parts else {}
    for levels in ("block_out_channels", "encoder_block_out_channels"):
        if levels in config:
            return int(2 ** (len(config[levels]) - 1))
    return int(2 ** len(config["temperal_downsample"])) if "temperal_downsample" in config else 8


def own_resolution(parts: Mapping[str, nn.Module], denoiser: str) -> int:
    """The model's own picture size in pixels: what its configuration says, or 128 latents, as pipelines take it."""
    config: Any = parts[denoiser].config
    size = config.get("sample_size")
    return (size if isinstance(size, int) else 128) * pixels_per_latent(parts)


def _index(folder: Path) -> dict[str, Any]:
    file = folder / "model_index.json"
    try:
        index: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} can't be read ({error}): give a diffusers folder") from error
    return index


def _from_hub(source: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=["*.json"]))
    except (OSError, ValueError) as error:
        reason = str(error).partition(". ")[0].partition("\n")[0]
        raise InputError(
            f"the model {source!r} is no folder here and the hub did not give its configurations: {reason}"
        ) from error
