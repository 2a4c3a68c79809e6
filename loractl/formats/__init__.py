"""Adapter files: which format one has, reading it to an `Adapter`, writing it. A format is a module of this folder."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from loractl.errors import FormatError, MismatchError, NumericsError
from loractl.formats import (
    cloneofsimo,
    comfyui,
    diffusers,
    embeddings,
    kohya,
    learned_embeds,
    old_diffusers,
    onetrainer,
    peft,
    xlabs,
)
from loractl.formats.bases import with_kernels
from loractl.formats.modules import Contents, Source
from loractl.formats.pickles import is_pickle, read_pickle, write_embedding
from loractl.formats.safefile import Header, data_hash, read_tensors, write_tensors
from loractl.tensors.adapter import Adapter, content_hash, is_finite
from loractl.tensors.lowrank import LowRank

FormatName = Literal["diffusers", "kohya", "cloneofsimo", "a1111", "learned_embeds"]
Shapes = Mapping[str, tuple[int, ...]]


class Reader(Protocol):
    """A format's module: does it know a file by its keys and shapes, which metadata do its files make anew, reading."""

    OWNED: re.Pattern[str]

    def knows(self, shapes: Shapes, /) -> bool: ...
    def read(self, source: Source, /) -> Contents: ...


class Writer(Protocol):
    """A format's module that writes too: from an adapter, a dtype and a title to tensors and metadata."""

    OWNED: re.Pattern[str]

    def write(self, adapter: Adapter, dtype: torch.dtype, name: str, /) -> tuple[dict[str, Tensor], dict[str, str]]: ...


# In this order: the first that knows a file reads it.
FORMATS: Mapping[str, Reader] = {
    "cloneofsimo": cloneofsimo,
    "OneTrainer": onetrainer,
    "kohya": kohya,
    "XLabs": xlabs,
    "ComfyUI": comfyui,
    "old diffusers": old_diffusers,
    "diffusers": diffusers,
    "peft": peft,
    "embedding": embeddings,
}
WRITERS: Mapping[str, Writer] = {
    "diffusers": diffusers,
    "kohya": kohya,
    "cloneofsimo": cloneofsimo,
    "a1111": embeddings,
    "learned_embeds": learned_embeds,
}
# The tensors of models: in one file, and of one network as diffusers, transformers or its maker call them.
_CHECKPOINT = re.compile(
    r"(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\..+"
    r"|(?!.*lora)(\w+\.)?((single_)?transformer_blocks|(down|up|double|single|joint|input|output)_blocks"
    r"|mid_block|middle_block|text_model|encoder|decoder)\..+\.(weight|bias)"
)
_PICKLED = {".pt", ".pth", ".bin", ".ckpt"}


def detect(header: Header) -> str:
    """The name of the file's format, of FORMATS, or "checkpoint"; FormatError when it has none of them."""
    return _detect(header.path, {key: entry.shape for key, entry in header.entries.items()})


@dataclass(frozen=True)
class Loaded:
    """A file that has been read: the name of its format, what it has, and what is understood of that."""

    path: Path
    format: str
    source: Source
    contents: Contents

    @property
    def held(self) -> dict[str, int]:
        """How many modules there are of each kind."""
        return dict(sorted(Counter(self.contents.kinds.values()).items()))

    def adapter(self, whole: bool = False) -> Adapter:
        """All of the file. FormatError where something in it is no part of an adapter.

        Differences of biases and norms (`Adapter.vectors`) are refused unless the caller asks for the `whole`.
        """
        contents = self.contents
        if self.format == "checkpoint":
            raise FormatError(f"{self.path} is a model, not an adapter: give the file of a LoRA or an embedding")
        for module, found in contents.foreign.items():
            raise FormatError(
                f"{self.path}: the module {module} is {found.reason}, so its ΔW cannot be known without the base model"
            )
        if contents.unknown:
            raise FormatError(
                f"{self.path} has the format {self.format!r}, but {len(contents.unknown)} of its keys are not "
                f"understood, the first is {contents.unknown[0]}: the adapter is of another kind or for another model"
            )
        if contents.vectors and not whole:
            raise FormatError(
                f"{self.path} changes {len(contents.vectors)} biases and norms besides weights, the first is "
                f"{min(contents.vectors)}, and this operation is for weights alone"
            )
        return contents.adapter(self.source.metadata)


