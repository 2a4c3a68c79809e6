"""Carries out a merging job: read, weigh, combine, truncate, write."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from loractl.device import PRECISIONS, pick_device
from loractl.errors import MismatchError
from loractl.events import Emit, Facts, Progress, Wrote
from loractl.formats.joined import groups, join, part
from loractl.formats.lineage import Child, Parent, child_of, read_parents, renamed, without_vectors
from loractl.formats.natives import Native, fuse_deltas
from loractl.method import Outcome
from loractl.tensors import means, prune
from loractl.tensors.algebra import add_vectors, align, combine, gram, weighted
from loractl.tensors.lowrank import LowRank
from loractl.tensors.threads import one_thread
from loractl.tensors.truncate import (
    Decomposed,
    Size,
    captured,
    choose_ranks,
    decompose,
    decompose_dense,
    trimmed,
    truncate,
)
from loractl_merge.factors import adjusted, factors_of
from loractl_merge.spec import MergeSpec

Modules = Mapping[str, LowRank]


def run(spec: MergeSpec, emit: Emit) -> Outcome:
    parents = parents_of(spec, emit)
    if spec.learn is None:
        return merge(spec, parents, emit)
    from loractl_merge.learn import learn  # diffusers is not loaded for files alone

    learned = learn(spec, spec.learn, parents, emit)
    outcome = merge(learned.job, parents, emit)
    return Outcome({**outcome.files, **learned.files}, {**outcome.numbers, **learned.numbers})


def parents_of(spec: MergeSpec, emit: Emit) -> list[Parent]:
    read = read_parents([use.path for use in spec.adapters], emit, True, pick_device(spec.memory.device))
    parents = [renamed(parent, use.rename) for parent, use in zip(read, spec.adapters, strict=True)]
    if spec.algorithm != "sum" or spec.learn:
        without_vectors(parents, "learn" if spec.learn else spec.algorithm)
    return parents


@one_thread()
def merge(spec: MergeSpec, parents: Sequence[Parent], emit: Emit) -> Outcome:
    """Writes the sum with the job's weights."""
    factors = [factors_of(parent, use) for parent, use in zip(parents, spec.adapters, strict=True)]
    adapters, vectors = zip(*map(adjusted, parents, factors), strict=True)
    dtype = PRECISIONS.get(spec.output.dtype or "")
    child = child_of(parents, spec.weights, spec.provenance(), spec.output.format, dtype)
    grouped = groups({path: row[0] for path, row in align(adapters).items()}, child.metadata, child.format)
    modules, energy = merged(spec, adapters, child, grouped, emit)
    file = spec.destination()
    child.save(file, part(modules, grouped), add_vectors(vectors, spec.weights), spec.output.overwrite)
    emit(Facts("merge", facts(spec, parents, modules, energy)))
    emit(Wrote(file, child.format))
    parameters = sum(low.down.numel() + low.up.numel() for low in modules.values())
    numbers = {"modules": len(modules), "parameters": parameters, "tokens": len(child.tokens), "energy": energy}
    return Outcome({child.format: file}, numbers)


def merged(
    spec: MergeSpec, adapters: Sequence[Modules], child: Child, grouped: Mapping[str, Native], emit: Emit
) -> tuple[dict[str, LowRank], float]:
    """The merged modules as the file has them, and the share of the exact sum's squared norm that truncation left."""
    parameters = None if spec.budget_mb is None else int(spec.budget_mb * 1e6) // child.dtype.itemsize
    size = Size(spec.rank, spec.energy, spec.ratio, parameters)
    if spec.algorithm in prune.RULES:
        decomposed = pruned(spec, adapters, size, grouped, emit)
    else:
        modules = join(combined(spec, adapters), grouped)
        if size == Size():
            return modules, 1.0
        decomposed = {path: decompose(low) for path, low in modules.items()}
    ranks = choose_ranks(decomposed, size)
    return truncate(decomposed, ranks), captured(decomposed, ranks)


def combined(spec: MergeSpec, adapters: Sequence[Modules]) -> dict[str, LowRank]:
    """Σ cᵢ·ΔWᵢ, exact; the coefficients are the weights, or follow from each module's inner products."""
    if spec.algorithm == "sum":
        modules = combine(adapters, spec.weights)
    else:
        rule = means.RULES[spec.algorithm]
        rows = align(adapters)
        modules = {path: weighted(parts, rule(gram(parts), spec.weights)) for path, parts in rows.items()}
        modules = {path: low for path, low in modules.items() if low.alpha}
    if not modules:
        raise MismatchError("nothing is left of the adapters with these weights: change them")
    return modules


def pruned(
    spec: MergeSpec, adapters: Sequence[Modules], size: Size, grouped: Mapping[str, Native], emit: Emit
) -> dict[str, Decomposed]:
    """The SVD of each module's merged ΔW, formed one at a time, of which only what `size` may keep is held."""
    rows = align(adapters)
    decomposed = {}
    for done, (name, native) in enumerate(grouped.items(), start=1):
        deltas = {
            path: _pruned(spec, path, [low.delta() for low in rows[path]]) for path in native.paths if path in rows
        }
        decomposed[name] = trimmed(decompose_dense(fuse_deltas(native, deltas)), size)
        emit(Progress(spec.algorithm, done, len(grouped)))
    return decomposed


def facts(spec: MergeSpec, parents: Sequence[Parent], modules: Modules, energy: float) -> dict[str, object]:
    weights = {f"{i}: {each.path.name}": w for i, (each, w) in enumerate(zip(parents, spec.weights, strict=True), 1)}
    ranks = sorted({low.rank for low in modules.values()})
    said = {"modules": len(modules), "ranks": ", ".join(map(str, ranks)), "energy kept": energy}
    return {"algorithm": spec.algorithm, **({} if spec.algorithm == "stock" else weights), **said}


def _pruned(spec: MergeSpec, path: str, deltas: Sequence[Tensor]) -> Tensor:
    generator = prune.generator_for(spec.seed, path)
    return prune.RULES[spec.algorithm](deltas, spec.weights, spec.density, generator)
