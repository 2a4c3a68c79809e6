"""Models on disk: where the weight of every linear layer and convolution of a diffusers folder or a single file is.

Nothing here holds a model: headers say where the weights are, and each is read alone when it is asked for. Paths are as
in an `Adapter`, "unet.mid_block…to_q", whatever the layout calls them.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from loractl.errors import FormatError, InputError
from loractl.formats.ldm import Share, shares
from loractl.formats.names import canonical
from loractl.formats.safefile import DTYPES, Header, read_header, write_tensors

# A file of weights or the index of several, in a component's folder; a plain one is no variant such as fp16.
_ENTRANCE = re.compile(r"(?!.+-\d{5}-of-\d{5}\.).+\.safetensors(\.index(\.\w+)?\.json)?")
_PLAIN = re.compile(r"[^.]+\.safetensors(\.index\.json)?")
_COMPONENT = re.compile(r"unet|transformer(_\d)?|text_encoder(_\d)?")
# Tables that are looked up: no factors of an update fit them.
_LOOKED_UP = re.compile(r".*\.(token_embedding|position_embedding|embed_tokens|shared|relative_attention_bias)")


@dataclass(frozen=True)
class Weight:
    """One module's weight: the rows of a file's tensor from `first` on, in the shape (out, in, *k)."""

    header: Header
    key: str
    shape: tuple[int, ...]
    first: int = 0

    def read(self) -> Tensor:
        return read_tensor(self.header, self.key)[self.first : self.first + self.shape[0]]


def model_weights(model: Path) -> dict[str, Weight]:
    """Module path → weight of a diffusers folder or a single safetensors file, in the order of the paths.

    InputError where it is neither, FormatError where a file is not sound.
    """
    found = _folder_weights(model) if model.is_dir() else _file_weights(model)
    if not found:
        raise InputError(
            f"{model} has no weights of a UNet, a transformer or a text encoder under names that loractl knows: give a "
            "diffusers folder, or one file of Stable Diffusion 1, 2 or XL with all its parts"
        )
    return dict(sorted(found.items()))


def folder_headers(model: Path) -> Iterator[tuple[str, Header]]:
    """Component and header of each weight file of the denoiser and the text encoders of a diffusers folder."""
    if not (model / "model_index.json").is_file():
        raise InputError(f"{model} is not a diffusers folder: it has no model_index.json")
    for folder in sorted(path for path in model.iterdir() if path.is_dir() and _COMPONENT.fullmatch(path.name)):
        for file in _weight_files(folder):
            yield folder.name, read_header(file)


def read_tensor(header: Header, key: str) -> Tensor:
    """One tensor of a file, read and not mapped: mapped pages would count as this process's memory."""
    entry = header.entries[key]
    data = torch.empty(entry.end - entry.begin, dtype=torch.uint8)
    with header.path.open("rb") as file:
        file.seek(header.offset + entry.begin)
        if file.readinto(data.numpy().data) != len(data):
            raise FormatError(f"{header.path} became shorter while it was read: leave it alone and try again")
    return data.view(DTYPES[entry.dtype]).view(entry.shape)


@contextmanager
def as_safetensors(model: Path, allow_pickle: bool, scratch: Path) -> Iterator[Path]:
    """`model` itself, or for a .ckpt, where that is allowed, a safetensors copy of its tensors below `scratch`."""
    if model.suffix != ".ckpt":
        yield model
        return
    if not allow_pickle:
        raise InputError(f"{model} is a pickle, which could run code when loaded: convert it, or set allow_pickle")
    with TemporaryDirectory(dir=scratch, prefix=".ckpt-") as folder:
        copy = Path(folder, f"{model.stem}.safetensors")
        write_tensors(copy, _unpickled(model), {})
        yield copy


def _unpickled(model: Path) -> dict[str, Tensor]:
    """The tensors of a pickle, by torch's own reader, which builds tensors and plain values and runs no code."""
    try:
        content = torch.load(model, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a hostile or broken pickle raises
        raise FormatError(
            f"{model} is no pickle of tensors and plain values, and nothing else is loaded from one: get the model as "
            "safetensors"
        ) from error
    tensors = content.get("state_dict", content) if isinstance(content, dict) else {}
    return {key: value for key, value in tensors.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _file_weights(model: Path) -> dict[str, Weight]:
    header = read_header(model)
    placed = ((key, share) for key in header.entries for share in shares(key))
    return {share.path: weight for key, share in placed if (weight := _weight(header, key, share))}


def _folder_weights(model: Path) -> dict[str, Weight]:
    found = {}
    for component, header in folder_headers(model):
        for key in header.entries:
            share = Share(canonical(f"{component}.{key.removesuffix('.weight')}"))
            if key.endswith(".weight") and (weight := _weight(header, key, share)):
                found[share.path] = weight
    return found


def _weight(header: Header, key: str, share: Share) -> Weight | None:
    """The share of a tensor, if it is a matrix or a kernel of numbers that can be added to."""
    entry = header.entries[key]
    if len(entry.shape) < 2 or not DTYPES[entry.dtype].is_floating_point or _LOOKED_UP.fullmatch(share.path):
        return None
    rows = entry.shape[0] // share.parts
    return Weight(header, key, (rows, *entry.shape[1:]), share.part * rows)


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files that from_pretrained would read: the plain ones, or where there are none a variant's."""
    entrances = [file for file in folder.iterdir() if _ENTRANCE.fullmatch(file.name)]
    if not entrances:
        raise InputError(f"{folder} has no safetensors file: convert its weights with the tool that made them")
    first = min(entrances, key=lambda file: (not _PLAIN.fullmatch(file.name), file.name))
    return [folder / name for name in _shards(first)] if first.suffix == ".json" else [first]


def _shards(index: Path) -> list[str]:
    try:
        names = {*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{index} is no index of weight files: fetch it again") from error
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise FormatError(f"{index} names files outside its folder: fetch it again")
    return sorted(names)
