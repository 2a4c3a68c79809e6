"""Carries out a resizing job: read, decompose, keep the largest singular values, write."""

from loractl.device import PRECISIONS, pick_device
from loractl.events import Emit, Facts, Wrote
from loractl.formats.joined import groups, join, part
from loractl.formats.lineage import child_of, read_parents
from loractl.method import Outcome
from loractl.tensors.threads import one_thread
from loractl.tensors.truncate import Size, captured, choose_ranks, decompose, truncate
from loractl_resize.spec import ResizeSpec


@one_thread()
def run(spec: ResizeSpec, emit: Emit) -> Outcome:
    (parent,) = read_parents([spec.adapter], emit, True, pick_device(spec.memory.device))
    dtype = PRECISIONS.get(spec.output.dtype or "")
    child = child_of([parent], [1.0], spec.provenance(), spec.output.format, dtype)
    grouped = groups(parent.modules, child.metadata, child.format)
    whole = join(parent.modules, grouped)
    decomposed = {path: decompose(low) for path, low in whole.items()}
    parameters = None if spec.budget_mb is None else int(spec.budget_mb * 1e6) // child.dtype.itemsize
    ranks = choose_ranks(decomposed, Size(spec.rank, spec.energy, spec.ratio, parameters))
    modules, energy = truncate(decomposed, ranks), captured(decomposed, ranks)
    file = spec.destination()
    child.save(file, part(modules, grouped), parent.vectors, spec.output.overwrite)
    before, after = (sum(low.rank for low in each.values()) for each in (whole, modules))
    emit(Facts("resize", {"modules": f"{len(whole)} → {len(modules)}", "sum of ranks": f"{before} → {after}"}))
    emit(Wrote(file, child.format))
    numbers = {"parameters": sum(decomposed[path].cost * rank for path, rank in ranks.items()), "energy": energy}
    return Outcome({child.format: file}, numbers)
