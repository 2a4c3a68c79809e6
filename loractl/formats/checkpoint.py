"""Models on disk: where the weights and biases of the layers of a diffusers folder or a single file are.

Nothing here holds a model: headers say where the numbers are, and each tensor is read alone when it is asked for. Paths
are as in an `Adapter`, "unet.mid_block…to_q", whatever the layout calls them.
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
from loractl.formats.ldm import Share, places
from loractl.formats.names import canonical
from loractl.formats.safefile import DTYPES, Header, read_header, write_tensors
from loractl.tensors.lowrank import LowRank

# A file of weights or the index of several, in a component's folder; a plain one is no variant such as fp16.
_ENTRANCE = re.compile(r"(?!.+-\d{5}-of-\d{5}\.).+\.safetensors(\.index(\.\w+)?\.json)?")
_PLAIN = re.compile(r"[^.]+\.safetensors(\.index\.json)?")
_COMPONENT = re.compile(r"unet|transformer(_\d)?|text_encoder(_\d)?")
# Tables that are looked up: no factors of an update fit them.
_LOOKED_UP = re.compile(r".*\.(token_embedding|position_embedding|embed_tokens|shared|relative_attention_bias)\.weight")


@dataclass(frozen=True)
class Weight:
    """One parameter of a module: `rows` of a file's tensor, one after the other, in the shape (out, in, *k) or (n,).

    Where it is `transposed` the whole tensor is (in, out).
    """

    header: Header
    key: str
    shape: tuple[int, ...]
    rows: tuple[range, ...]
    transposed: bool = False

    def read(self) -> Tensor:
        tensor = read_tensor(self.header, self.key)
        if self.transposed:
            return tensor.T
        parts = [tensor[rows.start : rows.stop] for rows in self.rows]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def places(self, update: LowRank | Tensor) -> Iterator[tuple[int, LowRank | Tensor]]:
        """The parts of an update of this parameter, each with the first of the tensor's rows that it belongs to."""
        if isinstance(update, LowRank) and self.transposed:
            update = update.transposed()
        done = 0
        for rows in self.rows:
            yield rows.start, rows_of(update, done, done + len(rows))
            done += len(rows)


def rows_of(update: LowRank | Tensor, begin: int, end: int) -> LowRank | Tensor:
    return update.rows(begin, end) if isinstance(update, LowRank) else update[begin:end]


def model_weights(model: Path) -> dict[str, Weight]:
    """Module path → weight, of every linear layer and convolution, as `model_parameters` finds them."""
    parameters = model_parameters(model)
    return {path.removesuffix(".weight"): each for path, each in parameters.items() if len(each.shape) > 1}


def model_parameters(model: Path) -> dict[str, Weight]:
    """Path of a parameter ("unet.conv_in.bias") → it, in a diffusers folder or a single safetensors file, in order.

    InputError where it is neither, FormatError where a file is not sound.
    """
    found = _folder_weights(model) if model.is_dir() else _file_weights(model)
    if not any(len(each.shape) > 1 for each in found.values()):
        raise InputError(
            f"{model} has no weights of a UNet, a transformer or a text encoder under names that loractl knows: give a "
            "diffusers folder, or one file of Stable Diffusion 1, 2, 3 or XL or of Flux"
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
    if scaled := next((key for key in header.entries if key.endswith((".scale_weight", "scaled_fp8"))), None):
        raise FormatError(f"{model} has weights in 8 bits with factors beside them ({scaled}): get it in fp16 or bf16")
    placed = places({key: entry.shape for key, entry in header.entries.items()})
    return {share.path: weight for key, share in placed if (weight := _weight(header, key, share))}


def _folder_weights(model: Path) -> dict[str, Weight]:
    found = {}
    for component, header in folder_headers(model):
        for key in header.entries:
            shape = header.entries[key].shape
            share = Share(canonical(f"{component}.{key}"), (range(shape[0] if shape else 0),))
            if key.endswith((".weight", ".bias")) and (weight := _weight(header, key, share)):
                found[share.path] = weight
    return found


def _weight(header: Header, key: str, share: Share) -> Weight | None:
    """The share of a tensor, if it is of numbers that can be added to."""
    entry = header.entries[key]
    if not entry.shape or not DTYPES[entry.dtype].is_floating_point or _LOOKED_UP.fullmatch(share.path):
        return None
    inner = entry.shape[:1] if share.transposed else entry.shape[1:]
    return Weight(header, key, (sum(map(len, share.rows)), *inner), share.rows, share.transposed)


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