def load(path: Path, paths: Iterable[str] = (), *, allow_pickle: bool = False, any_format: bool = False) -> Loaded:
    """What is in a file. `paths` are the module paths of its model, for names that cannot be read without them.

    FormatError for a file of no known format, unless `any_format` is wanted: then all its keys are unknown.
    """
    tensors, metadata = read_pickle(path) if allow_pickle and is_pickle(path) else read_tensors(path)
    source = Source(path.stem, tensors, metadata, paths)
    name = _detect(path, {key: tuple(tensor.shape) for key, tensor in tensors.items()}, any_format)
    if name not in FORMATS:
        return Loaded(path, name, source, Contents(unknown=sorted(tensors)))
    try:
        return Loaded(path, name, source, FORMATS[name].read(source))
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def load_adapter(path: Path, paths: Iterable[str] = (), *, allow_pickle: bool = False, whole: bool = False) -> Adapter:
    """The adapter in a file, as `Loaded.adapter` has it."""
    return load(path, paths, allow_pickle=allow_pickle).adapter(whole)


def save_adapter(
    path: Path,
    adapter: Adapter,
    format: FormatName,
    *,
    dtype: torch.dtype = torch.float16,
    name: str,
    overwrite: bool = False,
) -> None:
    """Writes the adapter, entitled `name`. Its metadata go along, save those that describe the file it came from.

    With the format a1111, a path that ends in .pt makes a pickle, the older form of an embedding.
    """
    carried = {key: text for key, text in adapter.metadata.items() if not _is_owned(key)}
    written = replace(with_kernels(adapter), metadata=carried, notes=())
    tensors, metadata = WRITERS[format].write(written, dtype, name)
    for key, tensor in tensors.items():
        if not is_finite(tensor):
            raise NumericsError(f"{key} is not finite in {dtype}, so {path} was not written: try a wider dtype")
    if path.suffix.lower() not in _PICKLED:
        write_tensors(path, tensors, metadata, overwrite)
    elif path.suffix == ".pt" and tensors.keys() == {"emb_params"}:
        write_embedding(path, tensors["emb_params"], name, overwrite)
    else:
        raise MismatchError(
            f"{path} is named as a pickle, and only an a1111 embedding for one text encoder is written as one (.pt): "
            "choose a name that ends in .safetensors"
        )


def inspect(path: Path, paths: Iterable[str] = (), *, allow_pickle: bool = False) -> dict[str, Any]:
    """What `describe` says of a file."""
    return describe(load(path, paths, allow_pickle=allow_pickle))


def describe(loaded: Loaded) -> dict[str, Any]:
    """All there is to say about a file: each tensor belongs to a module, a vector or a token, or is listed by its key
    under "foreign", with what it is, or under "unknown".
    """
    path, source, contents = loaded.path, loaded.source, loaded.contents
    adapter = contents.adapter(source.metadata)
    foreign: dict[str, list[str]] = defaultdict(list)
    for found in contents.foreign.values():
        foreign[found.reason] += found.keys
    return {
        "kind": _kind(loaded),
        "format": loaded.format,
        "components": {component: _summary(adapter.component(component)) for component in adapter.components()},
        "held": loaded.held,
        "tokens": {token: list(embeddings.shape) for token, embeddings in sorted(adapter.tokens.items())},
        "vectors": sorted(adapter.vectors),
        "parameters": adapter.parameters,
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in source.tensors.values()}),
        "bytes": path.stat().st_size,
        "content_hash": content_hash(source.tensors),
        "data_hash": None if is_pickle(path) else data_hash(path),
        "metadata": dict(source.metadata),
        "notes": list(adapter.notes),
        "foreign": {reason: sorted(keys) for reason, keys in sorted(foreign.items())},
        "unknown": contents.unknown,
    }


def _detect(path: Path, shapes: Shapes, any_format: bool = False) -> str:
    for name, row in FORMATS.items():
        if row.knows(shapes):
            return name
    if any(_CHECKPOINT.fullmatch(key) for key in shapes):
        return "checkpoint"
    if any_format:
        return "unknown"
    first = f"its first tensor is {min(shapes)}" if shapes else "it has no tensors"
    raise FormatError(
        f"{path} has no adapter format that loractl knows ({first}): save it with the tool that made it in one of "
        f"{', '.join(FORMATS)}"
    )


def _kind(loaded: Loaded) -> str:
    if loaded.format not in FORMATS:
        return loaded.format
    contents = loaded.contents
    return "embedding" if contents.tokens and not (contents.modules or contents.vectors or contents.foreign) else "lora"


def _summary(modules: Mapping[str, LowRank]) -> dict[str, Any]:
    return {
        "modules": len(modules),
        "ranks": sorted({low.rank for low in modules.values()}),
        "alphas": sorted({low.alpha for low in modules.values()}),
    }


def _is_owned(key: str) -> bool:
    return any(row.OWNED.fullmatch(key) for row in FORMATS.values())
