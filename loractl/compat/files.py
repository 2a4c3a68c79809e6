"""The original's files: `.safetensors` of several networks and tokens, and `.pt` lists [up0, down0, …].

Keys and metadata are those of `formats.cloneofsimo`, with any network's name in front: `unet:3:up`, `unet:3:down`,
"unet" = JSON list of classes, "unet:3:rank", and "<embed>" for a token. Scale and selector are folded into the factors.
"""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from loractl.compat.places import DEFAULT_TARGET_REPLACE, TEXT_ENCODER_DEFAULT_TARGET_REPLACE, injected, within
from loractl.errors import FormatError, MismatchError, NumericsError
from loractl.formats.pickles import is_pickle, read_pickle
from loractl.formats.safefile import read_tensors, write_tensors
from loractl.tensors.adapter import is_finite

Loras = dict[str, tuple[list[nn.Parameter], list[int], list[str]]]
Embeds = dict[str, Tensor]
ModelMap = Mapping[str, tuple[nn.Module, Collection[str]]]

_KEY = re.compile(r"(\w+):(\d{1,6}):(up|down)")
_TOKEN = "<embed>"
_CLASSES = {"text_encoder": TEXT_ENCODER_DEFAULT_TARGET_REPLACE}  # of a network, where the metadata don't say


def save_safeloras(modelmap: ModelMap | None = None, outpath: str | Path = "./lora.safetensors") -> None:
    """Writes the LoRA of networks, {"unet": (unet, classes), …}, to one file in fp16."""
    save_safeloras_with_embeds(modelmap, outpath=outpath)


def save_safeloras_with_embeds(
    modelmap: ModelMap | None = None,
    embeds: Mapping[str, Tensor] | None = None,
    outpath: str | Path = "./lora.safetensors",
) -> None:
    """The same with tokens, {"<s1>": vector (dim,), …}. NumericsError rather than a file with infinite numbers."""
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for name, (model, target_replace_module) in (modelmap or {}).items():
        classes = sorted(target_replace_module)
        metadata[name] = json.dumps(classes)
        for number, (up, down) in enumerate(_all_of(model, classes)):
            tensors[f"{name}:{number}:up"], tensors[f"{name}:{number}:down"] = up.half(), down.half()
            metadata[f"{name}:{number}:rank"] = str(len(down))
    for token, vector in (embeds or {}).items():
        tensors[token], metadata[token] = vector.detach(), _TOKEN
    for key, tensor in tensors.items():
        if not is_finite(tensor):
            raise NumericsError(f"{key} is not finite in {tensor.dtype}, so {outpath} was not written: train it again")
    write_tensors(Path(outpath), tensors, metadata, overwrite=True)


def load_safeloras(path: str | Path, device: str | torch.device = "cpu") -> Loras:
    """Network → its tensors [up0, down0, …] in the order of the file, the rank of each pair, the classes."""
    return load_safeloras_both(path, device)[0]


def load_safeloras_embeds(path: str | Path, device: str | torch.device = "cpu") -> Embeds:
    """Token → its vector."""
    return load_safeloras_both(path, device)[1]


def load_safeloras_both(path: str | Path, device: str | torch.device = "cpu") -> tuple[Loras, Embeds]:
    """Both; also of the files X.pt, X.text_encoder.pt and X.ti.pt together, by the name of the first."""
    path = Path(path)
    if is_pickle(path):
        tensors, _ = read_pickle(path)
        metadata = {key: _TOKEN for key in tensors if not _KEY.fullmatch(key)}
    else:
        tensors, metadata = read_tensors(path)
    try:
        return _parse({key: tensor.to(device) for key, tensor in tensors.items()}, metadata)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def read_list(path: Path) -> list[nn.Parameter]:
    """[up0, down0, …] of one `.pt`."""
    loras, _ = load_safeloras_both(path)
    name = "text_encoder" if path.name.endswith(".text_encoder.pt") else "unet"
    if name not in loras:
        raise FormatError(f"{path} has no LoRA of a {name}: give a .pt with a list of tensors")
    return loras[name][0]


def _all_of(model: nn.Module, classes: list[str]) -> list[tuple[Tensor, Tensor]]:
    """`up` and `down` of each LoRA. MismatchError when a layer has none, since a reader can't know which that is."""
    found = injected(model, classes)
    dims = {layer.weight.ndim for layer in found.values()}
    bare = [path for path, layer in within(model, classes).items() if layer.weight.ndim in dims and path not in found]
    if bare:
        raise MismatchError(f"{bare[0]} has no LoRA, so the file couldn't be read: name only classes that have it")
    return [layer.realize_as_lora() for layer in found.values()]


def _parse(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[Loras, Embeds]:
    embeds: Embeds = {}
    parts: dict[str, dict[tuple[int, str], Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        if found := _KEY.fullmatch(key):
            parts[found[1]][int(found[2]), found[3]] = tensor
        elif metadata.get(key) == _TOKEN:
            embeds[key] = tensor
        else:
            raise FormatError(f"{key} is nothing that cloneofsimo/lora writes: use loractl convert --to cloneofsimo")
    return {name: _lora(name, own, metadata) for name, own in parts.items()}, embeds


def _lora(
    name: str, parts: Mapping[tuple[int, str], Tensor], metadata: Mapping[str, str]
) -> tuple[list[nn.Parameter], list[int], list[str]]:
    places = [(number, part) for number in range(len(parts) // 2) for part in ("up", "down")]
    if parts.keys() != set(places):
        raise FormatError(f"the modules of the {name} are not numbered from 0 in pairs: fetch the file again")
    default = _CLASSES.get(name, DEFAULT_TARGET_REPLACE)
    classes = json.loads(metadata[name]) if name in metadata else sorted(default)
    ranks = [len(parts[place]) for place in places if place[1] == "down"]
    return [nn.Parameter(parts[place]) for place in places], ranks, classes
