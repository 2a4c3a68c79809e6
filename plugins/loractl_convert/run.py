"""Carries out a conversion job: read, say what is special about the file, write."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from pathlib import Path

import torch

from loractl.device import PRECISIONS
from loractl.events import Emit, Facts, Note, Wrote
from loractl.formats import FormatName, load, save_adapter
from loractl.formats.embeddings import tokens_of
from loractl.method import Outcome
from loractl.tensors.adapter import Adapter, content_hash
from loractl_convert.spec import ConvertSpec


def run(spec: ConvertSpec, emit: Emit) -> Outcome:
    loaded = load(spec.adapter, allow_pickle=spec.allow_pickle)
    adapter = _described(loaded.adapter(whole=True), spec, content_hash(loaded.source.tensors))
    emit(Facts("convert", {"from": loaded.format, "to": spec.output.format, **loaded.held}))
    for text in adapter.notes:
        emit(Note(f"{spec.adapter.name}: {text}", "warning"))
    dtype = PRECISIONS[spec.output.dtype] if spec.output.dtype else _widest(adapter)
    files = {}
    for path, part, form in _files(adapter, spec.destination(), spec.output.format):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_adapter(path, part, form, dtype=dtype, name=path.stem, overwrite=spec.output.overwrite)
        files[form if path == spec.destination() else path.stem] = path
        emit(Wrote(path, form))
    return Outcome(files, {"modules": len(adapter.modules), "tokens": len(adapter.tokens)})


def _described(adapter: Adapter, spec: ConvertSpec, parent: str) -> Adapter:
    """The adapter with its origin in its metadata and, if the job says it, its base model."""
    origin = json.dumps([{"name": spec.adapter.name, "content_hash": parent, "weight": 1.0}])
    base = {"ss_base_model_version": spec.base} if spec.base else {}
    return replace(adapter, metadata={**adapter.metadata, **base, **spec.provenance(), "loractl.parents": origin})


def _files(adapter: Adapter, path: Path, form: FormatName) -> Iterator[tuple[Path, Adapter, FormatName]]:
    """What is written, a file at least: diffusers' form has no place for tokens, so there each has a file of its own
    beside it.
    """
    if form != "diffusers":
        yield path, adapter, form
        return
    if adapter.modules or adapter.vectors or not adapter.tokens:
        yield path, replace(adapter, tokens={}), form
    for token, encoders in tokens_of(adapter).items():
        safe = "".join(letter for letter in token if letter.isalnum() or letter in "-_") or "token"
        tokens = {f"{component}.{token}": embeddings for component, embeddings in encoders.items()}
        alone: FormatName = "learned_embeds" if encoders.keys() == {"text_encoder"} else "a1111"
        yield path.with_name(f"{path.stem}.{safe}.safetensors"), Adapter({}, adapter.metadata, tokens), alone


def _widest(adapter: Adapter) -> torch.dtype:
    alone = (*adapter.tokens.values(), *adapter.vectors.values())
    dtypes = {low.down.dtype for low in adapter.modules.values()} | {each.dtype for each in alone}
    wide = {dtype if dtype.itemsize > 1 else torch.float16 for dtype in dtypes}
    return reduce(torch.promote_types, wide, torch.float16) if wide != {torch.bfloat16} else torch.bfloat16
