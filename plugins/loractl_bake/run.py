"""Carries out a baking job: finds every module of the adapters in the model, then streams its files with ΔW added."""

import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from torch import Tensor

from loractl.device import pick_device
from loractl.errors import InputError, MismatchError
from loractl.events import Emit, Facts, Note, Progress, Wrote
from loractl.formats.checkpoint import Weight, as_safetensors, folder_headers, model_parameters, rows_of
from loractl.formats.ckpt import rewrite_ckpt
from loractl.formats.lineage import Parent, read_parents
from loractl.formats.rewrite import Change, rewrite
from loractl.formats.safefile import Header
from loractl.method import Outcome
from loractl.tensors.lowrank import LowRank
from loractl_bake.spec import BakeSpec

_STALE = re.compile(r"sshs_.+|modelspec\.hash_sha256")
_WEIGHTS = {".safetensors", ".bin", ".ckpt", ".msgpack", ".h5"}


class Addition(NamedTuple):
    """weight·ΔW, or of a bias or norm weight·Δ, for the rows of a tensor from `first` on."""

    first: int
    weight: float
    update: LowRank | Tensor

    def rows(self, begin: int, end: int) -> Tensor:
        """ΔW of some of these rows."""
        part = rows_of(self.update, begin, end)
        return part.delta() if isinstance(part, LowRank) else part


Plan = Mapping[tuple[Path, str], Sequence[Addition]]
"""The additions to each tensor, by its file and key."""


@dataclass(frozen=True)
class Baking:
    """What is written: the model's files by their headers, what is added to them, and what is said of that."""

    headers: Mapping[Path, Header]
    plan: Plan
    metadata: Mapping[str, str]
    overwrite: bool
    emit: Emit


def run(spec: BakeSpec, emit: Emit) -> Outcome:
    out = spec.destination()
    out.parent.mkdir(parents=True, exist_ok=True)
    with as_safetensors(spec.model, spec.allow_pickle, out.parent) as model:
        weights = model_parameters(model)
        parents = read_parents([use.path for use in spec.adapters], emit, device=pick_device(spec.memory.device))
        headers = {weight.header.path: weight.header for weight in weights.values()}
        plan = make_plan(weights, spec, parents)
        numbers = {"updates": sum(map(len, plan.values())), "tensors": len(plan)}
        emit(Facts("bake", {"model": spec.model, "adapters": len(parents), **numbers}))
        baking = Baking(headers, plan, metadata(spec, parents), spec.output.overwrite, emit)
        if model.is_dir():
            bake_folder(baking, model, out)
        else:
            bake_file(baking, model, out)
    emit(Wrote(out, "model"))
    return Outcome({"model": out}, numbers)


def metadata(spec: BakeSpec, parents: Sequence[Parent]) -> dict[str, str]:
    """Where the result comes from, as adapters' files say it."""
    pairs = zip(spec.adapters, parents, strict=True)
    listed = [{"name": use.path.name, "content_hash": each.hash, "weight": use.weight} for use, each in pairs]
    return {**spec.provenance(), "loractl.parents": json.dumps(listed)}


def make_plan(weights: Mapping[str, Weight], spec: BakeSpec, parents: Sequence[Parent]) -> Plan:
    """Where every update goes. MismatchError names the first module that the model lacks or has in another shape."""
    plan: dict[tuple[Path, str], list[Addition]] = defaultdict(list)
    for use, parent in zip(spec.adapters, parents, strict=True):
        updates: dict[str, LowRank | Tensor] = {f"{path}.weight": low for path, low in parent.modules.items()}
        for path, update in sorted((updates | dict(parent.vectors)).items()):
            weight = weights.get(path)
            if weight and isinstance(update, LowRank):
                update = update.fitted(weight.shape)
            if weight is None or tuple(update.shape) != weight.shape:
                found = f"has {weight.shape} there" if weight else "has no such module"
                raise MismatchError(
                    f"{use.path} has an update {tuple(update.shape)} for {path} and {spec.model} {found}: "
                    "the adapter was made for another base model"
                )
            for first, part in weight.places(update):
                plan[weight.header.path, weight.key].append(Addition(first, use.weight, part))
    return plan


def adding(additions: Sequence[Addition]) -> Change:
    """W + Σ weight·ΔW, of which only the rows at hand are ever formed."""

    def change(blocks: Iterator[Tensor]) -> Iterator[Tensor]:
        begin = 0
        for rows in blocks:
            end = begin + len(rows)
            for each in additions:
                first, last = max(begin, each.first), min(end, each.first + each.update.shape[0])
                if first < last:
                    delta = each.rows(first - each.first, last - each.first)
                    rows[first - begin : last - begin].add_(delta.to(rows.device), alpha=each.weight)
            begin = end
            yield rows

    return change


def bake_file(baking: Baking, file: Path, out: Path) -> None:
    header = baking.headers[file]
    changes = {key: adding(additions) for (owner, key), additions in baking.plan.items() if owner == file}
    kept = {key: text for key, text in header.metadata.items() if not _STALE.fullmatch(key)}

    def report(done: int, total: int) -> None:
        baking.emit(Progress(f"bake {file.name}", done, total))

    write = rewrite_ckpt if out.suffix == ".ckpt" else rewrite
    write(header, out, changes, kept | dict(baking.metadata), report, baking.overwrite)


def bake_folder(baking: Baking, model: Path, out: Path) -> None:
    """Everything is made in a folder beside `out` first, so that a failure leaves nothing of it."""
    if out.exists() and not baking.overwrite:
        raise InputError(f"{out} exists already: choose another name or allow it to be overwritten")
    touched = {file for file, _ in baking.plan}
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        made = Path(scratch, "model")
        for file in sorted(touched):
            target = made / file.relative_to(model)
            target.parent.mkdir(parents=True, exist_ok=True)
            bake_file(baking, file, target)
        _link_others(model, made, touched, baking.emit)
        _move(made, out)


def _link_others(model: Path, made: Path, touched: set[Path], emit: Emit) -> None:
    """Hard links, or copies, of all other files, but for other variants of the weights that have been changed."""
    read = {header.path for _, header in folder_headers(model)}
    folders = {file.parent for file in touched}
    for file in sorted(path for path in model.rglob("*") if path.is_file() and path not in touched):
        if file.parent in folders and file.suffix in _WEIGHTS and file not in read:
            emit(Note(f"{file} is left out: it has the weights without the adapters", "warning"))
            continue
        target = made / file.relative_to(model)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file.resolve(), target)
        except OSError:  # another file system, or one without links
            shutil.copy2(file, target)


def _move(made: Path, out: Path) -> None:
    """`made` becomes `out`, or its files replace those of an `out` that is there, model_index.json last."""
    if not out.exists():
        made.rename(out)
        return
    files = [path for path in made.rglob("*") if path.is_file()]
    for file in sorted(files, key=lambda path: (path.name == "model_index.json", path)):
        target = out / file.relative_to(made)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
