"""Adapter files: which format one has, reading it to an `Adapter`, writing it. A format is a module of this folder."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from loractl.errors import FormatError, NumericsError
from loractl.formats import diffusers, kohya
from loractl.formats.modules import Contents
from loractl.formats.safefile import Header, data_hash, read_header, read_tensors, write_tensors
from loractl.tensors.adapter import Adapter, content_hash
from loractl.tensors.lowrank import LowRank

FormatName = Literal["diffusers", "kohya"]
Tensors = Mapping[str, Tensor]
Modules = Mapping[str, LowRank]
Metadata = Mapping[str, str]
Written = tuple[dict[str, Tensor], dict[str, str]]


class Format(Protocol):
    """A format's module: how to know its keys, which metadata its writer makes anew, and the pair of functions."""

    KEY: re.Pattern[str]
    OWNED: re.Pattern[str]

    def read(self, tensors: Tensors, metadata: Metadata, paths: Iterable[str], /) -> Contents: ...
    def write(self, modules: Modules, metadata: Metadata, dtype: torch.dtype, name: str, /) -> Written: ...


FORMATS: Mapping[str, Format] = {"diffusers": diffusers, "kohya": kohya}


class Foreign(NamedTuple):
    """A format that is known by its keys and not read."""

    kind: str
    key: re.Pattern[str]


FOREIGN: Mapping[str, Foreign] = {
    "cloneofsimo": Foreign("lora", re.compile(r"(unet|text_encoder):\d+:(up|down)")),
    "old diffusers": Foreign("lora", re.compile(r".+(_lora|\.lora|\.lora_linear_layer)\.(up|down)\.weight")),
    "peft": Foreign("lora", re.compile(r"base_model\.model\..+\.lora_[AB]\.weight")),
    "ComfyUI": Foreign("lora", re.compile(r"diffusion_model\..+\.lora_([AB]|up|down)\.weight")),
    "OneTrainer": Foreign("lora", re.compile(r"lora_transformer_.+\.lora_(up|down)\.weight")),
    "LyCORIS": Foreign("lycoris", re.compile(r".+\.(hada_|lokr_|oft_|dora_scale|diff$|on_input$|[ab]1\.weight).*")),
    "embedding": Foreign("embedding", re.compile(r"emb_params|clip_[lg]|<.+>")),
    "checkpoint": Foreign("checkpoint", re.compile(r"(model\.diffusion_model|first_stage_model|cond_stage_model)\..+")),
}


def detect(header: Header) -> str:
    """The name of the file's format, of FORMATS or FOREIGN; FormatError when it has none of them."""
    patterns = {name: row.KEY for name, row in FORMATS.items()} | {name: row.key for name, row in FOREIGN.items()}
    for name, pattern in patterns.items():
        if any(pattern.fullmatch(key) for key in header.entries):
            return name
    first = f"its first tensor is {min(header.entries)}" if header.entries else "it has no tensors"
    raise FormatError(f"{header.path} has no adapter format that loractl knows ({first}): {_advice()}")


def load_adapter(path: Path, paths: Iterable[str] = ()) -> Adapter:
    """The adapter in a file. `paths` are the module paths of its model, for names that cannot be read without them."""
    name = detect(read_header(path))
    if name not in FORMATS:
        raise FormatError(f"{path} has the format {name!r} ({FOREIGN[name].kind}): {_advice()}")
    tensors, metadata = read_tensors(path)
    contents = _contents(path, name, tensors, metadata, paths)
    if contents.unknown:
        raise FormatError(
            f"{path} has the format {name!r}, but {len(contents.unknown)} of its keys are not understood, the first is "
            f"{contents.unknown[0]}: the adapter is of another kind or for another model"
        )
    return Adapter(contents.modules, metadata)


def save_adapter(
    path: Path,
    adapter: Adapter,
    format: FormatName,  # noqa: A002
    *,
    dtype: torch.dtype = torch.float16,
    name: str,
    overwrite: bool = False,
) -> None:
    """Writes the adapter, entitled `name`. Its metadata go along, save those that describe the file it came from."""
    carried = {key: text for key, text in adapter.metadata.items() if not _is_owned(key)}
    tensors, metadata = FORMATS[format].write(adapter.modules, carried, dtype, name)
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise NumericsError(f"{key} is not finite in {dtype}, so {path} was not written: try a wider dtype")
    write_tensors(path, tensors, metadata, overwrite)


def inspect(path: Path, paths: Iterable[str] = ()) -> dict[str, Any]:
    """All there is to say about a file: every tensor belongs to a module or is listed under "unknown"."""
    name = detect(read_header(path))
    tensors, metadata = read_tensors(path)
    read = name in FORMATS
    contents = _contents(path, name, tensors, metadata, paths) if read else Contents({}, sorted(tensors))
    adapter = Adapter(contents.modules, metadata)
    return {
        "kind": "lora" if read else FOREIGN[name].kind,
        "format": name,
        "components": {component: _summary(adapter.component(component)) for component in adapter.components()},
        "parameters": adapter.parameters,
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}),
        "bytes": path.stat().st_size,
        "content_hash": content_hash(tensors),
        "data_hash": data_hash(path),
        "metadata": metadata,
        "unknown": contents.unknown,
    }


def _contents(path: Path, name: str, tensors: Tensors, metadata: Metadata, paths: Iterable[str]) -> Contents:
    try:
        return FORMATS[name].read(tensors, metadata, paths)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def _summary(modules: Modules) -> dict[str, Any]:
    return {
        "modules": len(modules),
        "ranks": sorted({low.rank for low in modules.values()}),
        "alphas": sorted({low.alpha for low in modules.values()}),
    }


def _is_owned(key: str) -> bool:
    return any(row.OWNED.fullmatch(key) for row in FORMATS.values())


def _advice() -> str:
    return f"loractl reads {' and '.join(FORMATS)} files, so save it as one of them with the tool that made it"
