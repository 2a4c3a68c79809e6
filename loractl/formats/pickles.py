"""Pickled files (.pt, .bin, .ckpt), read only when a person allows it, and then by torch's unpickler of weights alone.

That unpickler builds tensors and plain containers and refuses everything else, so no code of the file runs. Understood
are {key: tensor}, A1111's embeddings {"string_to_param": {"*": tensor}, …} and cloneofsimo's three files: lists
[up0, down0, up1, …] in X.pt and X.text_encoder.pt, and {token: vector} in X.ti.pt, which are read together.
"""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loractl.errors import FormatError, InputError
from loractl.formats.safefile import PICKLES, replacing

_PLAIN = str | int | float | None
# What torch.load stumbles over in a damaged file, besides what its unpickler refuses.
_DAMAGE = (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, OSError)
_TRIPLE = {".text_encoder.pt": "text_encoder", ".ti.pt": ""}


def is_pickle(path: Path) -> bool:
    """Whether the file begins like a pickle or like the zip that torch puts around one."""
    try:
        with path.open("rb") as file:
            return file.read(4).lower().startswith(PICKLES)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check the path") from error


def read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors by key and the texts and numbers beside them, with the other files of a triple."""
    tensors, metadata = _flat(path, "unet")
    if path.name.endswith(tuple(_TRIPLE)) or "unet:0:up" not in tensors:
        return tensors, metadata
    for suffix, component in _TRIPLE.items():
        sibling = path.with_name(path.stem + suffix)
        if sibling.is_file():
            tensors |= _flat(sibling, component)[0]
    return tensors, metadata


def write_embedding(path: Path, embeddings: Tensor, name: str, overwrite: bool) -> None:
    """A1111's `.pt` of one token."""
    content = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": embeddings.contiguous()},
        "name": name,
        "step": 0,
    }
    with replacing(path, overwrite) as file:
        torch.save({**content, "sd_checkpoint": None, "sd_checkpoint_name": None}, file)


def _flat(path: Path, component: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    content = _load(path)
    keyed = {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}
    plain = {key: value for key, value in keyed.items() if isinstance(value, _PLAIN)}
    if path.name.endswith(".text_encoder.pt"):
        component = "text_encoder"
    match content:
        case [*items] if items and all(isinstance(item, Tensor) for item in items):
            named = {f"{component}:{n // 2}:{('up', 'down')[n % 2]}": item for n, item in enumerate(items)}
        case {"string_to_param": dict() as params}:
            named = {f"string_to_param.{key}": value for key, value in params.items()}
        case dict():
            named = {key: value for key, value in keyed.items() if key not in plain}
        case _:
            named = {}
    if not named or not all(isinstance(value, Tensor) for value in named.values()):
        raise FormatError(f"{path} is a pickle, and not of tensors as adapters and embeddings have them")
    metadata = {key: str(value) for key, value in plain.items()}
    return {key: _sound(path, value) for key, value in named.items()}, metadata


def _load(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the file's own storages, which are read all the same
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, *_DAMAGE) as error:
        reason = "it asks for more than tensors" if isinstance(error, pickle.UnpicklingError) else "it is damaged"
        raise FormatError(
            f"{path} is a pickle and not read ({reason}): convert it with the tool that made it"
        ) from error


def _sound(path: Path, tensor: Tensor) -> Tensor:
    """A tensor of its own; one that claims more bytes than the file has is refused."""
    if tensor.is_sparse or tensor.numel() * tensor.element_size() > path.stat().st_size:
        raise FormatError(f"{path} has a tensor that is larger than the file: fetch it again")
    return tensor.detach().contiguous()
