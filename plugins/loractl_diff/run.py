"""Carries out a comparing job: cosine and relative error of each module's ΔW, and of all of them as one vector."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from loractl.device import pick_device
from loractl.errors import MismatchError, NumericsError
from loractl.events import Emit, Facts, Note
from loractl.formats.contained import residues
from loractl.formats.lineage import Parent, read_parents
from loractl.method import Outcome
from loractl.tensors.algebra import align, gram, scaled
from loractl.tensors.lowrank import LowRank
from loractl.tensors.threads import one_thread
from loractl_diff.spec import DiffSpec


class Products(NamedTuple):
    """⟨a, a⟩, ⟨a, b⟩ and ⟨b, b⟩ of a module's updates; those of several modules add up."""

    aa: float
    ab: float
    bb: float

    @property
    def cosine(self) -> float:
        """1 where the updates point in the same direction; 0 where one of them is zero and the other is not."""
        size = math.sqrt(self.aa * self.bb)
        return self.ab / size if size else float(self.aa == self.bb)

    @property
    def error(self) -> float:
        """‖b − a‖ / ‖a‖."""
        squared = max(0.0, self.aa - 2 * self.ab + self.bb)
        return math.sqrt(squared / self.aa) if self.aa else math.inf if squared else 0.0


@one_thread()
def run(spec: DiffSpec, emit: Emit) -> Outcome:
    if spec.merged and spec.base:
        return prove(spec, spec.merged, spec.base, emit)
    assert spec.b  # as the spec has checked
    a, b = read_parents([spec.a, spec.b], emit, device=pick_device(spec.memory.device))
    table = {path: _products(gram(parts).tolist()) for path, parts in align([a.modules, b.modules]).items()}
    table |= {path: _of_vectors(a.vectors, b.vectors, path) for path in sorted({*a.vectors, *b.vectors})}
    rows = {path: f"{row.cosine:.6f}  {row.error:.3g}" for path, row in table.items()}
    emit(Facts("cosine and relative error", rows))
    total = _sum(table.values())
    numbers = {
        "cosine": total.cosine,
        "relative_error": total.error,
        "largest_error": max(row.error for row in table.values()),
        "modules": len(table),
        "only_in_a": len(_paths(a) - _paths(b)),
        "only_in_b": len(_paths(b) - _paths(a)),
    }
    return Outcome({}, numbers)


def prove(spec: DiffSpec, merged: Path, base: Path, emit: Emit) -> Outcome:
    """How far the merged model is from the base with the adapter, and how many other modules have changed."""
    (parent,) = read_parents([spec.a], emit, device=pick_device(spec.memory.device))
    updates: dict[str, LowRank | Tensor] = {
        f"{path}.weight": scaled(low, spec.weight) for path, low in parent.modules.items()
    }
    updates |= {path: spec.weight * vector for path, vector in parent.vectors.items()}
    table = {path.removesuffix(".weight"): error for path, error in residues(merged, base, updates)}
    if damaged := next((path for path, error in table.items() if not math.isfinite(error)), None):
        raise NumericsError(
            f"{damaged} is not finite in {merged} or in {base}, so nothing is proved: fetch or bake that model again"
        )
    modules = _paths(parent)
    emit(Facts("error relative to ΔW", {path: f"{table[path]:.3g}" for path in sorted(modules)}))
    elsewhere = [path for path, error in table.items() if error > 0 and path not in modules]
    if elsewhere:
        emit(Note(f"{len(elsewhere)} other modules are changed too; the first is {elsewhere[0]}", "warning"))
    errors = [table[path] for path in modules]
    return Outcome({}, {"largest_error": max(errors), "modules": len(modules), "changed_elsewhere": len(elsewhere)})


def _paths(parent: Parent) -> set[str]:
    """What an adapter changes: modules by their weights, biases by their own paths."""
    return {*parent.modules, *(path.removesuffix(".weight") for path in parent.vectors)}


def _of_vectors(a: Mapping[str, Tensor], b: Mapping[str, Tensor], path: str) -> Products:
    """The products of two differences of a bias or norm, of which one may be missing, and so zero."""
    given = [each[path].double() for each in (a, b) if path in each]
    if len({len(vector) for vector in given}) > 1:
        raise MismatchError(f"{path} has {len(given[0])} numbers in one adapter and {len(given[1])} in another")
    one, two = (each[path].double() if path in each else torch.zeros_like(given[0]) for each in (a, b))
    return Products(float(one @ one), float(one @ two), float(two @ two))


def _products(gram: list[list[float]]) -> Products:
    return Products(gram[0][0], gram[0][1], gram[1][1])


def _sum(rows: Iterable[Products]) -> Products:
    return Products(*(math.fsum(column) for column in zip(*rows, strict=True)))
