"""Adapter files out of which others are made, and what these inherit: format, precision, metadata, learned tokens."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from loractl.errors import MismatchError, NumericsError
from loractl.events import Emit, Note
from loractl.formats import WRITERS, FormatName, load, save_adapter
from loractl.tensors.adapter import Adapter, content_hash, is_finite
from loractl.tensors.lowrank import LowRank

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Parent:
    """An adapter file. Its tensors are in fp32 whatever its own `dtype`; `hash` is that of its tensors as they are."""

    path: Path
    modules: Mapping[str, LowRank]
    metadata: Mapping[str, str]
    format: str
    dtype: torch.dtype
    hash: str
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    vectors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Child:
    """How a new file is written: as a `format` in a `dtype`, with these `metadata` and `tokens`."""

    format: FormatName
    dtype: torch.dtype
    metadata: Mapping[str, str]
    tokens: Mapping[str, Tensor]

    def save(self, path: Path, modules: Mapping[str, LowRank], vectors: Mapping[str, Tensor], overwrite: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        own = {name: low.to(low.down.dtype, _CPU) for name, low in modules.items()}
        adapter = Adapter(own, self.metadata, self.tokens, vectors)
        save_adapter(path, adapter, self.format, dtype=self.dtype, name=path.stem, overwrite=overwrite)


def read_parents(
    paths: Sequence[Path], emit: Emit, with_tokens: bool = False, device: torch.device = _CPU
) -> list[Parent]:
    """The files' adapters, their modules on `device`, with a warning for all that is in them and left out here.

    MismatchError when a file has no update of a weight matrix, NumericsError when one is not finite.
    """
    return [_read(path, emit, with_tokens, device) for path in paths]


def without_vectors(parents: Sequence[Parent], operation: str) -> None:
    """MismatchError where a parent changes biases or norms, which the operation says nothing of."""
    for parent in parents:
        if parent.vectors:
            raise MismatchError(
                f"{parent.path} changes {len(parent.vectors)} biases and norms besides weights, the first is "
                f"{min(parent.vectors)}, and {operation} is for weights alone"
            )


def renamed(parent: Parent, names: Mapping[str, str]) -> Parent:
    """The parent with other names for some of its tokens.

    MismatchError when it has no token of such a name, or two would have the same.
    """
    tokens = {}
    for path, embeddings in parent.tokens.items():
        component, _, token = path.partition(".")
        tokens[f"{component}.{names.get(token, token)}"] = embeddings
    known = {path.partition(".")[2] for path in parent.tokens}
    if strangers := sorted(names.keys() - known):
        told = f"its tokens are {', '.join(sorted(known))}" if known else "it has no tokens"
        raise MismatchError(f"{parent.path} has no token {strangers[0]} to rename: {told}")
    if len(tokens) < len(parent.tokens):
        raise MismatchError(f"{parent.path} would have two tokens of one name: rename them otherwise")
    return replace(parent, tokens=tokens)


def child_of(
    parents: Sequence[Parent],
    weights: Sequence[float],
    provenance: Mapping[str, str],
    format: FormatName | None = None,
    dtype: torch.dtype | None = None,
) -> Child:
    """By default the first parent's format (diffusers where we can't write that) and the widest precision of any.

    It has the tokens of all; MismatchError when two parents give one token different vectors. What all parents say
    alike in their metadata is said of the child, too; "loractl.parents" lists their names, hashes and weights.
    """
    first: FormatName = cast(FormatName, parents[0].format) if parents[0].format in WRITERS else "diffusers"
    shared = set.intersection(*(set(parent.metadata.items()) for parent in parents))
    pairs = zip(parents, weights, strict=True)
    listed = [{"name": each.path.name, "content_hash": each.hash, "weight": weight} for each, weight in pairs]
    metadata = {**dict(shared), **provenance, "loractl.parents": json.dumps(listed)}
    widest = _widest({parent.dtype for parent in parents})
    return Child(format or first, dtype or widest, metadata, _all_tokens(parents))


def _all_tokens(parents: Sequence[Parent]) -> dict[str, Tensor]:
    tokens: dict[str, Tensor] = {}
    origin: dict[str, Path] = {}
    for parent in parents:
        for path, embeddings in parent.tokens.items():
            if path in tokens and not torch.equal(tokens[path], embeddings):
                token = path.partition(".")[2]
                raise MismatchError(
                    f"{origin[path].name} and {parent.path.name} give the token {token} different vectors: rename it "
                    f'in one of them, for example rename = {{"{token}" = "{_suggestion(token)}"}}'
                )
            tokens.setdefault(path, embeddings)
            origin.setdefault(path, parent.path)
    return tokens


def _suggestion(token: str) -> str:
    """Another name: <s1> → <s1-b>."""
    return f"{token[:-1]}-b>" if token.endswith(">") else f"{token}-b"


def _read(path: Path, emit: Emit, with_tokens: bool, device: torch.device) -> Parent:
    loaded = load(path)
    adapter = loaded.adapter(whole=True)
    for text in (*adapter.notes, *_left_out(adapter, with_tokens)):
        emit(Note(f"{path.name}: {text}", "warning"))
    if not adapter.modules:
        raise MismatchError(f"{path} has no updates of weight matrices: give a LoRA's file")
    tokens = adapter.tokens if with_tokens else {}
    modules = {name: low.to(torch.float32, device) for name, low in adapter.modules.items()}
    vectors = {name: vector.float() for name, vector in adapter.vectors.items()}
    for name, tensors in _tensors(modules, vectors):
        if not all(map(is_finite, tensors)):
            raise NumericsError(f"{path}: {name} is not finite: make the file again")
    return Parent(
        path=path,
        modules=modules,
        metadata=adapter.metadata,
        format=loaded.format,
        dtype=_widest({low.down.dtype for low in adapter.modules.values()} | {each.dtype for each in tokens.values()}),
        hash=content_hash(loaded.source.tensors),
        tokens={name: embeddings.float() for name, embeddings in tokens.items()},
        vectors=vectors,
    )


def _tensors(modules: Mapping[str, LowRank], vectors: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """What must be finite, by name."""
    yield from ((name, (low.down, low.up)) for name, low in modules.items())
    yield from ((name, (vector,)) for name, vector in vectors.items())


def _left_out(adapter: Adapter, with_tokens: bool) -> Iterator[str]:
    beyond = {"DoRA magnitudes": adapter.magnitudes, "learned tokens": {} if with_tokens else adapter.tokens}
    for what, values in beyond.items():
        if values:
            yield f"its {len(values)} {what} are left out here"


def _widest(dtypes: set[torch.dtype]) -> torch.dtype:
    """A precision that holds all of them. No adapter is saved in 8 bits: fp16 holds these."""
    return reduce(torch.promote_types, {dtype if dtype.itemsize > 1 else torch.float16 for dtype in dtypes})
